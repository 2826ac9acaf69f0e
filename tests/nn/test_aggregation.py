"""Where objects compete: properties of each rule, and given masks among predictions."""

from __future__ import annotations

import pytest
import torch

from streamvos.nn.aggregation import (
    all_ids,
    insert_given,
    insert_given_channels,
    merge_logits,
    odds_softmax,
    winners_of_odds,
)
from streamvos.types import Annotation


@pytest.fixture
def objects() -> torch.Tensor:
    return torch.rand(3, 9, 11, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


RULES = {
    "odds_softmax": lambda p: odds_softmax(torch.cat([1 - p.max(0, keepdim=True).values, p])),
    "winners_of_odds": winners_of_odds,
    "merge_logits": lambda p: merge_logits(p.logit()),
}


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
def test_the_order_of_objects_does_not_matter(rule, objects):
    order = torch.tensor([2, 0, 1])
    assert torch.allclose(rule(objects[order])[1:], rule(objects)[1:][order])


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
def test_certainty_survives(rule):
    certain = torch.zeros(2, 3, 3)
    certain[0, 0], certain[1, 1] = 1, 1
    winners = rule(certain.clamp(1e-6, 1 - 1e-6)).argmax(0)
    assert winners.tolist() == [[1, 1, 1], [2, 2, 2], [0, 0, 0]]


def test_odds_softmax_is_odds_over_their_sum(objects):
    p = torch.cat([1 - objects.max(0, keepdim=True).values, objects])
    odds = p / (1 - p)
    assert torch.allclose(odds_softmax(p), odds / odds.sum(0))


def test_frtm_keeps_only_the_winner_of_a_softmax_over_odds(objects):
    objects = objects.clamp(0.02, 0.98)  # where exp(odds) does not overflow
    kept = winners_of_odds(objects)
    p = torch.cat([(1 - objects).min(0, keepdim=True).values, objects])
    shares = (p / (1 - p)).exp() / (p / (1 - p)).exp().sum(0)
    assert ((kept > 0).sum(0) == 1).all()
    assert torch.allclose(kept.max(0).values, shares.max(0).values)


def test_joint_with_one_object_is_a_steeper_sigmoid():
    logits = torch.linspace(-6, 6, 13, dtype=torch.float64).view(1, 1, 13)
    assert torch.allclose(merge_logits(logits)[1], (2 * logits[0]).sigmoid(), atol=1e-6)


def test_given_masks_enter_among_predictions(objects):
    label_map = torch.zeros(9, 11, dtype=torch.int64)
    label_map[:2], label_map[2:4], label_map[8] = 9, 4, 255
    annotation = Annotation(label_map, (4, 9))
    ids = (2, 4, 7)  # 4 is corrected, 9 is new
    assert all_ids(ids, annotation) == (2, 4, 7, 9)
    channels = insert_given_channels(objects, ids, annotation)
    assert torch.equal(channels[3] == 1, label_map == 9)
    assert torch.equal(channels[1] == 1, label_map == 4)
    assert (channels[[0, 2]][:, :4] == 0).all()
    assert torch.equal(channels[[0, 2]][:, 4:], objects[[0, 2]][:, 4:])
    assert torch.equal(channels[1, 8], objects[1, 8])  # void: the prediction stands
    assert (channels[1, 4:8] == 0).all()


def test_given_masks_leave_a_distribution(objects):
    probabilities = RULES["odds_softmax"](objects)
    label_map = torch.zeros(9, 11, dtype=torch.int64)
    label_map[:2], label_map[2:4] = 9, 4
    together = insert_given(probabilities, (2, 4, 7), Annotation(label_map, (4, 9)))
    assert torch.allclose(together.sum(0), torch.ones(9, 11, dtype=torch.float64))
    assert (together.argmax(0)[:2] == 4).all()
    assert (together.argmax(0)[2:4] == 2).all()
    assert torch.equal(together[[1, 3]][:, 4:], probabilities[[1, 3]][:, 4:])
