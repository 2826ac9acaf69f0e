"""A video file as a stream of frames, with the time stamps that its container holds.

PyAV reads it rather than OpenCV: presentation times are exact for a variable frame rate too, colors follow
the file's own matrix and range, and damage is an error instead of an early end.

    with VideoFileSource("goat.mp4") as source:
        print(source.size, source.fps, source.length)  # (480, 854) 24.0 90
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import av
import av.error
import numpy as np

from streamvos.sources.seeking import frames_from
from streamvos.sources.source import NOMINAL_FPS, Picture, Selection, Source
from streamvos.types import InputError

_WORTH_SEEKING = 250
"""Smallest skip that seeks: it reads the packets twice and decodes two groups of pictures."""

_NO_IMAGE = np.zeros((0, 0, 3), np.uint8)


class VideoFileSource(Source):
    """The first video stream of a file, decoded frame by frame.

    A rotation by quarter turns in the metadata (as phones write it) is applied. `length` is the container's
    claim, None if it has none; `fps` is the mean rate.

    Args:
        path: any file that FFmpeg reads.
        name: name of the stream; the file's stem if None.
        selection: which frames, and how large.

    Raises:
        InputError: there is no such file, it holds no video, or its first frame is damaged. Later: a frame
            is damaged or the file was cut off.
    """

    def __init__(
        self, path: str | Path, *, name: str | None = None, selection: Selection | None = None
    ) -> None:
        self.path = Path(path)
        self._read_so_far = 0
        if not self.path.is_file():
            raise InputError(f"no video at {path}: there is no such file")
        self._container = self._open()
        try:
            stream = self._container.streams.video[0]
            self._frames: Iterator[av.VideoFrame] = self._container.decode(stream)
            rate = stream.average_rate or stream.guessed_rate
            fps = float(rate) if rate else None
            length = stream.frames or None
            self._period = 1.0 / (fps or NOMINAL_FPS)
            self._start: float | None = None
            # Decoded now, so that damage is found at once and the size is the true one.
            self._pending = self._decode()
            if self._pending is None:
                raise InputError(f"{path} holds no video frame; is the file complete?")
        except BaseException:
            self._container.close()
            raise
        super().__init__(
            name=name or self.path.stem,
            native_size=(self._pending.image.shape[0], self._pending.image.shape[1]),
            fps=fps,
            native_length=length,
            selection=selection or Selection(),
        )

    def close(self) -> None:
        if not self._closed:
            self._frames = iter(())  # the decoder's iterator must go before its container
            self._container.close()
        super().close()

    def _open(self) -> av.container.InputContainer:
        try:
            # A playlist on disk must not open network connections, hence the allow-list.
            container = av.open(
                f"file:{self.path.absolute()}", mode="r", options={"protocol_whitelist": "file,crypto,data"}
            )
        except (av.error.FFmpegError, OSError, ValueError) as error:
            raise InputError(
                f"cannot open the video {self.path}: {_reason(error)}; "
                "expected a complete video file such as MP4"
            ) from error
        if not container.streams.video:
            container.close()
            raise InputError(f"{self.path} holds no video stream; is the file complete?")
        container.streams.video[0].thread_type = "AUTO"
        return container

    def _read(self) -> Picture | None:
        picture, self._pending = self._pending, None
        return picture or self._decode()

    def _skip(self, count: int) -> None:
        if count >= _WORTH_SEEKING and self._seek(self._read_so_far - (self._pending is not None) + count):
            return
        for _ in range(count):
            if self._pending is not None:
                self._pending = None
            elif self._decode(wanted=False) is None:
                return
            self._note_progress()

    def _seek(self, number: int) -> bool:
        """Go to a frame without decoding all before it; if that is impossible, return False and stay."""
        container = self._open()
        frames = frames_from(container, number, self._note_progress)
        if frames is None:
            container.close()
            return False
        self._frames = iter(())  # the decoder's iterator must go before its container
        self._container.close()
        self._container, self._frames = container, frames
        self._pending, self._read_so_far = None, number
        return True

    def _decode(self, wanted: bool = True) -> Picture | None:
        """The next picture; an unwanted one is decoded for later ones, but not converted."""
        try:
            frame = next(self._frames, None)
            if frame is None:
                return None
            image = upright(frame) if wanted else _NO_IMAGE
        except (av.error.FFmpegError, OSError, ValueError) as error:
            raise InputError(
                f"cannot decode frame {self._read_so_far} of {self.path}: {_reason(error)}; the file is "
                "damaged or was cut off there: re-encode it, or stop before with max_frames"
            ) from error
        captured_ns = time.monotonic_ns()
        seconds = frame.time if frame.time is not None else self._read_so_far * self._period
        if self._start is None:
            self._start = seconds
        self._read_so_far += 1
        return Picture(image, captured_ns, seconds - self._start)


def upright(frame: av.VideoFrame) -> np.ndarray:
    """The picture of a decoded frame, (H, W, 3) uint8 RGB, turned by quarters as its metadata says."""
    image: np.ndarray = frame.to_ndarray(format="rgb24")
    quarter_turns = round(frame.rotation / 90) % 4
    if quarter_turns:
        image = np.ascontiguousarray(np.rot90(image, quarter_turns))  # both count counter-clockwise
    return image


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error) or type(error).__name__
