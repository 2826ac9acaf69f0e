"""Grids whose corner cells lie on the corner pixels."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from streamvos.methods.feelvos.aligned_corners import (
    grid_size,
    nearest_pixels,
    resize_bilinear,
    sample_nearest,
)

SIZES = [(480, 854), (465, 465), (100, 133), (37, 53), (5, 9)]


@pytest.mark.parametrize("size", SIZES)
def test_label_maps_at_stride_4_are_the_authors(shared, size):
    golden = np.load(shared / "goldens" / "feelvos_matching.npz")
    cases = {name.split("/")[1] for name in golden if name.startswith("labels/")}
    assert cases == {f"{height}x{width}" for height, width in SIZES}
    name = f"labels/{size[0]}x{size[1]}"
    full = torch.from_numpy(golden[f"{name}/full"])
    ours = sample_nearest(full, grid_size(size))
    assert np.array_equal(ours.numpy(), golden[f"{name}/stride4"])


@pytest.mark.parametrize("pixels", [1, 2, 3, 16, 17, 100, 854])
@pytest.mark.parametrize("cells", [1, 2, 3, 5, 214])
def test_each_cell_has_the_pixel_nearest_to_it(pixels, cells):
    ours = nearest_pixels(pixels, cells)
    assert ours[0] == 0
    assert cells == 1 or ours[-1] == pixels - 1
    places = np.arange(cells) * (pixels - 1) / max(cells - 1, 1)
    assert np.abs(ours.numpy() - places).max() <= 0.5


def test_of_two_equally_near_pixels_the_later_is_taken():
    assert nearest_pixels(4, 3).tolist() == [0, 2, 3]
    assert nearest_pixels(2, 3).tolist() == [0, 1, 1]


def test_values_of_any_shape_are_sampled():
    values = torch.arange(2 * 9 * 13).view(2, 9, 13)
    assert torch.equal(sample_nearest(values, (3, 4)), values[:, ::4, ::4])
    assert torch.equal(sample_nearest(values[0], (3, 4)), values[0, ::4, ::4])


def test_bilinear_maps_keep_their_corners_and_their_ramps():
    ramp = torch.linspace(0, 1, 5, dtype=torch.float64).view(1, 1, 1, 5).expand(1, 1, 3, 5)
    ours = resize_bilinear(ramp, (7, 18))
    assert (ours - torch.linspace(0, 1, 18, dtype=torch.float64)).abs().max() < 1e-12
    assert resize_bilinear(ramp, (3, 5)) is ramp
