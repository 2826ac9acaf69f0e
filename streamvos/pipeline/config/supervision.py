"""When a worker counts as dead, and where log, trace and metrics go: [supervision] and [observe]."""

from __future__ import annotations

import re
from typing import Any, Literal

from pydantic import Field, field_validator

from streamvos.pipeline.config.tables import ConfigPath, Table
from streamvos.types import InputError

LOOPBACK = "127.0.0.1"


class SupervisionConfig(Table):
    """When a worker counts as dead, and what happens then; in seconds (docs/protocol.md, 5)."""

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
    """Where a running pipeline reports what it does.

    Attributes:
        trace: path of a Chrome-trace file, which Perfetto opens.
        prometheus: address of the metrics endpoint, "HOST:PORT" or a port on 127.0.0.1.
        log: "text" or "json", written to the standard error.
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
    return (match["host"] or LOOPBACK).strip("[]"), int(match["port"])
