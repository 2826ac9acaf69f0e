"""A video with an end as a stream of frames: a file, a finished playlist, a pipe, a download.

PyAV reads it rather than OpenCV: presentation times are exact for a variable frame rate too, colors follow
the file's own matrix and range, and damage is an error instead of an early end.

    with VideoFileSource("goat.mp4") as source:
        print(source.size, source.fps, source.length)  # (480, 854) 24.0 90
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import av
import av.error
import numpy as np

from streamvos.addresses import redact
from streamvos.sources.clock import FileClock
from streamvos.sources.container import (
    file_reason,
    is_address,
    is_pipe,
    open_container,
    rate_of,
    reason_of,
    video_stream,
)
from streamvos.sources.decoding import BrokenError, DamagedError, Decoder, is_short
from streamvos.sources.live_address import live_address
from streamvos.sources.picture import PictureMaker
from streamvos.sources.seeking import frames_from
from streamvos.sources.source import NOMINAL_FPS, Picture, Selection, Source
from streamvos.types import InputError, SourceError, TruncatedError

_LOGGER = logging.getLogger(__name__)

_WORTH_SEEKING = 250
"""Smallest skip that seeks: it reads the packets twice and decodes two groups of pictures."""

_NO_IMAGE = np.zeros((0, 0, 3), np.uint8)


class VideoFileSource(Source):
    """The video of a file, decoded frame by frame.

    Of several videos it is the default or else the largest one, never a cover picture. Frames are upright
    (display matrix) and have square pixels. `length` is the container's claim, None if it has none; `fps` is
    the mean rate. `pts` always rises, also where the file's own time stamps do not.

    Args:
        place: any file that FFmpeg reads, a FIFO, "-" (the standard input), or the URL of a finite video.
        name: name of the stream; the file's stem or the URL's host if None.
        selection: which frames, and how large.
        allow_truncated: damage and missing frames are a warning, and no error.
        open_timeout, stall_timeout: seconds within which an address or a pipe must open and give more.
        container: the open container of `place`, if it was opened before.

    Raises:
        InputError: there is no such file, it holds no video, or its first frame is damaged. Later:
            `TruncatedError`, a frame is damaged, or frames are missing at the end.
        SourceError: an address or a pipe gives nothing in time.
    """

    def __init__(
        self,
        place: str | Path,
        *,
        name: str | None = None,
        selection: Selection | None = None,
        allow_truncated: bool = False,
        open_timeout: float = 10.0,
        stall_timeout: float = 30.0,
        container: av.container.InputContainer | None = None,
    ) -> None:
        self.path = Path(place)
        self._place, self._allow_truncated = str(place), allow_truncated
        self._timeouts = open_timeout, stall_timeout
        self._label = redact(str(place))
        self._read_so_far = 0
        self._damaged_before = 0  # in containers that a seek has left
        remote, pipe = is_address(place), is_pipe(place)
        if not remote and not pipe and not self.path.is_file():
            raise InputError(f"no video at {place}: there is no such file")
        self._seekable = not remote and not pipe
        self._identity = self._identify()
        self._short = self._seekable and is_short(self.path)
        if name is None:
            name = live_address(place).name if remote else "stdin" if self._place == "-" else self.path.stem
        self._container = container or self._open()
        try:
            stream = video_stream(self._container, self._label)
            self._make_image = PictureMaker(self._label, stream)
            self._decoder = self._decode_from(self._container, stream)
            self._frames: Iterator[av.VideoFrame] = self._decoder.frames()
            fps = rate_of(stream)
            self._clock = FileClock(1.0 / (fps or NOMINAL_FPS))
            self._pixel_aspect = 1.0
            # Decoded now, so that damage is found at once and the size is the true one.
            self._pending = self._decode()
            if self._pending is None:
                raise InputError(f"{self._label} holds no video frame; is the file complete?")
        except TruncatedError as error:
            self._container.close()
            raise InputError(str(error)) from None
        except BaseException:
            self._container.close()
            raise
        super().__init__(
            name=name,
            native_size=(self._pending.image.shape[0], self._pending.image.shape[1]),
            fps=fps,
            native_length=stream.frames or None,
            selection=selection or Selection(),
            pixel_aspect=self._pixel_aspect,
        )

    def identity(self) -> Mapping[str, object]:
        """Size and time of the file, and the number of frames that it claims; a pipe is never the same."""
        return {**self._identity, "number of frames": self._native_length}

    def _called(self) -> tuple[str, ...]:
        return (*super()._called(), self.path.stem)

    def close(self) -> None:
        if not self._closed:
            self._frames = iter(())  # the decoder's iterator must go before its container
            self._container.close()
        super().close()

    def _identify(self) -> dict[str, object]:
        if is_pipe(self._place):
            return {"time of opening the pipe, which can be read once,": time.time_ns()}
        if not self._seekable:
            return {}
        status = self.path.stat()
        return {"size of the file": status.st_size, "time of the file": status.st_mtime_ns}

    def _open(self) -> av.container.InputContainer:
        try:
            return open_container(self._place, *self._timeouts)
        except av.error.ExitError:
            seconds = self._timeouts[0]
            raise SourceError(f"cannot open {self._label}: no answer within {seconds:g} s") from None
        except (av.error.FFmpegError, OSError, ValueError) as error:
            raise InputError(
                f"cannot open the video {self._label}: {file_reason(self._place, error)}"
            ) from None

    def _decode_from(
        self, container: av.container.InputContainer, stream: av.video.stream.VideoStream
    ) -> Decoder:
        return Decoder(container, stream, self._short, self._allow_truncated)

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
        if not self._seekable:
            return False
        container = self._open()
        stream = container.streams[self._decoder.stream.index]
        assert isinstance(stream, av.video.stream.VideoStream)
        decoder = self._decode_from(container, stream)
        frames = frames_from(decoder, number, self._note_progress)
        if frames is None:
            container.close()
            return False
        self._frames = iter(())  # the decoder's iterator must go before its container
        self._damaged_before += self._decoder.damaged
        self._container.close()
        self._container, self._decoder, self._frames = container, decoder, frames
        self._pending, self._read_so_far = None, number
        return True

    def _decode(self, wanted: bool = True) -> Picture | None:
        """The next picture; an unwanted one is decoded for later ones, but not converted."""
        try:
            frame = next(self._frames, None)
        except BrokenError as broken:
            self._frames = self._rest(broken)
            frame = next(self._frames, None)
        except SourceError as error:
            raise SourceError(f"{self._label} stalled: {error}") from None
        if frame is None:
            damaged, self._damaged_before, self._decoder.damaged = (
                self._damaged_before + self._decoder.damaged, 0, 0,
            )  # fmt: skip
            if damaged:
                _LOGGER.warning("%s: %d damaged places were passed over", self._label, damaged)
            return None
        try:
            image = self._make_image(frame) if wanted else _NO_IMAGE
        except (av.error.FFmpegError, OSError, ValueError) as error:
            raise TruncatedError(self._says(DamagedError(reason_of(error).lower()))) from error
        captured_ns = time.monotonic_ns()
        if not self._read_so_far:
            self._pixel_aspect = self._make_image.pixel_aspect(frame)
        self._read_so_far += 1
        return Picture(image, captured_ns, self._clock(frame.time))

    def _rest(self, broken: BrokenError) -> Iterator[av.VideoFrame]:
        """The good frames that the decoder still holds, and then the error, or a warning."""
        yield from self._decoder.rest()
        if not self._allow_truncated or not self._read_so_far:
            raise TruncatedError(self._says(broken))
        _LOGGER.warning("%s", self._says(broken))

    def _says(self, reason: Exception) -> str:
        if not self._read_so_far:
            return f"cannot decode the first frame of {self._label}: {reason}; re-encode it, or copy it again"
        count = self._read_so_far
        what = f"{self._label} breaks off after {count} frames"
        if isinstance(reason, DamagedError):
            what = f"cannot decode frame {count} of {self._label}, which is damaged there"
        return (
            f"{what}: {reason}; copy it again or re-encode it, or take what can be read: --allow-truncated "
            "(allow_truncated in Python and pipeline.toml)"
        )
