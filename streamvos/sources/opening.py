"""Opening a source of any kind by one string.

open_source("videos/goat.mp4")                          # a video file
open_source("DAVIS/JPEGImages/480p/goat", fps=24)       # a folder of pictures
open_source("shots/*.png", stride=2)                    # a glob
open_source("synthetic:seed=3,objects=2,size=480x854")  # a generated video with ground truth
open_source("synthetic:photographs,seed=0,length=80")   # photographed objects in motion, with ground truth
open_source("camera:0")                                 # /dev/video0
open_source("camera:goat.mp4")                          # a file played in real time, like a camera
open_source("rtsp://user:secret@10.0.0.5/stream")       # a network camera
open_source("https://example.org/clip.mp4")             # a file elsewhere, or a playlist with an end
open_source("ride/", topic="/camera/image_raw")         # a rosbag2 recording, or an MCAP file
open_source("-")                                        # a video on the standard input

What an address names, a file or a live stream, is found out by opening it (`container.is_finite`).
"""

from __future__ import annotations

import glob
import math
import threading
from pathlib import Path
from typing import TYPE_CHECKING

from streamvos.addresses import STANDARD_INPUT, file_of, is_url, redact, scheme_of
from streamvos.pictures.listing import IMAGE_SUFFIXES
from streamvos.sources.live_address import URL_SCHEMES, Policy, is_live, live_address
from streamvos.sources.places import is_recording
from streamvos.sources.source import Selection, Source
from streamvos.types import InputError

if TYPE_CHECKING:
    import av


def open_source(
    spec: str | Path,
    *,
    name: str | None = None,
    height: int | None = None,
    stride: int = 1,
    max_frames: int | None = None,
    first_frame: int = 0,
    fps: float | None = None,
    topic: str | None = None,
    finite: bool | None = None,
    policy: Policy | None = None,
    allow_truncated: bool = False,
    open_timeout: float = 10.0,
    stall_timeout: float = 10.0,
) -> Source:
    """Open the source that `spec` names; only the libraries that this kind of source needs are imported.

    Args:
        spec: "camera:N", "camera:PATH", a URL, "synthetic:NAME=VALUE,...", "-" for the standard input, or the
            path of a folder, glob, picture, video file, FIFO or device. A `Path` is always a path.
        name: name of the stream; each kind of source has its own default.
        height, stride, max_frames, first_frame: see `Selection`; a live source has no `first_frame`.
        fps: frames per second, for pictures and synthetic videos, which have no clock of their own.
        topic: of a recording (rosbag2, MCAP): which topic; None = the only one with pictures.
        finite: whether an address names a video with an end, and no live stream; None opens it to find out.
            A finite video that is taken for live plays at its own speed.
        policy: "latest" (drop frames that come too fast; the default of live sources) or "lossless" (drop
            none; the only one for what has an end).
        allow_truncated: a video that is damaged or ends too early is read as far as possible, with a warning.
        open_timeout: seconds within which a live source must be open.
        stall_timeout: seconds within which each next frame of a live source must come.

    Raises:
        InputError: `spec` does not exist, a file is damaged, or an option does not fit.
        SourceError: a camera or network stream cannot be opened. Messages never contain credentials.
    """
    selection = Selection(height=height, stride=stride, max_frames=max_frames, first_frame=first_frame)
    if fps is not None and not (isinstance(fps, (int, float)) and math.isfinite(fps) and fps > 0):
        raise InputError(f"fps must be a number > 0, got {fps!r}")
    if not isinstance(spec, (str, Path)):
        raise InputError(f"the source must be a string or a Path, got {type(spec).__name__}")
    text = str(spec)
    if not text.strip():
        raise InputError("the source is an empty string; give a path, camera:N, a URL or synthetic:")
    if "\0" in text:
        raise InputError("the source holds a zero byte; give a path, camera:N, a URL or synthetic:")
    if topic is not None and not is_recording(Path(text)):
        raise InputError(f"{redact(text)} is no recording of messages; leave the topic out")
    if isinstance(spec, Path):
        path = spec
        spec = path.absolute() if text == STANDARD_INPUT else path
    elif text == "synthetic" or text.startswith("synthetic:"):
        _refuse_latest(policy, text, "")
        from streamvos.sources.generated import GeneratedSource

        return GeneratedSource(text.partition(":")[2], name=name, fps=fps, selection=selection)
    else:
        place = _checked_place(text.removeprefix("camera:"), text)
        spec = f"camera:{place}" if text.startswith("camera:") else place
        path = Path(place)
    live: bool | None = False
    container, shown = None, redact(str(spec))
    if isinstance(spec, str):
        live = is_live(spec)
        if live is None and finite is None:
            container = _opened(spec, open_timeout, stall_timeout)
            finite = _is_finite(container)
        live = not finite if live is None else live
    if live or path.is_char_device():
        _refuse_fps(fps, shown)
        if first_frame:
            raise InputError(f"{shown} is live and begins with the frame that comes; leave out first_frame")
        from streamvos.sources.live import LiveSource

        return LiveSource(
            str(spec).removeprefix("camera:"),
            name=name,
            policy=policy or "latest",
            open_timeout=open_timeout,
            stall_timeout=stall_timeout,
            selection=selection,
            container=container,
        )
    is_remote = isinstance(spec, str) and is_url(spec)
    _refuse_latest(policy, shown, f", or play it in real time as camera:{shown}")
    if not (is_remote or str(spec) == STANDARD_INPUT or path.exists() or glob.has_magic(str(spec))):
        raise InputError(
            f"there is no {shown}; expected a video file, a folder of pictures, a glob, camera:N, a URL or "
            "synthetic:"
        )
    if not is_remote and is_recording(path):
        _refuse_fps(fps, shown)
        from streamvos.sources.bag import BagSource

        return BagSource(path, topic=topic, name=name, selection=selection, allow_truncated=allow_truncated)
    is_picture = path.suffix.lower() in IMAGE_SUFFIXES and not is_remote
    if is_remote or str(spec) == STANDARD_INPUT or path.is_fifo() or (path.is_file() and not is_picture):
        _refuse_fps(fps, shown)
        from streamvos.sources.video_file import VideoFileSource

        return VideoFileSource(
            spec,
            name=name,
            selection=selection,
            allow_truncated=allow_truncated,
            open_timeout=open_timeout,
            stall_timeout=stall_timeout,
            container=container,
        )
    from streamvos.sources.images import ImagesSource

    return ImagesSource(spec, name=name, fps=fps, selection=selection)


def _checked_place(place: str, spec: str) -> str:
    """A path or a URL that can be opened; file:// becomes a path."""
    if not place:
        raise InputError("camera: lacks its number or path; try camera:0")
    if not is_url(place):
        return place
    if scheme_of(place) == "file":
        path = file_of(place)
        if path is None:
            raise InputError(f"cannot read {redact(spec)}; write file:///path, or just the path")
        return path
    if scheme_of(place) not in URL_SCHEMES:
        known = ", ".join(URL_SCHEMES)
        raise InputError(f"cannot read {redact(spec)}; expected a URL that begins with one of {known}")
    return place


def _opened(place: str, open_timeout: float, stall_timeout: float) -> av.container.InputContainer:
    """Open a place in a thread, so that a deadline and Ctrl-C end the wait; FFmpeg's own deadline is later.

    Raises:
        InputError, SourceError: it cannot be opened.
    """
    from streamvos.sources.capture import cannot_open, no_answer
    from streamvos.sources.container import open_container

    address = live_address(place)
    found: list[av.container.InputContainer | Exception] = []
    done, given_up = threading.Event(), threading.Event()

    def work() -> None:
        try:
            container = open_container(str(address.target), open_timeout + 0.5, stall_timeout + 0.5)
        except Exception as error:
            found.append(error)
        else:
            found.append(container)
            if given_up.is_set():
                container.close()
        done.set()

    threading.Thread(target=work, name=f"source {address.name}", daemon=True).start()
    if not done.wait(open_timeout):
        given_up.set()
        raise no_answer(address, open_timeout)
    result = found[0]
    if isinstance(result, Exception):
        raise cannot_open(address, result, open_timeout) from None
    return result


def look_if_finite(address: str, open_timeout: float) -> bool:
    """Whether an address names a video with an end, by opening it.

    Raises:
        InputError, SourceError: it cannot be opened.
    """
    container = _opened(address, open_timeout, open_timeout)
    try:
        return _is_finite(container)
    finally:
        container.close()


def _is_finite(container: av.container.InputContainer) -> bool:
    from streamvos.sources.container import is_finite

    return is_finite(container)


def _refuse_latest(policy: Policy | None, what: str, instead: str) -> None:
    if policy not in (None, "lossless"):
        raise InputError(
            f"{what} is not a live source, so none of its frames is dropped: leave out policy={policy!r}"
            f"{instead}"
        )


def _refuse_fps(fps: float | None, what: str) -> None:
    if fps is not None:
        raise InputError(f"{what} has its own clock; fps is for pictures and synthetic videos: leave it out")
