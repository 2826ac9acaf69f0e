"""What fleet.toml may say.

    name = "site"
    store = "/mnt/shared/site"

    [share]
    gpus = 1.0

    [method]
    name = "frtm-fast"

    [[sizing]]
    method = "frtm-fast"
    height = 480
    streams = 12

    [[streams]]
    name = "front"
    source = "rtsp://camera/stream"
    height = 480

An error is one line that names the place, the value and what was expected.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from fractions import Fraction
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError, field_validator

from streamvos.addresses import is_url
from streamvos.files import read_toml
from streamvos.masks.exports import file_of_mask
from streamvos.pipeline.config.reading import make_config, make_stream
from streamvos.pipeline.config.streams import StreamConfig
from streamvos.pipeline.config.tables import (
    ExtractorConfig,
    MethodConfig,
    Name,
    SecurityConfig,
    SelectionConfig,
    SupervisionConfig,
    Table,
)
from streamvos.types import InputError

_TABLES = ("method", "selection", "supervision", "extractor", "security")
"""Those that mean the same as in pipeline.toml."""


class ShareConfig(Table):
    """What one share of a machine has; a machine has as many as fit.

    Attributes:
        gpus: GPUs of a share; below 1 several shares are on one GPU. 0 = shares of cores alone.
        cpus: cores of a share.
    """

    gpus: float = Field(0.0, ge=0, le=64)
    cpus: float = Field(1.0, ge=0.01, le=1024)

    @field_validator("gpus", "cpus")
    @classmethod
    def _whole_above_one(cls, value: float) -> float:
        if (value > 1 and value % 1) or 0 < value < 0.01:
            raise InputError(f"expected a whole number, or a part of one from 0.01 on, got {value:g}")
        return value


class SizingConfig(Table):
    """How many streams of a size one share holds, as `streamvos bench capacity` measures it.

    Attributes:
        on: kind of the machines that it was measured on: a GPU as Ray calls it, such as "H200", or a resource
            of the operator's own (`ray start --resources '{"big": 1}'`). "" = those of none of these kinds.
    """

    method: str
    height: int = Field(ge=16, le=8192)
    streams: int = Field(ge=1, le=64)
    on: str = Field("", max_length=100)


class FleetConfig(Table):
    """A whole fleet.toml.

    Attributes:
        store: a folder on storage that every machine has at the same path, or s3://BUCKET/PATH.
        cluster: "local" starts Ray in this process; "auto" or HOST:PORT joins one that runs.
        http: where the status page and the metrics are.
        reserve: the part of each share that is kept free for streams of lost machines.
        snapshot_seconds: how often the state of a stream is saved.
    """

    name: Name = "fleet"
    store: str = Field(min_length=1)
    cluster: str = "local"
    http: str = "127.0.0.1:8650"
    reserve: float = Field(0.0, ge=0, lt=1)
    snapshot_seconds: float = Field(5.0, ge=0.5)
    share: ShareConfig = Field(default_factory=ShareConfig)
    sizing: tuple[SizingConfig, ...] = Field(strict=False, min_length=1)
    method: MethodConfig = Field(default_factory=MethodConfig)
    selection: SelectionConfig = Field(default_factory=SelectionConfig)
    supervision: SupervisionConfig = Field(default_factory=SupervisionConfig)
    extractor: ExtractorConfig = Field(default_factory=ExtractorConfig)
    security: SecurityConfig = Field(default_factory=SecurityConfig)
    streams: tuple[StreamConfig, ...] = Field((), strict=False)

    @field_validator("store")
    @classmethod
    def _absolute(cls, store: str, info: Any) -> str:
        if is_url(store) or info.context is None:
            return store
        return str((info.context["base"] / Path(store).expanduser()).absolute())

    @field_validator("cluster")
    @classmethod
    def _reachable(cls, cluster: str) -> str:
        if cluster not in ("local", "auto") and not re.fullmatch(
            r"[\w.-]+:\d{1,5}|\[[\da-fA-F:]+\]:\d{1,5}", cluster
        ):
            raise InputError(f'expected "local", "auto" or HOST:PORT of Ray\'s head, got {cluster!r:.100}')
        return cluster

    @field_validator("sizing")
    @classmethod
    def _measured_once(cls, sizing: tuple[SizingConfig, ...]) -> tuple[SizingConfig, ...]:
        for number, one in enumerate(sizing):
            if any((one.method, one.height, one.on) == (e.method, e.height, e.on) for e in sizing[:number]):
                where = f" on {one.on}" if one.on else ""
                raise InputError(f"two tables are of {one.method} at {one.height}{where}")
        return sizing

    @property
    def kinds(self) -> tuple[str, ...]:
        """The kinds of machines that `sizing` names, in its order; a machine is of the first that fits."""
        return tuple(dict.fromkeys(one.on for one in self.sizing if one.on))

    def loads_of(self, stream: StreamConfig) -> dict[str, Fraction]:
        """The part of a share that a stream takes, by the kind of its machine; "" = of none of `kinds`.

        Raises:
            InputError: no [[sizing]] is of this method and at least this height, or each share has to be kept
                free for more than that leaves.
        """
        rows = [one for one in self.sizing if one.method == self.method.name]
        loads: dict[str, Fraction] = {}
        for one in sorted(rows, key=lambda one: one.height):
            if stream.height is not None and one.height >= stream.height:
                loads.setdefault(one.on, Fraction(1, one.streams))
        if not loads:
            known = ", ".join(map(str, sorted({one.height for one in rows}))) or "none"
            size = "no height" if stream.height is None else f"height = {stream.height}"
            raise InputError(
                f"the stream {stream.name!r} has {size}, and [[sizing]] knows {self.method.name} at "
                f"{known}; `streamvos bench capacity` measures how many streams of a size a share holds"
            )
        if min(loads.values()) > 1 - Fraction(self.reserve).limit_denominator(1000):
            raise InputError(
                f"the stream {stream.name!r} takes {min(loads.values())} of a share, and reserve = "
                f"{self.reserve:g} keeps more than the rest of it free"
            )
        return loads

    def pipeline(self, name: str) -> dict[str, Any]:
        """The configuration of a share's pipeline, as JSON values; its streams are added later."""
        values = self.model_dump(mode="json", include=set(_TABLES))
        return {**values, "name": name, "keep": True}


def read_fleet(path: str | Path) -> FleetConfig:
    """Read a fleet.toml; relative paths in it start from its folder.

    Raises:
        InputError: it cannot be read, is no TOML, or is not valid.
    """
    path = Path(path)
    return make_fleet(read_toml(path, "the fleet's file"), str(path), path.parent.absolute())


def make_fleet(values: Mapping[str, Any], where: str = "the fleet", base: Path | None = None) -> FleetConfig:
    """Check a fleet's description.

    Args:
        values: as read from TOML.
        where: name of the description in messages.
        base: folder that relative paths start from; None = the current one.

    Raises:
        InputError: it is not valid.
    """
    tables = values.get("streams", [])
    if not isinstance(tables, list) or not all(isinstance(one, dict) for one in tables):
        raise InputError(f"{where}: streams: expected [[streams]] tables (docs/scale.md)")
    own = {key: value for key, value in values.items() if key != "streams"}
    try:
        config = FleetConfig.model_validate(own, context=None if base is None else {"base": base})
    except ValidationError as error:
        first = min(error.errors(), key=lambda one: one["type"] != "extra_forbidden")
        place = ".".join(str(part) for part in first["loc"])
        said = first["msg"].removeprefix("Value error, ")
        raise InputError(f"{where}: {place}: {said} (docs/scale.md)") from None
    streams = tuple(check_stream(config, table, where, base) for table in tables)
    names = [one.name for one in streams]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise InputError(f"{where}: every stream has a name of its own; twice: {', '.join(twice)}")
    return config.model_copy(update={"streams": streams})


def check_stream(
    config: FleetConfig, table: Mapping[str, Any], where: str = "the stream", base: Path | None = None
) -> StreamConfig:
    """Check the table of a stream that a fleet is to run.

    Raises:
        InputError: it is not valid, no share holds it, or it is not live.
    """
    stream, _ = make_stream(table, None, where, base)
    if stream.effective_policy != "latest":
        raise InputError(
            f"{where}: {stream.name!r} is a file, and a fleet is for live streams; segment it with "
            "`streamvos run` or `serve`, or add realtime = true to play it as if it were live"
        )
    if stream.mask is not None and not file_of_mask(stream.mask).is_file():
        raise InputError(f"{where}: there is no mask {stream.mask} for the stream {stream.name!r}")
    try:
        config.loads_of(stream)
    except InputError as error:
        raise InputError(f"{where}: {error}") from None
    values = config.pipeline(config.name)
    make_config({**values, "streams": [stream.model_dump(mode="json", exclude={"mask"})]}, where)
    return stream
