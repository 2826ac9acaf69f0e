"""Fragments of an MP4: what of a video is whole whose writer was killed, or had no room to complete it.

A recoverable video (`OverlayVideoSink`) consists of fragments, each an index with its pictures; an end that
was cut off is no fragment.

    rescue(Path("out/overlay.partial.mp4"))  # (0, 48): its first frame is frame 0, and 48 can be played
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

import av
import av.error

FIRST_FRAME = "first frame "
"""With this and its index a recoverable video's comment says which frame is its first."""


class _Box(NamedTuple):
    """A box of an MP4: its kind, and where in the file its head begins, its data begin, and it ends."""

    kind: bytes
    start: int
    data: int
    end: int


def rescue(partial: Path) -> tuple[int, int] | None:
    """Cut a video behind its last whole fragment.

    Returns:
        Index of its first frame, and how many there are; None if none can be played.

    Raises:
        OSError: it cannot be read or cut.
    """
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
