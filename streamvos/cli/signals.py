"""Ctrl-C and `kill` end a command in order: finished output is kept, and the exit code says why.

    with signals_caught():
        for frame in source:
            with signals_held():        # a frame is written to every sink, or to none
                sinks.write(frame, result)

A signal becomes the exception `Stopped` wherever the main thread is, except within `signals_held`, where
it waits until the block ends. A second signal ends the program at once.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType

WORDS = {"SIGINT": "interrupted", "SIGTERM": "terminated", "SIGHUP": "hung up"}

_held = False
_waiting: int | None = None


class Stopped(BaseException):
    """A signal asked the program to end. Not an `Exception`, so that nothing handles it as a failure.

    Attributes:
        number: the signal's number.
        note: what the user should know, such as where unfinished files are; may be empty.
    """

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number
        self.note = ""

    @property
    def exit_code(self) -> int:
        """128 + the signal's number, as in shells: 130 for Ctrl-C, 143 for SIGTERM."""
        return 128 + self.number

    def __str__(self) -> str:
        word = WORDS.get(signal.Signals(self.number).name, "stopped")
        return f"{word}; {self.note}" if self.note else word


@contextmanager
def signals_caught() -> Iterator[None]:
    """Turn SIGINT, SIGTERM and SIGHUP into `Stopped` within the block.

    A signal that is ignored (nohup, a shell's background job) stays ignored; outside the main thread,
    where Python cannot set handlers, nothing changes.
    """
    owner = os.getpid()
    earlier: dict[int, object] = {}

    def restore() -> None:
        for number, handler in earlier.items():
            signal.signal(number, handler)  # type: ignore[arg-type]
        earlier.clear()

    def stop(number: int, _: FrameType | None) -> None:
        global _waiting
        if os.getpid() != owner:  # a forked child must not clean up for its parent
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
            return
        if _held and _waiting is None:
            _waiting = number
            return
        restore()
        raise Stopped(number)

    with suppress(ValueError):  # not the main thread
        for name in WORDS:
            number = getattr(signal, name, None)
            if number is not None and signal.getsignal(number) not in (signal.SIG_IGN, None):
                earlier[number] = signal.signal(number, stop)
    try:
        yield
    finally:
        restore()


@contextmanager
def signals_held() -> Iterator[None]:
    """Delay a signal until the end of the block, which should be short; not to be nested."""
    global _held, _waiting
    _held = True
    try:
        yield
    finally:
        _held = False
        number, _waiting = _waiting, None
    if number is not None:
        signal.raise_signal(number)
