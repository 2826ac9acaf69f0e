"""Propagation in two steps, for a processor: first blocks of 2 x 2 cells, then cells.

    query = blocks_of(embedding)                               # (C, h, w) -> (N, 4, C)
    labels = propagate_in_blocks(query, references, (60, 107), options, count=16)

A block's mean is compared with the means of all blocks in reach; the cells of the most similar ones are then
compared one by one. There are sixteen times fewer similarities of means than of cells, and few of the latter
are left. What is lost are cells whose block as a whole is not similar.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from streamvos.nn.precision import without_autocast
from streamvos.nn.propagation.options import Propagation, PropagationOptions
from streamvos.nn.propagation.tiles import Scene, best_keys, norms_of, selection_tiles
from streamvos.nn.tiling import Box, paste
from streamvos.nn.workers import run_tiles


class Reference(NamedTuple):
    """A past frame in N blocks of four cells.

    Attributes:
        keys: (N, 4, C) features of the cells.
        means: (N, C), see `means_of`.
        labels: (N, 4, L) float32.
        radius: how far a cell of the target may lie from those it looks at, in cells; None = anywhere.
    """

    keys: Tensor
    means: Tensor
    labels: Tensor
    radius: int | None


def blocks_of(cells: Tensor) -> Tensor:
    """(C, h, w) to (N, 4, C), N = ceil(h / 2) * ceil(w / 2); an odd side repeats its last line."""
    h, w = cells.shape[-2:]
    if h % 2:
        cells = torch.cat([cells, cells[:, -1:]], dim=1)
    if w % 2:
        cells = torch.cat([cells, cells[:, :, -1:]], dim=2)
    squares = cells.unflatten(1, (-1, 2)).unflatten(3, (-1, 2))  # (C, rows, 2, columns, 2)
    return squares.permute(1, 3, 2, 4, 0).flatten(2, 3).flatten(0, 1).contiguous()


def cells_of(blocks: Tensor, grid: tuple[int, int]) -> Tensor:
    """(rows, columns, 4, L) to (L, h, w); `grid` is (h, w)."""
    squares = blocks.unflatten(2, (2, 2)).permute(4, 0, 2, 1, 3)  # (L, rows, 2, columns, 2)
    return squares.flatten(3, 4).flatten(1, 2)[:, : grid[0], : grid[1]].contiguous()


def means_of(blocks: Tensor) -> Tensor:
    """(N, 4, C) to the means of the four cells, (N, C), divided by their L2 norm."""
    return F.normalize(blocks.float().mean(1), dim=1).to(blocks.dtype)


def propagate_in_blocks(
    query: Tensor,
    references: Sequence[Reference],
    grid: tuple[int, int],
    options: PropagationOptions,
    count: int,
) -> Tensor:
    """Labels of the target frame, from those of its references.

    Args:
        query: (N, 4, C) features of the target, L2-normalized, in the dtype of `options.precision`, as are
            those of the references.
        references: the most recent one last.
        grid: (h, w) in cells.
        options: temperature, top_k and precision; there is no spatial prior.
        count: how many blocks of all references together a block of the target looks at.

    Returns:
        (L, h, w) float32; the weights of a cell sum to 1.

    Raises:
        InputError: shapes or values that do not fit together.
    """
    coarse = (-(-grid[0] // 2), -(-grid[1] // 2))
    means = [reference.means for reference in references]
    # the radius in blocks is rounded up
    radii = [None if r.radius is None else -(-r.radius // 2) for r in references]
    search = Propagation(
        means_of(query), means, [m[:, :1] for m in means], (), coarse,
        replace(options, spatial_prior="none", top_k=count, radius=None), radii,
    )  # fmt: skip
    parallel = query.device.type == "cpu"
    with torch.no_grad(), without_autocast(query.device.type):
        scene = Scene(search, [(key, norms_of(key).amax(), key) for key in means])
        keys, labels = (torch.cat(parts) for parts in list(zip(*references, strict=True))[:3:2])
        tiles = selection_tiles(scene)

        def make_work() -> Callable[[Box], Tensor]:
            search_tile = best_keys(scene)

            def work(tile: Box) -> Tensor:
                _, rows = search_tile(tile)  # (T, count)
                found = keys[rows].flatten(1, 2)  # (T, 4 count, C)
                similarities = torch.bmm(tile.take(query, coarse), found.transpose(1, 2)).float()
                similarities *= options.temperature  # (T, 4, 4 count)
                if options.top_k is not None and options.top_k < similarities.shape[2]:
                    least = similarities.topk(options.top_k, dim=2).values[..., -1:]
                    similarities.masked_fill_(similarities < least, -torch.inf)
                answer = torch.bmm(similarities.softmax(2), labels[rows].flatten(1, 2))  # (T, 4, L)
                return answer.flatten(1).t()

            return work

        whole = paste(tiles, run_tiles(tiles, make_work, parallel), coarse)  # (4 L, rows, columns)
    return cells_of(whole.permute(1, 2, 0).unflatten(2, (4, -1)), grid)
