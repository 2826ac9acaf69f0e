"""Resizing with aligned corners, as TensorFlow's DeepLab does it: first cell on first pixel, last on last.

FEELVOS keeps everything after its backbone on a grid of a quarter of the frame, whose corner cells lie on
the frame's corner pixels. Cell i of n lies at pixel i (N - 1) / (n - 1) of N.

    >>> grid_size((480, 854))
    (120, 214)
    >>> nearest_pixels(9, 3)
    tensor([0, 4, 8])
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

STRIDE = 4


def grid_size(size: tuple[int, int], stride: int = STRIDE) -> tuple[int, int]:
    """(h, w) in cells of a frame of (H, W) pixels: floor((n - 1) / stride + 1) along each side."""
    return (size[0] - 1) // stride + 1, (size[1] - 1) // stride + 1


def nearest_pixels(pixels: int, cells: int, device: torch.device | str = "cpu") -> torch.Tensor:
    """The pixel nearest to each cell, of two equally near ones the later.

    Args:
        pixels: N, along one side.
        cells: n, along the same side.

    Returns:
        (n,) int64; pixel 0 where there is one cell only.
    """
    gaps = max(cells - 1, 1)
    # whole numbers: floor(x + 1/2) of the exact quotient
    return (2 * torch.arange(cells, device=device) * (pixels - 1) + gaps) // (2 * gaps)


def sample_nearest(values: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """The values of the pixels nearest to the cells.

    Args:
        values: (..., H, W) of any dtype.
        size: (h, w) of the result.

    Returns:
        (..., h, w), a copy.
    """
    rows = nearest_pixels(values.shape[-2], size[0], values.device)
    columns = nearest_pixels(values.shape[-1], size[1], values.device)
    return values.index_select(-2, rows).index_select(-1, columns)


def resize_bilinear(maps: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Bilinear, corners aligned, no antialiasing; the maps themselves where the size is theirs.

    Args:
        maps: (B, C, h, w) float.
        size: (h, w) of the result.
    """
    if tuple(maps.shape[-2:]) == tuple(size):
        return maps
    return F.interpolate(maps, size, mode="bilinear", align_corners=True)
