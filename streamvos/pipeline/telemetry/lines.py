"""Lines for the standard error, and lines of the workers' standard error, without ever waiting for a reader.

    lines = LineWriter(2, "{} lines were dropped\\n".format)
    lines.write("2026-11-20T18:24:20 info ready\\n")        # from any thread; at once

    with WorkerOutput(lambda text: log.event("printed", text=text)) as output:
        subprocess.Popen(..., stdout=output.descriptor, stderr=output.descriptor)

A pipe that nobody reads and a terminal that was stopped block whoever writes to them. A thread therefore
writes the lines; those for which there is no room are dropped and counted. Processes write to a pipe that
another thread always reads.
"""

from __future__ import annotations

import os
import select
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress

ROOM_BYTES = 2**20
"""Lines that wait, in bytes; further ones are dropped."""

MOST_LINES = 200
"""Lines of workers per second; further ones are dropped."""

_AT_ONCE = 4096
_STALLED_SECONDS = 1.0
_FLUSH_SECONDS = 5.0


class LineWriter:
    """Writes to a descriptor in a thread of its own; a text stream for `logging`.

    Args:
        descriptor: where the lines go; not closed.
        note: makes the line that says how many were dropped.
    """

    def __init__(self, descriptor: int, note: Callable[[int], str]):
        self._descriptor, self._note = descriptor, note
        self._changed = threading.Condition()
        self._lines: deque[bytes] = deque()
        self._bytes = self._dropped = 0  # bytes: of the lines, and of those that are being written
        self._thread: threading.Thread | None = None

    def write(self, text: str) -> None:
        """Add a line, or drop it if there is no room."""
        with self._changed:
            self._note_drops()
            if self._dropped or not self._put(text):
                self._dropped += 1
            if self._thread is None:
                # a daemon: a write that does not return must not keep the process
                self._thread = threading.Thread(target=self._run, name="log", daemon=True)
                self._thread.start()

    def flush(self) -> None:
        """Do nothing, so that `logging` does not wait."""

    def finish(self) -> None:
        """Wait until all lines are written, but no longer than somebody reads them."""
        deadline = time.monotonic() + _FLUSH_SECONDS
        with self._changed:
            self._note_drops()
            while (left := self._bytes) and time.monotonic() < deadline:
                self._changed.wait(_STALLED_SECONDS)
                if self._bytes == left:
                    return
                self._note_drops()

    def _note_drops(self) -> None:
        """Once half of the room is free again, say what was dropped, and take lines again."""
        if self._dropped and self._bytes < ROOM_BYTES // 2:
            self._put(self._note(self._dropped))
            self._dropped = 0

    def _put(self, text: str) -> bool:
        line = text.encode(errors="backslashreplace")
        if self._bytes + len(line) > ROOM_BYTES:
            return False
        self._lines.append(line)
        self._bytes += len(line)
        self._changed.notify_all()
        return True

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._lines)
                batch = self._lines.popleft()
                while self._lines and len(batch) + len(self._lines[0]) <= _AT_ONCE:
                    batch += self._lines.popleft()
            self._write(batch)
            with self._changed:
                self._bytes -= len(batch)
                self._changed.notify_all()

    def _write(self, batch: bytes) -> None:
        with suppress(OSError):  # closed, or a full disk: nobody can be told
            while batch:
                try:
                    batch = batch[os.write(self._descriptor, batch) :]
                except BlockingIOError:  # somebody else has made it non-blocking
                    select.select([], [self._descriptor], [])


class WorkerOutput:
    """A pipe for the standard output and error of child processes, which is always read.

    Args:
        say: receives each line, in another thread.

    Attributes:
        descriptor: the writing end.
    """

    def __init__(self, say: Callable[[str], None]):
        self._say = say
        self._reading, self.descriptor = os.pipe()
        self._second, self._count = 0, 0
        self._thread = threading.Thread(target=self._run, name="workers' output", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Close the writing end, and wait for what is left; a child that lives on may keep it open."""
        os.close(self.descriptor)
        self._thread.join(_STALLED_SECONDS)

    def __enter__(self) -> WorkerOutput:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _run(self) -> None:
        rest = b""
        while chunk := os.read(self._reading, 2**16):
            *lines, rest = (rest + chunk).split(b"\n")
            for line in lines:
                self._take(line)
            if len(rest) > _AT_ONCE:
                self._take(rest)
                rest = b""
        self._take(rest)
        os.close(self._reading)

    def _take(self, line: bytes) -> None:
        text = line.decode(errors="backslashreplace").strip()
        second = int(time.monotonic())
        if second != self._second:
            dropped, self._second, self._count = self._count - MOST_LINES, second, 0
            if dropped > 0:
                self._say(f"... and {dropped} more lines")
        if text:
            self._count += 1
            if self._count <= MOST_LINES:
                self._say(text)
