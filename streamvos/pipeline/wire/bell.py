"""A bell that any thread may ring to end a stage's poll.

A stage waits for its sockets; a thread of its own (one that reads a camera, or writes a file) has none that
the stage polls. It rings the bell instead:

    bell = Bell()
    bell.descriptor         # the stage polls it
    bell.ring()             # from any thread
    bell.hush()             # in `step`, before looking at what the thread has done
"""

from __future__ import annotations

import os
import threading
from contextlib import suppress


class Bell:
    """An eventfd, and whether it has been rung.

    Attributes:
        descriptor: readable from a ring to the next hush.
    """

    def __init__(self) -> None:
        self.descriptor = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._lock = threading.Lock()  # a descriptor that is closed may be somebody else's by then
        self._rung = self._closed = False

    def ring(self) -> None:
        """Wake the stage; from any thread, as often as one likes, also when it is closed."""
        with self._lock:
            if not (self._rung or self._closed):
                self._rung = True
                os.eventfd_write(self.descriptor, 1)

    def hush(self) -> None:
        """Take the ring back; what happens from now on rings again."""
        with self._lock:
            if self._rung and not self._closed:
                self._rung = False
                with suppress(BlockingIOError):
                    os.eventfd_read(self.descriptor)

    def close(self) -> None:
        """Close it."""
        with self._lock:
            if not self._closed:
                self._closed = True
                os.close(self.descriptor)
