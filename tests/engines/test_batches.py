"""Engines of some batches in place of one of another: the cheapest, and the same numbers."""

from __future__ import annotations

from itertools import combinations_with_replacement

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as some

from streamvos.engines.batches import batch_of, cover, of_batch, together
from streamvos.engines.signature import Signature
from streamvos.engines.switch import Engine
from streamvos.methods.parts import Part


@given(
    some.integers(1, 9),
    some.dictionaries(some.integers(1, 8), some.integers(1, 40).map(float), min_size=1, max_size=4),
)
def test_the_cheapest_batches_with_room_enough_are_taken(count, costs):
    batches = cover(count, costs)
    assert list(batches) == sorted(batches, reverse=True)
    assert sum(batches[:-1]) < count <= sum(batches)
    every = (
        sum(costs[batch] for batch in chosen)
        for calls in range(1, count + 1)
        for chosen in combinations_with_replacement(costs, calls)
        if sum(chosen) >= count
    )
    assert sum(costs[batch] for batch in batches) == min(every)


def test_without_engines_there_is_nothing_to_take():
    assert cover(3, {}) == ()


def test_of_equally_cheap_ones_the_fewest_are_taken():
    assert cover(4, {1: 1.0, 2: 2.0, 4: 4.0}) == (4,)


def blur() -> Part:
    """Pictures (B, 3, h, w) and what they share, (1, 3, h, w); each picture for itself."""
    return Part("blur", lambda x, shared: (x + shared, (x * shared).sum(1)), (), batched=(0,))


def engine(part: Part, whole: Signature, batch: int, calls: list[int]) -> Engine:
    def run(*tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        calls.append(batch)
        return part.plain(*tensors)

    return Engine(run, of_batch(part, whole, batch), None)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("side", [4, 5], ids=["aligned", "between two vectors"])
@pytest.mark.parametrize("batches", [(2, 1), (4,), (2, 2), (1, 1, 1)])
def test_together_they_give_what_one_call_gives(layout, side, batches):
    part, generator = blur(), torch.Generator().manual_seed(0)
    pictures = torch.randn((3, 3, side, side), generator=generator).contiguous(memory_format=layout)
    shared = torch.randn((1, 3, side, side), generator=generator).contiguous(memory_format=layout)
    whole, calls = Signature.of(pictures, shared), []
    assert batch_of(part, whole) == 3
    run = together(part, 3, [engine(part, whole, batch, calls) for batch in batches])
    expected = part.plain(pictures, shared)
    got = run(pictures, shared)
    assert calls == list(batches)
    for ours, theirs in zip(got, expected, strict=True):
        assert torch.equal(ours, theirs)
        assert Signature.of(ours) == Signature.of(theirs)


def test_a_signature_of_another_batch_is_that_of_such_tensors():
    part = blur()
    pictures = torch.zeros(3, 3, 4, 6).contiguous(memory_format=torch.channels_last)
    shared = torch.zeros(1, 3, 4, 6)
    for batch in (1, 2, 8):
        other = torch.zeros(batch, 3, 4, 6).contiguous(memory_format=torch.channels_last)
        assert of_batch(part, Signature.of(pictures, shared), batch) == Signature.of(other, shared)
