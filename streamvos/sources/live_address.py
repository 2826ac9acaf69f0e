"""Addresses of cameras and network streams: for opening them, for names, and for error messages.

>>> live_address("rtsp://admin:secret@10.0.0.5/stream")
LiveAddress(label='rtsp://***@10.0.0.5/stream', name='10.0.0.5', kind='url')
"""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from streamvos.addresses import (
    STANDARD_INPUT,
    escape_password,
    file_of,
    host_of,
    is_url,
    redact,
    scheme_of,
)
from streamvos.types import InputError, SourceError

Policy = Literal["latest", "lossless"]
"""Whether frames that come faster than they are used are dropped, or the stream waits."""

URL_SCHEMES = ("rtsp", "rtsps", "http", "https", "udp", "rtp", "tcp", "tls", "srt", "rtmp", "rtmps")
"""Schemes of network streams; which of them work depends on PyAV's FFmpeg."""


@dataclass(frozen=True, slots=True)
class LiveAddress:
    """What to open, and its names without credentials.

    Attributes:
        target: camera number, path or URL, with its password; never shown.
        label: name for error messages.
        name: default name of the stream.
        kind: "device", "file" (played as if it were a camera), "pipe", or "url" (also an SDP file).
    """

    target: int | str = field(repr=False)
    label: str
    name: str
    kind: Literal["device", "file", "pipe", "url"]

    @property
    def advice(self) -> str:
        """What to check when it fails."""
        if self.kind == "url":
            return "check address, user and password, and that the server is sending"
        if self.kind == "pipe":
            return "check the program that writes into it"
        if self.kind == "file":
            return "check that it is a complete video file"
        return "check that the camera is connected and that no other program uses it"


def is_live(source: str) -> bool | None:
    """Whether a source is live, as far as its text tells: a camera or a network stream, not a file.

    Returns:
        None: it has to be opened to know; a file or a finished playlist behind http:// is none.
    """
    if source.startswith("camera:"):
        return True
    scheme, path = scheme_of(source), file_of(source)
    if scheme in URL_SCHEMES:
        return None if scheme in ("http", "https") else True
    if path is None:
        return False
    if path.startswith("/dev/video") or path.lower().endswith(".sdp"):
        return True
    return None if path.lower().endswith((".m3u8", ".mpd")) else False


def live_address(place: int | str | Path) -> LiveAddress:
    """The address of a camera's number, a device, a file or a URL.

    Raises:
        InputError: a negative number or a folder.
        SourceError: no such device, or no permission for it.
    """
    if isinstance(place, int) or (isinstance(place, str) and place.isdecimal()):
        number = int(place)
        if number < 0:
            raise InputError(f"cameras are numbered from 0, got {number}")
        if sys.platform.startswith("linux"):
            _check_device(Path(f"/dev/video{number}"), f"camera {number}")
        return LiveAddress(number, f"camera {number}", f"camera{number}", "device")
    text = str(place)
    if is_url(text):
        return LiveAddress(text, redact(text), host_of(escape_password(text)) or "stream", "url")
    if text == STANDARD_INPUT:
        return LiveAddress(text, "the standard input", "stdin", "pipe")
    path = Path(text)
    if path.is_fifo():
        return LiveAddress(text, text, path.stem, "pipe")
    if path.is_file():
        kind: Literal["file", "url"] = "url" if path.suffix.lower() == ".sdp" else "file"
        return LiveAddress(str(path.absolute()), text, path.stem, kind)
    if path.is_dir():
        raise InputError(f"{path} is a folder, not a camera; leave out 'camera:' to read the pictures in it")
    _check_device(path, f"camera {path}")
    return LiveAddress(text, f"camera {path}", path.name, "device")


def _check_device(device: Path, label: str) -> None:
    if not device.exists():
        present = sorted(str(path) for path in Path("/dev").glob("video*")) if Path("/dev").is_dir() else []
        raise SourceError(
            f"cannot open {label}: there is no {device} (devices here: {', '.join(present) or 'none'}); "
            "plug the camera in, or give another number or path"
        )
    if not device.is_char_device():
        raise SourceError(f"cannot open {label}: {device} is no device; give one such as /dev/video0")
    if not os.access(device, os.R_OK | os.W_OK):
        raise SourceError(
            f"cannot open {label}: no permission for {device}; add yourself to its group (often 'video')"
        )
