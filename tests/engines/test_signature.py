"""What an engine may be given: exactly what it was compiled for."""

from __future__ import annotations

import pytest
import torch

from streamvos.engines.signature import Signature, is_aligned
from streamvos.methods.parts import Part
from streamvos.types import InputError

FRAMES = torch.rand(2, 3, 8, 12).contiguous(memory_format=torch.channels_last)

WRONG = {
    "another batch": FRAMES[:1],
    "another size": FRAMES[..., :8],
    "another dtype": FRAMES.double(),
    "half precision": FRAMES.half(),
    "another memory format": FRAMES.contiguous(),
    "every second column": torch.rand(2, 3, 8, 24).contiguous(memory_format=torch.channels_last)[..., ::2],
    "one dimension less": FRAMES[0],
}


@pytest.mark.parametrize("what", WRONG)
def test_whatever_is_not_the_same_is_refused(what):
    signature = Signature.of(FRAMES)
    signature.check((FRAMES.clone(memory_format=torch.preserve_format),))
    with pytest.raises(InputError, match="input 0"):
        signature.check((WRONG[what],))


def test_the_number_of_tensors_counts():
    with pytest.raises(InputError, match="takes 1 tensors, got 2"):
        Signature.of(FRAMES).check((FRAMES, FRAMES))


def test_memory_that_begins_between_two_vectors_is_refused():
    numbers = torch.zeros(65)
    signature = Signature.of(numbers[:64])
    shifted = next(numbers[k : k + 64] for k in (0, 1) if not is_aligned(numbers[k : k + 64]))
    with pytest.raises(InputError, match="16 bytes"):
        signature.check((shifted,))


def test_strides_along_sides_of_one_do_not_count():
    one = torch.rand(1, 3, 8, 12).contiguous(memory_format=torch.channels_last)
    odd = one.as_strided(one.shape, (12345, *one.stride()[1:]))
    assert Signature.of(one) == Signature.of(odd)


def test_a_signature_of_any_batch_takes_those_and_nothing_else():
    part = Part("double", lambda x, y: (2 * x,), (), batched=(0,))
    shared = torch.zeros(4)
    signature = Signature.of(FRAMES, shared).of_any_batch(part, 2)
    assert signature == Signature.of(FRAMES[:1], shared).of_any_batch(part, 2)
    signature.check((FRAMES, shared))
    signature.check((FRAMES[:1], shared))
    many = FRAMES.repeat(2, 1, 1, 1)
    for wrong in (many, many[::2], FRAMES[:0], *(WRONG[what] for what in WRONG if what != "another batch")):
        with pytest.raises(InputError, match="input 0"):
            signature.check((wrong, shared))
    with pytest.raises(InputError, match="input 1"):
        signature.check((FRAMES, torch.zeros(3)))


def test_tensors_of_different_batches_are_refused():
    signature = Signature.of(FRAMES, FRAMES).of_any_batch(Part("sum", lambda x, y: (x + y,), ()), 4)
    with pytest.raises(InputError, match=r"different batches: \[1, 2\]"):
        signature.check((FRAMES, FRAMES[:1]))
