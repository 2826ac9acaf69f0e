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

from streamvos.addresses import scheme_of
from streamvos.sources.live_address import LiveAddress
from streamvos.sources.video_file import upright
from streamvos.types import SourceError


@dataclass(frozen=True, slots=True)
class Grabbed:
    """One frame, not yet converted, since it may be dropped.

    Attributes:
        image: function that makes the picture, (H, W, 3) uint8 RGB.
        captured_ns: `time.monotonic_ns()` when it arrived.
        position: seconds on the stream's own clock; NaN if it has none.
    """

    image: Callable[[], np.ndarray]
    captured_ns: int
    position: float


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
    """A network stream or a file, by PyAV.

    Packets that cannot be decoded are skipped: they are common on a lossy line. `frames` then yields None,
    so that the caller can check whether to stop. The timeouts are in seconds.

    Raises:
        SourceError: it cannot be opened.
    """

    def __init__(self, address: LiveAddress, open_timeout: float, stall_timeout: float) -> None:
        self._address = address
        self._stall_timeout = stall_timeout
        target = str(address.target)
        options = {}
        if address.kind == "file":
            options["protocol_whitelist"] = "file,crypto,data"
        elif scheme_of(target) in ("rtsp", "rtsps"):
            options["rtsp_transport"] = "tcp"  # over UDP, a busy line tears pictures apart
        try:
            self._container = av.open(target, options=options, timeout=(open_timeout, stall_timeout))
        except (av.error.FFmpegError, OSError, ValueError) as error:
            # "from None", since the error's own text holds the address with its password
            raise SourceError(f"cannot open {address.label}: {_reason(error)}; {address.advice}") from None
        if not self._container.streams.video:
            self._container.close()
            raise SourceError(f"cannot open {address.label}: it holds no video; {address.advice}")
        self._stream = self._container.streams.video[0]
        self.fps = credible_fps(float(self._stream.average_rate or self._stream.guessed_rate or 0))

    def frames(self) -> Iterator[Grabbed | None]:
        try:
            for packet in self._container.demux(self._stream):
                try:
                    frames = packet.decode()
                except av.error.InvalidDataError:
                    frames = []
                captured_ns = time.monotonic_ns()
                for frame in frames:
                    position = math.nan if frame.time is None else frame.time
                    yield Grabbed(partial(upright, frame), captured_ns, position)
                if not frames:
                    yield None
        except av.error.ExitError:  # FFmpeg's error for a deadline that has passed
            raise stall_error(self._address, self._stall_timeout) from None
        except (av.error.FFmpegError, OSError) as error:
            raise SourceError(f"{self._address.label} broke off: {_reason(error)}; try again") from None

    def close(self) -> None:
        self._container.close()


def credible_fps(fps: float) -> float | None:
    """The rate, or None for zero, NaN and a clock's tick rate (90000), which streams may claim."""
    return float(fps) if 0 < fps <= 1000 else None


def _rgb(image: np.ndarray) -> np.ndarray:
    import cv2

    code = cv2.COLOR_GRAY2RGB if image.ndim == 2 else cv2.COLOR_BGR2RGB
    return np.asarray(cv2.cvtColor(image, code))


def _reason(error: Exception) -> str:
    return (getattr(error, "strerror", None) or type(error).__name__).lower()
