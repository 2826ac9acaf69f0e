"""Propagation in tiles, the k best keys of a target in the softmax.

The k best of 10^4 similarities are found exactly in two cheap steps: the k best groups of neighbors, by their
maxima, hold the k best entries, so one pass for the maxima and two small selections are enough.

tiles = selection_tiles(scene)
answers = run_tiles(tiles, partial(selection_work, scene, scene.shared_labels))
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import accumulate

import torch
from torch import Tensor

from streamvos.nn.propagation.scene import Scene
from streamvos.nn.tiling import LOG2_E, Box, cover
from streamvos.nn.transfer import send

_SELECT = {"cpu": 1 << 23, "gpu": 1 << 26}  # similarities of a tile from which the k best are chosen


def selection_tiles(scene: Scene) -> list[Box]:
    """Small squares: the similarities of a tile to all its references are held at once."""
    height, width = scene.grid
    for side in (8, 4, 2) if scene.kind == "cpu" else (64, 32, 16, 8, 4):
        tiles = cover(scene.grid, math.ceil(height / side), math.ceil(width / side))
        middle = tiles[len(tiles) // 2]
        if middle.cells * sum(middle.grow(r, scene.grid).cells for r in scene.radii) <= _SELECT[scene.kind]:
            break
    return tiles


def selection_work(scene: Scene, shared_labels: Tensor) -> Callable[[Box], Tensor]:
    """The function that gives (L, tile.cells) with the k best keys in the softmax.

    Args:
        shared_labels: (n*h*w, L), the labels of all references.
    """
    assert scene.options.top_k is not None
    top_k, count = scene.options.top_k, scene.query.shape[0]
    width = scene.grid[1]
    cells = torch.arange(count, device=scene.device)
    inverse_squares = [0.0 if sigma is None else LOG2_E / sigma**2 for sigma in scene.sigmas]
    inverse = send(inverse_squares, torch.float32, scene.device)
    at_once = max(1, _SELECT[scene.kind] // (top_k * shared_labels.shape[1]))
    scratch = torch.empty(0, dtype=torch.float32, device=scene.device)

    def work(tile: Box) -> Tensor:
        nonlocal scratch
        windows = [tile.grow(radius, scene.grid) for radius in scene.radii]
        ends = list(accumulate((window.cells for window in windows), initial=0))
        best = min(top_k, ends[-1])
        group = group_size(ends[-1], best)
        padded = math.ceil(ends[-1] / group) * group
        if scratch.numel() < padded * tile.cells:
            scratch = scratch.new_empty(padded * tile.cells)
        bits = scratch[: padded * tile.cells].view(padded, tile.cells)
        bits[ends[-1] :] = -math.inf
        source = torch.zeros(padded, dtype=torch.int64, device=scene.device)  # row of `bits` -> row of labels
        similarities = scene.similarities(tile, max(window.cells for window in windows))
        for (sigma, radius), references in scene.groups().items():
            window = windows[references[0]]
            inside = scene.log_weight(window, tile, sigma, radius)
            here = window.take(cells, scene.grid)
            for reference in references:
                rows = slice(ends[reference], ends[reference + 1])
                similarities(window, reference, inside, bits[rows])
                torch.add(here, reference * count, out=source[rows])
        values, chosen = largest(bits, best, group)
        weights = torch.softmax(values * math.log(2), dim=1)
        chosen = source[chosen]  # (cells, best): rows of the labels
        if scene.options.spatial_prior == "authors":
            there, here = chosen % count, tile.take(cells, scene.grid)[:, None]
            down, right = there // width - here // width, there % width - here % width
            weights *= torch.exp2(-(down.square() + right.square()) * inverse[chosen // count])
        pieces = zip(weights.split(at_once), chosen.split(at_once), strict=True)
        return torch.cat([torch.bmm(w[:, None], shared_labels[c])[:, 0] for w, c in pieces]).t()

    return work


def group_size(count: int, best: int) -> int:
    """How many keys share a maximum: the two steps cost about count / group + best * group."""
    if count <= 64 * best:
        return 1
    return int(2 ** round(math.log2(math.sqrt(count / best) / 2)))


def largest(bits: Tensor, best: int, group: int) -> tuple[Tensor, Tensor]:
    """Values and rows of the `best` largest entries of every column.

    The k best groups by their maxima hold the k best entries: every group left out has a maximum, so all its
    entries, at most as large as k maxima. Which of equal entries is taken is open.

    Args:
        bits: (group * m, T).

    Returns:
        (T, best) float32 and (T, best) int64.
    """
    rows, columns = bits.shape
    if group == 1:
        values, found = bits.t().topk(best, dim=1, sorted=False)
        return values, found
    grouped = bits.view(rows // group, group, columns)
    maxima = grouped.amax(1).t()  # (T, m)
    chosen = maxima.topk(min(best, maxima.shape[1]), dim=1, sorted=False).indices
    column = torch.arange(columns, device=bits.device)[:, None]
    candidates = grouped[chosen, :, column].flatten(1)  # (T, k * group)
    values, found = candidates.topk(best, dim=1, sorted=False)
    return values, chosen.gather(1, found // group) * group + found % group
