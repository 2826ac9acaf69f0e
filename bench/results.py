"""The format of every figure: one JSON line per case.

    with Writer("latency.jsonl") as writer:
        writer.write(CaseResult(bench="latency", name="tvos 480x854", unit="ms", **measured([41.2, 40.8])))
    for row in read("latency.jsonl"):
        print(row.name, row.quantiles["p99"])

A row is written whole, when its case is done: a run that is interrupted or killed loses no row before it.
Quantiles come from a histogram whose buckets grow with the value, as in DDSketch (Masson et al., VLDB 2019),
so that each is off by at most `RELATIVE_ERROR` of itself and rows of several runs can be merged.
"""

from __future__ import annotations

import json
import math
import os
from collections import Counter
from collections.abc import Iterable, Mapping
from itertools import accumulate
from pathlib import Path
from types import TracebackType
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from streamvos.files import open_file
from streamvos.sinks.sink import cannot_write
from streamvos.types import InputError

SCHEMA = 1
"""The version that rows carry; a reader refuses others."""

RELATIVE_ERROR = 0.01
"""Largest error of a quantile, as a part of it."""

GROWTH = (1 + RELATIVE_ERROR) / (1 - RELATIVE_ERROR)
"""Bucket k of a histogram holds the values in (GROWTH^(k-1), GROWTH^k]."""

QUANTILES = {"min": 0.0, "p50": 0.5, "p95": 0.95, "p99": 0.99, "p99.9": 0.999, "max": 1.0}

SMALLEST = 1e-9
"""In the row's unit; what is less counts as this in a histogram, also 0."""

ROW_BYTES = 2**24
"""The largest line that is read."""


class Histogram:
    """Counts by bucket; extremes, mean and number are exact.

    Args:
        counts: bucket -> number of values, of an earlier histogram. Its extremes and mean are known as
            exactly as its buckets are wide.
    """

    def __init__(self, counts: Mapping[int, int] | None = None) -> None:
        self.counts: Counter[int] = Counter(counts or {})
        self.count = self.counts.total()
        middles = {bucket: middle(bucket) for bucket in self.counts}
        self._sum = sum(middles[bucket] * n for bucket, n in self.counts.items())
        self.minimum = min(middles.values(), default=math.inf)
        self.maximum = max(middles.values(), default=-math.inf)

    def add(self, value: float) -> None:
        """Add a value; InputError unless it is finite and not negative."""
        if not 0 <= value < math.inf:
            raise InputError(f"a measured value of {value}; expected a finite number, not negative")
        self.counts[math.ceil(math.log(max(value, SMALLEST)) / math.log(GROWTH))] += 1
        self.count += 1
        self._sum += value
        self.minimum, self.maximum = min(self.minimum, value), max(self.maximum, value)

    @property
    def mean(self) -> float:
        """The mean; InputError without values."""
        if not self.count:
            raise InputError("no value was measured, so that there is no mean")
        return self._sum / self.count

    def quantile(self, q: float) -> float:
        """The smallest value that at least a part `q` (0 to 1) of all values do not exceed.

        With fewer than 1,000 values the 0.999 quantile is the maximum, with fewer than 100 also the 0.99 one.

        Raises:
            InputError: there are no values, or q is out of range.
        """
        if not self.count or not 0 <= q <= 1:
            raise InputError(f"no quantile {q} of {self.count} values")
        rank = max(math.ceil(q * self.count * (1 - 1e-12)), 1)  # 0.999 * 1000 is a little more than 999
        if rank == 1:
            return self.minimum
        if rank == self.count:
            return self.maximum
        buckets = sorted(self.counts)
        seen = accumulate(self.counts[bucket] for bucket in buckets)
        bucket = next(one for one, so_far in zip(buckets, seen, strict=True) if so_far >= rank)
        return min(max(middle(bucket), self.minimum), self.maximum)


def middle(bucket: int) -> float:
    """The value that stands for a bucket: at most `RELATIVE_ERROR` from both of its edges."""
    return 2 * GROWTH**bucket / (GROWTH + 1)


def measured(values: Iterable[float]) -> dict[str, Any]:
    """The fields of a `CaseResult` that describe values: count, mean, quantiles and histogram."""
    histogram = Histogram()
    for value in values:
        histogram.add(value)
    return {
        "count": histogram.count,
        "mean": histogram.mean,
        "quantiles": {name: histogram.quantile(q) for name, q in QUANTILES.items()},
        "histogram": dict(sorted(histogram.counts.items())),
    }


class Settings(BaseModel):
    """What was measured: only what applies. A bench may add settings of its own."""

    model_config = ConfigDict(extra="allow")

    method: str | None = None
    weights: str | None = None  # "bundled", "none" (random), or the file's name
    backend: str | None = None
    device: str | None = None
    precision: str | None = None
    height: int | None = None  # of frames, in pixels
    width: int | None = None
    objects: int | None = None
    streams: int | None = None
    placement: str | None = None  # "fused" or "split"
    threads: int | None = None  # of torch, per process; None = torch's default
    fps: float | None = None  # at which frames arrive; None = as fast as they are taken


class Memory(BaseModel):
    """Memory of the process that ran the case, or of the GPU, in MiB."""

    model_config = ConfigDict(extra="forbid")

    peak: float
    state: float | None = None  # of one stream's target
    samples: list[tuple[float, float]] = []  # seconds since the case began, MiB


class Ratio(BaseModel):
    """This case's median over another's of the same run: the median and the range over the turns."""

    model_config = ConfigDict(extra="forbid")

    to: str  # the other's name
    median: float
    low: float
    high: float


class CaseResult(BaseModel):
    """One case of one run: one JSON line, and one row of a table."""

    model_config = ConfigDict(extra="forbid", populate_by_name=True)

    schema_version: int = Field(SCHEMA, alias="schema")
    bench: str  # the command: "latency", "capacity", ...
    name: str  # unique within a run; `bench compare` pairs rows by it
    case: Settings = Settings()
    unit: str = "ms"  # of quantiles, mean, histogram and repetitions
    count: int = 0  # values in the histogram
    quantiles: dict[str, float] = {}  # min, p50, p95, p99, p99.9, max
    mean: float | None = None
    histogram: dict[int, int] = {}  # bucket (see GROWTH) -> values in it
    repetitions: list[float] = []  # the median of each turn, in their order
    stages: dict[str, dict[str, float]] = {}  # "extract", ... -> {"p50", "p99"} in ms, in their order
    first_frame_ms: float | None = None  # the frame with the mask, cold
    throughput: float | None = None  # frames per second
    memory_mib: Memory | None = None
    scores: dict[str, float] = {}  # "J&F", ... in percent
    ratio: Ratio | None = None
    details: dict[str, Any] = {}  # what only this bench knows
    failed: str | None = None  # why there are no figures, in one line
    machine: dict[str, Any] = {}
    versions: dict[str, str | None] = {}
    time: str = ""  # ISO 8601, UTC, when the case was done
    command: str = ""

    @model_validator(mode="after")
    def _has_figures_or_a_reason(self) -> CaseResult:
        if self.schema_version != SCHEMA:
            raise ValueError(f"schema {self.schema_version} is unknown; this version reads {SCHEMA}")
        if self.failed is None and self.count != sum(self.histogram.values()):
            raise ValueError(f"count is {self.count}, the histogram holds {sum(self.histogram.values())}")
        if self.count and set(self.quantiles) != set(QUANTILES):
            raise ValueError(f"quantiles are {sorted(self.quantiles)}; expected {list(QUANTILES)}")
        return self

    def to_json(self) -> str:
        """One line, without what does not apply."""
        values = self.model_dump(by_alias=True, exclude_none=True, mode="json")
        return json.dumps({k: v for k, v in values.items() if v not in ({}, [], "")}, allow_nan=False)


class Writer:
    """A file of rows. Each is on the disk's way before the next case begins.

    Args:
        path: replaced when the first row comes; its folder is made. None writes nothing.

    Raises:
        SinkError: from `write`, if the file cannot be written.
    """

    def __init__(self, path: str | Path | None) -> None:
        self._path = None if path is None else Path(path)
        self._file: int | None = None

    def write(self, row: CaseResult) -> None:
        """Append a row."""
        if self._path is None:
            return
        try:
            if self._file is None:
                self._path.parent.mkdir(parents=True, exist_ok=True)
                flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND
                self._file = os.open(self._path, flags, 0o666)
            rest = (row.to_json() + "\n").encode()
            while rest:
                rest = rest[os.write(self._file, rest) :]
        except OSError as error:
            raise cannot_write(self._path, error) from None

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def __enter__(self) -> Writer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def read(path: str | Path) -> list[CaseResult]:
    """The rows of a file, without a last one that was not written to its end.

    Raises:
        InputError: the file cannot be read, holds no row, or a line of it is no row.
    """
    rows = []
    with open_file(path, "the results") as file:
        number = 0
        while line := file.readline(ROW_BYTES):
            number += 1
            if not line.endswith(b"\n"):
                if len(line) >= ROW_BYTES:
                    raise InputError(f"{path}, line {number}: it has more than {ROW_BYTES} bytes")
                break  # the run was killed while it wrote
            if line.strip():
                rows.append(_row(line, path, number))
    if not rows:
        raise InputError(f"{path} holds no results; expected JSON lines as `bench ... --json FILE` writes")
    return rows


def _row(line: bytes, path: str | Path, number: int) -> CaseResult:
    try:
        return CaseResult.model_validate_json(line)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(map(str, first["loc"]))
        reason = f"{place}: {first['msg']}" if place else first["msg"]
        raise InputError(
            f"{path}, line {number}: no result of schema {SCHEMA} ({reason}); expected JSON lines as "
            "`bench ... --json FILE` writes"
        ) from None
