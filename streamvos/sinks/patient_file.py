"""A file for a writer that cannot take back what it has begun: when the disk is full, it waits and goes on.

    file = PatientFile("out/overlay.partial.mp4", on_full=lambda error: wait_for_room())
    container = av.open(file, mode="w", format="mp4")

FFmpeg's muxer writes a fragment in many pieces and gives up for good at the first that fails. Here a piece is
tried again from where the disk ended it: the muxer hears of a full disk only if nobody waits for room.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from streamvos.sinks.sink import is_full


class PatientFile:
    """A file to be written, and nothing more, as PyAV takes it.

    Args:
        path: of the file; an earlier one is replaced.
        on_full: see `Sink.on_full`.

    Raises:
        OSError: it cannot be made. While writing: it cannot be written, and `on_full` gives up.
    """

    def __init__(self, path: str | Path, on_full: Callable[[Exception], bool]):
        self._file = open(path, "wb", buffering=0)  # noqa: SIM115
        self._on_full = on_full

    def write(self, data: bytes) -> int:
        """Write all of it; how much that was."""
        rest = memoryview(data)
        while rest:
            try:
                rest = rest[self._file.write(rest) :]
            except OSError as error:
                if not (is_full(error) and self._on_full(error)):
                    raise
        return len(data)

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Go to a place; which that is."""
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        """Where it is."""
        return self._file.tell()

    def close(self) -> None:
        """Let go of it. Closing twice does no harm."""
        self._file.close()
