"""Latencies of an endless stream, in a few kilobytes.

A tail (p99) needs all the values or a histogram. This one has buckets whose widths grow with the value,
so that the relative error of every percentile is bounded, as in DDSketch (Masson et al., "DDSketch: a
fast and fully-mergeable quantile sketch with relative-error guarantees", VLDB 2019).

    >>> latencies = Latencies()
    >>> for milliseconds in range(1, 1001):
    ...     latencies.add(milliseconds * 1_000_000)
    >>> round(latencies.p95 / 1e6), latencies.maximum / 1e6  # exact: 950, 1000
    (949, 1000.0)
"""

from __future__ import annotations

import math

from streamvos.types import InputError

_LONGEST_NS = 1e16  # 116 days; beyond it the last bucket takes everything


class Latencies:
    """Count, mean, extremes and percentiles of durations, in nanoseconds.

    Memory is fixed when it is made (about 14 kB at 1 percent). Count, mean, minimum and maximum are
    exact. A percentile is that of the nearest rank (the smallest value that at least q percent of all
    do not exceed), off by at most `relative_error` of itself, for durations from 1 ns to 116 days.

    One thread adds; another may read at any time and sees all but perhaps the newest value.
    """

    def __init__(self, relative_error: float = 0.01) -> None:
        """
        Args:
            relative_error: the largest error of a percentile; 0.0001 .. 0.5.

        Raises:
            InputError: it is out of range.
        """
        if not 0.0001 <= relative_error <= 0.5:
            raise InputError(f"relative_error is {relative_error}; expected 0.0001 .. 0.5")
        self.relative_error = relative_error
        self._growth = (1 + relative_error) / (1 - relative_error)
        self._scale = 1 / math.log(self._growth)
        # Bucket k holds (growth^(k-1), growth^k] ns; bucket 0 everything up to 1 ns.
        self._buckets = [0] * (math.ceil(math.log(_LONGEST_NS) * self._scale) + 1)
        self._count = 0
        self._sum = 0.0
        self._minimum = math.inf
        self._maximum = -math.inf

    def add(self, nanoseconds: float) -> None:
        """Take one duration into account.

        Args:
            nanoseconds: 0 or more; a difference of two `time.monotonic_ns()`.

        Raises:
            InputError: it is negative or not finite.
        """
        if not 0 <= nanoseconds < math.inf:
            raise InputError(f"a latency of {nanoseconds} ns; expected a finite number, not negative")
        bucket = math.ceil(math.log(nanoseconds) * self._scale) if nanoseconds > 1 else 0
        self._buckets[min(bucket, len(self._buckets) - 1)] += 1
        self._count += 1
        self._sum += nanoseconds
        self._minimum = min(self._minimum, nanoseconds)
        self._maximum = max(self._maximum, nanoseconds)

    @property
    def count(self) -> int:
        """How many durations were added."""
        return self._count

    @property
    def mean(self) -> float:
        """In nanoseconds; nan without any."""
        return self._sum / self._count if self._count else math.nan

    @property
    def minimum(self) -> float:
        """In nanoseconds; nan without any."""
        return float(self._minimum) if self._count else math.nan

    @property
    def maximum(self) -> float:
        """In nanoseconds; nan without any."""
        return float(self._maximum) if self._count else math.nan

    @property
    def p50(self) -> float:
        """The median in nanoseconds; nan without any."""
        return self.percentile(50)

    @property
    def p95(self) -> float:
        """95 percent of all are no longer than this, in nanoseconds; nan without any."""
        return self.percentile(95)

    @property
    def p99(self) -> float:
        """99 percent of all are no longer than this, in nanoseconds; nan without any."""
        return self.percentile(99)

    def percentile(self, q: float) -> float:
        """The q-th percentile in nanoseconds; nan without any duration.

        Args:
            q: 0 (the minimum) .. 100 (the maximum).

        Raises:
            InputError: q is out of range.
        """
        if not 0 <= q <= 100:
            raise InputError(f"the percentile is {q}; expected 0 .. 100")
        if self._count == 0:
            return math.nan
        rank = max(math.ceil(q * self._count / 100), 1)
        if rank >= self._count:
            return self.maximum
        if rank == 1:
            return self.minimum
        seen = 0
        for bucket, count in enumerate(self._buckets):
            seen += count
            if seen >= rank:
                middle = 2 * self._growth**bucket / (self._growth + 1)  # relative_error from either end
                return min(max(middle, self.minimum), self.maximum)
        return self.maximum

    def milliseconds(self) -> dict[str, float | int | None]:
        """count; mean, p50, p95, p99 and max in milliseconds, or None without any duration."""
        values = {"mean": self.mean, "p50": self.p50, "p95": self.p95, "p99": self.p99, "max": self.maximum}
        return {"count": self._count, **{k: ns / 1e6 if self._count else None for k, ns in values.items()}}

    def summary(self) -> dict[str, float | int | None]:
        """As `milliseconds`, with the unit in the names: count, mean_ms, p50_ms, p95_ms, p99_ms, max_ms."""
        return {k if k == "count" else f"{k}_ms": value for k, value in self.milliseconds().items()}
