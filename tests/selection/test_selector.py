"""Clicks, boxes and earlier masks become masks; what points at nothing is refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from streamvos.selection.prompts import Window, prompt_maps, window_around
from streamvos.selection.selector import Selector
from streamvos.types import InputError


@pytest.fixture(scope="module")
def untrained():
    torch.manual_seed(0)
    return Selector(None, "cpu")


@pytest.fixture
def frame(rng):
    return rng.integers(0, 255, (120, 200, 3), dtype=np.uint8)


def test_a_window_lies_within_the_frame_and_around_its_box(rng):
    for _ in range(200):
        size = int(rng.integers(40, 500)), int(rng.integers(40, 500))
        left, top = rng.uniform(0, size[1] - 10), rng.uniform(0, size[0] - 10)
        box = (left, top, rng.uniform(left + 1, size[1]), rng.uniform(top + 1, size[0]))
        window = window_around(box, size, 1.5)
        assert 0 <= window.left <= box[0]
        assert 0 <= window.top <= box[1]
        assert box[2] <= window.right <= size[1]
        assert box[3] <= window.bottom <= size[0]
        height, width = window.size
        assert height >= min(width - 1, size[0])
        assert width >= min(height - 1, size[1])


def test_prompts_lie_where_they_point():
    window = Window(100, 50, 260, 130)  # shown at twice its size
    maps = prompt_maps(window, (160, 320), [(140, 90, 1), (220, 70, -1)], box=(120, 60, 200, 110))
    assert maps.shape == (5, 40, 80)
    for channel, (x, y) in ((0, (20, 20)), (1, (60, 10))):
        row, column = np.unravel_index(maps[channel].argmax(), maps[channel].shape)
        assert (column, row) in ((x, y), (x - 1, y), (x, y - 1), (x - 1, y - 1))
    assert maps[2].sum() == pytest.approx(40 * 25, rel=1e-5)  # cells of the box
    assert not maps[3:].any()
    mask = np.zeros((200, 300), bool)
    mask[60:110, 120:200] = True
    np.testing.assert_allclose(prompt_maps(window, (160, 320), mask=mask)[3], maps[2], atol=1e-6)


def test_a_mask_has_the_frames_size_and_repeats_itself(untrained, frame):
    first, score = untrained.select(frame, [(100, 60, 1)])
    assert first.dtype == np.bool_
    assert first.shape == (120, 200)
    assert 0 <= score <= 1
    other, _ = untrained.select(frame[:, ::-1].copy(), [(20, 60, 1)])
    again, same = untrained.select(frame, [(100, 60, 1)])
    np.testing.assert_array_equal(again, first)
    assert same == score
    assert other.shape == first.shape


@pytest.mark.parametrize(
    ("given", "part"),
    [
        ({}, "nothing points"),
        ({"points": [(10, 10, -1)]}, "nothing points"),
        ({"points": [(200, 10, 1)]}, "200 x 120"),
        ({"points": [(10, 10, 2)]}, "1 or -1"),
        ({"points": [(float("nan"), 10, 1)]}, "outside of the frame"),
        ({"box": (50, 10, 20, 40)}, "LEFT,TOP,RIGHT,BOTTOM"),
        ({"box": (300, 10, 320, 40)}, "200 x 120"),
        ({"mask": np.ones((3, 3), bool)}, r"\(3, 3\)"),
        ({"mask": np.zeros((120, 200), bool)}, "nothing points"),
    ],
)
def test_what_points_at_nothing_is_refused(untrained, frame, given, part):
    with pytest.raises(InputError, match=part):
        untrained.select(frame, **given)


@pytest.mark.parametrize("shape", [(120, 200), (120, 200, 4)])
def test_other_frames_are_refused(untrained, shape):
    with pytest.raises(InputError, match=r"\(H, W, 3\) uint8"):
        untrained.select(np.zeros(shape, np.uint8), [(3, 3, 1)])


@pytest.mark.parametrize("given", [{"box": (100, 20, 150, 60)}, {"points": [(120, 40, 1)]}])
def test_a_mask_is_never_empty(untrained, given):
    with torch.no_grad():
        untrained._network.logit.bias.fill_(-20)
    mask, _ = untrained.select(np.full((120, 200, 3), 90, np.uint8), **given)
    with torch.no_grad():
        untrained._network.logit.bias.zero_()
    assert mask.any()
    assert mask[40, 120]


@pytest.mark.parametrize("size", [(1, 1), (2, 300), (33, 31), (64, 2000)])
def test_frames_of_any_size_are_taken(untrained, size):
    mask, _ = untrained.select(np.zeros((*size, 3), np.uint8), [(0, 0, 1)])
    assert mask.shape == size
