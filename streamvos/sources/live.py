"""Cameras and network streams, read in a thread.

Reading a camera or a socket may block for ever (opencv#22677), so a thread reads, and the caller waits for
that thread with a deadline: a stream that stalls is an error after `stall_timeout` seconds, never a hang.

The policy says what happens when frames come faster than they are used. "latest" keeps only the newest frame;
older ones are dropped and counted. "lossless" gives every frame and makes the stream wait, or lets buffers
elsewhere overflow.

    with LiveSource("rtsp://user:secret@10.0.0.5/stream", stall_timeout=5.0) as source:
        for frame in source:
            print(frame.index, source.dropped)
"""

from __future__ import annotations

import threading
import time
import weakref
from collections import deque
from dataclasses import replace
from pathlib import Path
from typing import get_args

from streamvos.sources.capture import DeviceCapture, Grabbed, StreamCapture, stall_error
from streamvos.sources.live_address import LiveAddress, Policy, live_address
from streamvos.sources.source import Picture, Selection, Source
from streamvos.types import InputError, SourceError

_LOSSLESS_CAPACITY = 8
"""Frames that "lossless" buffers before the stream has to wait; bounds the memory."""

_JOIN_SECONDS = 2.0


class LiveSource(Source):
    """A camera, a network stream, or a file that is played as if it were a camera.

    A file is played in real time, from the first request for a frame. `pts` follows the stream's own time
    stamps while they rise, then the times at which frames were grabbed.

    Args:
        place: a camera's number, the path of a device or a video file, or a URL (`live_address.URL_SCHEMES`).
        name: name of the stream; "camera0", the file's stem or the URL's host if None.
        policy: "latest" or "lossless", see above.
        open_timeout: seconds within which the stream must be open.
        stall_timeout: seconds within which each next frame must come.
        selection: which frames, and how large.

    Raises:
        InputError: the address or an option cannot be used.
        SourceError: no such device, no answer, access refused, or not a video. Later: the stream stalls,
            breaks off, or changes its size. A stream that its server ends properly ends the iteration.
    """

    _fault = SourceError

    def __init__(
        self,
        place: int | str | Path,
        *,
        name: str | None = None,
        policy: Policy = "latest",
        open_timeout: float = 10.0,
        stall_timeout: float = 10.0,
        selection: Selection | None = None,
    ) -> None:
        if policy not in get_args(Policy):
            raise InputError(f"policy must be 'latest' or 'lossless', got {policy!r}")
        for option, seconds in (("open_timeout", open_timeout), ("stall_timeout", stall_timeout)):
            if not 0 < seconds < float("inf"):
                raise InputError(f"{option} must be a number of seconds > 0, got {seconds!r}")
        address = live_address(place)
        self._reader = _Reader(address, policy, open_timeout, stall_timeout)
        # Also stops the thread of a source that was not closed, at the latest when the interpreter ends.
        self._stop = weakref.finalize(self, self._reader.shut)
        self._reader.start()
        try:
            size = self._reader.await_first_frame()
        except BaseException:
            self._stop()
            raise
        self._clock = _Clock()
        super().__init__(
            name=name or address.name,
            native_size=size,
            fps=self._reader.fps,
            native_length=None,
            selection=selection or Selection(),
        )

    @property
    def dropped(self) -> int:
        """Number of frames that policy "latest" dropped for newer ones."""
        return self._reader.dropped

    def close(self) -> None:
        if not self._closed:
            self._stop()
        super().close()

    def _read(self) -> Picture | None:
        grabbed = self._reader.next()
        if grabbed is None:
            return None
        return Picture(grabbed.image(), grabbed.captured_ns, self._clock.pts(grabbed))


class _Clock:
    """Presentation times: the stream's own while they rise, then from the times of grabbing."""

    def __init__(self) -> None:
        self._last: tuple[float, int, float] | None = None  # position, time of grabbing, pts
        self._trusted = True

    def pts(self, grabbed: Grabbed) -> float:
        if self._last is None:
            pts = 0.0
        else:
            last_position, last_captured_ns, last_pts = self._last
            step = grabbed.position - last_position
            # Streams without time stamps give NaN or zeros; clocks that wrap or restart go back.
            self._trusted = self._trusted and step > 0
            pts = last_pts + (step if self._trusted else (grabbed.captured_ns - last_captured_ns) * 1e-9)
        self._last = (grabbed.position, grabbed.captured_ns, pts)
        return pts


class _Reader(threading.Thread):
    """Reads one stream to its end and puts the frames into a mailbox.

    It does not refer to its source, so that an unused source can be collected, and is a daemon, because a
    thread that hangs in a driver must not keep the program from ending. `_changed` guards what it shares
    with the owner's thread; only this thread uses the capture.
    """

    def __init__(
        self, address: LiveAddress, policy: Policy, open_timeout: float, stall_timeout: float
    ) -> None:
        super().__init__(name=f"source {address.name}", daemon=True)
        self.dropped = 0
        self.fps: float | None = None
        self._address = address
        self._capacity = 1 if policy == "latest" else _LOSSLESS_CAPACITY
        self._drops = policy == "latest"
        self._open_timeout = open_timeout
        self._stall_timeout = stall_timeout
        self._changed = threading.Condition()
        self._mailbox: deque[Grabbed] = deque()
        self._opened_at: float | None = None
        self._last_arrival = 0.0
        self._playing = address.kind != "file"
        self._holding = False  # a frame has arrived, but the mailbox is full
        self._stopped = False
        self._over = False
        self._failure: str | None = None

    # ---- the owner's side

    def await_first_frame(self) -> tuple[int, int]:
        """Wait until the stream is open and a frame is there; its (H, W)."""
        deadline = time.monotonic() + self._open_timeout
        with self._changed:
            while not (self._mailbox or self._over):
                if self._opened_at is not None:
                    deadline = self._opened_at + self._stall_timeout
                remaining = deadline - time.monotonic()
                if remaining <= 0:
                    break
                self._changed.wait(remaining)
            if self._mailbox:
                height, width = self._mailbox[0].image().shape[:2]
                return int(height), int(width)
            if self._failure is not None:
                raise SourceError(self._failure)
            label, advice = self._address.label, self._address.advice
            if self._over:
                raise SourceError(f"{label} was opened but ended without a frame; {advice}")
            if self._opened_at is not None:
                raise stall_error(self._address, self._stall_timeout)
            raise SourceError(
                f"cannot open {label}: no answer within {self._open_timeout:g} s (open_timeout); {advice}"
            )

    def next(self) -> Grabbed | None:
        """The next frame; None when the stream has ended.

        Raises:
            SourceError: it failed, or nothing came for `stall_timeout` seconds.
        """
        with self._changed:
            if not self._playing:
                # A file starts to play when its first frame is taken, not when it was opened.
                self._playing = True
                self._last_arrival = time.monotonic()
                if self._mailbox:
                    self._mailbox[0] = replace(self._mailbox[0], captured_ns=time.monotonic_ns())
                self._changed.notify_all()
            while True:
                if self._mailbox:
                    grabbed = self._mailbox.popleft()
                    self._changed.notify_all()
                    return grabbed
                if self._failure is not None:
                    raise SourceError(self._failure)
                if self._over:
                    return None
                remaining = self._last_arrival + self._stall_timeout - time.monotonic()
                if self._holding:
                    self._changed.wait()
                elif remaining > 0:
                    self._changed.wait(remaining)
                else:
                    self._stopped = True
                    self._failure = str(stall_error(self._address, self._stall_timeout))
                    self._changed.notify_all()

    def shut(self) -> None:
        """Ask the thread to end and wait a moment for it; it may hang in a driver."""
        with self._changed:
            self._stopped = True
            self._mailbox.clear()
            self._changed.notify_all()
        if self.ident is not None and self is not threading.current_thread():
            self.join(_JOIN_SECONDS)

    # ---- the thread's side

    def run(self) -> None:
        capture: DeviceCapture | StreamCapture | None = None
        failure: str | None = None
        try:
            if self._address.kind == "device":
                capture = DeviceCapture(self._address)
            else:
                # These deadlines end a blocked read, and with it this thread, a little after the owner has
                # reported the stall.
                capture = StreamCapture(self._address, self._open_timeout + 0.5, self._stall_timeout + 0.5)
            with self._changed:
                self.fps = capture.fps
                self._opened_at = self._last_arrival = time.monotonic()
                self._changed.notify_all()
            self._read_all(capture)
        except SourceError as error:
            failure = str(error)
        except Exception as error:  # the owner must learn of any error, but never see the password
            text = " ".join(str(error).split()).replace(str(self._address.target), self._address.label)
            failure = f"{self._address.label} failed: {type(error).__name__}: {text}"
        finally:
            if capture is not None:
                capture.close()
            with self._changed:
                self._failure = self._failure or failure
                self._over = True
                self._changed.notify_all()

    def _read_all(self, capture: DeviceCapture | StreamCapture) -> None:
        count, started, first_position = 0, 0.0, 0.0
        for grabbed in capture.frames():
            if self._stopped:
                return
            if grabbed is None:
                continue
            if self._address.kind == "file":
                if count == 0:
                    first_position = grabbed.position
                elif count == 1:
                    started = self._await_play()
                if count:
                    self._sleep_until(started + grabbed.position - first_position)
                    grabbed = replace(grabbed, captured_ns=time.monotonic_ns())
            self._put(grabbed)
            count += 1

    def _put(self, grabbed: Grabbed) -> None:
        with self._changed:
            if self._drops:
                self.dropped += len(self._mailbox)
                self._mailbox.clear()
            while len(self._mailbox) >= self._capacity and not self._stopped:
                self._holding = True
                self._changed.wait()
            self._holding = False
            if not self._stopped:
                self._mailbox.append(grabbed)
            self._last_arrival = time.monotonic()
            self._changed.notify_all()

    def _await_play(self) -> float:
        with self._changed:
            while not (self._playing or self._stopped):
                self._changed.wait()
        return time.monotonic()

    def _sleep_until(self, due: float) -> None:
        with self._changed:
            while not self._stopped and (remaining := due - time.monotonic()) > 0:
                self._changed.wait(remaining)
