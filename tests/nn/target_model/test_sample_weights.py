"""The weights of remembered samples: who gives way, and how much the recent ones count."""

from __future__ import annotations

import pytest
import torch

from streamvos import InputError
from streamvos.nn.target_model.sample_weights import SampleWeights

FRTM = torch.tensor([2.0, 1, 1, 1, 1], dtype=torch.float64) / 6


def test_the_weights_sum_to_one_and_grow_towards_the_newest():
    weights = SampleWeights(20, 0.1, FRTM)
    newest = []
    for _ in range(15):
        newest.append(weights.insert())
        assert float(weights.values.sum()) == pytest.approx(1)
    assert newest == list(range(5, 20))
    ratios = weights.values[6:] / weights.values[5:-1]
    assert torch.allclose(ratios, torch.full_like(ratios, 1 / 0.9))
    assert torch.allclose(weights.values[:5] / weights.values[0], FRTM / FRTM[0])


def test_a_full_memory_gives_up_the_oldest_first_and_in_the_end_the_first_frame():
    """As the authors' code does: six online samples, the four augmented ones, then the original."""
    weights = SampleWeights(80, 0.1, FRTM.float())
    assert [weights.insert() for _ in range(75)] == list(range(5, 80))
    slots = [weights.insert() for _ in range(40)]
    assert slots.index(0) > max(slots.index(k) for k in (1, 2, 3, 4))
    assert slots[:6] == list(range(5, 11))


def test_a_kept_first_sample_stays_and_keeps_its_least_weight():
    weights = SampleWeights(20, 0.1, torch.ones(1), first_kept=True, floor=0.25)
    for k in range(200):
        slot = weights.insert()
        assert slot != 0
        assert float(weights.values[0]) >= 0.25
        assert slot == 1 + k % 19  # the oldest gives way
    # the authors divide by the floor and the others' sum, and set the first afterwards
    assert 1 <= float(weights.values.sum()) < 1.3


def test_it_continues_where_its_state_was_saved():
    a = SampleWeights(6, 0.1, torch.ones(1), first_kept=True, floor=0.25)
    for _ in range(4):
        a.insert()
    b = SampleWeights(6, 0.1, torch.ones(1), first_kept=True, floor=0.25)
    b.load_state_dict(a.state_dict())
    for _ in range(9):
        assert a.insert() == b.insert()
        assert torch.equal(a.values, b.values)


def test_what_does_not_fit_is_refused():
    with pytest.raises(InputError, match="5 first samples do not fit a memory of 4"):
        SampleWeights(4, 0.1, FRTM)
    with pytest.raises(InputError, match="no state of sample weights with 6 slots"):
        SampleWeights(6, 0.1, FRTM).load_state_dict(SampleWeights(7, 0.1, FRTM).state_dict())


def test_no_filled_slot_is_taken_for_an_empty_one():
    weights = SampleWeights(254, 0.5, torch.ones(1), first_kept=True, floor=0.25)
    assert [weights.insert() for _ in range(253)] == list(range(1, 254))  # 0.5 ** 253 is not in float32
    assert len(weights) == 254


def test_a_copy_is_changed_alone():
    weights = SampleWeights(5, 0.1, torch.ones(1))
    weights.insert()
    other, before = weights.copy(), weights.values.clone()
    assert other.insert() == 2
    assert torch.equal(weights.values, before)
    assert weights.insert() == 2
    assert torch.equal(weights.values, other.values)
