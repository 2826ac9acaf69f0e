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
from streamvos.sinks.overlay_parts import FIRST_FRAME, cut_torn_end
from streamvos.sinks.sink import Sink, cannot_write, is_full, make_folder, partial_path
from streamvos.types import Frame, InputError, Result, SinkError

_ENCODERS = {
    # Name of the encoder -> its options. Quality 20 is hard to tell from the original; at 480p "superfast"
    # takes 8 ms of CPU per frame and "veryfast" 14, for files that are 8 % smaller.
    "libx264": {"preset": "superfast", "crf": "20"},
    "libopenh264": {"rc_mode": "quality"},
    "h264_videotoolbox": {"q:v": "65"},
    "h264_mf": {},
}

_INDEX_FIRST = {"movflags": "+faststart"}  # by a second pass over the file, when it is complete
# A fragmented MP4, which the muxer turns into an ordinary one at the end by an index behind the pictures. A
# fragment lasts half a second. Measured on 60 synthetic frames at 480p against the above: 8.3 to 8.7 ms of
# CPU per frame instead of 9.6 to 10.8, closed in 12 to 19 ms instead of 34 to 36, and a file 17 % larger.
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

    The video is written as NAME.partial.mp4 and renamed when closed. After an exception the partial file is
    completed, so that the frames so far can be watched, and keeps that name; if that fails too, or no frame
    was written, it is removed. Odd widths and heights get one more column or row, as yuv420p requires.

    Args:
        path: the final file, ending in .mp4; its folder is made if missing.
        overlay: how objects are drawn.
        recoverable: the partial file plays at any moment, also after the process was killed, except for
            its last half second; `overlay_parts.rescue_parts` finishes it. A file that cannot be completed
            is kept, and a full disk can be waited for (`on_full`). The index comes last, so that closing is
            cheap; otherwise it comes first, so that a browser can play the file while loading it.

    Raises:
        InputError: the name does not end in .mp4. Later: a frame has another size than the first.
        SinkError: the file cannot be made, or PyAV has no H.264 encoder.
    """

    _repeatable: ClassVar[bool] = False  # the encoder has the frame already

    def __init__(
        self, path: str | Path, *, overlay: Overlay | None = None, recoverable: bool = False
    ) -> None:
        super().__init__(path)
        if self.path.suffix.lower() != ".mp4":
            raise InputError(f"the overlay video is an MP4: its name must end in .mp4, got {self.path.name}")
        self._encoder = _find_encoder()
        self._overlay = overlay or Overlay()
        self._recoverable = recoverable
        self._partial = partial_path(self.path)
        self._size: tuple[int, int] | None = None
        self._written = 0
        self._first_pts = 0.0
        self._last_tick = -1
        self._failure: Exception | None = None
        self._is_begun = False  # its header is written; without one, FFmpeg crashes at a second packet
        self._duration = _TICKS // 24  # of a video of a single frame
        self._file: _WaitingFile | None = None
        make_folder(self.path.parent)
        try:
            # PyAV opens the file with the first frame; an error shall show now.
            self._partial.write_bytes(b"")
            if recoverable:
                self._file = _WaitingFile(self._partial, self._may_try_again)
            self._container = av.open(
                self._file or f"file:{self._partial.absolute()}",  # the index in front needs the file's name
                mode="w",
                format="mp4",
                options=dict(_RECOVERABLE if recoverable else _INDEX_FIRST),
            )
        except _ERRORS as error:
            if self._file is not None:
                self._file.close()
            raise cannot_write(self._partial, error) from error
        self._stream: av.video.stream.VideoStream | None = None

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
                if self._recoverable:
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
            raise cannot_write(self._partial, error) from error
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
        if self._recoverable:
            # Pictures are stored in the order of display, so that a kill costs the last ones only.
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
        """Write what the encoder still holds, and the index."""
        if self._failure is not None and (self._recoverable or not self._is_begun):
            raise self._failure
        if self._stream is not None:
            self._mux(None)
        self._container.close()
        if self._file is not None:
            self._file.close()

    def _finish(self) -> None:
        if not self._written:
            self._remove()
            return
        try:
            self._complete()
            _check(self._partial, self._written)
            os.replace(self._partial, self.path)
        except SinkError:
            self._give_up()
            raise
        except _ERRORS as error:
            self._give_up()
            raise cannot_write(self.path, error) from error

    def _abandon(self) -> None:
        try:
            if not self._written:
                raise SinkError("nothing to keep")
            self._complete()
            _check(self._partial, self._written)
        except Exception:  # the error that led here is the one to report
            self._give_up()

    def _give_up(self) -> None:
        """It cannot be completed: a recoverable video keeps its whole fragments, any other is removed."""
        self._let_go()
        found = None
        if self._recoverable:
            with contextlib.suppress(OSError):
                found = cut_torn_end(self._partial)
        if found is None:
            self._remove()

    def _remove(self) -> None:
        self._let_go()
        with contextlib.suppress(OSError):
            self._partial.unlink()

    def _let_go(self) -> None:
        with contextlib.suppress(Exception):
            self._container.close()
        if self._file is not None:
            with contextlib.suppress(OSError):
                self._file.close()


class _WaitingFile(io.FileIO):
    """A file whose writer may wait for room on a full disk.

    FFmpeg's muxer writes a fragment in many pieces and stops for good at the first that fails. Here a piece
    is continued where the disk ended it, until `on_full` gives up (`Sink.on_full`).
    """

    def __init__(self, path: Path, on_full: Callable[[Exception], bool]):
        super().__init__(path, "wb")
        self._on_full = on_full

    def write(self, data: bytes) -> int:  # type: ignore[override]
        rest = memoryview(data)
        while rest:
            try:
                rest = rest[super().write(rest) :]
            except OSError as error:
                if not (is_full(error) and self._on_full(error)):
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


def _check(path: Path, frames: int) -> None:
    """Check, without decoding, that the index of a finished video counts the frames that were written."""
    with av.open(f"file:{path.absolute()}") as container:
        counted = container.streams.video[0].frames if container.streams.video else 0
    if counted != frames:
        raise SinkError(f"{path} holds {counted} frames after writing {frames}; is the disk full?")
