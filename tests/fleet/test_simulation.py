"""The simulated fleet against what can be worked out by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest

from streamvos.fleet.simulation import DAY, Plan, simulate
from streamvos.types import InputError

CALM = Plan(cameras=24, shares=4, per_share=12, days=10, failures_per_year=0, night=1.0, reserve=0.0)


def test_without_failures_streams_only_wait_for_their_beginning():
    outcome = simulate(replace(CALM, begin_seconds=10, at_once=1))
    assert outcome.wanted_seconds == pytest.approx(24 * 10 * DAY)
    # six streams a share, one after the other: 10 + 20 + ... + 60 s each
    assert outcome.down_seconds == {"began": pytest.approx(4 * 210)}
    assert outcome.share_hours == pytest.approx(4 * 240)
    assert (outcome.failures, outcome.peak, outcome.return_seconds) == (0, 24, [])


def test_what_has_no_room_is_down_all_the_time():
    outcome = simulate(replace(CALM, cameras=60, begin_seconds=0))
    assert outcome.down_seconds["no room"] == pytest.approx(12 * 10 * DAY)
    assert outcome.availability == pytest.approx(48 / 60)


def test_a_lost_machine_costs_its_notice_and_its_beginnings():
    plan = replace(CALM, days=365, failures_per_year=20, notice_seconds=7, begin_seconds=3, at_once=12)
    outcome = simulate(plan)
    assert outcome.failures > 40
    assert outcome.return_seconds == pytest.approx([10.0] * len(outcome.return_seconds))
    assert outcome.down_seconds["machine lost"] == pytest.approx(10.0 * len(outcome.return_seconds))
    assert outcome.most_lost <= 12


def test_night_turns_cameras_and_shares_off():
    day = simulate(replace(CALM, night=1.0))
    both = simulate(replace(CALM, night=0.0, time_zones=0.0))
    assert both.wanted_seconds == pytest.approx(day.wanted_seconds / 2)
    assert both.share_hours == pytest.approx(day.share_hours / 2)


def test_the_seed_decides():
    plan = replace(CALM, days=100, failures_per_year=30, night=0.5)
    one, again, other = simulate(plan), simulate(plan), simulate(replace(plan, seed=1))
    assert one == again
    assert one != other


def test_a_reserve_shortens_what_a_loss_costs():
    """Where shares are full, streams of a lost machine wait for its repair; a reserve takes them in."""
    plan = replace(CALM, cameras=40, per_share=10, failures_per_year=12, days=200)
    full = simulate(plan)
    roomy = simulate(replace(plan, shares=6, reserve=0.3))
    assert full.quantile(0.5) > 600
    assert roomy.quantile(0.99) < 60


@pytest.mark.parametrize(
    ("key", "value"), [("cameras", 0), ("night", 1.5), ("days", 0), ("begin_seconds", -1), ("days", 1e400)]
)
def test_an_impossible_plan_is_refused(key, value):
    with pytest.raises(InputError, match=key):
        replace(CALM, **{key: value})
