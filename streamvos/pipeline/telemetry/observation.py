"""What is counted about a running pipeline: frames, restarts, refused messages, what streams wait for."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from streamvos.pipeline.telemetry.logs import EventLog
from streamvos.pipeline.telemetry.statistics import StreamStatistics
from streamvos.pipeline.telemetry.trace import TraceWriter
from streamvos.pipeline.wire.messages import Refused

_LONGEST_REASON = 300  # characters


class Observation:
    """Counts what happens, logs it, and draws it into the trace.

    Args:
        streams: their names.
        log: where events go.
        trace: where moments and frames are drawn; None = nowhere.
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
        self._skipped: Counter[str] = Counter()
        self._refused: dict[str, Counter[str]] = {}
        self._counted_elsewhere: dict[str, Mapping[str, int]] = {}
        self._refused_by_stages: dict[str, dict[str, int]] = {}
        self._waiting: dict[str, tuple[str, int]] = {}  # stage -> for what, since when in monotonic ns

    # ---- what happens

    def frames(self, stream: str, incarnation: int, frames: Iterable[Any]) -> None:
        """The sinks have acknowledged frames."""
        frames = list(frames)
        self._statistics[stream].add(frames, incarnation)
        if self._trace is not None:
            self._trace.frames(stream, incarnation, frames)

    def skipped(self, stream: str) -> None:
        """A frame went by before there was a mask."""
        self._skipped[stream] += 1

    def died(self, worker: str, stages: tuple[str, ...], reason: str, streams: Iterable[str]) -> None:
        """A worker has died, and its streams stand still."""
        cause = reason.partition(":")[0][:80]
        for stage in stages:
            self._restarts.setdefault(stage, Counter())[cause] += 1
            self._waiting.pop(stage, None)
        for stream in streams:
            self._stream_restarts[stream] += 1
            self._statistics[stream].interrupted()
        self.mark("died", worker=worker, reason=reason)

    def interrupted(self, stream: str) -> None:
        """A stream stands still."""
        self._statistics[stream].interrupted()

    def mark(self, name: str, stream: str | None = None, **more: Any) -> None:
        """Mark a moment in the trace."""
        if self._trace is not None:
            self._trace.instant(name, None, stream, None, **more)

    def refuse(self, where: str, cause: str, detail: str | None = None) -> None:
        """A message broke a rule of the protocol."""
        counter = self._refused.setdefault(where, Counter())
        counter[cause if cause in counter or len(counter) < 32 else "other"] += 1
        self._log.event("message_refused", "warning", stage=where, cause=cause, detail=detail)

    def include(self, where: str, refused: Mapping[str, int]) -> None:
        """Include a table of refused messages, cause -> number, that its owner keeps up to date."""
        self._counted_elsewhere[where] = refused

    def beat(self, stages: Mapping[str, Mapping[str, Any]]) -> None:
        """A checked heartbeat says what a worker's stages refused and what they wait for."""
        for stage, one in stages.items():
            self._note_waiting(
                stage, one.get("waiting_for", "")[:_LONGEST_REASON], one.get("waiting_since", 0)
            )
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
        if not own:
            return None
        reason, since = min(own, key=lambda one: one[1])
        return reason, self._seconds_since(since)

    def of_stream(self, stream: str) -> dict[str, Any]:
        """A stream's restarts, and its statistics with the frames that went by without a mask."""
        summary = self._statistics[stream].summary()
        if self._skipped[stream]:
            summary["dropped"] = {**summary["dropped"], "no mask": self._skipped[stream]}
        return {"restarts": self._stream_restarts[stream], **summary}

    def totals(self, stages: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
        """Restarts and refused messages of the whole pipeline.

        Args:
            stages: name -> what the stage's last heartbeat says.
        """
        counters = {**self._counted_elsewhere, **self._refused}
        counters |= {stage: beat["refused"] for stage, beat in stages.items() if "refused" in beat}
        return {
            "restarts": {stage: dict(reasons) for stage, reasons in self._restarts.items()},
            "refused": {where: dict(causes) for where, causes in counters.items() if causes},
        }

    def _note_waiting(self, stage: str, reason: str, since: int) -> None:
        """Keep what a stage waits for; a change is logged once."""
        before = self._waiting.get(stage)
        if (before[0] if before else "") == reason:
            if before is not None:
                self._waiting[stage] = (reason, since)  # it may have gone on between two beats
            return
        stream = stage.partition(".")[2] or None
        if reason:
            self._waiting[stage] = (reason, since)
            seconds = round(self._seconds_since(since), 1)
            self._log.event("waiting", "warning", stream=stream, stage=stage, reason=reason, seconds=seconds)
        else:
            seconds = round(self._seconds_since(self._waiting.pop(stage)[1]), 1)
            self._log.event("goes_on", stream=stream, stage=stage, seconds=seconds)
        self.mark("waiting" if reason else "goes on", stream, stage=stage)

    def _seconds_since(self, since: int) -> float:
        return max(0.0, (self._clock() - since) * 1e-9)


def checked_beat(fields: Mapping[str, Any], stages: Iterable[str]) -> dict[str, Any]:
    """A heartbeat, without what it says of stages that are not its worker's.

    Raises:
        Refused: a number, a text or a table of numbers is something else.
    """
    said = fields.get("stages")
    if not isinstance(said, dict) or not all(isinstance(one, dict) for one in said.values()):
        raise Refused("field", "stages of a beat")
    for name in ("clock", "memory", "cpu", "descriptors"):
        if not isinstance(fields.get(name, 0), (int, float, type(None))):
            raise Refused("field", f"{name} of a beat")
    for one in said.values():
        if not isinstance(one.get("waiting_for", ""), str) or not isinstance(one.get("objects", []), list):
            raise Refused("field", "waiting_for or objects of a stage")
        numbers = ("busy_since", "waiting_since", "sent", "frames")
        if not all(type(one.get(name, 0)) is int for name in numbers):
            raise Refused("field", "numbers of a stage")
        for name in ("refused", "drops", "queues"):
            table = one.get(name, {})
            counts = table.items() if isinstance(table, dict) else [(None, None)]
            if not all(isinstance(key, str) and type(count) is int for key, count in counts):
                raise Refused("field", f"{name} of a stage")
    return {**fields, "stages": {name: said[name] for name in stages if name in said}}


def in_local_time(beat: Mapping[str, Any], now: int) -> dict[str, Any]:
    """The beat of a worker on another host, whose monotonic clock began at another moment.

    Args:
        beat: checked.
        now: this host's monotonic ns.

    Returns:
        The same with its times on this host's clock, in monotonic ns.
    """
    ahead = beat.get("clock", 0) - now
    times = ("busy_since", "waiting_since")
    stages = {
        name: {**one, **{key: one[key] - ahead if one.get(key) else 0 for key in times}}
        for name, one in beat.get("stages", {}).items()
    }
    return {**beat, "stages": stages}
