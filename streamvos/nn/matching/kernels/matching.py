"""The kernels of matching: one launch each, whatever the number of objects and candidates.

    smallest_everywhere(query, candidates, bounds)                       # (objects, M)
    smallest_around(query, candidates, channels, objects, grid, window)  # (objects, h*w)

Candidates of global matching are sorted by object, so a program has a share of one object's candidates and
one minimum per query. In local matching a program has a tile of queries and their window, forms its products
once, and has a minimum per query for each of a block of objects.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from streamvos.nn.kernels.blocks import apart, load_rows, products, tile_places, window_around, window_places
from streamvos.nn.kernels.launching import Shape, on_device_of, shape_for, shares_for
from streamvos.nn.transfer import send

# ruff: noqa: N803  (compile-time parameters in capitals, as is usual in Triton)

_OBJECTS = 16  # objects whose minima a program of local matching holds


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
            **shape.constants(query.shape[1]),
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
    tiles = triton.cdiv(height, shape.side) * triton.cdiv(width, shape.side)
    smallest = query.new_empty(objects, len(query))
    with on_device_of(query):
        nearest_around[(tiles, triton.cdiv(objects, _OBJECTS))](
            query,
            candidates,
            channels.contiguous(),
            smallest,
            height,
            width,
            objects,
            min(window, max(grid)),
            query.shape[1],
            SIDE=shape.side,
            BLOCK_OBJECTS=_OBJECTS,
            **shape.constants(query.shape[1]),
        )
    return smallest


def _aligned(rows: Tensor) -> Tensor:
    """With zeros at the end of every row, so that each is aligned to 16 bytes and read in units of 16."""
    return F.pad(rows, (0, -rows.shape[1] % 16)).contiguous()


@triton.jit
def nearest_everywhere(
    query,
    candidates,
    bounds,
    smallest,
    query_count,
    object_count,
    channels,
    SHARES: tl.constexpr,
    BLOCK_QUERIES: tl.constexpr,
    BLOCK: tl.constexpr,
    CHANNEL_BLOCKS: tl.constexpr,
    BLOCK_CHANNELS: tl.constexpr,
):
    """Grid: blocks of queries, objects, shares.

    Args:
        query: (query_count, channels) float32.
        candidates: (N, channels) float32, sorted by object.
        bounds: (object_count + 1,) int64, where each object's candidates begin and end.
        smallest: (SHARES, object_count, query_count) float32, written; infinity where there is none.
    """
    which, share = tl.program_id(1), tl.program_id(2)
    rows = tl.program_id(0) * BLOCK_QUERIES + tl.arange(0, BLOCK_QUERIES)
    alive = rows < query_count
    queries = load_rows(query, rows, alive, 0, channels, BLOCK_CHANNELS)
    first = tl.load(bounds + which).to(tl.int32)
    stop = tl.load(bounds + which + 1).to(tl.int32)
    least = tl.full((BLOCK_QUERIES,), float("inf"), tl.float32)
    for start in range(first + share * BLOCK, stop, SHARES * BLOCK):
        cells = start + tl.arange(0, BLOCK)
        exist = cells < stop
        values = products(
            query, queries, rows, alive, candidates, cells, exist, channels, CHANNEL_BLOCKS, BLOCK_CHANNELS
        )
        least = tl.minimum(least, tl.min(tl.where(exist[None, :], values, float("inf")), 1))
    tl.store(smallest + (share * object_count + which) * query_count + rows, least, mask=alive)


@triton.jit
def nearest_around(
    query,
    candidates,
    whose,
    smallest,
    height,
    width,
    object_count,
    radius,
    channels,
    SIDE: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_OBJECTS: tl.constexpr,
    CHANNEL_BLOCKS: tl.constexpr,
    BLOCK_CHANNELS: tl.constexpr,
):
    """Grid: tiles, blocks of objects.

    Args:
        query, candidates: (h*w, channels) float32.
        whose: (h*w,) int64, the object of each candidate, object_count for none.
        smallest: (object_count, h*w) float32, written; infinity where there is none.
    """
    top, left, rows, columns, cells, alive = tile_places(tl.program_id(0), height, width, SIDE)
    queries = load_rows(query, cells, alive, 0, channels, BLOCK_CHANNELS)
    window = window_around(top, left, radius, height, width, SIDE)
    first = tl.program_id(1) * BLOCK_OBJECTS
    place = tl.arange(0, BLOCK_OBJECTS)
    here = tl.minimum(object_count - first, BLOCK_OBJECTS)
    least = tl.full((SIDE * SIDE, BLOCK_OBJECTS), float("inf"), tl.float32)
    for start in range(0, window[3], BLOCK):
        other_rows, other_columns, others, exist = window_places(start, window, BLOCK)
        values = products(
            query, queries, cells, alive, candidates, others, exist, channels, CHANNEL_BLOCKS, BLOCK_CHANNELS
        )
        _squared, distance = apart(rows, columns, other_rows, other_columns)
        values = tl.where(exist[None, :] & (distance <= radius), values, float("inf"))
        owner = tl.load(whose + others, mask=exist, other=object_count).to(tl.int32)
        for k in range(here):
            own = tl.min(tl.where((owner == first + k)[None, :], values, float("inf")), 1)
            least = tl.where((place == k)[None, :], tl.minimum(least, own[:, None]), least)
    there = alive[:, None] & (place < here)[None, :]
    where = (first + place)[None, :] * height * width + cells[:, None]
    tl.store(smallest + where, least, mask=there)
