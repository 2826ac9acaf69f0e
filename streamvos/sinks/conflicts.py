"""Outputs that would replace inputs: one check of all that is written against all that is read.

Two paths are the same if they lead to the same file, by device and inode, whatever links, "..", or upper and
lower case they contain.

    refuse_conflicts(
        written=[Place(Path("out/labels"), "the label maps", is_folder=True)],
        read=[Place(Path("out/labels/00000.png"), "--mask")],
    )
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from streamvos.types import InputError


def _nothing(_: Path) -> bool:
    return False


@dataclass(frozen=True, slots=True)
class Place:
    """A file or folder that a command reads or writes.

    Attributes:
        path: the file or folder, which need not exist.
        what: what it is, such as "--mask" or "the trace".
        is_folder: written: it is a folder of label maps, whose names are those of frames.
        reads: read: whether a file at another path would be read, too, such as a picture in a folder of
            frames.
    """

    path: Path
    what: str
    is_folder: bool = False
    reads: Callable[[Path], bool] = _nothing


def tree(path: Path, what: str) -> Place:
    """A folder of which everything is read, such as a data set; a file is just that file."""

    def holds(one: Path) -> bool:
        return path.is_dir() and Path(os.path.realpath(one)).is_relative_to(os.path.realpath(path))

    return Place(path, what, reads=holds)


def refuse_conflicts(written: Iterable[Place], read: Iterable[Place]) -> None:
    """Refuse outputs that would replace an input, or each other.

    Raises:
        InputError: one would; the message names both.
    """
    inputs = [(place, identity(place.path)) for place in read]
    taken: dict[object, Place] = {}
    for output in written:
        own = identity(output.path)
        if (other := taken.setdefault(own, output)) is not output:
            raise InputError(
                f'{output.what} and {other.what} write to the same place, "{output.path}"; give each its own'
            )
        for place, theirs in inputs:
            if own == theirs or _would_hold(output, own, place) or _would_be_read(output, place):
                raise InputError(
                    f"{output.what}: {output.path} would replace what is read, {place.what} {place.path}; "
                    "write elsewhere"
                )
    for output in taken.values():
        for folder in output.path.absolute().parents:
            holder = taken.get(identity(folder))
            if holder is not None and not holder.is_folder:
                raise InputError(
                    f"{output.what} would write into {holder.path}, which is the file of {holder.what}; "
                    "give each its own place"
                )


def identity(path: Path) -> tuple[object, ...]:
    """What is equal for all paths to one file: its device and inode.

    A path that does not exist has those of its nearest parent that does, and the rest of its names.
    """
    real = Path(os.path.realpath(path))
    for existing in (real, *real.parents):
        try:
            found = os.stat(existing)
        except (OSError, ValueError):
            continue
        return found.st_dev, found.st_ino, *real.parts[len(existing.parts) :]
    return real.parts


def _would_hold(output: Place, own: tuple[object, ...], place: Place) -> bool:
    """Whether a picture that is read lies in a folder of label maps that is written."""
    if not output.is_folder:
        return False
    paths = (place.path.absolute(), Path(os.path.realpath(place.path)))
    return any(one.suffix.lower() == ".png" and identity(one.parent) == own for one in paths)


def _would_be_read(output: Place, place: Place) -> bool:
    return place.reads(output.path / "00000.png" if output.is_folder else output.path)
