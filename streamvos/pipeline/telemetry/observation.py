"""What is told about a pipeline while it runs: statistics, trace, metrics, status."""

from __future__ import annotations

import contextlib
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from streamvos.pipeline.config.pipeline import PipelineConfig
from streamvos.pipeline.supervision.streams import StreamRecord
from streamvos.pipeline.supervision.topology import Topology
from streamvos.pipeline.telemetry.logs import EventLog
from streamvos.pipeline.telemetry.statistics import StreamStatistics
from streamvos.pipeline.telemetry.trace import TraceWriter
from streamvos.pipeline.wire.messages import Refused
from streamvos.pipeline.wire.runtime import Runtime

Workers = Mapping[str, Mapping[str, Any]]

_LONGEST_REASON = 300  # characters


class Observation:
    """Everything that is counted.

    Args:
        config: of the pipeline.
        log: where events go.
    """

    def __init__(self, config: PipelineConfig, log: EventLog):
        self._config, self._log = config, log
        self._statistics = {one.name: StreamStatistics() for one in config.streams}
        self._restarts: dict[str, Counter[str]] = {}
        self._stream_restarts: Counter[str] = Counter()
        self._skipped: Counter[str] = Counter()
        self._refused: dict[str, Counter[str]] = {}
        self._counters: dict[str, Mapping[str, int]] = {}
        self._seen: dict[str, dict[str, int]] = {}
        self._waiting: dict[str, tuple[str, int]] = {}  # stage -> for what, since when in monotonic ns
        self._publishers: dict[str, str] = {}
        self._trace: TraceWriter | None = None
        self._latest: dict[str, Any] = {}  # made in the supervisor's thread, read in that of the endpoint
        self._lock = threading.Lock()

    def open(
        self,
        stack: contextlib.ExitStack,
        topology: Topology,
        runtime: Runtime,
        collect: Callable[[], dict[str, Any]],
    ) -> None:
        """Begin the trace and the endpoint of the metrics, where they are wanted.

        Args:
            stack: closes them.
            topology, runtime: of the pipeline.
            collect: what the endpoint tells; called in a thread of its own.

        Raises:
            StreamvosError: one of them cannot be opened.
        """
        for stream in self._config.streams:
            for sink in stream.sinks:
                if sink.kind == "publish":
                    self._publishers[stream.name] = sink.address or runtime.masks(stream.name)
        observe = self._config.observe
        if observe.trace is not None:
            workers = {stage: name for name, stages in topology.workers.items() for stage in stages}
            self._trace = stack.enter_context(TraceWriter(observe.trace, workers, self._config.name))
        if observe.prometheus is not None:
            from streamvos.pipeline.telemetry.prometheus import Endpoint

            endpoint = Endpoint.start(observe.prometheus, collect)
            stack.callback(endpoint.close)
            self._log.event("metrics", url=endpoint.url)

    def frames(self, stream: str, incarnation: int, frames: Iterable[Any]) -> None:
        """What the sinks have acknowledged."""
        frames = list(frames)
        self._statistics[stream].add(frames, incarnation)
        if self._trace is not None:
            self._trace.frames(stream, incarnation, frames)

    def skipped(self, stream: str) -> None:
        """A frame went by before anybody had said what to follow."""
        self._skipped[stream] += 1

    def died(self, worker: str, stages: tuple[str, ...], reason: str, streams: Iterable[str]) -> None:
        """A worker is gone."""
        cause = reason.partition(":")[0][:80]
        for stage in stages:
            self._restarts.setdefault(stage, Counter())[cause] += 1
            self._waiting.pop(stage, None)
        for stream in streams:
            self._stream_restarts[stream] += 1
            self._statistics[stream].interrupted()
        self.mark("died", None, worker=worker, reason=reason)

    def interrupted(self, stream: str) -> None:
        """A stream stands still."""
        self._statistics[stream].interrupted()

    def mark(self, name: str, stream: str | None = None, **more: Any) -> None:
        """A moment that the trace shows."""
        if self._trace is not None:
            self._trace.instant(name, None, stream, None, **more)

    def refuse(self, where: str, cause: str, detail: str | None = None) -> None:
        """A message broke a rule."""
        counter = self._refused.setdefault(where, Counter())
        counter[cause if cause in counter or len(counter) < 32 else "other"] += 1
        self._log.event("message_refused", "warning", stage=where, cause=cause, detail=detail)

    def count_too(self, where: str, refused: Mapping[str, int]) -> None:
        """Tell of what somebody else counts, too."""
        self._counters[where] = refused

    def beat(self, stages: Mapping[str, Mapping[str, Any]]) -> None:
        """What a heartbeat says of the stages of a worker: what they wait for or refused is logged."""
        for stage, told in stages.items():
            self._note_waiting(
                stage, told.get("waiting_for", "")[:_LONGEST_REASON], told.get("waiting_since", 0)
            )
            seen = self._seen.setdefault(stage, {})
            for cause, count in told.get("refused", {}).items():
                if count > seen.get(cause, 0):
                    self._log.event("message_refused", "warning", stage=stage, cause=cause, count=count)
                seen[cause] = count

    def waiting(self, stream: str) -> tuple[str, float] | None:
        """What a stream waits for outside the pipeline, and for how many seconds; None = nothing."""
        own = [
            self._waiting[stage]
            for stage in (f"source.{stream}", f"sinks.{stream}")
            if stage in self._waiting
        ]
        if not own:
            return None
        reason, since = min(own, key=lambda one: one[1])
        return reason, _seconds_since(since)

    def _note_waiting(self, stage: str, reason: str, since: int) -> None:
        """What a stage waits for; a change is logged once."""
        before = self._waiting.get(stage)
        if (before[0] if before else "") == reason:
            if before is not None:
                self._waiting[stage] = (reason, since)  # it may have gone on between two beats
            return
        stream = stage.partition(".")[2] or None
        if reason:
            self._waiting[stage] = (reason, since)
            seconds = round(_seconds_since(since), 1)
            self._log.event("waiting", "warning", stream=stream, stage=stage, reason=reason, seconds=seconds)
        else:
            _, began = self._waiting.pop(stage)
            self._log.event("goes_on", stream=stream, stage=stage, seconds=round(_seconds_since(began), 1))
        self.mark("waiting" if reason else "goes on", stream, stage=stage)

    def status(self, streams: Iterable[StreamRecord], workers: Workers) -> dict[str, Any]:
        """For `status`, the summary at the end, and the metrics."""
        told: dict[str, Any] = {}
        stages: dict[str, Mapping[str, Any]] = {}
        for worker in workers.values():
            stages |= worker["beat"].get("stages", {})
        for stream in streams:
            name = stream.name
            summary = self._statistics[name].summary()
            dropped = Counter(summary["dropped"])
            dropped.update({"no mask": count} if (count := self._skipped[name]) else {})
            waiting = None if stream.over else self.waiting(name)
            told[name] = {
                "state": _state(stream, waiting is not None),
                "reason": stream.reason,
                "waiting_for": waiting[0] if waiting else "",
                "waiting_seconds": waiting[1] if waiting else 0.0,
                "last_failure": stream.trouble,
                "incarnation": stream.incarnation,
                "objects": stages.get(f"memory.{name}", {}).get("objects", []),
                "size": None if stream.facts is None else list(stream.facts["size"]),
                "source": None if stream.facts is None else stream.facts.get("label"),
                "policy": stream.config.effective_policy,
                "restarts": self._stream_restarts[name],
                "queues": stages.get(f"sinks.{name}", {}).get("queues", {}),
                **summary,
                "dropped": dict(dropped),
            }
        refused = {name: dict(one) for name, one in (self._counters | self._refused).items() if one}
        for stage, beat in stages.items():
            if beat.get("refused"):
                refused[stage] = dict(beat["refused"])
        return {
            "pipeline": self._config.name,
            "placement": self._config.placement,
            "method": self._config.method.name,
            "streams": told,
            "publish": dict(self._publishers),
            "workers": {name: {**one, "up": one["state"] == "ready"} for name, one in workers.items()},
            "restarts": {stage: dict(reasons) for stage, reasons in self._restarts.items()},
            "refused": refused,
        }


def checked_beat(fields: Mapping[str, Any], stages: Iterable[str]) -> dict[str, Any]:
    """What a heartbeat says, without what it says of stages that are not its worker's.

    Raises:
        Refused: a number, or a table of numbers, is something else.
    """
    told = fields.get("stages")
    if not isinstance(told, dict) or not all(isinstance(one, dict) for one in told.values()):
        raise Refused("field", "stages of a beat")
    for name in ("clock", "memory", "cpu", "descriptors"):
        if not isinstance(fields.get(name, 0), (int, float, type(None))):
            raise Refused("field", f"{name} of a beat")
    for one in told.values():
        if not isinstance(one.get("waiting_for", ""), str):
            raise Refused("field", "what a stage waits for")
        numbers = ("busy_since", "waiting_since", "sent", "frames")
        if not all(type(one.get(name, 0)) is int for name in numbers):
            raise Refused("field", "numbers of a stage")
        for name in ("refused", "drops"):
            counts = one.get(name, {})
            if not isinstance(counts, dict) or not all(type(count) is int for count in counts.values()):
                raise Refused("field", f"{name} of a stage")
    return {**fields, "stages": {name: told[name] for name in stages if name in told}}


def in_our_time(beat: Mapping[str, Any]) -> dict[str, Any]:
    """The beat of a worker on another host, whose monotonic clock began at another moment.

    Args:
        beat: checked.

    Returns:
        The same with its times on this host's clock, in monotonic ns.
    """
    ahead = beat.get("clock", 0) - time.monotonic_ns()
    times = ("busy_since", "waiting_since")
    stages = {
        name: {**one, **{key: one[key] - ahead if one.get(key) else 0 for key in times}}
        for name, one in beat.get("stages", {}).items()
    }
    return {**beat, "stages": stages}


def _state(stream: StreamRecord, waits: bool) -> str:
    if stream.over:
        return "failed" if stream.reason else "ended"
    if stream.phase == "running" and stream.paused:
        return "paused"
    if stream.phase in ("running", "ending") and waits:
        return "waiting"
    names = {"opening": "starting", "resetting": "starting", "ending": "running"}
    if stream.phase == "resetting" and stream.incarnation > 1:
        return "recovering"
    return names.get(stream.phase, stream.phase)


def _seconds_since(since: int) -> float:
    """From a moment in monotonic ns until now."""
    return max(0.0, (time.monotonic_ns() - since) * 1e-9)
