"""What an engine may be given: exactly what it was compiled for."""

from __future__ import annotations

import pytest
import torch

from streamvos.engines.signature import Signature, is_aligned
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


def test_a_signature_survives_json():
    signature = Signature.of(FRAMES, torch.zeros(4, dtype=torch.int64))
    assert Signature.from_json(signature.as_json()) == signature
