"""The smallest product of every query per object: with all candidates, or with those in a window around it.

Candidates of global matching are sorted by object, so a program has one object's share of them and keeps one
minimum per query. In local matching a program has a tile of queries and their window, forms its products
once, and keeps a minimum per query for each of a block of objects.
"""

import triton
import triton.language as tl

from streamvos.nn.kernels.blocks import apart, load_rows, products, tile_places, window_around, window_places

# ruff: noqa: N803  (compile-time parameters in capitals, as is usual in Triton)


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
    PRODUCT: tl.constexpr,
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
    queries = load_rows(query, rows, alive, 0, channels, BLOCK_CHANNELS, False)
    first = tl.load(bounds + which).to(tl.int32)
    stop = tl.load(bounds + which + 1).to(tl.int32)
    least = tl.full((BLOCK_QUERIES,), float("inf"), tl.float32)
    for start in range(first + share * BLOCK, stop, SHARES * BLOCK):
        cells = start + tl.arange(0, BLOCK)
        exist = cells < stop
        values = products(
            query,
            queries,
            rows,
            alive,
            candidates,
            cells,
            exist,
            channels,
            CHANNEL_BLOCKS,
            BLOCK_CHANNELS,
            PRODUCT,
            False,
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
    across,
    object_count,
    radius,
    channels,
    TILE_ROWS: tl.constexpr,
    TILE_COLUMNS: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_OBJECTS: tl.constexpr,
    CHANNEL_BLOCKS: tl.constexpr,
    BLOCK_CHANNELS: tl.constexpr,
    PRODUCT: tl.constexpr,
):
    """Grid: tiles, blocks of objects.

    Args:
        query, candidates: (h*w, channels) float32.
        whose: (h*w,) int64, the object of each candidate, object_count for none.
        smallest: (object_count, h*w) float32, written; infinity where there is none.
    """
    top, left, rows, columns = tile_places(tl.program_id(0), across, TILE_ROWS, TILE_COLUMNS)
    alive = (rows < height) & (columns < width)
    cells = rows * width + columns
    queries = load_rows(query, cells, alive, 0, channels, BLOCK_CHANNELS, False)
    first_row, first_column, window_columns, count = window_around(
        top, left, radius, height, width, TILE_ROWS, TILE_COLUMNS
    )
    first = tl.program_id(1) * BLOCK_OBJECTS
    place = tl.arange(0, BLOCK_OBJECTS)
    here = tl.minimum(object_count - first, BLOCK_OBJECTS)
    least = tl.full((TILE_ROWS * TILE_COLUMNS, BLOCK_OBJECTS), float("inf"), tl.float32)
    for start in range(0, count, BLOCK):
        other_rows, other_columns, exist = window_places(
            start, first_row, first_column, window_columns, count, BLOCK
        )
        others = other_rows * width + other_columns
        values = products(
            query,
            queries,
            cells,
            alive,
            candidates,
            others,
            exist,
            channels,
            CHANNEL_BLOCKS,
            BLOCK_CHANNELS,
            PRODUCT,
            False,
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
