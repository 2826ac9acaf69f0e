"""An overlay video in parts: what is left of it when its writer is killed, and how the next one goes on.

A killed process leaves NAME.partial.mp4, which plays but for its last moments
(`OverlayVideoSink(recoverable=True)`). A video cannot be written on from there, so what is left is given its
final name, and the next writer makes a new part: overlay.mp4, overlay.2.mp4, ...

    >>> last = rescue_parts("out/overlay.mp4")           # index of the last frame that is safe
    >>> sink = OverlayVideoSink(part_path("out/overlay.mp4", 2), recoverable=True)
"""

from __future__ import annotations

import contextlib
import glob
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

import av
import av.error

from streamvos.sinks.overlay_video import FIRST_FRAME
from streamvos.sinks.sink import cannot_write, partial_path


class _Box(NamedTuple):
    """A box of an MP4: its kind, and where in the file its head begins, its data begin, and it ends."""

    kind: bytes
    start: int
    data: int
    end: int


def part_path(path: str | Path, number: int) -> Path:
    """Name of a part, counted from 1: overlay.mp4, overlay.2.mp4, ..."""
    path = Path(path)
    return path if number == 1 else path.with_name(f"{path.stem}.{number}{path.suffix}")


def rescue_parts(path: str | Path) -> int | None:
    """Finish what killed writers left of a video, and give each part its final name.

    What cannot be played is removed.

    Returns:
        Index of the last frame of the last part; None if there is none.

    Raises:
        SinkError: the folder cannot be written.
    """
    last = None
    for number, partial in _partial_parts(Path(path)):
        try:
            found = _rescue(partial)
            if found is None:
                partial.unlink(missing_ok=True)
                continue
            os.replace(partial, part_path(path, number))
        except OSError as error:
            raise cannot_write(partial, error) from error
        first, frames = found
        last = first + frames - 1
    return last


def remove_partial_parts(path: str | Path) -> None:
    """Remove what killed writers of an earlier run left, so that it is not taken for this run's."""
    for _, partial in _partial_parts(Path(path)):
        with contextlib.suppress(OSError):
            partial.unlink()


def _partial_parts(path: Path) -> list[tuple[int, Path]]:
    name = re.compile(re.escape(path.stem) + r"(?:\.(\d+))?\.partial" + re.escape(path.suffix))
    found = []
    for candidate in path.parent.glob(f"{glob.escape(path.stem)}*.partial{path.suffix}"):
        match = name.fullmatch(candidate.name)
        if match is not None and candidate.is_file():
            found.append((int(match[1] or 1), candidate))
    assert all(partial_path(part_path(path, number)) == one for number, one in found)
    return sorted(found)


def _rescue(partial: Path) -> tuple[int, int] | None:
    """Cut a video behind its last whole fragment: index of its first frame, and how many there are."""
    with partial.open("r+b") as file:
        size = file.seek(0, os.SEEK_END)
        boxes = [box for box in _boxes(file, 0, size) if box.end <= size]
        # an index without its pictures; the index of a finished video comes behind them
        while boxes and boxes[-1].kind in (b"moof", b"moov") and not _is_finished(boxes):
            boxes.pop()
        frames = sum(_samples(file, box) for box in boxes if box.kind == b"moof")
        file.truncate(boxes[-1].end if boxes else 0)
    try:
        with av.open(f"file:{partial.absolute()}") as container:
            frames += container.streams.video[0].frames  # of the first index; of all, if it was finished
            comment = container.metadata.get("comment", "")
    except (av.error.FFmpegError, OSError, ValueError, IndexError):
        return None
    number = comment.removeprefix(FIRST_FRAME)
    return (int(number) if number.isdecimal() else 0, frames) if frames else None


def _is_finished(boxes: list[_Box]) -> bool:
    return boxes[-1].kind == b"moov" and any(box.kind == b"mdat" for box in boxes)


def _boxes(file: BinaryIO, start: int, end: int) -> Iterator[_Box]:
    while start + 8 <= end:
        file.seek(start)
        head = file.read(16)
        size, kind, data = int.from_bytes(head[:4], "big"), head[4:8], start + 8
        if size == 1:
            size, data = int.from_bytes(head[8:], "big"), start + 16
        elif size == 0:
            size = end - start
        if size < data - start:
            return
        yield _Box(kind, start, data, start + size)
        start += size


def _samples(file: BinaryIO, moof: _Box) -> int:
    """Frames of a fragment: the sample counts of its track runs."""
    count = 0
    for traf in _boxes(file, moof.data, moof.end):
        if traf.kind == b"traf":
            for run in _boxes(file, traf.data, traf.end):
                if run.kind == b"trun":
                    file.seek(run.data + 4)  # version and flags
                    count += int.from_bytes(file.read(4), "big")
    return count
