"""When something counts as dead, and what is told meanwhile: [supervision] and [observe]."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, field_validator

from streamvos.pipeline.config.tables import ConfigPath, Table
from streamvos.pipeline.telemetry.prometheus import parse_address


class SupervisionConfig(Table):
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


class ObserveConfig(Table):
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
