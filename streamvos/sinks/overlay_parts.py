"""An overlay video in parts: what is left of it when its writer is killed, and how the next one goes on.

A killed process leaves NAME.partial.mp4, which plays but for its last moments
(`OverlayVideoSink(recoverable=True)`). A video cannot be written on from there, so what is left is given its
final name, and the next writer makes a new part: overlay.mp4, overlay.2.mp4, ...

    last = rescue_parts("out/overlay.mp4")           # index of the last frame that is safe
    sink = OverlayVideoSink(part_path("out/overlay.mp4", 2), recoverable=True)
"""

from __future__ import annotations

import contextlib
import glob
import os
import re
from pathlib import Path

from streamvos.sinks.fragments import rescue
from streamvos.sinks.sink import cannot_write, partial_path


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
            found = rescue(partial)
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
