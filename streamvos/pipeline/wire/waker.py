"""Wakes a stage from any thread, by ending its poll.

A stage polls its sockets. A thread that the stage started, such as one that reads a camera or writes a file,
has no socket there, and wakes the stage instead:

    waker = Waker()
    waker.descriptor         # the stage polls it
    waker.wake()             # from any thread
    waker.clear()            # in `step`, before looking at what the thread has done
"""

from __future__ import annotations

import os
import threading


class Waker:
    """An eventfd, and whether it is set.

    Attributes:
        descriptor: readable from `wake` to the next `clear`.
    """

    def __init__(self) -> None:
        self.descriptor = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._lock = threading.Lock()  # a closed descriptor's number may be in use again
        self._woken = self._closed = False

    def wake(self) -> None:
        """Wake the stage; from any thread, any number of times, also after `close`."""
        with self._lock:
            if not (self._woken or self._closed):
                self._woken = True
                os.eventfd_write(self.descriptor, 1)

    def clear(self) -> None:
        """Reset, so that the next `wake` wakes the stage again."""
        with self._lock:
            if self._woken and not self._closed:
                self._woken = False
                os.eventfd_read(self.descriptor)

    def close(self) -> None:
        """Close the descriptor."""
        with self._lock:
            if not self._closed:
                self._closed = True
                os.close(self.descriptor)
