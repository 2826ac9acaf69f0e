"""An overlay video in parts: what a killed writer leaves, and how the next writer continues.

A killed process leaves a partial file, a fragmented MP4 that plays except for its last fragment
(`OverlayVideoSink(recoverable=True)`). It cannot be appended to, so it gets its final name and the next
writer starts a new part: overlay.mp4, overlay.2.mp4, ... The record of the folder says which files are parts
of which video; their names alone do not.

    last = rescue_parts(path, record)                # index of the last frame that is safe
    part = free_part(path, 2, record)
    sink = OverlayVideoSink(path, recoverable=True, record=record, part=part)
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Collection
from pathlib import Path

import av
import av.error

from streamvos.sinks.record import OutputRecord, give_name
from streamvos.sinks.sink import cannot_write

logger = logging.getLogger(__name__)

FIRST_FRAME = "first frame "
"""The comment of a recoverable video is this and the index of its first frame."""


def part_path(path: str | Path, number: int) -> Path:
    """Name of a part, counted from 1: overlay.mp4, overlay.2.mp4, ..."""
    path = Path(path)
    return path if number == 1 else path.with_name(f"{path.stem}.{number}{path.suffix}")


def free_part(path: str | Path, number: int, record: OutputRecord, taken: Collection[Path] = ()) -> int:
    """The first part from `number` on whose name is free.

    Args:
        path: the video.
        number: at least 1; the first part is the video itself and always free.
        record: of the video.
        taken: paths of other outputs.
    """
    others = {one.absolute() for one in taken}
    while number > 1:
        part = part_path(path, number)
        is_free = not os.path.lexists(part) or record.overwrite or record.is_ours(part)
        if is_free and part.absolute() not in others:
            break
        number += 1
    return number


def rescue_parts(path: str | Path, record: OutputRecord, taken: Collection[Path] = ()) -> int | None:
    """Give the partial files of killed writers their final names, without their torn ends.

    A file without a single playable frame is removed; the others are logged. It takes as long as reading the
    files once, and a quarter of a second.

    Args:
        path: the video.
        record: lists its partial files.
        taken: paths of other outputs.

    Returns:
        Index of the last frame of the last part; None if there is none.

    Raises:
        SinkError: the folder cannot be written.
    """
    last = None
    for number, partial in record.partials():
        part = part_path(path, free_part(path, number, record, taken))
        try:
            found = cut_torn_end(partial)
            if found is None:
                partial.unlink(missing_ok=True)
                continue
            give_name(partial, part, record)
        except OSError as error:
            raise cannot_write(partial, error) from error
        first, frames = found
        last = first + frames - 1
        logger.warning(
            "%s: a killed writer's frames %d to %d; the video continues in a new part", part, first, last
        )
    return last


def cut_torn_end(partial: Path) -> tuple[int, int] | None:
    """Shorten a fragmented MP4 to its last whole fragment.

    FFmpeg may refuse to open a file whose last fragment has a torn header, so the end is found by the sizes
    of the boxes and cut off first.

    Returns:
        Index of its first frame and the number of frames; None if none can be played.

    Raises:
        OSError: it cannot be read or shortened.
    """
    os.truncate(partial, _end_of_fragments(partial))
    try:
        with av.open(f"file:{partial.absolute()}") as container:
            first = container.metadata.get("comment", "").removeprefix(FIRST_FRAME)
            frames = sum(packet.size > 0 for packet in container.demux(video=0))
    except (av.error.FFmpegError, ValueError, IndexError):
        return None
    return (int(first) if first.isdecimal() else 0, frames) if frames else None


def _end_of_fragments(path: Path) -> int:
    """Where the last whole fragment ends, in bytes; the size of a finished file, which has no fragments."""
    end, is_fragmented = 0, False
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        place = file.seek(0)
        while len(head := file.read(8)) == 8:
            length, kind = int.from_bytes(head[:4], "big"), head[4:]
            if length == 1:  # a box of 4 GiB or more, whose length follows
                length = int.from_bytes(file.read(8), "big")
            if length < 8 or place + length > size:
                break
            place = file.seek(place + length)
            if kind == b"moof":
                is_fragmented = True
            elif kind == b"mdat":
                end = place
    return end if is_fragmented else size


def remove_partial_parts(record: OutputRecord) -> None:
    """Remove partial files of an earlier run, so that they are not taken for this run's."""
    for _, partial in record.partials():
        with contextlib.suppress(OSError):
            partial.unlink()
