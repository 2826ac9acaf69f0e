"""Boxes of cells and the spatial weight between them."""

from __future__ import annotations

import math

import pytest
import torch

from streamvos.nn.tiling import Box, cover, log_prior, reach

CPU = torch.device("cpu")


@pytest.mark.parametrize("grid", [(1, 1), (7, 9), (60, 107), (3, 200)])
@pytest.mark.parametrize("parts", [(1, 1), (2, 3), (8, 8), (100, 100)])
def test_a_cover_has_every_cell_once(grid, parts):
    seen = torch.zeros(grid, dtype=torch.int64)
    for box in cover(grid, *parts):
        assert box.cells > 0
        seen[box.top : box.bottom, box.left : box.right] += 1
    assert (seen == 1).all()


def test_boxes_of_a_cover_differ_by_one_row_or_column_at_most():
    boxes = cover((60, 107), 8, 14)
    for sizes in ({box.rows for box in boxes}, {box.columns for box in boxes}):
        assert max(sizes) - min(sizes) <= 1


def test_a_window_holds_what_lies_within_the_radius_and_inside_the_grid():
    grid = (12, 17)
    tile = Box(3, 5, 6, 9)
    for radius in (0, 2, 5, 100):
        window = tile.grow(radius, grid)
        for row in range(12):
            for column in range(17):
                near = 3 - radius <= row < 6 + radius and 5 - radius <= column < 9 + radius
                inside = window.top <= row < window.bottom and window.left <= column < window.right
                assert near == inside
    assert tile.grow(None, grid) == Box(0, 0, 12, 17)


def test_bands_are_the_box_in_order():
    box = Box(2, 1, 13, 5)
    bands = list(box.bands(4))
    assert [band.rows for band in bands] == [4, 4, 3]
    values = torch.arange(15 * 6)
    whole = box.take(values, (15, 6))
    assert torch.equal(torch.cat([band.take(values, (15, 6)) for band in bands]), whole)


def test_full_rows_are_taken_without_a_copy():
    values = torch.randn(7 * 9, 4)
    view = Box(2, 0, 5, 9).take(values, (7, 9))
    assert view.data_ptr() == values[18:].data_ptr()
    part = Box(2, 3, 5, 7).take(values, (7, 9))
    assert torch.equal(part, values.view(7, 9, 4)[2:5, 3:7].reshape(12, 4))


def test_the_prior_is_that_of_equation_6():
    window, tile, sigma = Box(0, 2, 9, 11), Box(3, 4, 5, 8), 3.0
    ours = log_prior(window, tile, sigma, None, CPU).exp2().view(9, 9, 2, 4)
    for row, column, y, x in [(0, 0, 0, 0), (8, 8, 1, 3), (3, 2, 0, 0), (4, 7, 1, 1)]:
        squared = (window.top + row - tile.top - y) ** 2 + (window.left + column - tile.left - x) ** 2
        assert ours[row, column, y, x].item() == pytest.approx(math.exp(-squared / 9), rel=1e-5)


def test_beyond_the_radius_the_weight_is_nothing():
    window, tile = Box(0, 0, 10, 12), Box(4, 4, 6, 7)
    for sigma in (None, 2.0):
        ours = log_prior(window, tile, sigma, 3, CPU).view(10, 12, 2, 3)
        rows = (torch.arange(10)[:, None] - torch.arange(4, 6)).abs()[:, None, :, None]
        columns = (torch.arange(12)[:, None] - torch.arange(4, 7)).abs()[None, :, None]
        assert torch.equal(ours == -math.inf, torch.maximum(rows, columns) > 3)


@pytest.mark.parametrize("sigma", [0.1, 0.5, 2.0, 8.0, 21.0])
@pytest.mark.parametrize("lost", [1e-1, 1e-6, 1e-30])
def test_what_lies_out_of_reach_weighs_no_more_than_stated(sigma, lost):
    radius = reach(sigma, lost)
    # sums in float64 of both lines to where exp(-d^2 / sigma^2) is no longer a number above 0
    line = torch.exp(-(torch.arange(0, 1000, dtype=torch.float64) ** 2) / sigma**2)
    beyond = 2 * line[radius + 1 :].sum()
    whole = 2 * line.sum() - 1
    assert (
        whole**2 - (whole - beyond) ** 2 <= lost or 2 * whole * beyond <= lost
    )  # the first cancels at 1e-30
    # and it is not wasteful: less than 60 % more than the radius at which the bound is just met
    needed = next(r for r in range(1000) if 4 * whole * line[r + 1 :].sum() <= lost)
    assert radius <= 1.6 * needed + 2
