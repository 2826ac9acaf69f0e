"""What frames are grabbed with: OpenCV for camera devices, PyAV for network streams and files.

Both block, for ever if it comes to that, and are used by a thread that nobody waits for
(streamvos/sources/live.py). PyAV reads the network, since through OpenCV one cannot tell a stream that
ends from one that breaks off, a refused password from a missing server, or that the frames' size has
changed (it squeezes them into the first size); and its time stamps are the stream's own.
"""

from __future__ import annotations

import math
import os
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import av
import av.error
import cv2
import numpy as np

from streamvos.addresses import scheme_of
from streamvos.sources.live_address import LiveAddress
from streamvos.sources.video_file import upright
from streamvos.types import SourceError


@dataclass(frozen=True, slots=True)
class Grabbed:
    """One frame as it came, not yet converted, since it may be dropped.

    Attributes:
        image: makes the picture, (H, W, 3) uint8 RGB.
        captured_ns: `time.monotonic_ns()` when it was there.
        position: seconds on the stream's own clock; NaN where it has none.
    """

    image: Callable[[], np.ndarray]
    captured_ns: int
    position: float


class Capture(ABC):
    """A stream that is open.

    Attributes:
        fps: frames per second as the stream claims; None if it claims nothing credible.
    """

    fps: float | None

    @abstractmethod
    def frames(self) -> Iterator[Grabbed | None]:
        """Frames until the stream ends; None now and then, so that the caller can see to other things.

        Raises:
            SourceError: the stream failed.
        """

    @abstractmethod
    def close(self) -> None:
        """Let go of the device or connection; only from the thread that reads."""


def open_capture(address: LiveAddress, open_timeout: float, stall_timeout: float) -> Capture:
    """Open a stream. The timeouts, in seconds, are best effort: a device's driver may ignore them.

    Raises:
        SourceError: it cannot be opened.
    """
    if address.kind == "device":
        return DeviceCapture(address)
    return StreamCapture(address, open_timeout, stall_timeout)


def stall_error(address: LiveAddress, seconds: float) -> SourceError:
    """The error that says that nothing came for so long."""
    return SourceError(
        f"{address.label} stalled: no frame for {seconds:g} s (stall_timeout); {address.advice}"
    )


class DeviceCapture(Capture):
    """A camera, by OpenCV.

    Args:
        address: of a device.
        backend: one of OpenCV's cv2.CAP_...; the platform's own if None.
    """

    def __init__(self, address: LiveAddress, backend: int | None = None) -> None:
        if "OPENCV_LOG_LEVEL" not in os.environ:
            # What OpenCV warns of on stderr, the errors here say in one line.
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
            raise SourceError(f"cannot open {address.label}: it is no camera or is in use; {address.advice}")
        self.fps = credible_fps(self._capture.get(cv2.CAP_PROP_FPS))

    def frames(self) -> Iterator[Grabbed | None]:
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


class StreamCapture(Capture):
    """A network stream or a file, by PyAV.

    Packets that cannot be decoded are passed over, as they are common on a lossy line.
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
            # "from None": the error's own text holds the address, with its password.
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
        except av.error.ExitError:  # FFmpeg's word for a deadline that has passed
            raise stall_error(self._address, self._stall_timeout) from None
        except (av.error.FFmpegError, OSError) as error:
            raise SourceError(f"{self._address.label} broke off: {_reason(error)}; try again") from None

    def close(self) -> None:
        self._container.close()


def credible_fps(fps: float) -> float | None:
    """The rate, or None for zero, NaN and the ticks of a clock (90000), which streams claim too."""
    return float(fps) if 0 < fps <= 1000 else None


def _rgb(image: np.ndarray) -> np.ndarray:
    code = cv2.COLOR_GRAY2RGB if image.ndim == 2 else cv2.COLOR_BGR2RGB
    return np.asarray(cv2.cvtColor(image, code))


def _reason(error: Exception) -> str:
    return (getattr(error, "strerror", None) or type(error).__name__).lower()
