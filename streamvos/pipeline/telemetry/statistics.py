"""How fast one stream is, how late its masks come, and what it lost: in fixed memory, for ever.

The supervisor has one of these per stream, and feeds it with what the sinks acknowledge (docs/protocol.md, 5
and 10).

    statistics = StreamStatistics()
    statistics.add([[0, captured, {"source": [1, 2, 3], ..., "sinks": [40, 41, 45]}, {}, False], ...])
    statistics.interrupted()                     # something died; the next frame tells how long it took
    statistics.summary()["latencies"]["glass to mask"]["p99"]            # ms

Times of different hosts do not compare. Whatever comes out negative is left out and counted.
"""

from __future__ import annotations

import math
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from streamvos.metrics.latency import Latencies

STAGES = ("source", "extractor", "memory", "decoder", "sinks")
"""In the order in which a frame passes them."""

WARM_UP = 5
"""Frames after each beginning whose times are in no percentile: first calls are slow, so is catching up."""

WINDOW = 5.0
"""Seconds over which the rate is taken."""

_BIN = 0.25  # seconds; the rate is counted in bins of these
_BINS = round(WINDOW / _BIN)
_CAUSES = 32  # that are told apart; whoever invents more finds them together as "other"
_LONGEST_NS = 10**16  # 116 days; beyond it a time is nonsense


class StreamStatistics:
    """Counts and latencies of one stream. Any thread may call any method.

    Args:
        warm_up: frames after each beginning that are left out of latencies.
        clock: monotonic nanoseconds, the clock of the stamps.

    Attributes:
        frames: acknowledged, each once.
        repeated: acknowledged again, as after a death of the sinks.
        seq: of the newest acknowledged frame; -1 before the first.
        dropped: cause -> frames.
        recoveries: how often the stream came back.
        left_out: times that cannot be (negative, no numbers).
        nonsense: entries that are no frames at all.
    """

    def __init__(self, warm_up: int = WARM_UP, clock: Callable[[], int] = time.monotonic_ns) -> None:
        self.frames = self.repeated = self.recoveries = self.left_out = self.nonsense = 0
        self.seq = -1
        self.dropped: Counter[str] = Counter()
        self._warm_up, self._clock = warm_up, clock
        self._cold = warm_up
        self._latencies: dict[str, Latencies] = {}
        self._recovery = Latencies()
        self._last_recovery: float | None = None
        self._interrupted: int | None = None
        self._began: int | None = None
        self._incarnation: int | None = None
        self._recovered_in: int | None = None
        self._bins = [(-1, 0)] * (_BINS + 1)  # (number of the bin since the epoch of the clock, frames)
        self._lock = threading.Lock()

    def add(self, frames: Iterable[Any], incarnation: int | None = None) -> None:
        """Take what the sinks acknowledge into account.

        Args:
            frames: [seq, captured, {stage: [received, started, done]}, {cause: dropped}, recovered] each;
                times in monotonic ns. What is not of this form is counted as nonsense and otherwise ignored.
            incarnation: of the acknowledgement. The first frame of a new one counts as a recovery even if its
                own mark was lost: under "lossless" it may be a frame that was written before.
        """
        with self._lock:
            for frame in frames:
                self._add(frame, incarnation)

    def interrupted(self, at: int | None = None) -> None:
        """Say that a stage died, was seen to hang, or failed, so that the stream stands.

        The next frame that is marked recovered, or is of a new incarnation, ends the interruption.

        Args:
            at: monotonic ns; None = now. While an interruption lasts, further ones do not begin it anew.
        """
        with self._lock:
            if self._interrupted is None:
                self._interrupted = self._clock() if at is None else at
            self._cold = self._warm_up

    def summary(self) -> dict[str, Any]:
        """What `status` tells of the stream (docs/protocol.md, 8).

        Returns:
            seq (None before the first frame), frames, repeated, fps (None in the first second),
            left_out, nonsense, dropped {cause: frames}, recoveries,
            recovery_ms {count, mean, p50, p95, p99, max, last}, and
            latencies: name -> {count, mean, p50, p95, p99, max} in ms, of what was measured at all:

            - "extractor", ...: from `started` to `done` of a stage
            - "extractor wait", ...: from `received` to `started`
            - "source to extractor", ...: from `done` of one to `received` of the next, queues included
            - "glass to mask": from `captured` to `received` of the sinks
            - "glass to written": from `captured` to `done` of the sinks
        """
        with self._lock:
            recovery = _milliseconds(self._recovery)
            return {
                "seq": None if self.seq < 0 else self.seq,
                "frames": self.frames,
                "repeated": self.repeated,
                "fps": self._rate(),
                "dropped": dict(self.dropped),
                "recoveries": self.recoveries,
                "recovery_ms": None if recovery is None else {**recovery, "last": self._last_recovery},
                "left_out": self.left_out,
                "nonsense": self.nonsense,
                "latencies": {
                    name: told
                    for name, one in self._latencies.items()
                    if (told := _milliseconds(one)) is not None
                },
            }

    @property
    def fps(self) -> float | None:
        """Frames per second over the last seconds; None in the first second."""
        with self._lock:
            return self._rate()

    def _add(self, frame: Any, incarnation: int | None) -> None:
        if not (isinstance(frame, (list, tuple)) and len(frame) == 5 and _is_count(frame[0])):
            self.nonsense += 1
            return
        seq, captured, stamps, dropped, recovered = frame
        if seq <= self.seq:
            self.repeated += 1
            return
        self.seq = seq
        self.frames += 1
        self._count_for_rate()
        self._add_drops(dropped)
        stamps = stamps if isinstance(stamps, Mapping) else {}
        times = {stage: _times(stamps.get(stage)) for stage in STAGES}
        self.left_out += sum(times[stage] is None and stage in stamps for stage in STAGES)
        if self._is_recovery(recovered, incarnation):
            self._recovered(times["sinks"])
        if self._cold > 0:
            self._cold -= 1
            return
        self._add_times(captured, times)

    def _add_drops(self, dropped: Any) -> None:
        if not isinstance(dropped, Mapping):
            return
        for cause, count in dropped.items():
            if not (isinstance(cause, str) and _is_count(count)):
                self.nonsense += 1
                continue
            known = cause in self.dropped or len(self.dropped) < _CAUSES
            self.dropped[cause if known else "other"] += count

    def _is_recovery(self, recovered: Any, incarnation: int | None) -> bool:
        """Whether this frame is the first after an interruption; of each incarnation, one is."""
        earlier, self._incarnation = self._incarnation, incarnation
        if incarnation is None:
            return recovered is True
        anew = earlier is not None and incarnation > earlier
        if not (anew or recovered is True) or incarnation == self._recovered_in:
            return False
        self._recovered_in = incarnation
        return True

    def _recovered(self, sinks: tuple[int, int, int] | None) -> None:
        self.recoveries += 1
        self._cold = self._warm_up
        if self._interrupted is not None:
            back = self._clock() if sinks is None else sinks[0]
            # a frame that was on its way to the sinks when the death was noticed is back before it was gone
            duration = max(back - self._interrupted, 0)
            self._recovery.add(duration)
            self._last_recovery = duration / 1e6
            self._interrupted = None

    def _add_times(self, captured: Any, times: Mapping[str, tuple[int, int, int] | None]) -> None:
        before: str | None = None
        for stage in STAGES:
            stamps = times[stage]
            if stamps is None:
                before = None  # a gap is no transport
                continue
            received, started, done = stamps
            self._measure(stage, started, done)
            self._measure(f"{stage} wait", received, started)
            earlier = times[before] if before else None
            if earlier is not None:
                self._measure(f"{before} to {stage}", earlier[2], received)
            before = stage
        sinks = times["sinks"]
        if sinks is None:
            return
        if not _is_count(captured):
            self.left_out += 1
            return
        self._measure("glass to mask", captured, sinks[0])
        self._measure("glass to written", captured, sinks[2])

    def _measure(self, name: str, start: int, end: int) -> None:
        if not 0 <= end - start <= _LONGEST_NS:
            self.left_out += 1
            return
        if name not in self._latencies:  # at most as many as there are names above
            self._latencies[name] = Latencies()
        self._latencies[name].add(end - start)

    def _count_for_rate(self) -> None:
        now = self._clock()
        if self._began is None:
            self._began = now  # the first frame begins the time, and is none of the frames within it
            return
        number = int(now / 1e9 / _BIN)
        place = number % len(self._bins)
        counted = self._bins[place][1] if self._bins[place][0] == number else 0
        self._bins[place] = (number, counted + 1)

    def _rate(self) -> float | None:
        if self._began is None:
            return None
        now = self._clock() / 1e9
        newest = int(now / _BIN)
        # whole bins and the one that is still filling, from the beginning of the oldest
        since = max((newest - _BINS) * _BIN, self._began / 1e9)
        if now - since < 1.0:
            return None
        return sum(count for number, count in self._bins if newest - _BINS <= number <= newest) / (
            now - since
        )


def _times(stamps: Any) -> tuple[int, int, int] | None:
    """The three times of a stage, or None if they are none."""
    if isinstance(stamps, (list, tuple)) and len(stamps) == 3 and all(map(_is_count, stamps)):
        return (stamps[0], stamps[1], stamps[2])
    return None


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**63


def _milliseconds(latencies: Latencies) -> dict[str, float | int] | None:
    """None if nothing was measured."""
    if not latencies.count:
        return None
    values = {
        "mean": latencies.mean,
        "p50": latencies.p50,
        "p95": latencies.p95,
        "p99": latencies.p99,
        "max": latencies.maximum,
    }
    assert not any(math.isnan(value) for value in values.values())
    return {"count": latencies.count, **{name: value / 1e6 for name, value in values.items()}}
