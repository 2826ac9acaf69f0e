"""The semi-supervised protocol on small sequences."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest

from streamvos.metrics.evaluation import SequenceScorer, evaluate_sequence
from streamvos.metrics.measures import boundary_accuracy, region_similarity
from streamvos.types import InputError

EXACT = 1e-6


def frame(*squares: tuple[int, int, int, int], size: tuple[int, int] = (20, 30)) -> np.ndarray:
    """A label map with squares, each (object id, top, left, side)."""
    labels = np.zeros(size, np.uint8)
    for object_id, top, left, side in squares:
        labels[top : top + side, left : left + side] = object_id
    return labels


EMPTY = frame()
STILL = frame((1, 5, 5, 6))


class TestProtocol:
    def test_first_and_last_frame_are_left_out(self):
        # Only the two frames between count: one perfect, one empty.
        score = evaluate_sequence([STILL] * 4, [EMPTY, STILL, EMPTY, EMPTY])
        assert score.objects[0].regions.tolist() == [1.0, 0.0]
        assert score.objects[0].boundaries.tolist() == [1.0, 0.0]
        assert score.percent()["J&F"] == pytest.approx(50, abs=EXACT)

    def test_values_by_hand(self):
        # 6x6 squares one column apart: 30 shared of 42. The outlines are the rims of 7x7 boxes, one
        # column apart; the radius is ceil(0.008 * 36.06) = 1, so all of both meets.
        score = evaluate_sequence([STILL] * 3, [np.roll(STILL, 1, axis=1)] * 3, name="by hand")
        percent = score.percent()
        assert percent["J"] == pytest.approx(100 * 30 / 42, abs=EXACT)
        assert percent["F"] == pytest.approx(100, abs=EXACT)
        assert percent["J&F"] == pytest.approx((100 * 30 / 42 + 100) / 2, abs=EXACT)
        assert percent["J_recall"] == 100
        assert percent["J_decay"] == 0
        assert score.name == "by hand"

    def test_per_object_per_frame_values_are_those_of_the_measures(self):
        generator = np.random.default_rng(0)
        truths = [
            generator.integers(0, 3, (12, 18)).astype(np.uint8).repeat(2, 0).repeat(2, 1) for _ in range(6)
        ]
        predictions = [np.roll(truth, k, axis=1) for k, truth in enumerate(truths)]
        score = evaluate_sequence(truths, predictions)
        assert [one.id for one in score.objects] == [1, 2]
        for one in score.objects:
            for k in range(4):
                truth, prediction = truths[k + 1] == one.id, predictions[k + 1] == one.id
                assert one.regions[k] == region_similarity(truth, prediction)
                assert one.boundaries[k] == boundary_accuracy(truth, prediction)

    def test_objects_are_those_of_the_first_frame_whatever_gaps_their_ids_have(self):
        truth = frame((3, 1, 1, 5), (200, 10, 10, 5))
        later = frame((3, 1, 1, 5), (200, 10, 10, 5), (7, 1, 20, 5))  # 7 was never given: background
        score = evaluate_sequence([truth, later, later, later], [truth] * 4)
        assert [one.id for one in score.objects] == [3, 200]
        assert score.percent()["J"] == 100

    def test_object_ids_choose_what_is_scored(self):
        truth = frame((1, 1, 1, 5), (2, 10, 10, 5))
        score = evaluate_sequence([truth] * 3, [truth] * 3, [2, 1, 9])
        assert [one.id for one in score.objects] == [1, 2, 9]
        assert score.percent()["J"] == 100  # 9 is in neither

    def test_an_object_that_is_gone_and_said_to_be_gone_is_right(self):
        score = evaluate_sequence([STILL, EMPTY, EMPTY, STILL], [STILL, EMPTY, STILL, STILL])
        assert score.objects[0].regions.tolist() == [1.0, 0.0]
        assert score.objects[0].boundaries.tolist() == [1.0, 0.0]

    def test_void_is_neither_object_nor_judged(self):
        truth = STILL.copy()
        truth[5:11, 11:30] = 255
        prediction = STILL.copy()
        prediction[5:11, 11:30] = 1  # spills into void, and nowhere else
        score = evaluate_sequence([truth] * 3, [prediction] * 3)
        assert [one.id for one in score.objects] == [1]
        assert score.percent()["J"] == score.percent()["F"] == 100

    def test_generators_are_read_two_frames_at_a_time(self):
        size = (400, 500)

        def stream(shift: int):
            for k in range(300):
                yield np.roll(frame((1, 100, 100, 50), size=size), k + shift, axis=1)

        tracemalloc.start()
        score = evaluate_sequence(stream(0), stream(1))
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert len(score.objects[0].regions) == 298
        assert peak < 20 * 400 * 500  # the 600 frames would be 600 times this size, not 20


class TestBadInput:
    @pytest.mark.parametrize("count", [0, 1, 2])
    def test_too_short(self, count):
        with pytest.raises(InputError, match=f"{count} frame"):
            evaluate_sequence([STILL] * count, [STILL] * count, name="goat")

    def test_different_lengths(self):
        with pytest.raises(InputError, match="predictions end after 3"):
            evaluate_sequence([STILL] * 4, [STILL] * 3)
        with pytest.raises(InputError, match="truth end after 3"):
            evaluate_sequence([STILL] * 3, [STILL] * 4)

    def test_sizes(self):
        small = frame((1, 5, 5, 6), size=(20, 29))
        scorer = SequenceScorer("goat")
        scorer.add(STILL, STILL, frame="a")
        words = r"goat, frame b: the prediction must be .*\(20, 30\), got \(20, 29\)"
        with pytest.raises(InputError, match=words):
            scorer.add(STILL, small, frame="b")
        with pytest.raises(InputError, match=r"frame 2: the truth must be .*\(20, 30\), got \(20, 29\)"):
            evaluate_sequence([STILL, STILL, small, STILL], [STILL, STILL, small, STILL])

    def test_a_predicted_object_that_does_not_exist(self):
        mixed_up = frame((1, 5, 5, 6), (4, 1, 1, 2))
        with pytest.raises(InputError, match="label 4; the objects are 1 "):
            evaluate_sequence([STILL] * 4, [STILL, STILL, mixed_up, STILL])

    def test_no_object(self):
        with pytest.raises(InputError, match="no object"):
            evaluate_sequence([EMPTY] * 4, [EMPTY] * 4)

    @pytest.mark.parametrize("ids", [[], [0], [255], [1, 1]])
    def test_object_ids(self, ids):
        with pytest.raises(InputError, match="object ids"):
            evaluate_sequence([STILL] * 4, [STILL] * 4, ids)

    def test_a_probability_map(self):
        with pytest.raises(InputError, match=r"frame 1: the prediction must be .*float32"):
            evaluate_sequence([STILL] * 4, [STILL, np.full((20, 30), 0.5, np.float32), STILL, STILL])

    def test_an_error_of_the_source_comes_through_as_it_is(self):
        def breaks():
            yield STILL
            raise InputError("cannot read 00001.png")

        with pytest.raises(InputError, match="cannot read 00001"):
            evaluate_sequence([STILL] * 4, breaks())
