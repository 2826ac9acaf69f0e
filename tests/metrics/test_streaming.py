"""Which mask counts when time does not stop: properties over many rates and costs."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamvos.metrics.streaming import newest_finished
from streamvos.types import InputError

RATES = st.sampled_from([1.0, 10.0, 24.0, 25.0, 29.97, 30.0, 60.0, 0.1])
COUNTS = st.integers(1, 60)
PERIODS = st.floats(0, 8, allow_nan=False)  # a cost in frames of the video


def run(count: int, fps: float, costs: list[float] | float) -> tuple[list[int], list[int]]:
    """What counts at each frame, and which frames were taken; costs in frames of the video."""
    taken: list[int] = []

    def process(frame: int) -> float:
        taken.append(frame)
        cost = costs if isinstance(costs, float) else costs[(len(taken) - 1) % len(costs)]
        return cost / fps

    return list(newest_finished(count, fps, process)), taken


@given(COUNTS, RATES)
def test_without_latency_every_frame_has_its_own_mask(count, fps):
    assert run(count, fps, 0.0) == (list(range(count)), list(range(count)))


@given(COUNTS, RATES, st.floats(0.001, 1.0))
def test_up_to_one_period_masks_are_one_frame_late_and_no_frame_is_skipped(count, fps, cost):
    shown, taken = run(count, fps, cost)
    assert shown == [max(frame - 1, 0) for frame in range(count)]
    assert taken == list(range(count))


@given(COUNTS, RATES, st.integers(2, 7))
def test_a_whole_number_of_periods_takes_every_so_many_frames(count, fps, cost):
    shown, taken = run(count, fps, float(cost))
    assert taken == list(range(0, count, cost))
    assert shown == [max(frame // cost - 1, 0) * cost for frame in range(count)]


def test_one_and_a_half_periods_by_hand():
    # 0 is done at 1.5, when 1 is the newest; 1 at 3, as 3 arrives; 3 at 4.5; 4 at 6, as 6 arrives
    assert run(8, 10.0, 1.5) == ([0, 0, 0, 1, 1, 3, 4, 4], [0, 1, 3, 4, 6])


@given(COUNTS, RATES)
def test_a_method_that_never_finishes_shows_the_first_mask_for_ever(count, fps):
    assert run(count, fps, 1e6) == ([0] * count, [0])


@given(COUNTS, RATES, st.floats(0, 50))
def test_while_the_first_frame_is_learned_the_given_mask_counts(count, fps, first):
    shown, taken = run(count, fps, [first, *[0.0] * 100])
    done = math.ceil(first - 1e-6)  # the first frame that comes after it
    assert shown[:done] == [0] * min(done, count)
    if first < count - 1:
        newest = math.floor(first + 1e-6)
        assert taken[:2] == [0, max(newest, 1)]
        assert shown[done + 1 :] == list(range(done + 1, count))


@given(COUNTS, RATES, st.lists(PERIODS, min_size=1, max_size=10))
def test_whatever_frames_cost(count, fps, costs):
    shown, taken = run(count, fps, costs)
    assert len(shown) == count
    assert shown == sorted(shown)
    assert all(mask <= frame for frame, mask in enumerate(shown))
    assert taken == sorted(set(taken))
    assert set(shown) <= set(taken)
    # the mask that counts was begun at most a period after it arrived, and two frames of the longest cost ago
    assert all(frame - mask <= 2 * max(costs) + 1 + 1e-6 for frame, mask in enumerate(shown))


@given(COUNTS, RATES, st.lists(PERIODS, min_size=1, max_size=10), PERIODS)
def test_only_the_past_matters(count, fps, costs, other):
    """A cost that changes later changes nothing before."""
    early, _ = run(count, fps, costs)
    late, _ = run(count, fps, [*costs, other])
    begun = sum(costs[:-1])
    same = min(count, math.ceil(begun))
    assert early[:same] == late[:same]


@pytest.mark.parametrize("cost", [-1e-9, math.nan, math.inf])
def test_impossible_costs_are_refused(cost):
    with pytest.raises(InputError, match="finite number, not negative"):
        list(newest_finished(3, 30.0, lambda frame: cost))


@pytest.mark.parametrize("fps", [0.0, -30.0, math.nan, math.inf])
def test_impossible_rates_are_refused(fps):
    with pytest.raises(InputError, match="frame rate"):
        list(newest_finished(3, fps, lambda frame: 0.0))
