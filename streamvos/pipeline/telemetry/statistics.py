"""Rate, latencies, drops and recoveries of one stream, in fixed memory.

The supervisor feeds it with the frames that the sinks acknowledge (docs/protocol.md, 5 and 10).

    statistics = StreamStatistics()
    statistics.add([[0, captured, {"source": [1, 2, 3], ..., "sinks": [40, 41, 45]}, {}, False], ...])
    statistics.interrupted()                     # a stage died; the next frame ends the recovery
    statistics.summary()["latencies"]["glass to mask"]["p99"]            # ms

Clocks of different hosts cannot be compared. Negative durations are left out and counted.
"""

from __future__ import annotations

import time
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from streamvos.metrics.latency import Latencies

STAGES = ("source", "extractor", "memory", "decoder", "sinks")
"""In the order in which a frame passes them."""

WARM_UP = 5
"""Frames after each beginning that count in no latency: first calls are slow, and so is catching up."""

WINDOW = 5.0
"""Seconds over which the rate is measured."""

_CAUSES = 32  # causes of drops that are counted separately; further ones count as "other"
_LONGEST_NS = 10**16  # 116 days; a longer duration is nonsense
_ARRIVALS = 2**14  # frames within the window; above 3,000 a second the window is shorter

Times = tuple[int, int, int]
"""When a stage received a frame, started on it, and was done; monotonic ns."""


@dataclass(frozen=True, slots=True)
class FrameReport:
    """What the sinks report of a frame that they have written."""

    seq: int
    captured: int  # when the frame was taken, in monotonic ns
    times: Mapping[str, Times]  # by stage
    left_out: int  # stages with impossible times, which are not in `times`
    dropped: Mapping[str, int]  # cause -> frames that were dropped before this one
    recovered: bool  # whether this is the first frame after an interruption

    @classmethod
    def read(cls, raw: Any) -> FrameReport | None:
        """[seq, captured, {stage: [received, started, done]}, {cause: frames}, recovered]; else None."""
        match raw:
            case [seq, captured, dict(stamps), dict(dropped), recovered] if (
                _is_count(seq)
                and _is_count(captured)
                and all(isinstance(cause, str) and _is_count(count) for cause, count in dropped.items())
            ):
                given = [stage for stage in STAGES if stage in stamps]
                times = {stage: tuple(stamps[stage]) for stage in given if _are_times(stamps[stage])}
                return cls(seq, captured, times, len(given) - len(times), dropped, recovered is True)
        return None


class StreamStatistics:
    """Counts and latencies of one stream.

    Args:
        warm_up: frames after each beginning that are left out of latencies.
        clock: monotonic nanoseconds, the clock of the reports.

    Attributes:
        frames: acknowledged frames, each counted once.
        repeated: frames that were acknowledged again, as after a death of the sinks.
        seq: the newest acknowledged frame; -1 before the first.
        dropped: cause -> frames.
        recoveries: how often the stream has recovered.
        left_out: impossible times: negative, or not numbers.
        nonsense: entries that are not reports of frames.
    """

    def __init__(self, warm_up: int = WARM_UP, clock: Callable[[], int] = time.monotonic_ns) -> None:
        self.frames = self.repeated = self.recoveries = self.left_out = self.nonsense = 0
        self.seq = -1
        self.dropped: Counter[str] = Counter()
        self._warm_up, self._clock = warm_up, clock
        self._cold = warm_up
        self._latencies: defaultdict[str, Latencies] = defaultdict(Latencies)
        self._recovery = Latencies()
        self._last_recovery: float | None = None
        self._interrupted: int | None = None
        self._began: int | None = None
        self._incarnation: int | None = None
        self._recovered_in: int | None = None
        self._arrivals: deque[int] = deque(maxlen=_ARRIVALS)

    def add(self, frames: Iterable[Any], incarnation: int = 1) -> None:
        """Add frames that the sinks have acknowledged.

        Args:
            frames: reports as `FrameReport.read` takes them; anything else is counted as nonsense.
            incarnation: the incarnation that acknowledges them. Its first frame counts as a recovery even if
                the frame's own mark was lost: under "lossless" it may have been written before.
        """
        for raw in frames:
            report = FrameReport.read(raw)
            if report is None:
                self.nonsense += 1
            elif report.seq <= self.seq:
                self.repeated += 1
            else:
                self._add(report, incarnation)

    def interrupted(self) -> None:
        """Begin an interruption, if none lasts: a stage has died, hangs, or has failed.

        The next frame that is marked recovered, or is of a new incarnation, ends it.
        """
        if self._interrupted is None:
            self._interrupted = self._clock()
        self._cold = self._warm_up

    def summary(self) -> dict[str, Any]:
        """The stream's part of `status` (docs/protocol.md, 8).

        Returns:
            seq (None before the first frame), frames, repeated, fps (None in the first second),
            left_out, nonsense, dropped {cause: frames}, recoveries,
            recovery_ms {count, mean, p50, p95, p99, max, last} or None, and
            latencies: name -> {count, mean, p50, p95, p99, max} in ms, for each that was measured:

            - "extractor", ...: from `started` to `done` of a stage
            - "extractor wait", ...: from `received` to `started`
            - "source to extractor", ...: from `done` of one to `received` of the next, queues included
            - "glass to mask": from `captured` to `received` of the sinks
            - "glass to written": from `captured` to `done` of the sinks
        """
        recovery = {**self._recovery.milliseconds(), "last": self._last_recovery}
        return {
            "seq": None if self.seq < 0 else self.seq,
            "frames": self.frames,
            "repeated": self.repeated,
            "fps": self.fps,
            "dropped": dict(self.dropped),
            "recoveries": self.recoveries,
            "recovery_ms": recovery if self._recovery.count else None,
            "left_out": self.left_out,
            "nonsense": self.nonsense,
            "latencies": {name: one.milliseconds() for name, one in self._latencies.items()},
        }

    @property
    def fps(self) -> float | None:
        """Frames per second over the last seconds; None in the first second."""
        if self._began is None:
            return None
        since = max((now := self._clock()) - round(WINDOW * 1e9), self._began)
        if len(self._arrivals) == _ARRIVALS:
            since = max(since, self._arrivals[0])
        while self._arrivals and self._arrivals[0] <= since:
            self._arrivals.popleft()
        return len(self._arrivals) * 1e9 / (now - since) if now - since >= 1e9 else None

    def _add(self, report: FrameReport, incarnation: int) -> None:
        self.seq = report.seq
        self.frames += 1
        if self._began is None:
            self._began = self._clock()  # the rate counts the frames after the first
        else:
            self._arrivals.append(self._clock())
        for cause, count in report.dropped.items():
            known = cause in self.dropped or len(self.dropped) < _CAUSES
            self.dropped[cause if known else "other"] += count
        self.left_out += report.left_out
        self._note_incarnation(report.recovered, incarnation, report.times.get("sinks"))
        if self._cold > 0:
            self._cold -= 1
        else:
            self._add_times(report)

    def _note_incarnation(self, recovered: bool, incarnation: int, sinks: Times | None) -> None:
        """Count a recovery if this frame is the first after an interruption; one per incarnation at most."""
        earlier, self._incarnation = self._incarnation, incarnation
        anew = earlier is not None and incarnation > earlier
        if not (anew or recovered) or incarnation == self._recovered_in:
            return
        self._recovered_in = incarnation
        self.recoveries += 1
        self._cold = self._warm_up
        if self._interrupted is not None:
            back = self._clock() if sinks is None else sinks[0]
            # a frame that was already on its way to the sinks may arrive before the death is noticed
            duration = max(back - self._interrupted, 0)
            self._recovery.add(duration)
            self._last_recovery = duration / 1e6
            self._interrupted = None

    def _add_times(self, report: FrameReport) -> None:
        times = report.times
        for stage, (received, started, done) in times.items():
            self._measure(stage, started, done)
            self._measure(f"{stage} wait", received, started)
        for before, after in pairwise(STAGES):
            if before in times and after in times:
                self._measure(f"{before} to {after}", times[before][2], times[after][0])
        if "sinks" in times:
            self._measure("glass to mask", report.captured, times["sinks"][0])
            self._measure("glass to written", report.captured, times["sinks"][2])

    def _measure(self, name: str, start: int, end: int) -> None:
        if not 0 <= end - start <= _LONGEST_NS:
            self.left_out += 1
            return
        self._latencies[name].add(end - start)


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**63


def _are_times(stamps: Any) -> bool:
    """Whether these are `Times` in ascending order."""
    is_triple = isinstance(stamps, (list, tuple)) and len(stamps) == 3 and all(map(_is_count, stamps))
    return is_triple and stamps[0] <= stamps[1] <= stamps[2]
