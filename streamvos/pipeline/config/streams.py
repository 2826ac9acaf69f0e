"""[[streams]] and their sinks: where frames come from, which objects are followed, where results go."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, ValidationInfo, field_validator, model_validator

from streamvos.addresses import STANDARD_INPUT, file_of, is_url, redact, scheme_of
from streamvos.masks.pointing import parse_boxes, parse_points
from streamvos.pipeline.config.tables import ConfigPath, Name, Table, from_base
from streamvos.pipeline.wire.endpoints import check_address
from streamvos.sources.live_address import URL_SCHEMES, is_live
from streamvos.synthetic.options import parse_parameters

Policy = Literal["latest", "lossless"]


class SinkConfig(Table):
    """One sink of a stream.

    Attributes:
        kind: "labels" (a folder of PNGs), "overlay" (a video), "json" (lines), "publish" (ZeroMQ).
        path: file or folder; `publish` has none.
        address: address of a `publish` sink; None = the stream's own socket in the pipeline's folder.
        queue: most frames that may wait for this sink.
        overflow: what happens when the queue is full: "wait" holds the stream, "drop" drops the oldest frame
            and counts it. None = "wait" for files of a lossless stream, "drop" for everything else.
    """

    kind: Literal["labels", "overlay", "json", "publish"]
    path: ConfigPath | None = None
    address: str | None = None
    queue: int = Field(32, ge=1, le=1024)
    overflow: Literal["wait", "drop"] | None = None

    @model_validator(mode="after")
    def _check(self) -> SinkConfig:
        if self.kind == "publish":
            if self.path is not None:
                raise ValueError(f'a publish sink has an address and no path, got path = "{self.path}"')
            if self.address is not None:
                check_address(self.address)
            return self
        if self.address is not None:
            raise ValueError(f'a {self.kind} sink has a path and no address, got address = "{self.address}"')
        if self.path is None:
            what = "folder" if self.kind == "labels" else "file"
            raise ValueError(f'a {self.kind} sink needs path = "...", the {what} that it writes')
        if self.kind == "overlay" and self.path.suffix.lower() != ".mp4":
            raise ValueError(f'the overlay is an MP4: expected a path that ends in .mp4, got "{self.path}"')
        return self


class StreamConfig(Table):
    """One stream: where its frames come from, which objects are followed, where results go.

    Attributes:
        source: see `open_source`.
        mask: label map of the first frame; None waits for a mask from a client.
        finite: whether an address (http://, a playlist) names a video with an end, and no live stream. None:
            the supervisor opens it once, before the start, and looks (`streamvos.sources.kind`).
        first_frame: the source's frame to begin with, counted from 0; None = the one that the mask's name
            says, else the first.
        topic: of a recording (rosbag2, MCAP): which topic; None = the only one with pictures.
        allow_truncated: take a video that is damaged or ends too early as far as it goes.
        boxes, points: instead of a mask or in addition, "ID:LEFT,TOP,RIGHT,BOTTOM" and "ID:X,Y" each.
        policy: None = "latest" for live sources, "lossless" for the others.
        realtime: whether a source that is not live is paced by its time stamps.
        stall_timeout: seconds within which each next frame must come. None = 10 for live sources, 30 for
            others: longer than a disk takes to spin up.
        reopen: whether a live source that ends is opened again. None = only network streams without
            max_frames, since a camera that is switched off looks like a stream that ends.
    """

    name: Name
    source: str = Field(repr=False)
    mask: ConfigPath | None = None
    boxes: tuple[str, ...] = Field((), strict=False)
    points: tuple[str, ...] = Field((), strict=False)
    policy: Policy | None = None
    finite: bool | None = None
    realtime: bool = False
    topic: str | None = None
    allow_truncated: bool = False
    height: int | None = Field(None, ge=16, le=8192)
    stride: int = Field(1, ge=1, le=2**31)
    max_frames: int | None = Field(None, ge=1, le=2**53)
    first_frame: int | None = Field(None, ge=0, le=2**53)
    fps: float | None = Field(None, gt=0)
    open_timeout: float = Field(10.0, gt=0)
    stall_timeout: float | None = Field(None, gt=0)
    reopen: bool | None = None
    sinks: tuple[SinkConfig, ...] = Field((), strict=False)

    @field_validator("source")
    @classmethod
    def _placed_source(cls, source: str, info: ValidationInfo) -> str:
        _check_source(source)
        if scheme_of(source.removeprefix("camera:")) == "file":
            prefix = "camera:" if source.startswith("camera:") else ""
            source = f"{prefix}{file_of(source)}"
        if info.context is None or is_url(source) or _is_synthetic(source):
            return source
        if source.startswith("camera:"):
            place = source.removeprefix("camera:")
            return source if place.isdecimal() else f"camera:{from_base(Path(place), info)}"
        return str(from_base(Path(source), info))

    @field_validator("boxes")
    @classmethod
    def _readable_boxes(cls, boxes: tuple[str, ...]) -> tuple[str, ...]:
        parse_boxes(boxes)
        return boxes

    @field_validator("points")
    @classmethod
    def _readable_points(cls, points: tuple[str, ...]) -> tuple[str, ...]:
        parse_points(points)
        return points

    @model_validator(mode="after")
    def _check(self) -> StreamConfig:
        known = is_live(self.source)
        if known is not None and self.finite is known:
            what = "live" if known else "a file"
            raise ValueError(f"finite: {redact(self.source)} is {what}; the key is for http:// and playlists")
        if self.first_frame and self.live:
            raise ValueError("first_frame: a live source begins with the frame that comes; leave it out")
        if self.policy == "latest" and not self.live and not self.realtime:
            raise ValueError(
                f'policy: "latest" drops frames of a live source, and {redact(self.source)} is not live; '
                'use "lossless", or add realtime = true to play it at its own speed'
            )
        if self.fps is not None and self.live:
            raise ValueError("fps: a live source has its own clock; leave it out")
        if self.reopen and (not self.live or self.max_frames is not None):
            raise ValueError(
                "reopen: only cameras and network streams without max_frames can be reopened; leave it out"
            )
        nothing = self.mask is None and not self.boxes and not self.points and not _is_synthetic(self.source)
        if nothing and self.effective_policy == "lossless":
            raise ValueError(
                'policy "lossless" drops no frame, so the first one needs objects to follow; '
                'add mask = "first.png" or boxes = ["ID:LEFT,TOP,RIGHT,BOTTOM"]'
            )
        return self

    @property
    def live(self) -> bool:
        """Whether the source has a clock of its own: a camera or a network stream.

        What only opening it can tell: an address counts as live, and a playlist on disk as a file, until
        `finite` says.
        """
        known = is_live(self.source)
        if known is None:
            known = is_url(self.source) if self.finite is None else not self.finite
        return known

    @property
    def reopens(self) -> bool:
        """Whether its source is opened again when it ends."""
        is_network = self.live and is_url(self.source.removeprefix("camera:"))
        return self.max_frames is None and (is_network if self.reopen is None else self.reopen)

    @property
    def effective_policy(self) -> Policy:
        """The policy, with the default filled in."""
        return self.policy or ("latest" if self.live or self.realtime else "lossless")

    @property
    def effective_stall_timeout(self) -> float:
        """Seconds within which each next frame must come, with the default filled in."""
        return self.stall_timeout or (10.0 if self.live else 30.0)

    @property
    def shows_pictures(self) -> bool:
        """Whether a sink needs the frames' pictures."""
        return any(sink.kind == "overlay" for sink in self.sinks)

    @property
    def shows_objects(self) -> bool:
        """Whether a sink needs scores and boxes."""
        return any(sink.kind in ("json", "publish", "overlay") for sink in self.sinks)

    def overflow_of(self, sink: SinkConfig) -> Literal["wait", "drop"]:
        """What happens when a sink's queue is full."""
        if sink.overflow is not None:
            return sink.overflow
        return "wait" if self.effective_policy == "lossless" and sink.kind != "publish" else "drop"


def _check_source(source: str) -> None:
    """Check the form of a source; whether it exists shows when it is opened."""
    if not source.strip():
        raise ValueError("it is an empty text; expected a path, a glob, camera:N, a URL or synthetic:")
    if source.removeprefix("camera:") == STANDARD_INPUT:
        raise ValueError("the standard input has one reader: `streamvos run -`; here, give a FIFO")
    if is_url(source):
        if scheme_of(source) == "file":
            if file_of(source) is None:
                raise ValueError(f"cannot read {redact(source)}; a file is file:///path, or just its path")
        elif scheme_of(source) not in URL_SCHEMES:
            raise ValueError(f"cannot read {redact(source)}; expected one of {', '.join(URL_SCHEMES)}")
    elif source == "camera:":
        raise ValueError('"camera:" lacks its number or path; expected for example "camera:0"')
    elif _is_synthetic(source):
        parse_parameters(source.partition(":")[2])


def _is_synthetic(source: str) -> bool:
    """Whether a source is generated, so that its true masks are known."""
    return source == "synthetic" or source.startswith("synthetic:")
