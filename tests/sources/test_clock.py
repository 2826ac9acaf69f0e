"""Clocks: time stamps that rise, whatever a file or a camera says."""

from itertools import pairwise

import numpy as np
import pytest

from streamvos.sources.clock import FileClock, LiveClock


@pytest.mark.parametrize(
    ("stamps", "expected"),
    [
        ([5.0, 5.04, 5.08], [0.0, 0.04, 0.08]),
        ([0.0, 0.04, 0.0, 0.04], [0.0, 0.04, 0.08, 0.12]),
        ([None, None, None], [0.0, 0.04, 0.08]),
        ([0.0, 0.0, 0.0, 0.1], [0.0, 0.04, 0.08, 0.1]),
        ([0.0, 0.04, None, 0.12], [0.0, 0.04, 0.08, 0.12]),
        ([0.0, float("nan"), 1.0], [0.0, 0.04, 1.0]),
    ],
)
def test_stamps_of_files(stamps, expected):
    clock = FileClock(period=0.04)
    assert [clock(one) for one in stamps] == pytest.approx(expected)


def test_stamps_of_files_always_rise():
    rng = np.random.default_rng(3)
    for _ in range(200):
        clock = FileClock(0.04)
        stamps = [None if rng.random() < 0.2 else float(rng.normal(0, 3)) for _ in range(30)]
        played = [clock(one) for one in stamps]
        assert all(before < after for before, after in pairwise(played))


def played(positions, arrivals, **more) -> list[float]:
    clock = LiveClock(**more)
    return [clock(p, round(a * 1e9)) for p, a in zip(positions, arrivals, strict=True)]


def test_an_invented_clock_is_not_believed():
    arrivals = np.arange(60) / 8
    assert played(np.arange(60) / 25, arrivals, trusted=False) == pytest.approx(arrivals)


def test_a_clock_that_runs_too_fast_or_too_slow_is_given_up():
    arrivals = np.arange(100) / 8
    for rate in (3, 25):
        times = played(np.arange(100) / rate, arrivals)
        late = np.diff(times)[40:]
        assert late == pytest.approx(np.full(late.shape, 1 / 8))


def test_jitter_a_burst_and_a_stall_leave_a_clock_alone():
    rng = np.random.default_rng(0)
    positions = np.arange(400) / 25
    burst = np.maximum(positions - 4.0, 0.0)  # the last seconds before the connection come at once
    stall = np.where((positions > 8) & (positions < 11), 11.0, positions)
    for arrivals in (np.sort(positions + rng.uniform(0, 0.1, 400)), burst, stall):
        assert played(positions, arrivals) == pytest.approx(positions)


def test_frames_that_arrive_at_once_still_rise():
    times = played([float("nan")] * 5, [1.0] * 5)
    assert all(before < after for before, after in pairwise(times))
