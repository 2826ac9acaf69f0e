"""Decoding one video stream to its true end: what is damaged or missing is noticed, not passed over.

FFmpeg conceals errors and takes the end of the data for the end of the video. Here a frame that was decoded
with errors is damage, and so is an end before the end that the container promises: its index (MP4), its
number of frames (AVI), its duration (Matroska, FLV, ASF). Promises that are estimates are not believed, so
formats without an index or a header (MPEG-TS, raw streams) only show damage.

    decoder = Decoder(container, stream, is_short(path))
    for frame in decoder.frames():     # raises BrokenError, which says what is wrong
        ...
"""

from __future__ import annotations

import heapq
import math
import os
from collections import deque
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import av
import av.error

from streamvos.sources.container import format_names, reason_of
from streamvos.types import SourceError

_INDEXED = {"mov", "mp4"}
_COUNTED = {"avi"}
_DURATION = {"matroska", "webm", "flv", "asf", "avi"}
"""Formats whose header holds a duration that the writer has measured."""

_SPLIT = {"mpegts", "mpeg", "hls"}
"""Formats that mark packets as corrupt where files were joined, too."""

_INDEPENDENT = {"mjpeg"}
"""Codecs that show damage only if they are told to stop at it, and do so without false alarms."""

_DURATION_TOLERANCE = 0.5
"""Seconds that a file may end before its duration: writers round, and count sound that was cut."""

_GAP = 1.75
"""Lost packets: a step in time of so many frames, at a packet that is marked as corrupt."""

_REORDERED = 17
"""Frames within which a codec stores pictures in another order than it shows them, and one more."""

_SPLICE_SECONDS = 10.0
"""A longer step is a splice, not a loss."""


class BrokenError(Exception):
    """The video ends too early; the text says why."""


class DamagedError(BrokenError):
    """A frame cannot be decoded; the text says why."""


class Decoder:
    """Frames of one stream, in order of display.

    Args:
        container: an open container; owned by the caller.
        stream: its video.
        file_is_short: whether the file has fewer bytes than it says itself (`is_short`).
        tolerant: go on after damage.

    Attributes:
        damaged: number of damaged frames and packets that `tolerant` has passed over.
    """

    def __init__(
        self,
        container: av.container.InputContainer,
        stream: av.video.stream.VideoStream,
        file_is_short: bool = False,
        tolerant: bool = False,
    ) -> None:
        self.container, self.stream = container, stream
        self.damaged = 0
        self._formats = format_names(container)
        self._short, self._tolerant = file_is_short, tolerant
        self._period = 1 / float(stream.average_rate) if stream.average_rate else math.inf
        self._last_dts: int | None = None
        self._suspect = False  # the packet before was marked as corrupt
        self._end = -math.inf  # seconds; of all streams
        self._due: list[int] = []  # heap: times of packets whose frames have not come
        self._last_times: deque[float] = deque(maxlen=_REORDERED)  # seconds; of the last frames
        stream.thread_type = "AUTO"
        if stream.codec_context.name in _INDEPENDENT:
            stream.codec_context.options = {"err_detect": "explode"}

    def frames(self) -> Iterator[av.VideoFrame]:
        """The frames from the container's present position on.

        Raises:
            BrokenError: the video ends too early, or a frame is damaged (`DamagedError`; not if `tolerant`);
                see `rest`.
            SourceError: a network read takes too long.
        """
        strict: bool | None = None  # a recording may begin between keyframes, with what cannot be decoded
        for packet in self._packets():
            strict = packet.is_keyframe if strict is None else strict
            if packet.pts is not None:
                heapq.heappush(self._due, packet.pts)
            for frame in self._decoded(packet, strict):
                strict = True
                yield frame
        yield from self._decoded(None, bool(strict))
        if (missing := self._missing()) is not None:
            raise BrokenError(missing)

    def _packets(self) -> Iterator[av.Packet]:
        """Packets of the video; those of other streams only show how far the file goes."""
        streams: list[Any] = [self.stream]
        if self._formats & _DURATION:
            streams = [one for one in self.container.streams if one.type in ("video", "audio", "subtitle")]
        try:
            for packet in self.container.demux(streams):
                if packet.dts is None and packet.pts is None and packet.size == 0:
                    continue  # PyAV's sign of the end
                if packet.pts is not None:
                    end = packet.pts + (packet.duration or 0)
                    self._end = max(self._end, float(end * packet.time_base))
                if packet.stream_index == self.stream.index:
                    self._look_for_loss(packet)
                    yield packet
        except av.error.ExitError:
            raise SourceError("nothing came within the time limit (stall_timeout)") from None
        except (av.error.FFmpegError, OSError) as error:
            raise BrokenError(self._missing() or reason_of(error).lower()) from error

    def _look_for_loss(self, packet: av.Packet) -> None:
        """Raise `BrokenError` where a packet is incomplete, or packets before it were lost."""
        before, self._last_dts = self._last_dts, packet.dts if packet.dts is not None else self._last_dts
        if not self._formats & _SPLIT:
            if packet.is_corrupt:  # the file ends within it
                self._last_dts = before
                raise BrokenError(self._missing() or "its last picture is incomplete")
            return
        suspect, self._suspect = self._suspect or packet.is_corrupt, packet.is_corrupt
        if suspect and before is not None and packet.dts is not None:
            step = float((packet.dts - before) * packet.time_base)
            if self._period * _GAP < step < _SPLICE_SECONDS:
                self._break(f"{round(step / self._period) - 1} frames were lost")

    def _break(self, reason: str) -> None:
        if not self._tolerant:
            raise DamagedError(reason)
        self.damaged += 1

    def _decoded(self, packet: av.Packet | None, strict: bool) -> Iterator[av.VideoFrame]:
        """Frames that come out for a packet; not `strict`: those that cannot be decoded do not count."""
        try:
            frames = self._out_of_decoder(packet)
        except (av.error.FFmpegError, ValueError) as error:
            if isinstance(error, av.error.EOFError):
                return
            if strict:
                self._break(reason_of(error).lower())
            return
        for frame in frames:
            if frame.is_corrupt:
                if not strict:
                    continue
                self._break("the picture is damaged")
            if frame.time is not None:
                self._last_times.append(frame.time)
            while self._due and frame.pts is not None and self._due[0] <= frame.pts:
                heapq.heappop(self._due)
            yield frame

    def _out_of_decoder(self, packet: av.Packet | None) -> list[av.VideoFrame]:
        frames: list[Any] = self.stream.decode(packet)
        if packet is None and self.stream.time_base is not None:
            for frame in frames:
                frame.time_base = self.stream.time_base  # PyAV takes it from the packet
        return frames

    def rest(self) -> Iterator[av.VideoFrame]:
        """After `BrokenError`: the good frames that the decoder still holds, those before the break."""
        try:
            frames = self._out_of_decoder(None)
        except (av.error.FFmpegError, ValueError):
            return
        for frame in frames:
            if frame.is_corrupt or frame.pts is None or not self._due or frame.pts != self._due[0]:
                return
            heapq.heappop(self._due)
            yield frame

    def _missing(self) -> str | None:
        """What the container promises and has not given; None = nothing, or it promises nothing."""
        if self._formats & _INDEXED:
            return self._missing_in_index()
        if self._formats & _COUNTED and self._short and self.stream.frames and self._last_dts is not None:
            left = self.stream.frames - 1 - self._last_dts
            return f"{left} of its {self.stream.frames} frames are missing" if left > 0 else None
        if self._formats & _DURATION and self.container.duration:
            lacking = self.container.duration / av.time_base - max(self._end, 0.0)
            tolerance = min(0.6 * self._period, _DURATION_TOLERANCE) if self._short else _DURATION_TOLERANCE
            if lacking > tolerance:
                return f"the last {lacking:.1f} s are missing"
            steps = [after - before for before, after in pairwise(self._last_times)]
            if self._short and (self._due or any(step > self._period * _GAP for step in steps)):
                return "a picture near its end is missing"  # stored behind one that is shown later
        return None

    def _missing_in_index(self) -> str | None:
        index = self.stream.index_entries
        total = left = len(index)
        if self._last_dts is not None:
            left = 0
            while left < total and index[total - 1 - left].timestamp > self._last_dts:
                left += 1
        return f"{left} of its {total} frames are missing" if left else None


def is_short(path: Path) -> bool:
    """Whether a Matroska or AVI file has fewer bytes than its first element says."""
    try:
        size = os.stat(path).st_size
        with path.open("rb") as file:
            head = file.read(4096)
    except OSError:
        return False
    if head[:4] == b"RIFF" and head[8:12] == b"AVI ":
        declared = int.from_bytes(head[4:8], "little")
        return 0 < declared < 2**32 - 1 and declared + 8 > size
    if head[:4] == b"\x1a\x45\xdf\xa3":  # EBML; its segment begins after the header
        header = _vint(head, 4)
        place = None if header is None else header[1] + (header[0] or 0)
        if place is not None and head[place : place + 4] == b"\x18\x53\x80\x67":
            segment = _vint(head, place + 4)
            if segment is not None and segment[0] is not None:
                return segment[0] + segment[1] > size
    return False


def _vint(data: bytes, place: int) -> tuple[int | None, int] | None:
    """An EBML size (RFC 8794, 4) and where it ends; (None, ...) for an unknown size."""
    if place >= len(data) or data[place] == 0:
        return None
    length = 9 - data[place].bit_length()
    value = int.from_bytes(data[place : place + length], "big") & ((1 << 7 * length) - 1)
    return (None if value == (1 << 7 * length) - 1 else value), place + length
