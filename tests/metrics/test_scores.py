"""Mean, recall and decay of series, and how objects and sequences are averaged."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from streamvos.metrics.scores import MEASURES, ObjectScore, SequenceScore, statistics, summarize
from streamvos.types import InputError

EXACT = 1e-6


def constant(object_id: int, region: float, boundary: float, frames: int = 8) -> ObjectScore:
    return ObjectScore(object_id, np.full(frames, region), np.full(frames, boundary))


class TestStatistics:
    def test_five_frames(self):
        # Bins end at frames 0 1 2 3 4, so the first is frames 0..1, the last 3..4: 0.9 - 0.3.
        # Above one half are 1.0 and 0.8; 0.5 itself is not.
        found = statistics(np.array([1.0, 0.8, 0.5, 0.4, 0.2]))
        assert found.mean == pytest.approx(2.9 / 5, abs=EXACT)
        assert found.recall == pytest.approx(2 / 5, abs=EXACT)
        assert found.decay == pytest.approx(0.6, abs=EXACT)

    def test_eight_frames(self):
        # From 1 to 8 in four steps: 1, 2.75, 4.5, 6.25, 8; rounded, halves up: 1 3 5 6 8. The first bin
        # is frames 1..3, the last 6..8: (6 + 5 + 4) / 3 - (2 + 1 + 0) / 3 tenths.
        found = statistics([0.6, 0.5, 0.4, 0.4, 0.3, 0.2, 0.1, 0.0])
        assert found.decay == pytest.approx(0.4, abs=EXACT)
        assert found.recall == pytest.approx(1 / 8, abs=EXACT)

    def test_a_linear_fall_decays_by_the_distance_of_the_bins(self):
        for count in (
            41,
            101,
            401,
        ):  # lengths at which the quarters are whole: the bins' middles lie 3/4 apart
            assert statistics(np.linspace(1, 0, count)).decay == pytest.approx(0.75, abs=EXACT)

    def test_bins_are_those_of_the_definition_at_every_length(self):
        # round(linspace(1, N, 5) + 1e-10) - 1, as DAVIS states it, far beyond the 104 frames of DAVIS
        generator = np.random.default_rng(0)
        for count in range(1, 700):
            values = generator.random(count)
            edges = (np.round(np.linspace(1, count, 5) + 1e-10) - 1).astype(int)
            expected = values[edges[0] : edges[1] + 1].mean() - values[edges[3] : edges[4] + 1].mean()
            assert statistics(values).decay == pytest.approx(expected, abs=1e-12)

    def test_getting_better_is_negative_decay(self):
        assert statistics(np.linspace(0, 1, 20)).decay < -0.5

    def test_one_frame(self):
        found = statistics([0.7])
        assert (found.mean, found.recall, found.decay) == (0.7, 1.0, 0.0)

    def test_frames_that_were_not_judged_are_left_out(self):
        values = [0.9, 0.2, 0.8, 0.6, 0.1, 0.3]
        with_gaps = [math.nan, 0.9, 0.2, math.nan, 0.8, 0.6, 0.1, 0.3, math.nan]
        assert statistics(with_gaps) == statistics(values)

    def test_nothing_judged(self):
        found = statistics([math.nan, math.nan])
        assert all(math.isnan(value) for value in (found.mean, found.recall, found.decay))

    def test_a_table_is_refused(self):
        with pytest.raises(InputError, match=r"\(2, 3\)"):
            statistics(np.zeros((2, 3)))


class TestAverages:
    def test_objects_then_sequences_and_objects_alone(self):
        # camel: objects at J 0.2 and 0.6 -> 0.4; goat: one object at 0.9. Over sequences (0.4 + 0.9) / 2,
        # over objects (0.2 + 0.6 + 0.9) / 3.
        scores = summarize(
            [
                SequenceScore("camel", (constant(1, 0.2, 0.4), constant(2, 0.6, 1.0))),
                SequenceScore("goat", (constant(1, 0.9, 0.8),)),
            ]
        )
        assert scores.sequences["camel"].percent()["J"] == pytest.approx(40, abs=EXACT)
        assert scores.sequences["camel"].percent()["J_recall"] == pytest.approx(50, abs=EXACT)
        assert scores.mean["J"] == pytest.approx(65, abs=EXACT)
        assert scores.mean["F"] == pytest.approx(75, abs=EXACT)
        assert scores.mean["J&F"] == pytest.approx(70, abs=EXACT)
        assert scores.mean["J_recall"] == pytest.approx(75, abs=EXACT)
        assert scores.mean_objects["J"] == pytest.approx(170 / 3, abs=EXACT)
        assert scores.mean_objects["J_recall"] == pytest.approx(200 / 3, abs=EXACT)

    def test_decay_is_taken_per_object_before_averaging(self):
        falling = ObjectScore(1, np.linspace(1, 0, 41), np.ones(41))
        rising = ObjectScore(2, np.linspace(0, 1, 41), np.ones(41))
        steady = constant(3, 0.5, 1.0, 41)
        score = SequenceScore("all", (falling, rising, steady, falling))
        # (0.75 - 0.75 + 0 + 0.75) / 4
        assert score.percent()["J_decay"] == pytest.approx(18.75, abs=EXACT)
        assert score.percent()["F_decay"] == pytest.approx(0, abs=EXACT)

    def test_with_one_object_each_both_means_are_the_same(self):
        generator = np.random.default_rng(1)
        scores = summarize(
            SequenceScore(name, (ObjectScore(1, generator.random(30), generator.random(30)),))
            for name in ("a", "b", "c")
        )
        assert scores.mean == pytest.approx(scores.mean_objects, abs=1e-9)

    def test_the_json_has_exactly_the_agreed_keys_and_survives_a_round_trip(self):
        scores = summarize([SequenceScore("goat", (constant(1, 0.9, 0.8),))])
        written = scores.to_json()
        measures = {"J", "F", "J&F", "J_recall", "J_decay", "F_recall", "F_decay"}
        assert set(written) == {"sequences", "mean"}
        assert set(written["sequences"]) == {"goat"}
        assert set(written["sequences"]["goat"]) == set(written["mean"]) == measures == set(MEASURES)
        assert json.loads(json.dumps(written)) == written
        assert written["mean"]["J"] == pytest.approx(90, abs=EXACT)  # percent

    def test_two_sequences_of_one_name(self):
        one = SequenceScore("goat", (constant(1, 0.9, 0.8),))
        with pytest.raises(InputError, match="goat"):
            summarize([one, one])

    def test_no_sequence(self):
        with pytest.raises(InputError, match="no sequence"):
            summarize([])
