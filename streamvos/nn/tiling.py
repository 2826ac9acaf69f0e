"""Rectangles of a feature grid, and the distances between the cells of two rectangles.

Affinity attention and local matching compare a tile of target cells with the window of reference cells that
it may look at. Both are boxes of one grid, whose cells are numbered row by row.

    >>> tile = Box(0, 0, 4, 8)
    >>> tile.grow(15, (60, 107))
    Box(top=0, left=0, bottom=19, right=23)
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

LOG2_E = math.log2(math.e)


@dataclass(frozen=True)
class Box:
    """A rectangle of cells; bottom and right are exclusive."""

    top: int
    left: int
    bottom: int
    right: int

    @property
    def rows(self) -> int:
        return self.bottom - self.top

    @property
    def columns(self) -> int:
        return self.right - self.left

    @property
    def cells(self) -> int:
        return self.rows * self.columns

    def grow(self, radius: int | None, grid: tuple[int, int]) -> Box:
        """The cells within `radius` rows and columns of this box; the whole grid if it is None."""
        height, width = grid
        if radius is None:
            return Box(0, 0, height, width)
        return Box(
            max(self.top - radius, 0),
            max(self.left - radius, 0),
            min(self.bottom + radius, height),
            min(self.right + radius, width),
        )

    def bands(self, rows: int) -> Iterator[Box]:
        """Bands of at most `rows` rows that cover this box."""
        for top in range(self.top, self.bottom, rows):
            yield Box(top, self.left, min(top + rows, self.bottom), self.right)

    def take(self, values: Tensor, grid: tuple[int, int]) -> Tensor:
        """The rows of `values` for the cells of this box.

        Args:
            values: (h*w, ...), row by row.
            grid: (h, w).

        Returns:
            (cells, ...); a view where the box spans the width of the grid, otherwise a copy.
        """
        width = grid[1]
        if self.columns == width:
            return values[self.top * width : self.bottom * width]
        rows = values[self.top * width : self.bottom * width].unflatten(0, (self.rows, width))
        return rows[:, self.left : self.right].flatten(0, 1)


def cover(grid: tuple[int, int], vertical: int, horizontal: int) -> list[Box]:
    """The grid cut into `vertical` x `horizontal` boxes of about the same size, at most one per cell."""
    height, width = grid
    vertical, horizontal = min(vertical, height), min(horizontal, width)
    tops = [height * k // vertical for k in range(vertical + 1)]
    lefts = [width * k // horizontal for k in range(horizontal + 1)]
    return [
        Box(top, left, bottom, right) for left, right in pairwise(lefts) for top, bottom in pairwise(tops)
    ]


def paste(tiles: Sequence[Box], answers: Sequence[Tensor], grid: tuple[int, int]) -> Tensor:
    """(N, h, w) from the (N, tile.cells) of tiles that cover the grid."""
    whole = answers[0].new_empty(len(answers[0]), *grid)
    for tile, answer in zip(tiles, answers, strict=True):
        place = whole[:, tile.top : tile.bottom, tile.left : tile.right]
        place.copy_(answer.unflatten(1, (tile.rows, tile.columns)))
    return whole


def log_prior(
    window: Box, tile: Box, sigma: float | None, radius: int | None, device: torch.device
) -> Tensor:
    """Binary logarithm of the spatial weight between the cells of `window` and those of `tile`.

    The weight is exp(-d^2 / sigma^2), without a factor 2 (TVOS, equation 6), or 1 where `sigma` is None, and
    0 beyond `radius` rows or columns. Both factors are products of one over rows and one over columns.

    Returns:
        (window.cells, tile.cells) float32, -inf where the weight is 0.
    """

    def along(start: int, stop: int, tile_start: int, tile_stop: int) -> Tensor:
        here = torch.arange(start, stop, device=device, dtype=torch.float32)
        there = torch.arange(tile_start, tile_stop, device=device, dtype=torch.float32)
        distance = here[:, None] - there
        log = torch.zeros_like(distance) if sigma is None else distance.square() * (-LOG2_E / sigma**2)
        return log if radius is None else log.masked_fill_(distance.abs() > radius, -math.inf)

    over_rows = along(window.top, window.bottom, tile.top, tile.bottom)
    over_columns = along(window.left, window.right, tile.left, tile.right)
    return (over_rows[:, None, :, None] + over_columns[:, None, :]).view(window.cells, tile.cells)


def reach(sigma: float, lost: float) -> int:
    """The radius beyond which the Gaussian weight, summed over the plane, is at most `lost`.

    A square window of this radius leaves out at most twice (the mass of a line) times (the mass of a line
    beyond the radius); both are bounded by integrals: a line holds at most 1 + sigma sqrt(pi), and beyond
    the radius at most sigma sqrt(pi) exp(-(radius / sigma)^2).
    """
    line = sigma * math.sqrt(math.pi)
    return math.ceil(sigma * math.sqrt(max(math.log(2 * (1 + line) * line / lost), 0.0)))
