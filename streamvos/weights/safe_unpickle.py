"""Reading checkpoints that contain objects of the authors' training code, without that code.

FRTM's files hold running averages, JOINT's a network constructor, settings and statistics: instances of
classes that this package neither has nor needs. While torch's restricted reader (tensors and plain
containers only) reads such a file, `StandIn` replaces those classes: it accepts any arguments and keeps
nothing. Any name outside the authors' packages is refused.

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
"""Packages of FRTM's (the first two) and JOINT's training code."""

NUMBERS = (
    "numpy.core.multiarray.scalar",
    "numpy._core.multiarray.scalar",
    "numpy.dtype",
    "_codecs.encode",
)
"""Names by which pickle stores a NumPy number, such as a statistic."""

LARGEST_HEAD = 64 * 2**20
"""Largest size in bytes of a checkpoint's pickle, without tensors; real ones take less than one MiB."""


class StandIn:
    """Replaces an object of an author's class; keeps nothing."""

    def __new__(cls, *_: Any, **__: Any) -> StandIn:
        return object.__new__(cls)

    def __init__(self, *_: Any, **__: Any):
        pass

    def __setstate__(self, _: Any) -> None:
        pass

    def __hash__(self) -> int:
        return id(self)


def foreign_names(path: Path) -> list[str]:
    """Names in a checkpoint that are neither torch's, nor containers, nor the authors' classes."""
    known = (*AUTHORS_PACKAGES, "torch.", "collections.")
    return sorted(n for n in _names_in(path) if not n.startswith(known) and n not in NUMBERS)


def _plain_dict(*_: Any) -> dict[Any, Any]:
    """Replaces `collections.defaultdict`, whose factory is an author's class."""
    return {}


@contextmanager
def authors_classes_as_stand_ins(path: Path) -> Iterator[None]:
    """Context in which torch's restricted reader replaces the authors' classes in `path` by `StandIn`.

    Raises:
        ValueError: the file's pickle is damaged.
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
                    raise ValueError(f"its pickle takes {info.file_size} bytes")
                with archive.open(info) as file:
                    names |= _names(file.read(LARGEST_HEAD))
            return names
    with path.open("rb") as file:
        # the older format: a magic number, a version and the system, then the content
        return set().union(*(_names(file) for _ in range(4)))


def _names(stream: bytes | BinaryIO) -> set[str]:
    operations = pickletools.genops(stream)
    return {str(argument).replace(" ", ".") for code, argument, _ in operations if code.name == "GLOBAL"}
