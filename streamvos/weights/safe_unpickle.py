"""Objects of the authors' training code inside their checkpoints, read as something that does nothing.

FRTM's files hold running averages, JOINT's a network constructor, settings and statistics: instances of
classes that this package neither has nor wants. While such a file is read by torch's restricted reader
(tensors and plain containers, nothing else), the names of those classes stand for `StandIn`, which accepts
whatever it is given and keeps none of it. A name outside the authors' packages is refused as ever.

    with authors_classes_as_stand_ins(path):
        content = torch.load(path, weights_only=True)
"""

from __future__ import annotations

import pickletools
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import torch

AUTHORS_PACKAGES = ("lib.", "model.", "ltr.", "pytracking.")
"""Where the classes of FRTM's (the first two) and JOINT's training code live."""

NUMBERS = (
    "numpy.core.multiarray.scalar",
    "numpy._core.multiarray.scalar",
    "numpy.dtype",
    "_codecs.encode",
)
"""How a statistic that is a NumPy number is stored."""

LARGEST_HEAD = 64 * 2**20
"""Bytes of the part of a checkpoint that says what it holds; real ones take less than one MiB."""


class StandIn:
    """Stands for an object of a class that is not wanted; keeps nothing."""

    def __new__(cls, *_: Any, **__: Any) -> StandIn:
        return object.__new__(cls)

    def __init__(self, *_: Any, **__: Any):
        pass

    def __setstate__(self, _: Any) -> None:
        pass

    def __hash__(self) -> int:
        return id(self)


def foreign_names(path: Path) -> list[str]:
    """What a checkpoint refers to that is neither torch's, nor a container, nor an author's class."""
    known = (*AUTHORS_PACKAGES, "torch.", "collections.")
    return sorted(n for n in _names_in(path) if not n.startswith(known) and n not in NUMBERS)


def _plain_dict(*_: Any) -> dict[Any, Any]:
    """Stands for `collections.defaultdict`, whose factory is an author's class."""
    return {}


@contextmanager
def authors_classes_as_stand_ins(path: Path) -> Iterator[None]:
    """While it lasts, torch's restricted reader takes the authors' classes in `path` for `StandIn`.

    Raises:
        ValueError: the file's description of itself is damaged.
    """
    names = {n for n in _names_in(path) if n.startswith(AUTHORS_PACKAGES) or n in NUMBERS}
    stand_ins: list[Any] = [(type("StandIn", (StandIn,), {}), name) for name in sorted(names)]
    with torch.serialization.safe_globals([*stand_ins, (_plain_dict, "collections.defaultdict")]):
        yield


def _names_in(path: Path) -> set[str]:
    """Full names of the classes and functions that a checkpoint refers to; nothing is imported."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            heads = [info for info in archive.infolist() if info.filename.endswith("data.pkl")]
            names: set[str] = set()
            for info in heads:
                if info.file_size > LARGEST_HEAD:
                    raise ValueError(f"its description takes {info.file_size} bytes")
                with archive.open(info) as file:
                    names |= _names(file.read(LARGEST_HEAD))
            return names
    with path.open("rb") as file:
        # the older form: a magic number, a version and the system, and then the content
        return set().union(*(_names(file) for _ in range(4)))


def _names(stream: bytes | BinaryIO) -> set[str]:
    operations = pickletools.genops(stream)
    return {str(argument).replace(" ", ".") for code, argument, _ in operations if code.name == "GLOBAL"}
