"""How sure a ratio of two runs is: intervals by resampling (bootstrap; Efron, Annals of Statistics 1979).

A ratio of medians is resampled over the interleaved turns: the turns, not the frames, tell how far a median
moves when nothing changes. A ratio of p99 is resampled from the histograms, and each draw moves as the turns'
medians move. Slow frames come in bursts, so that n frames tell as much as `n / BURST` independent ones. In
simulations with bursts of three frames (as in tests/bench/test_compare.py), n gave 6 % false alarms, n / 6
less than 1 %.
"""

from __future__ import annotations

import math
import statistics
import zlib

import numpy as np

from .results import CaseResult, middle

CONFIDENCE, DRAWS = 0.99, 2000
BURST = 6


def ratio_intervals(old: CaseResult, new: CaseResult, seed: int) -> dict[str, tuple[float, float]]:
    """ "p50" and "p99" -> the ends of the interval that holds new / old with `CONFIDENCE`.

    Args:
        old, new: with turns and a histogram, whose medians are positive.
        seed: of the draws, which depend on the case's name too but on no other case.
    """
    rng = np.random.default_rng([seed, zlib.crc32(new.name.encode("utf-8", "replace"))])
    medians = [_medians(row.repetitions, rng) for row in (old, new)]
    tails = [
        _tails(row, rng) * draws / statistics.median(row.repetitions)
        for row, draws in zip((old, new), medians, strict=True)
    ]
    rest = (1 - CONFIDENCE) / 2
    intervals = {}
    for name, (before, after) in {"p50": medians, "p99": tails}.items():
        low, high = np.quantile(after / before, (rest, 1 - rest))
        intervals[name] = (float(low), float(high))
    return intervals


def _medians(turns: list[float], rng: np.random.Generator) -> np.ndarray:
    """(DRAWS,) float64: the median of the turns, drawn again and again with replacement."""
    drawn = rng.integers(0, len(turns), (DRAWS, len(turns)))
    return np.median(np.asarray(turns)[drawn], axis=1)


def _tails(row: CaseResult, rng: np.random.Generator) -> np.ndarray:
    """(DRAWS,) float64: the p99 of frames drawn from the histogram."""
    buckets = sorted(row.histogram)
    if not buckets:
        return np.ones(DRAWS)
    counts = np.array([row.histogram[bucket] for bucket in buckets], float)
    size = max(row.count // BURST, 1)
    seen = rng.multinomial(size, counts / counts.sum(), DRAWS).cumsum(axis=1)
    reached = (seen >= math.ceil(0.99 * size)).argmax(axis=1)
    return np.array([middle(bucket) for bucket in buckets])[reached]
