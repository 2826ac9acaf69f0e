"""Run-length encodings: the same text as pycocotools, and back."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamvos.masks.rle import Rle, decode_rle, encode_rles
from streamvos.types import InputError


def encode_rle(mask: np.ndarray) -> Rle:
    return encode_rles(mask, [1])[1]


def ring() -> np.ndarray:
    rows, columns = np.mgrid[:48, :64]
    disk = (rows - 20) ** 2 + (columns - 30) ** 2 < 15**2
    return disk & ~((rows - 22) ** 2 + (columns - 33) ** 2 < 36)


# The texts are what pycocotools 2.0's mask.encode gives for these masks.
@pytest.mark.parametrize(
    ("mask", "counts"),
    [
        (np.zeros((48, 64), bool), "PP3"),
        (np.ones((48, 64), bool), "0PP3"),
        (
            ring(),
            "_h0;S14M2M4M2O0O2N2O0O2O0000@DL<3FL:3HL84HL84HL84HL84HL84HL93GL:5DL=4ALa0`0101N3L3N3LSl0",
        ),
    ],
)
def test_the_text_is_that_of_pycocotools(mask, counts):
    assert encode_rle(mask) == {"size": [48, 64], "counts": counts}


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    height=st.integers(1, 70),
    width=st.integers(1, 70),
    share=st.sampled_from([0.0, 0.02, 0.5, 0.97, 1.0]),
    block=st.integers(1, 9),
)
def test_decoding_gives_the_mask_back(seed, height, width, share, block):
    small = np.random.default_rng(seed).random((height, width)) < share
    mask = np.kron(small, np.ones((block, 1), bool))[:height]
    decoded = decode_rle(encode_rle(mask))
    assert decoded.dtype == np.uint8
    np.testing.assert_array_equal(decoded, mask)


def test_objects_of_one_map_are_encoded_as_if_each_were_alone():
    labels = np.random.default_rng(1).choice([0, 1, 2, 200], (37, 23)).astype(np.uint8)
    encoded = encode_rles(labels, [1, 2, 200, 9])
    assert list(encoded) == [1, 2, 200, 9]
    for key, rle in encoded.items():
        assert rle == encode_rle(labels == key)
        np.testing.assert_array_equal(decode_rle(rle), labels == key)


def test_large_counts():
    mask = np.zeros((1500, 2000), np.uint8)
    mask[:, 1000] = 1
    mask[17, 1999] = 1
    np.testing.assert_array_equal(decode_rle(encode_rle(mask)), mask)


@pytest.mark.parametrize("shape", [(4,), (2, 2, 1), (0, 3)])
def test_other_shapes_are_refused(shape):
    with pytest.raises(InputError, match=r"\(H, W\), got"):
        encode_rle(np.zeros(shape, np.uint8))


@pytest.mark.parametrize(
    "rle",
    [
        {},
        {"size": [2, 2]},
        {"size": [2], "counts": "4"},
        {"size": [2, 2], "counts": [4]},
        {"size": [2, 2], "counts": "5"},
        {"size": [2, 2], "counts": "\x7f"},
        {"size": [2, 2], "counts": "P"},
        {"size": [2, 2], "counts": "oooooooooooooooo1"},
        {"size": [2, 2], "counts": "9K"},
        {"size": [2, 2], "counts": "oooooooooooo?"},  # more than 64 bits
        {"size": [2, 2], "counts": "PPPPPPPPPPPP4PPPPPPPPPPPP4PPPPPPPPPPPP44"},  # adds up to 2^64 + 4
    ],
)
def test_broken_encodings_are_refused(rle):
    with pytest.raises(InputError, match="RLE"):
        decode_rle(rle)
