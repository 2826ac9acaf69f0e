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

import av
import numpy as np

from streamvos.sources.capture import DeviceCapture, Grabbed, StreamCapture, no_answer, stall_error
from streamvos.sources.clock import LiveClock
from streamvos.sources.live_address import LiveAddress, Policy, live_address
from streamvos.sources.source import Picture, Selection, Source
from streamvos.types import InputError, SourceError

_LOSSLESS_CAPACITY = 8
"""Frames that "lossless" buffers before the stream has to wait; bounds the memory."""

_JOIN_SECONDS = 2.0


class LiveSource(Source):
    """A camera, a network stream, or a file that is played as if it were a camera.

    A file, or a finite video behind an address, is played in real time, from the first request for a frame.
    `pts` follows the stream's own time stamps while they rise and keep pace with the arrival of frames, then
    the times of arrival (`clock.LiveClock`).

    Args:
        place: a camera's number, the path of a device, a pipe or a video file, or a URL
            (`live_address.URL_SCHEMES`).
        name: name of the stream; "camera0", the file's stem or the URL's host if None.
        policy: "latest" or "lossless", see above.
        open_timeout: seconds within which the stream must be open.
        stall_timeout: seconds within which each next frame must come.
        selection: which frames, and how large.
        container: the open container of `place`, if it was opened before.

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
        container: av.container.InputContainer | None = None,
    ) -> None:
        if policy not in get_args(Policy):
            raise InputError(f"policy must be 'latest' or 'lossless', got {policy!r}")
        for option, seconds in (("open_timeout", open_timeout), ("stall_timeout", stall_timeout)):
            if not 0 < seconds < float("inf"):
                raise InputError(f"{option} must be a number of seconds > 0, got {seconds!r}")
        address = live_address(place)
        self._reader = _Reader(address, policy, open_timeout, stall_timeout, container)
        # Also stops the thread of a source that was not closed, at the latest when the interpreter ends.
        self._stop = weakref.finalize(self, self._reader.shut)
        self._reader.start()
        try:
            first = self._reader.await_first_frame()
        except BaseException:
            self._stop()
            raise
        # under "lossless" a slow reader makes frames arrive late
        checked = policy == "latest" and not self._reader.comes_in_pieces
        self._clock = LiveClock(self._reader.has_clock, checked)
        super().__init__(
            name=name or address.name,
            native_size=(int(first.shape[0]), int(first.shape[1])),
            fps=self._reader.fps,
            native_length=None,
            selection=selection or Selection(),
            pixel_aspect=self._reader.pixel_aspect,
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
        pts = self._clock(grabbed.position, grabbed.captured_ns)
        return Picture(grabbed.image(), grabbed.captured_ns, pts)

    def stem(self, index: int) -> str:
        """The frame's number in this stream: a live source has no numbers of its own."""
        return f"{index:05d}"

    def number_named(self, stem: str) -> int | None:
        """None, since no name says a frame of a live stream."""
        return None


class _Reader(threading.Thread):
    """Reads one stream to its end and puts the frames into a mailbox.

    It does not refer to its source, so that an unused source can be collected, and is a daemon, because a
    thread that hangs in a driver must not keep the program from ending. `_changed` guards what it shares
    with the owner's thread; only this thread uses the capture.
    """

    def __init__(
        self,
        address: LiveAddress,
        policy: Policy,
        open_timeout: float,
        stall_timeout: float,
        container: av.container.InputContainer | None,
    ) -> None:
        super().__init__(name=f"source {address.name}", daemon=True)
        self.dropped = 0
        self.fps: float | None = None
        self.pixel_aspect = 1.0
        self.has_clock, self.comes_in_pieces = True, False
        self._address, self._container = address, container
        self._paced = False
        self._capacity = 1 if policy == "latest" else _LOSSLESS_CAPACITY
        self._drops = policy == "latest"
        self._open_timeout = open_timeout
        self._stall_timeout = stall_timeout
        self._changed = threading.Condition()
        self._mailbox: deque[Grabbed] = deque()
        self._opened_at: float | None = None
        self._last_arrival = 0.0
        self._playing = False
        self._holding = False  # a frame has arrived, but the mailbox is full
        self._stopped = False
        self._over = False
        self._failure: str | None = None

    # ---- the owner's side

    def await_first_frame(self) -> np.ndarray:
        """Wait until the stream is open and a frame is there, and return it without taking it."""
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
                self.pixel_aspect = self._mailbox[0].pixel_aspect
                return self._mailbox[0].image()
            if self._failure is not None:
                raise SourceError(self._failure)
            label, advice = self._address.label, self._address.advice
            if self._over:
                raise SourceError(f"{label} was opened but ended without a frame; {advice}")
            if self._opened_at is not None:
                raise stall_error(self._address, self._stall_timeout)
            raise no_answer(self._address, self._open_timeout)

    def next(self) -> Grabbed | None:
        """The next frame; None when the stream has ended.

        Raises:
            SourceError: it failed, or nothing came for `stall_timeout` seconds.
        """
        with self._changed:
            if not self._playing:
                # What has an end starts to play when its first frame is taken, not when it was opened.
                self._playing = True
                if self._paced:
                    self._last_arrival = time.monotonic()
                if self._paced and self._mailbox:
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
                capture = StreamCapture(
                    self._address, self._open_timeout + 0.5, self._stall_timeout + 0.5, self._container
                )
            with self._changed:
                self.fps, self._paced = capture.fps, capture.paced
                self.has_clock, self.comes_in_pieces = capture.has_clock, capture.comes_in_pieces
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
            if self._paced:
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
