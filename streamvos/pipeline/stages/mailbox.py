"""Where frames wait for the source stage, and the thread that reads them.

A read may block for as long as a camera pleases, so a thread of its own reads. Under policy "latest" the
mailbox holds one frame and a newer one replaces it; under "lossless" it holds two and the reader waits.

    mailbox = Mailbox(newest=True, wake=waker.wake)
    reader = FrameReader(lambda: open_source("camera:0"), mailbox)
    reader.start()
    arrival = mailbox.take()            # None: nothing there
    mailbox.take_drops()                # {"newer frame": 3}
"""

from __future__ import annotations

import threading
import time
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, replace

from streamvos.sources import LiveSource, Source
from streamvos.types import Frame, InputError, SourceError, StreamvosError

LOSSLESS_FRAMES = 2
"""Frames that wait under "lossless"; with the one at the reader's hand all that it holds."""

_JOIN_SECONDS = 2.0


@dataclass(frozen=True, slots=True)
class Arrival:
    """A frame, and when the reader gave it (monotonic ns)."""

    frame: Frame
    received: int


class Mailbox:
    """Frames between the reader's thread and the stage's.

    Args:
        newest: policy "latest": one frame, the newest; else `LOSSLESS_FRAMES`, and the reader waits.
        wake: called when something is new for the stage.
    """

    def __init__(self, newest: bool, wake: Callable[[], None]):
        self._newest, self._wake = newest, wake
        self._changed = threading.Condition()
        self._frames: deque[Arrival] = deque()
        self._drops: Counter[str] = Counter()
        self._paused_at: int | None = None
        self._paused_ns = 0
        self._closed = self._over = False
        self._error: StreamvosError | None = None

    # ---- the reader's side

    def put(self, frame: Frame, dropped_before: int = 0) -> bool:
        """Leave a frame; waits for room under "lossless".

        Args:
            frame: the next one.
            dropped_before: frames that the source itself passed over for this one.

        Returns:
            False if the mailbox is closed.
        """
        received = time.monotonic_ns()
        with self._changed:
            self._drop("newer frame", dropped_before)
            if self._newest:
                self._drop("newer frame", len(self._frames))
                self._frames.clear()
            paused = self._newest and self._paused_at is not None
            if paused:
                self._drop("paused", 1)
            while not (self._newest or self._closed) and len(self._frames) >= LOSSLESS_FRAMES:
                self._changed.wait()
            if self._closed:
                return False
            if not paused:
                self._frames.append(Arrival(frame, received))
        self._wake()  # for a drop too, so that the heartbeat tells of it
        return True

    def wait_until(self, due: float) -> bool:
        """Wait for a moment (monotonic ns), which pauses under "lossless" put off.

        Returns:
            False if the mailbox was closed meanwhile.
        """
        with self._changed:
            while not self._closed:
                held = self._paused_at is not None and not self._newest
                remaining = due + (0 if self._newest else self._paused_ns) - time.monotonic_ns()
                if remaining <= 0 and not held:
                    return True
                self._changed.wait(None if held else remaining * 1e-9)
            return False

    def finish(self, error: StreamvosError | None) -> None:
        """Say that nothing more will come, and why if that is not as it should be."""
        with self._changed:
            self._over, self._error = True, error
        self._wake()

    # ---- the stage's side

    def take(self) -> Arrival | None:
        """The frame that is next; None if there is none now."""
        with self._changed:
            if not self._frames:
                return None
            self._changed.notify_all()
            return self._frames.popleft()

    def take_drops(self) -> Counter[str]:
        """Frames dropped since the last call, by cause."""
        with self._changed:
            drops, self._drops = self._drops, Counter()
            return drops

    @property
    def empty(self) -> bool:
        """Whether nothing is there now."""
        return not self._frames

    @property
    def over(self) -> bool:
        """Whether nothing is there and nothing more will come."""
        with self._changed:
            return self._over and not self._frames

    @property
    def error(self) -> StreamvosError | None:
        """Why the reader ended, if not in order."""
        return self._error

    def pause(self) -> None:
        """Under "latest" drop what comes from now on; under "lossless" let the clock stand still."""
        with self._changed:
            if self._paused_at is None:
                self._paused_at = time.monotonic_ns()
            if self._newest:
                self._drop("paused", len(self._frames))
                self._frames.clear()

    def resume(self) -> None:
        """The opposite."""
        with self._changed:
            if self._paused_at is not None:
                self._paused_ns += time.monotonic_ns() - self._paused_at
                self._paused_at = None
                self._changed.notify_all()

    def close(self) -> None:
        """Take nothing more, and forget what is there."""
        with self._changed:
            self._closed = True
            self._frames.clear()
            self._changed.notify_all()

    def _drop(self, cause: str, count: int) -> None:
        if count:
            self._drops[cause] += count


class FrameReader:
    """Reads a source to its end, in a thread of its own, and closes it.

    Args:
        make_source: opens it; may raise.
        mailbox: where the frames go.
        skip: frames to pass over at first, since they have been sent by an earlier life.
        paced: give each frame when its time stamp says, counted from the first.
        hide: makes an unforeseen error's text fit to be shown.

    Attributes:
        opening: it has not got its source yet.
    """

    def __init__(
        self,
        make_source: Callable[[], Source],
        mailbox: Mailbox,
        *,
        skip: int = 0,
        paced: bool = False,
        hide: Callable[[str], str] = str,
    ):
        self._make_source, self._mailbox = make_source, mailbox
        self._skip, self._paced, self._hide = skip, paced, hide
        self._stopped = False
        self._source: Source | None = None
        self._since = 0  # when the present read began
        self.opening = True
        # a daemon: a thread that hangs in a driver must not keep the process
        self._thread = threading.Thread(target=self._run, name="frame reader", daemon=True)

    def start(self) -> None:
        """Begin to read."""
        self._thread.start()

    @property
    def reading_since(self) -> int:
        """Since when it waits for its source without a sign of life, in monotonic ns; 0 = it does not."""
        since, source = self._since, self._source
        return max(since, source.alive_ns) if since and source is not None else since

    def stop(self, wait: bool = True) -> None:
        """End; a thread that hangs in a driver is left behind."""
        self._stopped = True
        self._mailbox.close()
        if wait:
            if isinstance(self._source, LiveSource):
                self._source.close()  # it has a thread of its own, and this ends a wait for it
            self._thread.join(_JOIN_SECONDS)

    def _run(self) -> None:
        try:
            self._since = time.monotonic_ns()
            self._source = self._make_source()
            self.opening = False
            with self._source as source:
                self._read(source)
        except StreamvosError as error:
            if not self._stopped:
                self._mailbox.finish(error)
        except Exception as error:  # a library's own; the supervisor must hear of it, and of no password
            text = self._hide(" ".join(str(error).split()))
            self._mailbox.finish(SourceError(f"the source failed: {type(error).__name__}: {text}"))
        else:
            self._mailbox.finish(None)
        finally:
            self._since = 0
            self._source = None

    def _read(self, source: Source) -> None:
        self._since = time.monotonic_ns()
        source.pass_over(self._skip)  # at once: a file may be able to seek
        seen, start = 0, 0.0
        while True:
            self._since = time.monotonic_ns()
            frame = next(source, None)
            self._since = 0
            if frame is None:
                return
            if self._paced:
                start = start or time.monotonic_ns() - frame.pts * 1e9
                if not self._mailbox.wait_until(start + frame.pts * 1e9):
                    return
                frame = replace(frame, captured_ns=time.monotonic_ns())
            dropped = source.dropped if isinstance(source, LiveSource) else 0
            if not self._mailbox.put(frame, dropped - seen) or self._stopped:
                return
            seen = dropped


def check_size(source: Source, expected: tuple[int, int]) -> Source:
    """The source itself, if its frames still have the size they had.

    Raises:
        InputError: they do not.
    """
    if source.size != expected:
        height, width = source.size
        source.close()
        raise InputError(
            f"{source.name} was {expected[1]}x{expected[0]} pixels and is {width}x{height} when opened anew; "
            "start the pipeline again"
        )
    return source
