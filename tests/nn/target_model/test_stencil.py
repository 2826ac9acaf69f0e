"""The stencil against U' V U written as matrices of pixels."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from streamvos.nn.target_model.stencil import (
    OFFSETS,
    apply_stencil,
    enlargement,
    gather_to_cells,
    normal_stencil,
)

SIZES = pytest.mark.parametrize(
    ("grid", "size"),
    [((3, 4), (48, 64)), ((4, 5), (50, 71)), ((1, 1), (16, 16)), ((2, 1), (17, 16)), ((5, 3), (5, 3))],
)


def enlarge(scores: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    return F.interpolate(scores[:, None], size, mode="bilinear", align_corners=False)[:, 0]


def enlarging_matrix(grid: tuple[int, int], size: tuple[int, int]) -> torch.Tensor:
    """(H*W, h*w), column by column."""
    cells = grid[0] * grid[1]
    unit = torch.eye(cells, dtype=torch.float64).view(cells, *grid)
    return enlarge(unit, size).flatten(1).t()


@SIZES
def test_one_axis_is_the_resize(grid, size):
    scores = torch.rand(2, *grid, dtype=torch.float64)
    rows, columns = enlargement(grid[0], size[0], scores), enlargement(grid[1], size[1], scores)
    # the same products in another order
    assert torch.allclose(rows @ scores @ columns.t(), enlarge(scores, size), rtol=0, atol=1e-14)


@SIZES
def test_the_stencil_is_the_whole_normal_matrix(grid, size):
    weights = torch.rand(2, *size, dtype=torch.float64)
    matrix = enlarging_matrix(grid, size)
    values = torch.randn(2, 3, *grid, dtype=torch.float64)
    answer = apply_stencil(normal_stencil(weights, grid), values)
    for n in range(2):
        dense = matrix.t() @ (weights[n].flatten()[:, None] * matrix)
        expected = (dense @ values[n].flatten(1).t()).t().view(3, *grid)
        assert torch.allclose(answer[n], expected, rtol=1e-13, atol=1e-12)


@SIZES
def test_gathering_is_the_adjoint_of_enlarging(grid, size):
    image, scores = torch.rand(2, *size, dtype=torch.float64), torch.rand(2, *grid, dtype=torch.float64)
    left = (enlarge(scores, size) * image).sum((1, 2))
    right = (scores * gather_to_cells(image, grid)).sum((1, 2))
    assert torch.allclose(left, right, rtol=1e-13)


def test_it_gives_the_squared_error_and_its_gradient():
    grid, size = (4, 6), (60, 100)
    weights, labels = torch.rand(1, *size, dtype=torch.float64), torch.rand(1, *size, dtype=torch.float64)
    scores = torch.randn(1, *grid, dtype=torch.float64, requires_grad=True)
    loss = (weights * (enlarge(scores, size) - labels).square()).sum()
    (gradient,) = torch.autograd.grad(loss, scores)
    product = apply_stencil(normal_stencil(weights, grid), scores.detach()[:, None])[:, 0]
    right = gather_to_cells(weights * labels, grid)
    quadratic = (scores * (product - 2 * right)).sum() + (weights * labels.square()).sum()
    assert torch.allclose(2 * (product - right), gradient, rtol=1e-12, atol=1e-12)
    assert torch.allclose(quadratic, loss, rtol=1e-12)


def test_coupling_is_mutual_and_stays_on_the_grid():
    stencil = normal_stencil(torch.rand(1, 64, 80, dtype=torch.float64), (4, 5))[0]
    for plane, (dy, dx) in enumerate(OFFSETS):
        for i in range(4):
            for j in range(5):
                other = i + dy, j + dx
                if 0 <= other[0] < 4 and 0 <= other[1] < 5:
                    assert torch.isclose(stencil[plane, i, j], stencil[8 - plane][other], rtol=1e-14)
                else:
                    assert stencil[plane, i, j] == 0
