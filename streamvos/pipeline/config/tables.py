"""The base of all tables, and all tables except [[streams]]."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    Strict,
    ValidationInfo,
    field_validator,
    model_validator,
)

from streamvos.pipeline.wire.endpoints import check_name
from streamvos.selection.objects import check_selection
from streamvos.types import DEFAULT_METHOD, InputError


class Table(BaseModel):
    """A table of the file: immutable, and without unknown keys."""

    # strict: neither `true` nor "480" is accepted as a number
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


def from_base(path: Path, info: ValidationInfo) -> Path:
    """A path in a file, relative to the file's folder; without a file, unchanged."""
    return path if info.context is None else info.context["base"] / path.expanduser()


ConfigPath = Annotated[Path, Strict(False), AfterValidator(from_base)]
"""A path, relative to the folder of the file that it is in."""

Name = Annotated[str, AfterValidator(check_name)]
"""Name of a pipeline or a stream."""


class SelectionConfig(Table):
    """What makes masks of boxes and points; see `streamvos.selection.objects.make_selector`."""

    by: str = "learned"
    sam_encoder: ConfigPath | None = None
    sam_decoder: ConfigPath | None = None

    @model_validator(mode="after")
    def _check(self) -> SelectionConfig:
        try:
            check_selection(self.by, self.sam_encoder, self.sam_decoder)
        except InputError as error:
            raise ValueError(str(error)) from None
        return self


class MethodConfig(Table):
    """The method that segments; see `streamvos.load`.

    Attributes:
        training: "inline" (target models train within their frame; bit-identical to `Segmenter`)
            or "background" (the stream goes on with the old model until the new one is ready).
        threads: torch's threads per operation, in each worker; None leaves it to torch.
    """

    name: str = DEFAULT_METHOD
    weights: str | None = "default"
    device: str = "auto"
    backend: str = "eager"
    options: dict[str, Any] = Field(default_factory=dict)
    training: Literal["inline", "background"] = "inline"
    threads: int | None = Field(None, ge=1, le=1024)

    @field_validator("weights")
    @classmethod
    def _place_weights(cls, weights: str | None, info: ValidationInfo) -> str | None:
        """TOML has no null, so "none" represents it."""
        if weights is None or weights.lower() == "none":
            return None
        return weights if weights == "default" else str(from_base(Path(weights), info))


class ExtractorConfig(Table):
    """Batching over streams.

    Attributes:
        batches: sizes of batches, ascending from 1.
        measured: use only sizes that are faster than single frames when measured at the start.
    """

    batches: tuple[Annotated[int, Strict()], ...] = Field((1, 2, 4, 8), strict=False)
    measured: bool = True

    @field_validator("batches")
    @classmethod
    def _check(cls, batches: tuple[int, ...]) -> tuple[int, ...]:
        if not batches or batches[0] != 1 or list(batches) != sorted(set(batches)) or batches[-1] > 64:
            raise ValueError(f"expected sizes that ascend from 1 to at most 64, got {list(batches)}")
        return batches


class SecurityConfig(Table):
    """CURVE keys, as `streamvos keys new` makes them.

    Attributes:
        secret: file with our secret key.
        clients: folder with the public keys of the clients to admit.
        remote_files: whether streams that clients add over tcp:// may name files of this machine.
    """

    secret: ConfigPath | None = None
    clients: ConfigPath | None = None
    remote_files: bool = False


class RemoteConfig(Table):
    """A stage that is started by hand with `streamvos stage`, perhaps on another host.

    Attributes:
        host: address at which the other stages reach it, without a port.
    """

    host: str


class SupervisionConfig(Table):
    """When a worker counts as dead, and its recovery; times in seconds (docs/protocol.md, 5)."""

    start_timeout: float = Field(60.0, gt=0)
    heartbeat_timeout: float = Field(3.0, ge=0.5)  # beats come four times a second
    hang_timeout: float = Field(30.0, gt=0)
    drain_timeout: float = Field(1.5, gt=0)
    max_restarts: int = Field(5, ge=0)
    restart_window: float = Field(60.0, gt=0)
    snapshot_frames: int = Field(30, ge=1)
    snapshot_seconds: float = Field(1.0, gt=0)
    standby: bool | None = None
    """Whether a second compute worker stands by; None = where the placement is "fused"."""


class ObserveConfig(Table):
    """Traces, metrics and logs of a running pipeline.

    Attributes:
        trace: path of a Chrome-trace file, which Perfetto opens.
        prometheus: address of the metrics endpoint, "HOST:PORT" or a port on 127.0.0.1.
        log: "text" or "json", written to standard error.
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


def parse_address(text: str | int) -> tuple[str, int]:
    """Host and port from "9464", 9464, "0.0.0.0:9464" or "[::1]:9464"; without a host, the loopback.

    Raises:
        InputError: another form, or the port is not 0 (any free one) to 65535.
    """
    match = re.fullmatch(
        r"(?:(?P<host>\[[0-9A-Fa-f:.%\w]+\]|[A-Za-z0-9_.-]+):)?(?P<port>[0-9]{1,5})", str(text).strip()
    )
    if isinstance(text, bool) or match is None or int(match["port"]) > 65535:
        raise InputError(
            f"the metrics' address is {text!r}; expected PORT or HOST:PORT, such as 9464 or 0.0.0.0:9464"
        )
    return (match["host"] or "127.0.0.1").strip("[]"), int(match["port"])
