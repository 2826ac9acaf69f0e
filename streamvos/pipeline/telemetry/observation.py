"""Counts of a running pipeline: frames, restarts, refused messages, and what streams wait for."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from operator import itemgetter
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from streamvos.pipeline.telemetry.logs import EventLog
from streamvos.pipeline.telemetry.statistics import StreamStatistics
from streamvos.pipeline.telemetry.trace import TraceWriter
from streamvos.pipeline.wire.messages import Refused

_LONGEST_REASON = 300  # characters


class Observation:
    """Counts events, logs them, and draws them into the trace.

    Args:
        streams: the names of the streams.
        log: receives the events.
        trace: draws events and frames; None = no trace.
        clock: monotonic nanoseconds.
    """

    def __init__(
        self,
        streams: Iterable[str],
        log: EventLog,
        trace: TraceWriter | None = None,
        clock: Callable[[], int] = time.monotonic_ns,
    ):
        self._log, self._trace, self._clock = log, trace, clock
        self._statistics = {name: StreamStatistics(clock=clock) for name in streams}
        self._restarts: dict[str, Counter[str]] = {}
        self._stream_restarts: Counter[str] = Counter()
        self._refused: Counter[str] = Counter()
        self._counted_elsewhere: dict[str, Mapping[str, int]] = {"supervisor": self._refused}
        self._refused_by_stages: dict[str, dict[str, int]] = {}
        self._waiting: dict[str, tuple[str, int]] = {}  # stage -> reason, beginning in monotonic ns

    # ---- streams come and go

    def add(self, stream: str, workers: Mapping[str, str]) -> None:
        """A stream was added; `workers`: stage -> its worker."""
        self._statistics[stream] = StreamStatistics(clock=self._clock)
        if self._trace is not None:
            self._trace.place(workers)
        self.mark("added", stream)

    def forget(self, stream: str, stages: Iterable[str]) -> None:
        """A stream was removed, with these stages that no other stream has."""
        self._statistics.pop(stream, None)
        self._stream_restarts.pop(stream, None)
        for stage in stages:
            for table in (self._restarts, self._refused_by_stages, self._waiting):
                table.pop(stage, None)
        self.mark("removed", stream)

    # ---- what happens

    def frames(self, stream: str, incarnation: int, frames: Iterable[Any]) -> None:
        """The sinks have acknowledged frames."""
        frames = list(frames)
        self._statistics[stream].add(frames, incarnation)
        if self._trace is not None:
            self._trace.frames(stream, incarnation, frames)

    def skipped(self, stream: str) -> None:
        """A frame was skipped because there was no mask yet."""
        self._statistics[stream].dropped["no mask"] += 1

    def died(self, worker: str, stages: tuple[str, ...], reason: str, streams: Iterable[str]) -> None:
        """A worker has died, which interrupts its streams."""
        cause = reason.partition(":")[0][:80]
        for stage in stages:
            self._restarts.setdefault(stage, Counter())[cause] += 1
            self._waiting.pop(stage, None)
        for stream in streams:
            self._stream_restarts[stream] += 1
            self._statistics[stream].interrupted()
        self.mark("died", worker=worker, reason=reason)

    def interrupted(self, stream: str) -> None:
        """A stream is interrupted."""
        self._statistics[stream].interrupted()

    def mark(self, name: str, stream: str | None = None, **more: Any) -> None:
        """Mark this moment in the trace."""
        if self._trace is not None:
            self._trace.instant(name, stream, **more)

    def refuse(self, cause: str, detail: str | None = None) -> None:
        """The supervisor has refused a message that broke a rule of the protocol."""
        self._refused[cause] += 1
        self._log.event("message_refused", "warning", stage="supervisor", cause=cause, detail=detail)

    def include(self, where: str, refused: Mapping[str, int]) -> None:
        """Include a table of refused messages, cause -> number, which its owner keeps updating."""
        self._counted_elsewhere[where] = refused

    def beat(self, stages: Mapping[str, Mapping[str, Any]]) -> None:
        """Note what stages have refused and what they wait for, as a checked heartbeat says."""
        for stage, one in stages.items():
            reason = one.get("waiting_for", "")[:_LONGEST_REASON]
            self._note_waiting(stage, reason, one.get("waiting_since", 0))
            seen = self._refused_by_stages.setdefault(stage, {})
            for cause, count in one.get("refused", {}).items():
                if count > seen.get(cause, 0):
                    self._log.event("message_refused", "warning", stage=stage, cause=cause, count=count)
                seen[cause] = count

    # ---- what is known

    def waiting(self, stream: str) -> tuple[str, float] | None:
        """What a stream waits for outside the pipeline, and for how many seconds; None = nothing."""
        stages = (f"source.{stream}", f"sinks.{stream}")
        own = [self._waiting[stage] for stage in stages if stage in self._waiting]
        reason, since = min(own, key=itemgetter(1), default=("", 0))
        return (reason, self._seconds_since(since)) if reason else None

    def of_stream(self, stream: str) -> dict[str, Any]:
        """A stream's restarts and its statistics."""
        return {"restarts": self._stream_restarts[stream], **self._statistics[stream].summary()}

    def totals(self, stages: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
        """Restarts and refused messages of the whole pipeline, given all stages' last heartbeats."""
        counters = dict(self._counted_elsewhere)
        counters |= {stage: beat["refused"] for stage, beat in stages.items() if "refused" in beat}
        return {
            "restarts": {stage: dict(reasons) for stage, reasons in self._restarts.items()},
            "refused": {where: dict(causes) for where, causes in counters.items() if causes},
        }

    def _note_waiting(self, stage: str, reason: str, since: int) -> None:
        """Note what a stage waits for; a change is logged once."""
        before, began = self._waiting.pop(stage, ("", 0))
        if reason:
            self._waiting[stage] = (reason, since)  # it may have gone on between two beats
        if reason == before:
            return
        stream = stage.partition(".")[2] or None
        seconds = round(self._seconds_since(since if reason else began), 1)
        if reason:
            self._log.event("waiting", "warning", stream=stream, stage=stage, reason=reason, seconds=seconds)
        else:
            self._log.event("goes_on", stream=stream, stage=stage, seconds=seconds)
        self.mark("waiting" if reason else "goes on", stream, stage=stage)

    def _seconds_since(self, since: int) -> float:
        return max(0.0, (self._clock() - since) * 1e-9)


class _StageBeat(BaseModel):
    """What a heartbeat says of one stage, as far as the supervisor reads it."""

    model_config = ConfigDict(strict=True)
    waiting_for: str = ""
    waiting_since: int = 0
    busy_since: int = 0
    sent: int = 0
    frames: int = 0
    objects: list[Any] = []
    refused: dict[str, int] = {}
    drops: dict[str, int] = {}
    queues: dict[str, int] = {}


class _Beat(BaseModel):
    model_config = ConfigDict(strict=True)
    stages: dict[str, _StageBeat]
    clock: float = 0
    memory: float | None = None
    cpu: float | None = None
    descriptors: float | None = None


def checked_beat(fields: Mapping[str, Any], stages: Iterable[str]) -> dict[str, Any]:
    """A heartbeat, without entries for stages of other workers.

    Raises:
        Refused: a field has the wrong type.
    """
    try:
        _Beat.model_validate(fields)
    except ValidationError as error:
        raise Refused("field", f"a heartbeat: {error}") from None
    return {**fields, "stages": {name: fields["stages"][name] for name in stages if name in fields["stages"]}}


def in_local_time(beat: Mapping[str, Any], now: int) -> dict[str, Any]:
    """A checked heartbeat of another host, with its times converted to this host's monotonic clock.

    Args:
        beat: the heartbeat, checked.
        now: this host's monotonic clock, in ns.
    """
    ahead = beat.get("clock", 0) - now
    times = ("busy_since", "waiting_since")
    stages = {
        name: {**one, **{key: one[key] - ahead if one.get(key) else 0 for key in times}}
        for name, one in beat["stages"].items()
    }
    return {**beat, "stages": stages}
