"""A bell that any thread may ring to end a stage's poll.

A stage waits for its sockets; a thread of its own (one that reads a camera, or writes a file) has none that
the stage polls. It rings the bell instead:

    bell = Bell(context)
    bell.socket             # the stage polls it
    bell.ring()             # from any thread
    bell.hush()             # in `step`, before looking at what the thread has done
"""

from __future__ import annotations

import itertools
import threading
from contextlib import suppress
from typing import Any

import zmq

_numbers = itertools.count()


class Bell:
    """A pair of sockets within the process, and at most one message between them.

    Attributes:
        socket: readable from a ring to the next hush.
    """

    def __init__(self, context: zmq.Context[Any]):
        address = f"inproc://bell-{next(_numbers)}"
        self.socket: zmq.Socket[bytes] = context.socket(zmq.PAIR)
        self._clapper: zmq.Socket[bytes] = context.socket(zmq.PAIR)
        # ZeroMQ's sockets may pass from thread to thread as long as a lock lies between their uses.
        self._lock = threading.Lock()
        self._rung = self._closed = False
        self.socket.bind(address)
        self._clapper.connect(address)

    def ring(self) -> None:
        """Wake the stage; from any thread, as often as one likes, also when it is closed."""
        with self._lock:
            if not (self._rung or self._closed):
                self._rung = True
                with suppress(zmq.ZMQError):  # the context is going down; nobody waits any more
                    self._clapper.send(b"", zmq.NOBLOCK)

    def hush(self) -> None:
        """Take the ring back; what happens from now on rings again."""
        with self._lock:
            if self._closed:
                return
            self._rung = False
            with suppress(zmq.Again):
                while True:
                    self.socket.recv(zmq.NOBLOCK)

    def close(self) -> None:
        """Close both ends."""
        with self._lock:
            self._closed = True
            self._clapper.close(linger=0)
            self.socket.close(linger=0)
