"""Launches the kernels of matching: one launch each, whatever the number of objects and candidates.

    smallest_everywhere(query, candidates, bounds)                       # (objects, M)
    smallest_around(query, candidates, channels, objects, grid, window)  # (objects, h*w)

Products are of float32 as exactly as three of TensorFloat-32 give them: distances cancel.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
import triton
from torch import Tensor

from streamvos.nn.kernels.launching import Shape, on_device_of, shape_for, shares_for
from streamvos.nn.matching.kernels.nearest import nearest_around, nearest_everywhere
from streamvos.nn.transfer import send

_OBJECTS = 16  # whose minima a program of local matching holds


def smallest_everywhere(
    query: Tensor, candidates: Tensor, bounds: Sequence[int], shape: Shape | None = None
) -> Tensor:
    """The smallest product of every query with the candidates of each object.

    Args:
        query: (M, C) float32.
        candidates: (N, C) float32; those of object k are rows bounds[k] to bounds[k + 1].
        bounds: objects + 1 of them.
        shape: how the work is cut; None = chosen.

    Returns:
        (objects, M) float32, infinity for an object without candidates.
    """
    shape = shape or shape_for(query.shape[1], torch.float32)
    query, candidates = _aligned(query), _aligned(candidates)
    objects, queries = len(bounds) - 1, shape.side**2
    blocks = triton.cdiv(len(query), queries)
    with on_device_of(query):
        # most candidates are the background's: other objects' programs are done sooner
        shares = shares_for(blocks, shape, query.device)
        smallest = query.new_empty(shares, objects, len(query))
        nearest_everywhere[(blocks, objects, shares)](
            query,
            candidates,
            send(bounds, torch.int64, query.device),
            smallest,
            len(query),
            objects,
            query.shape[1],
            SHARES=shares,
            BLOCK_QUERIES=queries,
            BLOCK=shape.block,
            **_products(query, shape),
        )
    return smallest[0] if shares == 1 else smallest.amin(0)


def smallest_around(
    query: Tensor,
    candidates: Tensor,
    channels: Tensor,
    objects: int,
    grid: tuple[int, int],
    window: int,
    shape: Shape | None = None,
) -> Tensor:
    """The smallest product of every query with each object's candidates near its place.

    Args:
        query, candidates: (h*w, C) float32.
        channels: (h*w,) integer, the object of each candidate; `objects` for none.
        objects: how many.
        grid: (h, w).
        window: radius in cells.
        shape: how the work is cut; None = chosen.

    Returns:
        (objects, h*w) float32, infinity for an object without a candidate there.
    """
    shape = shape or shape_for(query.shape[1], torch.float32)
    query, candidates = _aligned(query), _aligned(candidates)
    height, width = grid
    across = triton.cdiv(width, shape.side)
    smallest = query.new_empty(objects, len(query))
    with on_device_of(query):
        nearest_around[(across * triton.cdiv(height, shape.side), triton.cdiv(objects, _OBJECTS))](
            query,
            candidates,
            channels.contiguous(),
            smallest,
            height,
            width,
            across,
            objects,
            min(window, max(grid)),
            query.shape[1],
            TILE_ROWS=shape.side,
            TILE_COLUMNS=shape.side,
            BLOCK=shape.block,
            BLOCK_OBJECTS=_OBJECTS,
            **_products(query, shape),
        )
    return smallest


def _aligned(rows: Tensor) -> Tensor:
    """With zeros at the end of every row, so that each begins where 16 bytes begin and is read in such."""
    return F.pad(rows, (0, -rows.shape[1] % 16)).contiguous()


def _products(query: Tensor, shape: Shape) -> dict[str, object]:
    """The compile-time parameters of both kernels."""
    return {
        "CHANNEL_BLOCKS": triton.cdiv(query.shape[1], shape.channels),
        "BLOCK_CHANNELS": shape.channels,
        "PRODUCT": "tf32x3",
        "num_warps": shape.warps,
        "num_stages": shape.stages,
    }
