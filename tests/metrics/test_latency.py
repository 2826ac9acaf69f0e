"""Percentiles of a bounded histogram against sorted values."""

from __future__ import annotations

import json
import math
import tracemalloc

import numpy as np
import pytest

from streamvos.metrics.latency import Latencies
from streamvos.types import InputError


def nearest_rank(values: np.ndarray, q: float) -> float:
    return float(np.sort(values)[max(math.ceil(q * len(values) / 100), 1) - 1])


def filled(values) -> Latencies:
    latencies = Latencies()
    for value in values:
        latencies.add(value)
    return latencies


@pytest.mark.parametrize(
    "values",
    [
        np.random.default_rng(0).lognormal(16, 1.5, 5000),  # milliseconds with a long tail
        np.random.default_rng(1).uniform(1, 1e10, 5000),
        np.arange(1, 2001) * 1e6,
        np.array([7.0]),
        np.array([1.0, 1e15]),  # a nanosecond and eleven days
        np.repeat([3e6, 9e9], [99, 1]),
    ],
    ids=["lognormal", "uniform", "steps", "one", "extremes", "one outlier"],
)
def test_percentiles_are_within_the_stated_error(values):
    latencies = filled(values)
    for q in (0, 1, 25, 50, 90, 95, 99, 99.9, 100):
        # a billionth more for the rounding of the logarithms at a bucket's edge
        assert latencies.percentile(q) == pytest.approx(nearest_rank(values, q), rel=0.01 * (1 + 1e-9))
    assert latencies.count == len(values)
    assert latencies.mean == pytest.approx(values.mean(), rel=1e-9)
    assert (latencies.minimum, latencies.maximum) == (values.min(), values.max())


def test_percentiles_never_fall_and_stay_between_the_extremes():
    latencies = filled(np.random.default_rng(2).lognormal(15, 3, 1000))
    found = [latencies.percentile(q) for q in np.linspace(0, 100, 300)]
    assert found == sorted(found)
    assert found[0] == latencies.minimum
    assert found[-1] == latencies.maximum


def test_memory_does_not_grow():
    latencies = Latencies()
    values = np.random.default_rng(3).lognormal(15, 4, 20000).tolist()
    latencies.add(values[0])
    tracemalloc.start()
    for value in values:
        latencies.add(value)
    grown = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    # Counts in the buckets that are no longer shared small integers: 32 bytes for each of 1,800 at most.
    assert grown < 1850 * 40


def test_zero_and_more_than_the_histogram_holds():
    latencies = filled([0, 0, 0, 1e18])
    assert (latencies.minimum, latencies.maximum, latencies.percentile(99)) == (0, 1e18, 1e18)
    assert latencies.percentile(50) <= 1  # a nanosecond, which no clock tells from none


def test_the_summary_is_in_milliseconds_and_fit_for_json():
    summary = filled([1e6, 2e6, 3e6, 4e6]).summary()
    assert set(summary) == {"count", "mean_ms", "p50_ms", "p95_ms", "p99_ms", "max_ms"}
    assert (summary["count"], summary["mean_ms"], summary["max_ms"]) == (4, 2.5, 4.0)
    assert summary["p50_ms"] == pytest.approx(2, rel=0.01)
    assert json.loads(json.dumps(summary)) == summary


def test_without_any_value():
    latencies = Latencies()
    assert math.isnan(latencies.percentile(95))
    assert math.isnan(latencies.mean)
    assert math.isnan(latencies.maximum)
    assert latencies.summary() == {
        "count": 0,
        "mean_ms": None,
        "p50_ms": None,
        "p95_ms": None,
        "p99_ms": None,
        "max_ms": None,
    }


@pytest.mark.parametrize("value", [-1, math.nan, math.inf])
def test_what_is_no_duration_is_refused_and_changes_nothing(value):
    latencies = filled([5.0])
    with pytest.raises(InputError, match="latency"):
        latencies.add(value)
    assert (latencies.count, latencies.mean) == (1, 5.0)


def test_bad_arguments():
    for q in (-1, 101, math.nan):
        with pytest.raises(InputError, match="percentile"):
            Latencies().percentile(q)
