"""What a pipeline is made of: the model of pipeline.toml.

    name = "door"                       # of the pipeline; its sockets lie in a folder of this name
    placement = "fused"                 # or "split"

    [method]
    name = "tvos"

    [[streams]]
    name = "front"
    source = "rtsp://user:secret@10.0.0.5/stream"
    mask = "first.png"
    policy = "latest"                   # live; "lossless" for files
    height = 480
    sinks = [{ kind = "json", path = "out/front.jsonl" }, { kind = "publish" }]

Every table and its keys are in docs/pipeline.md.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    Strict,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from streamvos.pipeline import config_checks as checks
from streamvos.pipeline.config_errors import explain
from streamvos.pipeline.prometheus import parse_address
from streamvos.sources.addresses import is_url, redact, scheme_of
from streamvos.sources.live_address import URL_SCHEMES
from streamvos.types import InputError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

Placement = Literal["fused", "split"]
Policy = Literal["latest", "lossless"]

LIVE_SLOTS = 16
"""Frames under way from the source to the sinks, at most, with room for the way back of their release."""

RETAINED_BYTES = 2**29
"""The most that a lossless stream keeps of its frames."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")


class _Table(BaseModel):
    # strict: `queue = true` is no number, and "480" is none either
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


def _from_base(path: Path, info: ValidationInfo) -> Path:
    """A path of a file, which starts from the file's folder; of anything else, as it is."""
    return path if info.context is None else info.context["base"] / path.expanduser()


ConfigPath = Annotated[Path, Strict(False), AfterValidator(_from_base)]


class MethodConfig(_Table):
    """Which method segments, as `streamvos.load` takes it.

    Attributes:
        training: "inline" (a target model that trains does so within its frame; bit-identical to `Segmenter`)
            or "beside" (it goes on with the old one until the new one is ready).
        threads: that torch uses within an operation, in each worker; None leaves it to torch.
    """

    name: str = "tvos"
    weights: str | None = "default"
    device: str = "auto"
    backend: str = "eager"
    options: dict[str, Any] = Field(default_factory=dict)
    training: Literal["inline", "beside"] = "inline"
    threads: int | None = Field(None, ge=1, le=1024)

    @field_validator("weights")
    @classmethod
    def _place_weights(cls, weights: str | None, info: ValidationInfo) -> str | None:
        """TOML has no null: "none" stands for it."""
        if weights is None or weights.lower() == "none":
            return None
        return weights if weights == "default" else str(_from_base(Path(weights), info))


class SinkConfig(_Table):
    """One sink of a stream.

    Attributes:
        kind: "labels" (a folder of PNGs), "overlay" (a video), "json" (lines), "publish" (ZeroMQ).
        path: file or folder; `publish` has none.
        address: of `publish`; None = the stream's own socket in the pipeline's folder.
        queue: frames that may wait for this sink.
        overflow: what happens when they are more: "wait" holds the stream, "drop" drops the oldest and counts
            it. None = "wait" for files of a lossless stream, "drop" for everything else.
    """

    kind: Literal["labels", "overlay", "json", "publish"]
    path: ConfigPath | None = None
    address: str | None = None
    queue: int = Field(32, ge=1, le=1024)
    overflow: Literal["wait", "drop"] | None = None

    @model_validator(mode="after")
    def _check(self) -> SinkConfig:
        checks.check_sink(self)
        return self


class StreamConfig(_Table):
    """One stream: where its frames come from, what is followed, where results go.

    Attributes:
        source: as `open_source` takes it.
        mask: label map of the first frame; None = wait for a mask from a client.
        boxes: instead of a mask or beside it, "ID:LEFT,TOP,RIGHT,BOTTOM" each.
        policy: None = "latest" for live sources, "lossless" for the others.
        realtime: a source that is not live is paced by its own time stamps.
        reopen: a live source that ends is opened again. None = network streams are, as a camera that is
            switched off looks like a stream that ends; not where max_frames says when it is enough.
    """

    name: str
    source: str = Field(repr=False)
    mask: ConfigPath | None = None
    boxes: tuple[str, ...] = Field((), strict=False)
    policy: Policy | None = None
    realtime: bool = False
    height: int | None = Field(None, ge=16, le=8192)
    stride: int = Field(1, ge=1, le=2**31)
    max_frames: int | None = Field(None, ge=1, le=2**53)
    fps: float | None = Field(None, gt=0)
    open_timeout: float = Field(10.0, gt=0)
    stall_timeout: float = Field(10.0, gt=0)
    reopen: bool | None = None
    sinks: tuple[SinkConfig, ...] = Field((), strict=False)

    @field_validator("name")
    @classmethod
    def _check_name(cls, name: str) -> str:
        return _checked_name(name)

    @field_validator("source")
    @classmethod
    def _check_source(cls, source: str, info: ValidationInfo) -> str:
        checks.check_source(source)
        if info.context is None or is_url(source) or checks.is_synthetic(source):
            return source
        if source.startswith("camera:"):
            place = source.removeprefix("camera:")
            return source if place.isdecimal() else f"camera:{_from_base(Path(place), info)}"
        return str(_from_base(Path(source), info))

    @field_validator("boxes")
    @classmethod
    def _check_boxes(cls, boxes: tuple[str, ...]) -> tuple[str, ...]:
        checks.check_boxes(boxes)
        return boxes

    @model_validator(mode="after")
    def _check(self) -> StreamConfig:
        checks.check_stream(self)
        return self

    @property
    def live(self) -> bool:
        """Whether the source has a clock of its own: a camera or a network stream."""
        return self.source.startswith("camera:") or scheme_of(self.source) in URL_SCHEMES

    @property
    def reopens(self) -> bool:
        """Whether it goes on when its source ends."""
        is_network = self.live and is_url(self.source.removeprefix("camera:"))
        return self.max_frames is None and (is_network if self.reopen is None else self.reopen)

    @property
    def label(self) -> str:
        """The source without credentials, for people."""
        return redact(self.source)

    @property
    def effective_policy(self) -> Policy:
        """The policy, decided."""
        return self.policy or ("latest" if self.live or self.realtime else "lossless")

    @property
    def shows_pictures(self) -> bool:
        """Whether a sink needs the frames themselves."""
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


class SupervisionConfig(_Table):
    """When something counts as dead, and what is done then; seconds, see docs/protocol.md, 5."""

    start_timeout: float = Field(60.0, gt=0)
    heartbeat_timeout: float = Field(3.0, ge=0.5)  # beats come four times a second
    hang_timeout: float = Field(30.0, gt=0)
    drain_timeout: float = Field(1.5, gt=0)
    max_restarts: int = Field(5, ge=0)
    restart_window: float = Field(60.0, gt=0)
    snapshot_frames: int = Field(30, ge=1)
    snapshot_seconds: float = Field(1.0, gt=0)
    standby: bool | None = None
    """A second compute worker held ready; None = where the placement is "fused"."""


class ExtractorConfig(_Table):
    """Batching over streams.

    Attributes:
        batches: sizes that may run, ascending, from 1.
        measured: only those that prove faster, at the start, than their frames one by one.
    """

    batches: tuple[Annotated[int, Strict()], ...] = Field((1, 2, 4, 8), strict=False)
    measured: bool = True

    @field_validator("batches")
    @classmethod
    def _check(cls, batches: tuple[int, ...]) -> tuple[int, ...]:
        if not batches or batches[0] != 1 or list(batches) != sorted(set(batches)) or batches[-1] > 64:
            raise ValueError(f"expected sizes that ascend from 1 to at most 64, got {list(batches)}")
        return batches


class ObserveConfig(_Table):
    """What is told about the pipeline while it runs.

    Attributes:
        trace: Chrome-trace file, opens in Perfetto.
        prometheus: "HOST:PORT" or a port on 127.0.0.1 of the metrics' endpoint.
        log: "text" or "json", on the standard error.
    """

    trace: ConfigPath | None = None
    prometheus: str | None = None
    log: Literal["text", "json"] = "text"

    @field_validator("prometheus", mode="before")
    @classmethod
    def _check_address(cls, address: Any) -> Any:
        if address is None:
            return None
        parse_address(address)  # InputError is a ValueError
        return str(address)


class SecurityConfig(_Table):
    """CURVE keys, as `streamvos keys new` makes them.

    Attributes:
        secret: file with our secret key.
        clients: folder with the public keys of those who may connect.
    """

    secret: ConfigPath | None = None
    clients: ConfigPath | None = None


class RemoteConfig(_Table):
    """A stage that somebody starts by hand with `streamvos stage`, perhaps on another host.

    Attributes:
        host: address under which the other stages reach it, without a port.
    """

    host: str


class PipelineConfig(_Table):
    """The whole of it."""

    name: str = "default"
    placement: Placement = "fused"
    method: MethodConfig = Field(default_factory=MethodConfig)
    streams: tuple[StreamConfig, ...] = Field(strict=False)
    supervision: SupervisionConfig = Field(default_factory=SupervisionConfig)
    extractor: ExtractorConfig = Field(default_factory=ExtractorConfig)
    observe: ObserveConfig = Field(default_factory=ObserveConfig)
    security: SecurityConfig = Field(default_factory=SecurityConfig)
    control: str | None = None
    """tcp:// address of a second socket for users, beside the one in the pipeline's folder."""
    host: str | None = None
    """Address under which remote stages reach this host; needed if there are any."""
    port: int = Field(5600, ge=1, le=65535)
    """Of the socket that remote stages connect to."""
    remote: dict[str, RemoteConfig] = Field(default_factory=dict)
    """Stage -> where it runs: "extractor", "memory.STREAM", ..."""

    @field_validator("name")
    @classmethod
    def _check_name(cls, name: str) -> str:
        return _checked_name(name)

    @field_validator("control")
    @classmethod
    def _check_control(cls, address: str | None) -> str | None:
        if address is not None:
            checks.check_tcp(address)
        return address

    @model_validator(mode="after")
    def _check(self) -> PipelineConfig:
        if not self.streams:
            raise ValueError("there is no stream; add a [[streams]] table with a name and a source")
        names = [stream.name for stream in self.streams]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"every stream has a name of its own; twice: {', '.join(twice)}")
        unknown = sorted(set(self.remote) - set(self.stage_names))
        if unknown:
            raise ValueError(
                f"remote: no stage {', '.join(unknown)}; there are {', '.join(self.stage_names)}"
            )
        if self.remote and (self.host is None or self.placement != "split"):
            raise ValueError('remote stages need placement = "split", and host = the address of this machine')
        checks.check_places(self)
        checks.check_safety(self)
        return self

    @property
    def stage_names(self) -> tuple[str, ...]:
        """All stages, the extractor first."""
        per_stream = ("source", "memory", "decoder", "sinks")
        return ("extractor", *(f"{kind}.{one.name}" for one in self.streams for kind in per_stream))

    @property
    def standby(self) -> bool:
        """Whether a second compute worker is held ready."""
        wanted = self.supervision.standby
        return self.placement == "fused" if wanted is None else wanted and self.placement == "fused"

    def stream(self, name: str) -> StreamConfig:
        """The stream of that name."""
        return next(one for one in self.streams if one.name == name)

    def frame_slots(self, stream: str, frame_bytes: int) -> int:
        """How many frames the source of a stream holds in shared memory.

        Under "lossless" everything since the committed snapshot, twice over, so that the stream need not wait
        for one; less where frames are large.
        """
        if self.stream(stream).effective_policy == "latest":
            return LIVE_SLOTS
        wanted = 2 * self.supervision.snapshot_frames + LIVE_SLOTS
        return max(LIVE_SLOTS, min(wanted, RETAINED_BYTES // max(frame_bytes, 1)))

    def snapshot_frames(self, stream: str, frame_bytes: int) -> int:
        """After how many frames the state of a stream is saved, at the latest."""
        if self.stream(stream).effective_policy == "latest":
            return self.supervision.snapshot_frames
        return max(1, (self.frame_slots(stream, frame_bytes) - LIVE_SLOTS // 2) // 2)


_TABLES: dict[tuple[str, ...], type[BaseModel]] = {
    (): PipelineConfig,
    ("method",): MethodConfig,
    ("streams",): StreamConfig,
    ("streams", "sinks"): SinkConfig,
    ("supervision",): SupervisionConfig,
    ("extractor",): ExtractorConfig,
    ("observe",): ObserveConfig,
    ("security",): SecurityConfig,
    ("remote", "*"): RemoteConfig,
}
"""The tables of a pipeline.toml, for messages about keys."""


def read_config(path: str | Path, changes: Mapping[str, Any] | None = None) -> PipelineConfig:
    """Read a pipeline.toml. Relative paths in it are relative to the file's folder; "~" is the home folder.

    Args:
        path: of the file.
        changes: laid over what the file says, key by key; paths in it should be absolute.

    Raises:
        InputError: it cannot be read, is no TOML, or says what cannot be; the message names the key.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            values = tomllib.load(file)
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}; expected a pipeline.toml") from None
    except UnicodeDecodeError:
        raise InputError(f"{path} is no TOML; a video or camera is given with --source") from None
    except tomllib.TOMLDecodeError as error:
        raise InputError(f"{path} is no TOML: {error} (docs/pipeline.md)") from None
    return make_config(_laid_over(values, changes or {}), str(path), path.parent)


def make_config(
    values: Mapping[str, Any], where: str = "the pipeline", base: Path | None = None
) -> PipelineConfig:
    """Check a pipeline's description.

    Args:
        values: as TOML has them; or as `config.model_dump(mode="json")` gives them.
        where: what messages call it.
        base: folder that relative paths start from; None = the current one.

    Raises:
        InputError: it says what cannot be.
    """
    try:
        context = None if base is None else {"base": base}
        return PipelineConfig.model_validate(dict(values), context=context)
    except ValidationError as error:
        raise InputError(explain(error, values, where, _TABLES)) from None


def config_from_options(
    source: str,
    *,
    mask: Path | None = None,
    boxes: Sequence[str] = (),
    out: Path | None = None,
    publish: bool = True,
    stream: Mapping[str, Any] | None = None,
    changes: Mapping[str, Any] | None = None,
) -> PipelineConfig:
    """A pipeline of one stream, without a file; the stream bears the pipeline's name.

    Args:
        source, mask, boxes: of the stream.
        out: folder for label maps, overlay and lines of JSON; None = they are not written.
        publish: the masks on a socket.
        stream: further keys of the stream; those that are None are left out.
        changes: further keys of the pipeline (name, placement, method, observe, ...).

    Raises:
        InputError: it says what cannot be.
    """
    sinks: list[dict[str, Any]] = []
    if out is not None:
        files = {"labels": "labels", "overlay": "overlay.mp4", "json": "results.jsonl"}
        sinks += [{"kind": kind, "path": str(out / name)} for kind, name in files.items()]
    if publish:
        sinks.append({"kind": "publish"})
    name = (changes or {}).get("name", "default")
    keys: dict[str, Any] = {"name": name, "source": source, "boxes": list(boxes), "sinks": sinks}
    if mask is not None:
        keys["mask"] = str(mask)
    keys |= {key: value for key, value in (stream or {}).items() if value is not None}
    return make_config({**(changes or {}), "streams": [keys]}, "the options")


def _laid_over(values: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    result = dict(values)
    for key, value in changes.items():
        below = result.get(key)
        both = isinstance(below, Mapping) and isinstance(value, Mapping)
        result[key] = _laid_over(below, value) if both else value  # type: ignore[arg-type]
    return result


def _checked_name(name: str) -> str:
    if not _NAME.fullmatch(name):
        raise ValueError(
            "expected 1 to 64 letters, digits, '_', '.' or '-', beginning with a letter or a digit, "
            f'got "{redact(name)[:80]}"'
        )
    return name
