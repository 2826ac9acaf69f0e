"""Percentiles of an endless series of latencies in a few kilobytes.

Tail percentiles (p99) need all values or a histogram. This histogram has buckets whose widths grow with the
value, so that the relative error of every percentile is bounded, as in DDSketch (Masson et al., "DDSketch: a
fast and fully-mergeable quantile sketch with relative-error guarantees", VLDB 2019).

    >>> latencies = Latencies()
    >>> for milliseconds in range(1, 1001):
    ...     latencies.add(milliseconds * 1_000_000)
    >>> round(latencies.percentile(95) / 1e6), latencies.maximum / 1e6  # exact: 950, 1000
    (949, 1000.0)
"""

from __future__ import annotations

import math
from itertools import accumulate

from streamvos.types import InputError

RELATIVE_ERROR = 0.01
"""Largest error of a percentile, as a part of it."""

_GROWTH = (1 + RELATIVE_ERROR) / (1 - RELATIVE_ERROR)
_SCALE = 1 / math.log(_GROWTH)
_LONGEST_NS = 1e16  # 116 days; the last bucket takes everything beyond


class Latencies:
    """Count, mean, extremes and percentiles of durations, in nanoseconds.

    Memory is fixed (about 14 kB). Count, mean, minimum and maximum are exact. A percentile is that of the
    nearest rank (the smallest value that at least q percent of all do not exceed), off by at most
    `RELATIVE_ERROR` of itself, for durations from 1 ns to 116 days.

    One thread adds; another may read at any time and sees all values except perhaps the newest.
    """

    def __init__(self) -> None:
        # Bucket k holds (_GROWTH^(k-1), _GROWTH^k] ns; bucket 0 everything up to 1 ns.
        self._buckets = [0] * (math.ceil(math.log(_LONGEST_NS) * _SCALE) + 1)
        self._count = 0
        self._sum = 0.0
        self._minimum = math.inf
        self._maximum = -math.inf

    def add(self, nanoseconds: float) -> None:
        """Add one duration.

        Args:
            nanoseconds: 0 or more; a difference of two `time.monotonic_ns()`.

        Raises:
            InputError: it is negative or not finite.
        """
        if not 0 <= nanoseconds < math.inf:
            raise InputError(f"a latency of {nanoseconds} ns; expected a finite number, not negative")
        bucket = math.ceil(math.log(nanoseconds) * _SCALE) if nanoseconds > 1 else 0
        self._buckets[min(bucket, len(self._buckets) - 1)] += 1
        self._count += 1
        self._sum += nanoseconds
        self._minimum = min(self._minimum, nanoseconds)
        self._maximum = max(self._maximum, nanoseconds)

    @property
    def count(self) -> int:
        """Number of durations."""
        return self._count

    @property
    def mean(self) -> float:
        """Mean in nanoseconds; nan without durations."""
        return self._sum / self._count if self._count else math.nan

    @property
    def minimum(self) -> float:
        """Shortest in nanoseconds; nan without durations."""
        return float(self._minimum) if self._count else math.nan

    @property
    def maximum(self) -> float:
        """Longest in nanoseconds; nan without durations."""
        return float(self._maximum) if self._count else math.nan

    def percentile(self, q: float) -> float:
        """The q-th percentile in nanoseconds; nan without durations.

        Args:
            q: 0 (the minimum) .. 100 (the maximum).

        Raises:
            InputError: q is out of range.
        """
        if not 0 <= q <= 100:
            raise InputError(f"the percentile is {q}; expected 0 .. 100")
        rank = max(math.ceil(q * self._count / 100), 1)
        if rank >= self._count:
            return self.maximum
        if rank == 1:
            return self.minimum
        bucket = next(k for k, seen in enumerate(accumulate(self._buckets)) if seen >= rank)
        middle = 2 * _GROWTH**bucket / (_GROWTH + 1)  # at most the relative error from either end
        return min(max(middle, self.minimum), self.maximum)

    def milliseconds(self) -> dict[str, float | int | None]:
        """count; mean, p50, p95, p99 and max in milliseconds, or None without durations."""
        tails = {f"p{q}": self.percentile(q) for q in (50, 95, 99)}
        values = {"mean": self.mean, **tails, "max": self.maximum}
        return {"count": self._count, **{k: ns / 1e6 if self._count else None for k, ns in values.items()}}

    def summary(self) -> dict[str, float | int | None]:
        """As `milliseconds`, with the unit in the names: count, mean_ms, p50_ms, p95_ms, p99_ms, max_ms."""
        return {k if k == "count" else f"{k}_ms": value for k, value in self.milliseconds().items()}
