"""Local matching: the nearest cell of each object in the previous frame, within a window.

distances = local_distances(embedding, previous, channels, objects=3, grid=(120, 214), window=15)
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from streamvos.nn.kernels.choice import Kernel, attempt, wants_kernels
from streamvos.nn.matching.candidates import centered_rows, check_labels, kind_of, queries_of, squash
from streamvos.nn.precision import without_autocast
from streamvos.nn.tiling import Box, cover, log_prior
from streamvos.nn.workers import run_tiles, run_whole
from streamvos.types import InputError

_SIDE = {"cpu": 16, "gpu": 64}  # of a tile; with a radius of 15 its window is 46 x 46


def local_distances(
    query: Tensor,
    previous: Tensor,
    channels: Tensor,
    objects: int,
    grid: tuple[int, int],
    window: int,
    sort: bool | None = None,
    kernel: Kernel = "auto",
) -> Tensor:
    """Equation 3: the distance of every cell to the nearest cell of each object near its place before.

    Candidates are the cells of the previous frame at most `window` rows and columns away that belong to the
    object; the grid ends at its border.

    Args:
        query: (h*w, C) float embeddings, cells row by row.
        previous: (h*w, C), those of the previous frame.
        channels: (h*w,) int64, the object of each cell of the previous frame, 0..objects - 1; `objects` for
            none (see `channel_table`).
        objects: how many, the background included.
        grid: (h, w).
        window: k of the paper, 15; a radius, so that the window has 31 x 31 cells.
        sort: sort the candidates of each window by object, so that every product is looked at once, for which
            the host has to know their counts; otherwise all products are looked at once per object, and
            nothing waits for the host. None = sort on a CPU. Kernels look at all products once, and do not
            wait.
        kernel: see `global_distances`.

    Returns:
        (objects, h*w) in the dtype of `query`, 0..1; 1 exactly where an object has no candidate.

    Raises:
        InputError: shapes that do not fit together, no objects, or a negative window.
    """
    if query.shape != previous.shape or query.ndim != 2 or len(query) != grid[0] * grid[1]:
        raise InputError(
            f"a grid of {grid[0]} x {grid[1]} needs query and previous of ({grid[0] * grid[1]}, C), "
            f"got {tuple(query.shape)} and {tuple(previous.shape)}"
        )
    if window < 0:
        raise InputError(f"the window is a radius of at least 0 cells, got {window}")
    if objects < 1:
        raise InputError(f"there is at least one object, the background, got {objects}")
    check_labels(previous, channels)
    kind, parallel = kind_of(query)

    def prepare() -> tuple[Tensor, Tensor, Tensor]:
        center = previous.mean(0)
        return *queries_of(query, center), centered_rows(previous, center)

    with torch.no_grad(), without_autocast(query.device.type):
        centered, norms, factors = run_whole(prepare, parallel)
        if wants_kernels(kernel, query, query.dtype == previous.dtype == torch.float32):

            def run() -> Tensor:
                from streamvos.nn.matching.kernels.matching import (
                    smallest_around,  # only where there is Triton
                )

                return smallest_around(centered, factors, channels, objects, grid, window)

            smallest = attempt("local matching", kernel, run)
            if smallest is not None:
                return squash(smallest.add_(norms))
        neighborhood = Neighborhood(centered, factors, channels, objects, grid, window)
        sort = parallel if sort is None else sort
        match = neighborhood.sorted_minima if sort else neighborhood.masked_minima
        side = _SIDE[kind]
        tiles = cover(grid, math.ceil(grid[0] / side), math.ceil(grid[1] / side))
        answers = run_tiles(tiles, lambda: match, parallel)
        best = torch.empty((objects, *grid), dtype=answers[0].dtype, device=query.device)
        for tile, answer in zip(tiles, answers, strict=True):
            place = best[:, tile.top : tile.bottom, tile.left : tile.right]
            place.copy_(answer.unflatten(1, (tile.rows, tile.columns)))
    return squash(best.flatten(1).add_(norms))


@dataclass(frozen=True)
class Neighborhood:
    """What all tiles of one local matching share.

    Attributes:
        queries: (h*w, C + 1), see `queries_of`.
        factors: (h*w, C + 1), see `Reference`.
        channels: (h*w,) int64, the object of each cell of the previous frame, `objects` for none.
    """

    queries: Tensor
    factors: Tensor
    channels: Tensor
    objects: int
    grid: tuple[int, int]
    window: int

    def sorted_minima(self, tile: Box) -> Tensor:
        """(objects, tile.cells): every product is looked at once."""
        around = tile.grow(self.window, self.grid)
        channels = around.take(self.channels, self.grid)
        counts = torch.bincount(channels, minlength=self.objects + 1).tolist()[: self.objects]
        order = channels.argsort(stable=True)[: sum(counts)]
        # transposed on both sides of the sum: tile cells in rows, candidates in columns
        products = torch.mm(around.take(self.factors, self.grid)[order], self._cells(tile).t())
        products -= self._log_inside(around, tile)[order]
        best = products.new_full((self.objects, tile.cells), math.inf)
        for k, candidates in enumerate(products.split(counts)):
            if len(candidates):
                best[k] = candidates.amin(0)
        return best

    def masked_minima(self, tile: Box) -> Tensor:
        """The same, with a pass over the products per object, and nothing that waits for the host."""
        around = tile.grow(self.window, self.grid)
        channels = around.take(self.channels, self.grid)
        products = torch.mm(self._cells(tile), around.take(self.factors, self.grid).t())
        products -= self._log_inside(around, tile).t()
        return torch.stack(
            [products.masked_fill(channels != k, math.inf).amin(1) for k in range(self.objects)]
        )

    def _cells(self, tile: Box) -> Tensor:
        return tile.take(self.queries, self.grid)

    def _log_inside(self, around: Box, tile: Box) -> Tensor:
        """(around.cells, tile.cells): 0 inside the window of a cell, -inf outside."""
        inside = log_prior(around, tile, None, self.window, self.queries.device)
        return inside.to(self.queries.dtype)
