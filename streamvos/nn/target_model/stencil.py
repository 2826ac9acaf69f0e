"""Bilinear enlargement and pixel weights as operations between neighboring cells.

Scores live on a grid of h x w cells; labels and weights on H x W pixels. The squared error between the
enlarged scores U s and the labels y, weighted per pixel,

    sum_p v_p^2 (U s - y)_p^2  =  s' A s - 2 s' U' V y + y' V y,        A = U' V U,  V = diag(v^2),

needs pixels only once: a pixel is a mixture of at most 2 x 2 adjacent cells, so A couples a cell with itself
and its eight neighbors. Those nine numbers per cell, and U' V y, are all that an optimizer needs.

    >>> stencil = normal_stencil(torch.ones(1, 480, 854), (30, 54))
    >>> stencil.shape, float(stencil.sum())              # s' A s for s = 1 is the sum of all weights
    (torch.Size([1, 9, 30, 54]), 409920.0)
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

OFFSETS = tuple((dy, dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1))
"""Plane k of a stencil holds the coupling of cell (i, j) with cell (i, j) + OFFSETS[k]."""


def enlargement(cells: int, pixels: int, like: torch.Tensor) -> torch.Tensor:
    """(pixels, cells): bilinear resize (align_corners=False) of one axis as a matrix.

    Args:
        cells, pixels: lengths before and after.
        like: dtype and device of the result; it is computed in float64.
    """
    unit = torch.eye(cells, dtype=torch.float64, device=like.device)[None]
    return F.interpolate(unit, pixels, mode="linear", align_corners=False)[0].t().to(like.dtype).contiguous()


def normal_stencil(weights: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
    """U' diag(weights) U, as nine planes.

    Args:
        weights: (N, H, W) float, weights of the squared errors.
        grid: (h, w) of the scores; not larger than the pixels.

    Returns:
        (N, 9, h, w): see `OFFSETS`. Couplings that would leave the grid are zero.
    """
    height, width = weights.shape[-2:]
    rows = _neighbor_products(enlargement(grid[0], height, weights))  # (3, h, H)
    columns = _neighbor_products(enlargement(grid[1], width, weights))  # (3, w, W)
    # (3h, H) (N, H, W) (W, 3w): the longer axis goes first, while the other is still whole
    planes = rows.flatten(0, 1) @ weights @ columns.flatten(0, 1).t()
    planes = planes.view(-1, 3, grid[0], 3, grid[1])
    return planes.transpose(2, 3).reshape(-1, 9, *grid)


def gather_to_cells(image: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
    """U' image, the adjoint of the enlargement: (N, H, W) float -> (N, h, w)."""
    height, width = image.shape[-2:]
    return enlargement(grid[0], height, image).t() @ image @ enlargement(grid[1], width, image)


def apply_stencil(stencil: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """A times values.

    Args:
        stencil: (N, 9, h, w).
        values: (N, C, h, w), channels independent of each other.

    Returns:
        (N, C, h, w).
    """
    h, w = values.shape[-2:]
    padded = F.pad(values, (1, 1, 1, 1))
    total = stencil[:, 4:5] * values
    for plane, (dy, dx) in enumerate(OFFSETS):
        if dy or dx:
            total.addcmul_(
                stencil[:, plane : plane + 1], padded[..., 1 + dy : 1 + dy + h, 1 + dx : 1 + dx + w]
            )
    return total


def _neighbor_products(matrix: torch.Tensor) -> torch.Tensor:
    """(3, cells, pixels): each pixel's part of the coupling of a cell with the one before, itself, the next.

    Args:
        matrix: (pixels, cells) of `enlargement`.
    """
    padded = F.pad(matrix.t(), (0, 0, 1, 1))
    return torch.stack([matrix.t() * padded[k : k + matrix.shape[1]] for k in range(3)])
