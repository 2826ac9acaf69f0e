"""A whole pipeline: its name, its placement, its tables, and the checks across tables."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

from pydantic import Field, field_validator, model_validator

from streamvos.pipeline.config.streams import StreamConfig
from streamvos.pipeline.config.tables import (
    ExtractorConfig,
    MethodConfig,
    Name,
    ObserveConfig,
    RemoteConfig,
    SecurityConfig,
    SelectionConfig,
    SupervisionConfig,
    Table,
)
from streamvos.pipeline.wire.endpoints import is_loopback, split_tcp

Placement = Literal["fused", "split"]

LIVE_SLOTS = 16  # most frames in flight from the source to the sinks, and releases on their way back
_RETAINED_BYTES = 2**29  # most bytes of frames that a lossless stream keeps


class PipelineConfig(Table):
    """A whole pipeline.toml."""

    name: Name = "default"
    placement: Placement = "fused"
    method: MethodConfig = Field(default_factory=MethodConfig)
    streams: tuple[StreamConfig, ...] = Field((), strict=False)
    keep: bool = False
    """Whether the pipeline goes on when its last stream has ended or was removed; it may begin without."""
    selection: SelectionConfig = Field(default_factory=SelectionConfig)
    supervision: SupervisionConfig = Field(default_factory=SupervisionConfig)
    extractor: ExtractorConfig = Field(default_factory=ExtractorConfig)
    observe: ObserveConfig = Field(default_factory=ObserveConfig)
    security: SecurityConfig = Field(default_factory=SecurityConfig)
    control: str | None = None
    """tcp:// address of a second socket for users, besides the one in the pipeline's folder."""
    host: str | None = None
    """Address at which remote stages reach this host; required if there are any."""
    overwrite: bool = False
    """Whether sinks replace files that are in their way and that streamvos did not write."""
    port: int = Field(5600, ge=1, le=65535)
    """Port of the socket that remote stages connect to."""
    remote: dict[str, RemoteConfig] = Field(default_factory=dict)
    """Stage -> where it runs: "extractor", "memory.STREAM", ..."""

    @field_validator("control")
    @classmethod
    def _check_control(cls, address: str | None) -> str | None:
        if address is not None:
            split_tcp(address)
        return address

    @model_validator(mode="after")
    def _check(self) -> PipelineConfig:
        if not self.streams and not self.keep:
            raise ValueError(
                "there is no stream; add a [[streams]] table with a name and a source, or keep = true if "
                "streams are added while the pipeline runs"
            )
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
        _check_addresses(self)
        _check_safety(self)
        return self

    @property
    def stage_names(self) -> tuple[str, ...]:
        """All stages, the extractor first."""
        per_stream = ("source", "memory", "decoder", "sinks")
        return ("extractor", *(f"{kind}.{one.name}" for one in self.streams for kind in per_stream))

    @property
    def standby(self) -> bool:
        """Whether a second compute worker stands by."""
        return self.placement == "fused" and self.supervision.standby is not False

    def stream(self, name: str) -> StreamConfig:
        """The stream of that name."""
        return next(one for one in self.streams if one.name == name)

    def only(self, streams: Iterable[StreamConfig]) -> PipelineConfig:
        """The configuration with other streams, and with those remote stages that they have."""
        changed = self.model_copy(update={"streams": tuple(streams)})
        remote = {stage: one for stage, one in self.remote.items() if stage in changed.stage_names}
        return changed.model_copy(update={"remote": remote})

    def frame_slots(self, stream: str, frame_bytes: int) -> int:
        """How many frames the source of a stream keeps in shared memory.

        Under "lossless" twice the frames between two snapshots, so that the stream need not wait for a
        snapshot; fewer if frames are large.
        """
        if self.stream(stream).effective_policy == "latest":
            return LIVE_SLOTS
        wanted = 2 * self.supervision.snapshot_frames + LIVE_SLOTS
        return max(LIVE_SLOTS, min(wanted, _RETAINED_BYTES // max(frame_bytes, 1)))

    def snapshot_frames(self, stream: str, frame_bytes: int) -> int:
        """Most frames between two snapshots of a stream's state."""
        if self.stream(stream).effective_policy == "latest":
            return self.supervision.snapshot_frames
        return max(1, (self.frame_slots(stream, frame_bytes) - LIVE_SLOTS // 2) // 2)


def _check_addresses(config: PipelineConfig) -> None:
    """Refuse two publishers at one address."""
    addresses: dict[str, str] = {}
    for stream in config.streams:
        for sink in stream.sinks:
            if sink.kind != "publish":
                continue
            owner = f'the publish sink of "{stream.name}"'
            address = sink.address or f"the socket of {stream.name}"
            if address in addresses:
                raise ValueError(
                    f'{owner} and {addresses[address]} publish at the same address, "{address}"; '
                    "give each stream its own"
                )
            if not address.endswith(":*"):
                addresses[address] = owner
    if config.control is not None and config.control in addresses:
        raise ValueError(f'control and {addresses[config.control]} have the same address, "{config.control}"')


def _check_safety(config: PipelineConfig) -> None:
    """Refuse sockets that other hosts can reach without keys."""
    security = config.security
    if (security.secret is None) != (security.clients is None):
        lacking = "clients" if security.clients is None else "secret"
        raise ValueError(
            f"[security] lacks {lacking}: secret is the file with our key, clients the folder with the "
            "public keys of the clients to admit; CURVE alone admits every client that knows our public key"
        )
    if security.secret is not None:
        return
    if security.remote_files:
        raise ValueError(
            "security.remote_files: without keys, every user of this machine could name our files; make keys "
            "with `streamvos keys new`, and name them in [security]"
        )
    published = [
        (f'the publish sink of "{stream.name}"', sink.address)
        for stream in config.streams
        for sink in stream.sinks
        if sink.address is not None
    ]
    hosts = [(f"remote.{name}.host", f"tcp://{one.host}:1") for name, one in config.remote.items()]
    if config.remote and config.host is not None:
        hosts.append(("host", f"tcp://{config.host}:1"))
    for owner, address in [*published, ("control", config.control), *hosts]:
        if address is not None and not address.startswith("ipc://") and not is_loopback(address):
            shown = address.removeprefix("tcp://").removesuffix(":1") if owner.endswith("host") else address
            raise ValueError(
                f'{owner}: "{shown}" can be reached from other hosts; that needs keys: make them with '
                "`streamvos keys new` and name them in [security]"
            )
