"""Opening a video: a file, a pipe or an address; which of its streams is the video; whether it has an end.

    container = open_container(place, open_timeout=10, read_timeout=10)
    stream = video_stream(container, "clip.mkv")     # never a cover picture
    is_finite(container)                             # False: a camera, a live playlist

Whether a source is finite or live is decided here and nowhere else, by looking at what is there: the same
address may be a file, a finished playlist or a camera.
"""

from __future__ import annotations

import io
import logging
import os
import select
import stat
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import av
import av.error
from av.stream import Discard, Disposition

from streamvos.addresses import escape_password, is_url, scheme_of
from streamvos.types import InputError, SourceError

_LOGGER = logging.getLogger(__name__)

_FILES_ONLY = "file,crypto,data"
"""What a file on disk may open: a playlist must not reach into the network."""

_SEGMENTED = {"hls", "dash"}
"""Formats whose list is one file, and the video many; its length says nothing."""

_SERVED = {"rtsp", "sdp", "rtp"}
"""Formats whose frames come when the server sends them, also where the stream has an end."""

_NO_CLOCK = {"mpjpeg", "mjpeg", "h264", "hevc", "vvc", "av1", "obu", "m4v", "mpegvideo", "cavsvideo", "vc1"}
"""Formats without time stamps; those of FFmpeg are counted at an invented rate."""

_NOT_VIDEO = Disposition.attached_pic | Disposition.timed_thumbnails


def open_container(
    target: str,
    open_timeout: float | None = None,
    read_timeout: float | None = None,
    options: Mapping[str, str] | None = None,
) -> av.container.InputContainer:
    """Open a regular file, a pipe (a FIFO, or "-" for the standard input) or an address.

    Args:
        target: path, "-" or URL.
        open_timeout, read_timeout: seconds after which a network read or a pipe fails; None waits.
        options: further options of FFmpeg.

    Raises:
        av.error.FFmpegError, OSError, ValueError: it cannot be opened; the text may hold a password.
        SourceError: nobody writes into the pipe.
    """
    scheme, given = scheme_of(target), dict(options or {})
    place: Any = target
    timeout: Any = None if open_timeout is None else (open_timeout, read_timeout)
    if scheme:
        place = escape_password(target)
        if scheme in ("rtsp", "rtsps"):
            # Over UDP, a busy line tears pictures apart; but some cameras speak nothing else.
            given |= {"rtsp_transport": "tcp+udp", "rtsp_flags": "prefer_tcp"}
        if scheme in ("http", "https"):
            given |= {"reconnect": "1", "reconnect_delay_max": "2"}  # where a transfer is cut short
    elif is_pipe(target):
        pipe: Any = _Pipe(target, open_timeout or 10.0, read_timeout or 30.0)
        return av.open(pipe, mode="r", options=given)
    elif target.lower().endswith(".sdp"):
        # It describes a stream that somebody sends; FFmpeg listens.
        given |= {"protocol_whitelist": "file,rtp,udp,crypto,data"}
        return av.open(f"file:{os.path.abspath(target)}", format="sdp", options=given, timeout=timeout)
    else:
        given |= {"protocol_whitelist": _FILES_ONLY}
        place = f"file:{os.path.abspath(target)}"
    return av.open(place, options=given, timeout=timeout)


def is_pipe(place: str | Path) -> bool:
    """Whether a place is the standard input or a FIFO, which can be read once, from front to back."""
    if str(place) == "-":
        return True
    try:
        return stat.S_ISFIFO(os.stat(place).st_mode) or stat.S_ISSOCK(os.stat(place).st_mode)
    except (OSError, ValueError):
        return False


def is_finite(container: av.container.InputContainer) -> bool:
    """Whether a container has an end: its length is known, in time or in bytes."""
    names = format_names(container)
    if names & _SERVED:
        return False
    if container.duration is not None and container.duration > 0:
        return True
    if names & _SEGMENTED:
        return False
    if "mpjpeg" in names:  # cameras announce lengths that mean nothing
        return False
    return container.size > 0


def format_names(container: av.container.InputContainer) -> set[str]:
    """Names of a container's format, such as {"mov", "mp4"}."""
    return set(container.format.name.split(","))


def has_clock(container: av.container.InputContainer) -> bool:
    """Whether the time stamps come from the stream, rather than being counted by FFmpeg."""
    return not format_names(container) & _NO_CLOCK


def comes_in_pieces(container: av.container.InputContainer) -> bool:
    """Whether frames come in bursts of seconds, so that their arrival says little about their time."""
    return bool(format_names(container) & _SEGMENTED)


def video_stream(container: av.container.InputContainer, name: str) -> av.video.stream.VideoStream:
    """The video among a container's streams: the default one, of several the largest.

    Cover pictures and thumbnails are no videos. A choice between several videos is logged. FFmpeg need not
    read the others.

    Args:
        container: an open container.
        name: name of the source in messages.

    Raises:
        InputError: there is none.
    """
    found = list(container.streams.video)
    videos = [one for one in found if not one.disposition & _NOT_VIDEO]
    if not videos:
        if found:
            raise InputError(f"{name} holds no video, only a cover picture; give a video")
        raise InputError(f"{name} holds no video stream; is the file complete?")
    videos = [one for one in videos if one.codec_context is not None]
    if not videos:
        raise InputError(f"{name} holds a video in a format that FFmpeg does not know; re-encode it")
    if len(videos) > 1 and any(one.frames > 1 for one in videos):
        videos = [one for one in videos if one.frames != 1] or videos  # a cover that is not called one
    chosen = max(videos, key=_rank)
    for one in container.streams:
        if one.type == "video" and one is not chosen:
            one.discard = Discard.all
    sizes = [f"{one.width}x{one.height}" for one in videos]
    if len(videos) > 1 and not format_names(container) & _SEGMENTED:  # a playlist offers sizes of one video
        _LOGGER.warning(
            "%s holds %d videos (%s); the one that is read is stream %d, %dx%d",
            name, len(videos), ", ".join(sizes), chosen.index, chosen.width, chosen.height,
        )  # fmt: skip
    return chosen


def rate_of(stream: av.video.stream.VideoStream) -> float | None:
    """Mean rate of a stream in frames per second; None if it claims none that is credible."""
    return credible_fps(float(stream.average_rate or stream.guessed_rate or 0))


def credible_fps(fps: float) -> float | None:
    """The rate, or None for zero, NaN and a clock's tick rate (90000), which streams may claim."""
    return float(fps) if 0 < fps <= 1000 else None


def _rank(stream: av.video.stream.VideoStream) -> tuple[bool, int, int]:
    is_default = bool(stream.disposition & Disposition.default)
    return is_default, (stream.width or 0) * (stream.height or 0), -stream.index


class _Pipe(io.RawIOBase):
    """A pipe as FFmpeg reads it: in blocks, with a deadline, since nobody may write.

    Raises:
        SourceError: nothing comes in time.
    """

    def __init__(self, place: str, open_timeout: float, read_timeout: float) -> None:
        self.name = "the standard input" if place == "-" else place
        # without O_NONBLOCK, opening a FIFO waits for a writer, for ever
        self._fd = 0 if place == "-" else os.open(place, os.O_RDONLY | os.O_NONBLOCK)
        self._timeout, self._begun = open_timeout, False
        self._read_timeout = read_timeout

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        """Up to `size` bytes, b"" at the end."""
        deadline = time.monotonic() + self._timeout
        while True:
            left = deadline - time.monotonic()
            if left <= 0 or not select.select([self._fd], [], [], left)[0]:
                raise SourceError(
                    f"{self.name} gave nothing for {self._timeout:g} s; check the program that writes into it"
                )
            try:
                data = os.read(self._fd, 65536 if size < 0 else size)
            except BlockingIOError:
                continue
            if data or self._begun or self._fd == 0:
                break
            time.sleep(0.02)  # a FIFO without a writer reads as ended; one may still come
        self._begun, self._timeout = True, self._read_timeout
        return data

    def close(self) -> None:
        """Close it; the standard input stays open."""
        if not self.closed and self._fd > 0:
            os.close(self._fd)
        super().close()


def reason_of(error: Exception) -> str:
    """Why FFmpeg failed, without the address that its own text holds."""
    return getattr(error, "strerror", None) or type(error).__name__


def file_reason(place: str, error: Exception) -> str:
    """Why a file cannot be opened, and what was expected."""
    reason = reason_of(error).lower()
    if is_pipe(place):
        return f"{reason}; a pipe is read once: send MPEG-TS, Matroska, or MP4 with +faststart"
    if scheme_of(place):
        return f"{reason}; check address, user and password, and that the server is sending"
    if place.lower().endswith((".m3u8", ".m3u", ".mpd")):
        return (
            f"{reason}; a playlist on disk names files on disk and opens no network connection: give the "
            "playlist's address for one on a server"
        )
    return f"{reason}; expected a complete video file such as MP4"


def is_address(place: str | Path) -> bool:
    """Whether a place is a URL; a `Path` never is."""
    return isinstance(place, str) and is_url(place)
