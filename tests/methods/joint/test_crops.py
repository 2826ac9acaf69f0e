from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from joint_weights import golden

from streamvos.methods.joint.crops import (
    OUTSIDE,
    TargetState,
    begin,
    cut_image,
    cut_masks,
    first_windows,
    follow,
    paste,
    search_centers,
    search_windows,
)
from streamvos.types import InputError

OUTPUT = (480, 832)


def objects() -> torch.Tensor:
    """(2, H, W): the two masks that the tracker was started with."""
    label_map = torch.from_numpy(golden("tracker")["label0"].astype(np.int64))
    return torch.stack([label_map == 1, label_map == 2]).float()


def a_state(rows: float, columns: float, scale: float, base=(100.0, 100.0)) -> TargetState:
    return TargetState(torch.tensor([[rows, columns]]), torch.tensor([scale]), torch.tensor([base]))


def test_the_first_state_is_that_of_the_box():
    boxes = torch.from_numpy(golden("tracker")["boxes"]).float()  # x, y, w, h
    state = begin(objects(), 25.0, OUTPUT)
    corner = torch.stack([boxes[:, 1] + (boxes[:, 3] - 1) / 2, boxes[:, 0] + (boxes[:, 2] - 1) / 2], 1)
    assert torch.equal(state.center, corner)
    assert (state.size - boxes[:, [3, 2]]).abs().max() < 1e-4  # base * scale in float32


def test_the_first_crop_is_moved_towards_the_frame_as_in_the_authors_code():
    windows = first_windows(begin(objects(), 25.0, OUTPUT), (480, 854), OUTPUT)
    moved = torch.tensor([240, 416]) - windows.start
    assert moved.tolist() == [[-17, -106], [156, -288]]  # from the authors' code


def test_the_second_state_is_the_authors_to_the_last_bit():
    expected = golden("tracker")
    state = follow(begin(objects(), 25.0, OUTPUT), objects())
    for own, name in ((state.center, "pos"), (state.size, "sz"), (state.scale, "scale")):
        assert np.array_equal(own.numpy().astype(np.float64), expected[name][0]), name
    centers = search_centers(state, OUTPUT).numpy().astype(np.float64)
    assert np.array_equal(centers, expected["ppos"][0])
    windows = search_windows(state, (480, 854), OUTPUT)
    assert windows.extent[0].tolist() == [492, 853]  # 854 with a state in float64


def plain_window(center, size, image, output, inside):
    """The authors' `sample_patch`, with one window and host integers."""
    middle = [int(c) for c in center]
    if inside:
        ratios = [np.float32(s) / np.float32(i) for s, i in zip(size, image, strict=True)]
        shrink = max(np.float32(1), min(ratios))
        size = [int(np.float32(s) / shrink) for s in size]
    ratios = [np.float32(s) / np.float32(o) for s, o in zip(size, output, strict=True)]
    step = max(int(float(min(ratios)) - 0.1), 1)
    answer = []
    for c, s, i in zip(middle, size, image, strict=True):
        offset = c % step
        c, limit = (c - offset) // step, len(range(offset, i, step))
        extent = max(int(np.round(np.float32(s) / np.float32(step))), 2)
        corner = c - (extent - 1) // 2
        if inside:
            excess = extent - limit
            if excess >= 2:
                corner = -(excess // 2)
            elif excess == 1:
                corner = 0 if corner < 0 else -1
            else:
                corner = min(max(corner, 0), limit - extent)
        answer.append((step, offset, corner, extent, limit))
    return answer


def plain_cut(image, window, output, mode, border):
    """(1, C, H, W) cut, padded and resized with PyTorch's own operations."""
    (step, top, r0, rn, _), (_, left, c0, cn, _) = window
    thin = image[..., top::step, left::step]
    pad = (max(-c0, 0), max(c0 + cn - thin.shape[3], 0), max(-r0, 0), max(r0 + rn - thin.shape[2], 0))
    wide = F.pad(thin, pad, mode=border)
    cut = wide[..., r0 + pad[2] : r0 + pad[2] + rn, c0 + pad[0] : c0 + pad[0] + cn]
    arguments = {"align_corners": False} if mode == "bilinear" else {}
    return F.interpolate(cut, output, mode=mode, **arguments)


CASES = [
    # center, scale, frame, output: inside, sticking out, wide, tall, thinned out, tiny, odd excess
    ((50.3, 60.9), 0.7, (120, 160), (48, 64)),
    ((2.0, 158.6), 1.3, (120, 160), (48, 64)),
    ((60.0, 80.0), 4.0, (120, 160), (48, 64)),
    ((60.0, 20.0), 3.0, (100, 301), (48, 64)),
    ((150.0, 20.0), 2.5, (301, 60), (48, 64)),
    ((200.4, 310.0), 6.3, (401, 603), (48, 64)),
    ((333.0, 123.0), 9.9, (640, 701), (48, 64)),
    ((5.0, 5.0), 0.01, (40, 50), (48, 64)),
    ((30.0, 31.0), 1.02, (49, 65), (48, 64)),
    ((2.0, 60.0), 1.02, (49, 64), (48, 64)),
]


@pytest.mark.parametrize(("center", "scale", "frame", "output"), CASES)
def test_windows_and_crops_are_those_of_the_plain_formulation(center, scale, frame, output):
    state = a_state(*center, scale)
    image, mask = torch.rand(1, 3, *frame, dtype=torch.float64), torch.rand(1, *frame)
    windows = search_windows(state, frame, output)
    centers = search_centers(state, output)[0].tolist()
    size = [float(np.float32(scale) * np.float32(side)) for side in output]
    expected = plain_window(centers, size, frame, output, inside=True)
    for axis, (step, offset, corner, extent, _) in enumerate(expected):
        own = (windows.step[0, 0], windows.offset[0, axis], windows.corner[0, axis], windows.extent[0, axis])
        assert tuple(int(v) for v in own) == (step, offset, corner, extent)
    crops = cut_image(image, windows)
    assert (crops - plain_cut(image, expected, output, "bilinear", "replicate")).abs().max() < 1e-12
    nearest = plain_cut(mask[None], expected, output, "nearest", "constant")
    assert torch.equal(cut_masks(mask, windows)[None], nearest)
    boxes = windows.boxes()[0].tolist()
    assert boxes == [step * v for v in (*(w[2] for w in expected), *(w[2] + w[3] for w in expected))]


@pytest.mark.parametrize(("center", "scale", "frame", "output"), CASES)
def test_first_crops_are_a_part_of_the_double_one(center, scale, frame, output):
    state = a_state(*center, scale)
    image, mask = torch.rand(1, 3, *frame, dtype=torch.float64), torch.rand(1, *frame)
    windows = first_windows(state, frame, output)
    double = (2 * output[0], 2 * output[1])
    wanted = state.scale[:, None] * torch.tensor(output, dtype=torch.float32)
    wanted = wanted / (wanted / torch.tensor(frame)).min().clamp_min(1)
    factor = (wanted / torch.tensor(output)).prod().sqrt()
    size = (factor * torch.tensor(double, dtype=torch.float32)).tolist()
    expected = plain_window(state.center[0].round().tolist(), size, frame, double, inside=False)
    r, c = windows.start[0].tolist()
    whole = plain_cut(image, expected, double, "bilinear", "replicate")
    part = whole[..., r : r + output[0], c : c + output[1]]
    assert part.shape[-2:] == output  # the shift never leaves the double patch
    assert (cut_image(image, windows) - part).abs().max() < 1e-12
    nearest = plain_cut(mask[None], expected, double, "nearest", "constant")
    assert torch.equal(cut_masks(mask, windows)[None], nearest[..., r : r + output[0], c : c + output[1]])


def test_windows_of_many_objects_are_those_of_each():
    states = [a_state(*center, scale) for center, scale, _, _ in CASES]
    image, masks = torch.rand(1, 3, 120, 160), torch.rand(len(states), 120, 160)
    for make in (search_windows, first_windows):
        together = make(TargetState.join(states), (120, 160), (48, 64))
        for k, state in enumerate(states):
            alone = make(state, (120, 160), (48, 64))
            assert torch.equal(together.boxes()[k : k + 1], alone.boxes())
            assert torch.equal(cut_image(image, together)[k : k + 1], cut_image(image, alone))
            assert torch.equal(cut_masks(masks, together)[k : k + 1], cut_masks(masks[k : k + 1], alone))


@pytest.mark.parametrize(("center", "scale", "frame", "output"), CASES)
def test_pasting_resizes_by_one_factor_and_drops_what_is_outside(center, scale, frame, output):
    scores = torch.randn(1, *output, dtype=torch.float64)
    boxes = search_windows(a_state(*center, scale), frame, output).boxes()
    top, left, bottom, right = boxes[0].tolist()
    sides = torch.tensor([bottom - top, right - left], dtype=torch.float32)
    factor = (sides / torch.tensor(output, dtype=torch.float32)).prod().sqrt().item()
    resized = F.interpolate(
        scores[None],
        scale_factor=factor,
        mode="bilinear",
        align_corners=False,
        recompute_scale_factor=False,
    )[0, 0]
    expected = torch.full(frame, OUTSIDE, dtype=torch.float64)
    r = int(0.5 * (top + bottom - 1) - 0.5 * resized.shape[0])
    c = int(0.5 * (left + right - 1) - 0.5 * resized.shape[1])
    for y in range(max(r, 0), min(r + resized.shape[0], frame[0])):
        first, last = max(c, 0), min(c + resized.shape[1], frame[1])
        expected[y, first:last] = resized[y - r, first - c : last - c]
    assert (paste(scores, boxes, frame)[0] - expected).abs().max() < 1e-12


def test_an_object_that_is_hardly_seen_keeps_its_state():
    state = a_state(20.0, 30.0, 0.5)
    hardly = torch.zeros(1, 60, 80)
    hardly[0, :9, :11] = 1  # 99 pixels
    after = follow(state, hardly)
    assert torch.equal(after.center, state.center)
    assert torch.equal(after.scale, state.scale)
    nothing = follow(state, torch.zeros(1, 60, 80))
    assert torch.isfinite(nothing.center).all()
    assert torch.isfinite(nothing.scale).all()


def test_a_rectangle_is_found_and_its_size_changes_slowly():
    state = a_state(20.0, 30.0, 0.5, base=(40.0, 60.0))
    seen = torch.zeros(1, 60, 80)
    seen[0, 10:31, 20:51] = 1
    after = follow(state, seen)
    assert after.center.tolist() == [[20, 35]]
    # four standard deviations of n equal pixels: 4 * sqrt((n^2 - 1) / 12)
    size = [4 * math.sqrt((n * n - 1) / 12) for n in (21, 31)]
    scale = math.sqrt(size[0] * size[1] / (40 * 60))
    assert abs(float(after.scale) - min(max(scale, 0.95 * 0.5), 1.1 * 0.5)) < 1e-6
    assert float(follow(state, torch.ones(1, 60, 80)).scale) == pytest.approx(0.55)
    assert float(follow(a_state(20.0, 30.0, 9.0), seen).scale) == pytest.approx(0.95 * 9)


def test_a_single_pixel_has_a_window():
    mask = torch.zeros(1, 60, 80)
    mask[0, 59, 0] = 1
    state = begin(mask, 25.0, (48, 64))
    assert torch.isfinite(state.scale).all()
    for windows in (first_windows(state, (60, 80), (48, 64)), search_windows(state, (60, 80), (48, 64))):
        assert torch.isfinite(cut_image(torch.rand(1, 3, 60, 80), windows)).all()
        assert (windows.extent >= 2).all()


def test_an_output_without_cells_is_refused():
    with pytest.raises(InputError, match="at least one row"):
        search_windows(a_state(5.0, 5.0, 1.0), (60, 80), (0, 64))
