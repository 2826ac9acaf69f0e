"""The stream as a video with the objects drawn over it: an MP4 that every browser plays.

H.264 in yuv420p. Each frame keeps its time stamp, so a live stream with dropped frames plays at its real
speed.

    with OverlayVideoSink("out/overlay.mp4") as sink:
        sink.write(frame, result)
"""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import ClassVar

import av
import av.error
import av.video.stream
import cv2
import numpy as np

from streamvos.sinks.overlay import Overlay
from streamvos.sinks.overlay_parts import FIRST_FRAME, cut_torn_end, part_path
from streamvos.sinks.record import OutputRecord, check_is_there, file_identity, give_name, new_partial
from streamvos.sinks.sink import Sink, cannot_write, make_folder
from streamvos.types import Frame, InputError, Result, SinkError

_ENCODERS = {
    # Name of the encoder -> its options. Quality 20 is hard to tell from the original; at 480p "superfast"
    # takes 8 ms of CPU per frame and "veryfast" 14, for files that are 8 % smaller.
    "libx264": {"preset": "superfast", "crf": "20"},
    "libopenh264": {"rc_mode": "quality"},
}

_INDEX_FIRST = {"movflags": "+faststart"}  # by a second pass over the finished file
# A fragmented MP4 with fragments of half a second; at the end an index turns it into an ordinary MP4.
# Measured on 60 synthetic frames at 480p against the above: 8.3 to 8.7 ms of CPU per frame instead of 9.6 to
# 10.8, closed in 12 to 19 ms instead of 34 to 36, and a file 17 % larger.
_RECOVERABLE = {
    "movflags": "+hybrid_fragmented+empty_moov+default_base_moof",
    "frag_duration": "500000",
    "flush_packets": "1",
}

_ERRORS = (OSError, av.error.FFmpegError)
_TICKS = 90_000
_BT709 = 1  # the number of BT.709 in H.264's tables of primaries, transfer and matrix
_LIMITED_RANGE = 1


class OverlayVideoSink(Sink):
    """Writes each frame with its result drawn over it into an H.264 video.

    The video is written as NAME.RANDOM.partial.mp4 and renamed when closed. After an exception the partial
    file is completed with the frames so far and keeps that name; if that fails, or no frame was written, it
    is removed. Odd widths and heights get one more column or row, as yuv420p requires.

    Args:
        path: the final file, ending in .mp4; its folder is made if missing.
        overlay: how objects are drawn.
        recoverable: whether the partial file plays at any moment except for its last half second, also
            after the process was killed; `overlay_parts.rescue_parts` finishes it. A file that cannot be
            completed is kept, and `on_full` can wait for room. The index comes last, which makes closing
            cheap; otherwise it comes first, and a browser can play the file while loading it.
        record: lists the file; without it, an earlier file at `path` is replaced when the sink is closed.
        part: number of the part of the video (`overlay_parts`), which is in its name.

    Attributes:
        partial: the file while it is written.

    Raises:
        InputError: the name does not end in .mp4. Later: a frame has another size than the first.
        SinkError: the file cannot be made, or PyAV has no H.264 encoder.
    """

    _repeatable: ClassVar[bool] = False  # the encoder has the frame already

    def __init__(
        self,
        path: str | Path,
        *,
        overlay: Overlay | None = None,
        recoverable: bool = False,
        record: OutputRecord | None = None,
        part: int = 1,
    ) -> None:
        super().__init__(part_path(path, part))
        if self.path.suffix.lower() != ".mp4":
            raise InputError(f"the overlay video is an MP4: its name must end in .mp4, got {self.path.name}")
        self._encoder = _find_encoder()
        self._overlay = overlay or Overlay()
        self._record = record
        self._size: tuple[int, int] | None = None
        self._written = 0
        self._first_pts = 0.0
        self._last_tick = -1
        self._failure: Exception | None = None
        self._is_begun = False  # its header is written; without one, FFmpeg crashes at a second packet
        self._duration = _TICKS // 24  # of a video of a single frame
        self._file: _WaitingFile | None = None
        make_folder(self.path.parent)
        if record is None:
            self.partial, descriptor = new_partial(self.path)
        else:
            self.partial, descriptor = record.new_partial(self.path, part)
        self._identity = file_identity(descriptor)
        try:
            if recoverable:
                self._file = _WaitingFile(descriptor, self._may_try_again)
            else:
                os.close(descriptor)
            self._container = av.open(
                self._file or f"file:{self.partial.absolute()}",  # the index in front needs the file's name
                mode="w",
                format="mp4",
                options=dict(_RECOVERABLE if recoverable else _INDEX_FIRST),
            )
        except _ERRORS as error:
            if self._file is not None:
                self._file.close()
            raise cannot_write(self.partial, error) from error
        self._stream: av.video.stream.VideoStream | None = None

    @property
    def place(self) -> Path:
        return self.partial

    def _write(self, frame: Frame, result: Result) -> None:
        if self._size is not None and frame.size != self._size:
            raise InputError(
                f"frame {frame.index} is {frame.size[1]}x{frame.size[0]} pixels, but the video is "
                f"{self._size[1]}x{self._size[0]}; a video cannot change its size"
            )
        picture = _make_even(self._overlay(frame.image, result))
        try:
            if self._stream is None:
                self._stream = self._start(picture.shape[0], picture.shape[1])
                self._size = frame.size
                self._first_pts = frame.pts
                if self._file is not None:
                    self._container.metadata["comment"] = f"{FIRST_FRAME}{frame.index}"
            coded = av.VideoFrame.from_ndarray(picture, format="rgb24").reformat(
                format="yuv420p", dst_colorspace="ITU709", dst_color_range="MPEG"
            )
            # An encoder takes only rising time stamps; a stream whose clock stands still gets the next tick.
            tick = max(round((frame.pts - self._first_pts) * _TICKS), self._last_tick + 1)
            if self._written:
                self._duration = tick - self._last_tick
            coded.pts = self._last_tick = tick
            coded.time_base = Fraction(1, _TICKS)
            self._mux(coded)
        except _ERRORS as error:
            self._failure = error
            raise cannot_write(self.partial, error) from error
        self._written += 1

    def _start(self, height: int, width: int) -> av.video.stream.VideoStream:
        name, options = self._encoder
        stream = self._container.add_stream(name, rate=30, options=dict(options))
        assert isinstance(stream, av.video.stream.VideoStream)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        context = stream.codec_context
        context.time_base = stream.time_base = Fraction(1, _TICKS)
        # A key frame every few seconds lets a player jump; players guess the color matrix if it is missing.
        context.gop_size = 60
        if self._file is not None:
            # Pictures are stored in the order of display, so that a kill costs only the last ones.
            context.max_b_frames = 0
        context.color_primaries = context.color_trc = context.colorspace = _BT709
        context.color_range = _LIMITED_RANGE
        return stream

    def _mux(self, coded: av.VideoFrame | None) -> None:
        """Encode a frame (None: what the encoder still holds) and write what comes out."""
        assert self._stream is not None
        for packet in self._stream.encode(coded):
            # The last frame is taken to last as long as the one before; the others last until the next.
            packet.duration = self._duration
            self._container.mux(packet)
            self._is_begun = True

    def _complete(self) -> None:
        """Write what the encoder still holds, and the index, which then must count all frames."""
        if self._failure is not None and (self._file is not None or not self._is_begun):
            raise self._failure
        self._mux(None)
        self._container.close()
        if self._file is not None:
            self._file.close()
        check_is_there(self.partial, self._identity)
        with av.open(f"file:{self.partial.absolute()}") as container:
            counted = container.streams.video[0].frames if container.streams.video else 0
        if counted != self._written:
            raise SinkError(
                f"{self.partial} holds {counted} frames after writing {self._written}; is the disk full?"
            )

    def _finish(self) -> None:
        if not self._written:
            self._give_up()
            return
        try:
            self._complete()
            give_name(self.partial, self.path, self._record)
        except SinkError:
            self._give_up()
            raise
        except _ERRORS as error:
            self._give_up()
            raise cannot_write(self.path, error) from error

    def _abandon(self) -> None:
        if self._written:
            with contextlib.suppress(Exception):  # the error that led here is the one to report
                self._complete()
                return
        self._give_up()

    def _give_up(self) -> None:
        """Leave a video that cannot be completed: its whole fragments if it is recoverable, else nothing."""
        with contextlib.suppress(Exception):
            self._container.close()
        found = None
        if self._file is not None:
            with contextlib.suppress(OSError):
                self._file.close()
            with contextlib.suppress(OSError):
                found = cut_torn_end(self.partial)
        if found is None:
            with contextlib.suppress(OSError):
                self.partial.unlink()


class _WaitingFile(io.FileIO):
    """A file whose writer may wait for room on a full disk.

    FFmpeg's muxer writes a fragment in many pieces and stops for good at the first that fails. Here a failed
    piece is continued for as long as `may_try_again` says so.
    """

    def __init__(self, descriptor: int, may_try_again: Callable[[Exception], bool]):
        super().__init__(descriptor, "wb")
        self._may_try_again = may_try_again

    def write(self, data: bytes) -> int:  # type: ignore[override]
        rest = memoryview(data)
        while rest:
            try:
                rest = rest[super().write(rest) :]
            except OSError as error:
                if not self._may_try_again(error):
                    raise
        return len(data)


def _find_encoder() -> tuple[str, dict[str, str]]:
    for name, options in _ENCODERS.items():
        with contextlib.suppress(av.error.FFmpegError, ValueError):
            av.codec.Codec(name, "w")
            return name, options
    raise SinkError(
        f"this PyAV has no H.264 encoder (looked for {', '.join(_ENCODERS)}); install the one from PyPI: "
        "pip install --force-reinstall av"
    )


def _make_even(picture: np.ndarray) -> np.ndarray:
    height, width = picture.shape[:2]
    if height % 2 == 0 and width % 2 == 0:
        return picture
    return np.asarray(cv2.copyMakeBorder(picture, 0, height % 2, 0, width % 2, cv2.BORDER_REPLICATE))
