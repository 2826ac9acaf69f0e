"""Back-off and circuit breaker."""

from __future__ import annotations

import itertools
import random

from streamvos.pipeline.supervision.restarts import LONGEST_DELAY, Restarts


def test_the_first_death_is_followed_by_a_restart_at_once_and_the_next_ever_later():
    restarts = Restarts(None, window=1e9)
    delays = []
    for at in range(20):
        assert restarts.died(float(at))
        delays.append(restarts.delay)
    assert delays[0] == 0
    assert delays == sorted(delays)
    assert all(later == min(2 * earlier, LONGEST_DELAY) for earlier, later in itertools.pairwise(delays[1:]))


def test_too_many_deaths_within_the_window_are_enough():
    restarts = Restarts(3, window=60.0)
    assert [restarts.died(at) for at in (0.0, 10.0, 20.0, 30.0)] == [True, True, True, False]
    assert restarts.count == 3


def test_deaths_that_are_long_ago_do_not_count():
    restarts = Restarts(2, window=10.0)
    for at in (0.0, 11.0, 22.0, 33.0, 44.0):
        assert restarts.died(at)
        assert restarts.delay == 0


def test_no_more_than_the_maximum_within_any_window_whatever_happens():
    rng = random.Random(0)
    for _ in range(50):
        restarts, at, lived = Restarts(4, window=30.0), 0.0, []
        for _ in range(200):
            at += rng.expovariate(1 / 6)
            if restarts.died(at):
                lived.append(at)
        assert all(later - earlier > 30.0 for earlier, later in zip(lived, lived[4:], strict=False))
