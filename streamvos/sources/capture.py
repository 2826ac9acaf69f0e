"""Grabbing frames: OpenCV for camera devices, PyAV for network streams and files.

Both may block for ever, so only the thread of streamvos/sources/live.py uses them. PyAV reads the network,
because OpenCV cannot tell a stream that ends from one that breaks off, or a refused password from a missing
server, and resizes frames of a new size to the first one's; PyAV also gives the stream's own time stamps.

Both captures have `fps`, the frames per second that the stream claims (None if the claim is not credible),
`frames`, an iterator that raises a `SourceError` when the stream fails, and `close`.
"""

from __future__ import annotations

import math
import os
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import av
import av.error
import numpy as np

from streamvos.sources.container import (
    comes_in_pieces,
    credible_fps,
    file_reason,
    has_clock,
    is_finite,
    open_container,
    rate_of,
    reason_of,
    video_stream,
)
from streamvos.sources.live_address import LiveAddress
from streamvos.sources.picture import PictureMaker
from streamvos.types import InputError, SourceError, StreamvosError


@dataclass(frozen=True, slots=True)
class Grabbed:
    """One frame, not yet converted, since it may be dropped.

    Attributes:
        image: function that makes the picture, (H, W, 3) uint8 RGB.
        captured_ns: `time.monotonic_ns()` when it arrived.
        position: seconds on the stream's own clock; NaN if it has none.
        pixel_aspect: width of a pixel divided by its height.
    """

    image: Callable[[], np.ndarray]
    captured_ns: int
    position: float
    pixel_aspect: float = 1.0


def no_answer(address: LiveAddress, seconds: float) -> SourceError:
    """The error for an address that did not open within `seconds`."""
    return SourceError(
        f"cannot open {address.label}: no answer within {seconds:g} s (open_timeout); {address.advice}"
    )


def cannot_open(address: LiveAddress, error: Exception, seconds: float) -> Exception:
    """The error for an address that FFmpeg cannot open; raise it "from None": `error` may hold a password."""
    if isinstance(error, StreamvosError):
        return error
    if isinstance(error, av.error.ExitError):
        return no_answer(address, seconds)
    if address.kind == "file":
        return InputError(f"cannot open the video {address.label}: {file_reason(address.label, error)}")
    return SourceError(f"cannot open {address.label}: {reason_of(error).lower()}; {address.advice}")


def stall_error(address: LiveAddress, seconds: float) -> SourceError:
    """The error for a stream that gave no frame for `seconds`."""
    return SourceError(
        f"{address.label} stalled: no frame for {seconds:g} s (stall_timeout); {address.advice}"
    )


class DeviceCapture:
    """A camera, by OpenCV.

    Args:
        address: address of a device.
        backend: one of OpenCV's cv2.CAP_...; the platform's own if None.

    Raises:
        SourceError: it cannot be opened.
    """

    def __init__(self, address: LiveAddress, backend: int | None = None) -> None:
        import cv2  # the other sources do without it

        if "OPENCV_LOG_LEVEL" not in os.environ:
            # The errors raised here say in one line what OpenCV would print to stderr.
            cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_ERROR)
        if backend is None:
            backend = cv2.CAP_V4L2 if sys.platform.startswith("linux") else cv2.CAP_ANY
        self._address = address
        self._capture = cv2.VideoCapture()
        try:
            opened = self._capture.open(address.target, backend)
        except cv2.error as error:
            raise SourceError(f"cannot open {address.label}: {error.err}; {address.advice}") from error
        if not opened:
            raise SourceError(f"cannot open {address.label}: not a camera, or in use; {address.advice}")
        self.fps = credible_fps(self._capture.get(cv2.CAP_PROP_FPS))
        self.paced, self.has_clock, self.comes_in_pieces = False, True, False

    def frames(self) -> Iterator[Grabbed]:
        import cv2

        while self._capture.grab():
            captured_ns = time.monotonic_ns()
            read, image = self._capture.retrieve()
            if not read or image is None:
                raise SourceError(f"{self._address.label} gave a frame that cannot be decoded")
            milliseconds = self._capture.get(cv2.CAP_PROP_POS_MSEC)
            yield Grabbed(partial(_rgb, image), captured_ns, milliseconds / 1000)
        raise SourceError(f"{self._address.label} stopped giving frames; is it still plugged in?")

    def close(self) -> None:
        self._capture.release()


class StreamCapture:
    """A network stream, a pipe, or a file, by PyAV.

    Packets that cannot be decoded are skipped: they are common on a lossy line. `frames` then yields None,
    so that the caller can check whether to stop. The timeouts are in seconds.

    Args:
        container: the open container of `address`, if it was opened before.

    Attributes:
        paced: whether it has an end, so that it is played at its own speed.
        has_clock: whether its time stamps are its own.
        comes_in_pieces: whether frames come in bursts.

    Raises:
        SourceError: it cannot be opened.
    """

    def __init__(
        self,
        address: LiveAddress,
        open_timeout: float,
        stall_timeout: float,
        container: av.container.InputContainer | None = None,
    ) -> None:
        self._address = address
        self._stall_timeout = stall_timeout
        target = str(address.target)
        try:
            self._container = container or open_container(target, open_timeout, stall_timeout)
        except SourceError:
            raise
        except (av.error.FFmpegError, OSError, ValueError) as error:
            raise cannot_open(address, error, open_timeout) from None
        try:
            self._stream = video_stream(self._container, address.label)
        except InputError as error:
            self._container.close()
            raise SourceError(f"cannot open {address.label}: {error}; {address.advice}") from None
        self._make_image = PictureMaker(address.label, self._stream)
        self.fps = rate_of(self._stream)
        self.paced = address.kind != "pipe" and is_finite(self._container)
        self.has_clock = has_clock(self._container)
        self.comes_in_pieces = comes_in_pieces(self._container)

    def frames(self) -> Iterator[Grabbed | None]:
        try:
            for packet in self._container.demux(self._stream):
                try:
                    frames = packet.decode()
                except (av.error.InvalidDataError, ValueError):
                    frames = []
                captured_ns = time.monotonic_ns()
                for frame in frames:
                    position = math.nan if frame.time is None else frame.time
                    aspect = self._make_image.pixel_aspect(frame)
                    yield Grabbed(partial(self._make_image, frame), captured_ns, position, aspect)
                if not frames:
                    yield None
        except av.error.ExitError:  # FFmpeg's error for a deadline that has passed
            raise stall_error(self._address, self._stall_timeout) from None
        except (av.error.FFmpegError, OSError) as error:
            reason = reason_of(error).lower()
            raise SourceError(f"{self._address.label} broke off: {reason}; try again") from None

    def close(self) -> None:
        self._container.close()


def _rgb(image: np.ndarray) -> np.ndarray:
    import cv2

    code = cv2.COLOR_GRAY2RGB if image.ndim == 2 else cv2.COLOR_BGR2RGB
    return np.asarray(cv2.cvtColor(image, code))
