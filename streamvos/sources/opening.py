"""Opening a source of any kind by one string.

open_source("videos/goat.mp4")                          # a video file
open_source("DAVIS/JPEGImages/480p/goat", fps=24)       # a folder of pictures
open_source("shots/*.png", stride=2)                    # a glob
open_source("synthetic:seed=3,objects=2,size=480x854")  # a generated video with ground truth
open_source("synthetic:photographs,seed=0,length=80")   # photographed objects in motion, with ground truth
open_source("camera:0")                                 # /dev/video0
open_source("camera:goat.mp4")                          # a file played in real time, like a camera
open_source("rtsp://user:secret@10.0.0.5/stream")       # a network camera
"""

from __future__ import annotations

import glob
import math
from pathlib import Path

from streamvos.addresses import is_url, redact, scheme_of
from streamvos.sources.live_address import URL_SCHEMES, Policy
from streamvos.sources.source import IMAGE_SUFFIXES, Selection, Source
from streamvos.types import InputError


def open_source(
    spec: str | Path,
    *,
    name: str | None = None,
    height: int | None = None,
    stride: int = 1,
    max_frames: int | None = None,
    fps: float | None = None,
    policy: Policy | None = None,
    open_timeout: float = 10.0,
    stall_timeout: float = 10.0,
) -> Source:
    """Open the source that `spec` names; only the libraries that this kind of source needs are imported.

    Args:
        spec: "camera:N", "camera:PATH", a URL, "synthetic:NAME=VALUE,...", or the path of a folder, glob,
            picture or video file. A `Path` is always a path.
        name: name of the stream; each kind of source has its own default.
        height, stride, max_frames: see `Selection`.
        fps: frames per second, for pictures and synthetic videos, which have no clock of their own.
        policy: "latest" (drop frames that come too fast; the default of live sources) or "lossless" (drop
            none; the only one for files).
        open_timeout: seconds within which a live source must be open.
        stall_timeout: seconds within which each next frame of a live source must come.

    Raises:
        InputError: `spec` does not exist, a file is damaged, or an option does not fit.
        SourceError: a camera or network stream cannot be opened. Messages never contain credentials.
    """
    selection = Selection(height=height, stride=stride, max_frames=max_frames)
    if fps is not None and not (isinstance(fps, (int, float)) and math.isfinite(fps) and fps > 0):
        raise InputError(f"fps must be a number > 0, got {fps!r}")
    if not isinstance(spec, (str, Path)):
        raise InputError(f"the source must be a string or a Path, got {type(spec).__name__}")
    text = str(spec)
    if not text.strip():
        raise InputError("the source is an empty string; give a path, camera:N, a URL or synthetic:")
    is_camera = isinstance(spec, str) and text.startswith("camera:")
    is_address = isinstance(spec, str) and is_url(text)
    is_synthetic = isinstance(spec, str) and (text == "synthetic" or text.startswith("synthetic:"))
    if is_address and scheme_of(text) not in URL_SCHEMES:
        known = ", ".join(URL_SCHEMES)
        raise InputError(f"cannot read {redact(text)}; expected a URL that begins with one of {known}")
    if is_camera or is_address:
        _refuse_fps(fps, redact(text))
        place = text.removeprefix("camera:")
        if not place:
            raise InputError("camera: lacks its number or path; try camera:0")
        from streamvos.sources.live import LiveSource

        return LiveSource(
            place,
            name=name,
            policy=policy or "latest",
            open_timeout=open_timeout,
            stall_timeout=stall_timeout,
            selection=selection,
        )
    if policy not in (None, "lossless"):
        raise InputError(
            f"{text} is not a live source, so none of its frames is dropped: leave out policy={policy!r}, or "
            f"play a video file in real time as camera:{text}"
        )
    if is_synthetic:
        from streamvos.sources.generated import GeneratedSource

        return GeneratedSource(text.partition(":")[2], name=name, fps=fps, selection=selection)
    path = Path(spec)
    if not path.exists() and not glob.has_magic(text):
        raise InputError(
            f"there is no {text}; expected a video file, a folder of pictures, a glob, camera:N, a URL or "
            "synthetic:"
        )
    if path.is_file() and path.suffix.lower() not in IMAGE_SUFFIXES - {".gif"}:
        _refuse_fps(fps, text)
        from streamvos.sources.video_file import VideoFileSource

        return VideoFileSource(path, name=name, selection=selection)
    from streamvos.sources.images import ImagesSource

    return ImagesSource(spec, name=name, fps=fps, selection=selection)


def _refuse_fps(fps: float | None, what: str) -> None:
    if fps is not None:
        raise InputError(f"{what} has its own clock; fps is for pictures and synthetic videos: leave it out")
