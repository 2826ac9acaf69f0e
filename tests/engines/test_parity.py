"""The gate's arithmetic: what counts as equal, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from streamvos.engines.parity import feature_error, judge, mask_overlap


def test_equal_tensors_have_no_error_and_a_scaled_one_has_its_scale():
    x = torch.randn(1, 4, 6, 6)
    assert feature_error([x, x], [x, x.clone()]) == 0
    assert feature_error([x, x], [x, x * 1.25]) == pytest.approx(0.25)


@pytest.mark.parametrize(
    "other",
    [
        torch.randn(1, 4, 6, 5),
        torch.randn(1, 4, 6, 6).double(),
        torch.randn(1, 4, 6, 6).contiguous(memory_format=torch.channels_last),
        torch.full((1, 4, 6, 6), float("nan")),
    ],
)
def test_another_shape_dtype_or_layout_and_nan_are_no_answer(other):
    assert feature_error([torch.randn(1, 4, 6, 6)], [other]) == float("inf")


def test_a_missing_output_is_no_answer():
    x = torch.randn(3)
    assert feature_error([x, x], [x]) == float("inf")


def test_overlap_is_that_of_every_object_in_every_frame():
    ours = [np.zeros((4, 4), np.uint8), np.zeros((4, 4), np.uint8)]
    theirs = [frame.copy() for frame in ours]
    assert mask_overlap(ours, theirs) == (1.0, 1.0)
    ours[0][:, :2], theirs[0][:, :1] = 1, 1  # half of it
    ours[1][0], theirs[1][0] = 7, 7
    assert mask_overlap(ours, theirs) == (0.75, 0.5)


def test_an_object_that_one_of_them_lost_counts_as_nothing():
    ours, theirs = np.zeros((4, 4), np.uint8), np.zeros((4, 4), np.uint8)
    ours[0] = 3
    assert mask_overlap([ours], [theirs]) == (0.0, 0.0)


def test_the_verdict_names_what_failed_with_numbers():
    assert judge(1e-5, (0.999, 0.9), 50, "clip").passed
    features = judge(0.3, (1.0, 1.0), 50, "clip")
    assert not features.passed
    assert "0.3" in features.reason
    masks = judge(1e-5, (0.5, 0.1), 50, "clip")
    assert not masks.passed
    assert "0.5000" in masks.reason
    assert not judge(float("nan"), (1.0, 1.0), 50, "clip").passed


def test_bfloat16_may_round_and_float32_may_not():
    assert judge(1e-2, (1.0, 1.0), 50, "clip", "bfloat16").passed
    assert not judge(1e-2, (1.0, 1.0), 50, "clip", "float32").passed
