"""What all kernels share: a tile of targets, a window of candidates, rows of features.

Triton compiles the functions of this file into the kernels that call them. Everything is counted in cells of
a grid, row by row.
"""

import triton
import triton.language as tl

LOWEST = tl.constexpr(-3.0e38)
"""Below every similarity, and finite, so that a difference of two of them is a number."""


@triton.jit
def tile_places(tile, across, TILE_ROWS: tl.constexpr, TILE_COLUMNS: tl.constexpr):  # noqa: N803
    """Top and left of tile number `tile`, and (T,) rows and columns of its cells, beyond the grid too."""
    top = tile // across * TILE_ROWS
    left = tile % across * TILE_COLUMNS
    inside = tl.arange(0, TILE_ROWS * TILE_COLUMNS)
    return top, left, top + inside // TILE_COLUMNS, left + inside % TILE_COLUMNS


@triton.jit
def window_around(
    top,
    left,
    radius,
    height,
    width,
    TILE_ROWS: tl.constexpr,  # noqa: N803
    TILE_COLUMNS: tl.constexpr,  # noqa: N803
):
    """Top, left, columns and count of the cells that some cell of the tile may look at."""
    first_row = tl.maximum(top - radius, 0)
    first_column = tl.maximum(left - radius, 0)
    rows = tl.minimum(top + TILE_ROWS + radius, height) - first_row
    columns = tl.minimum(left + TILE_COLUMNS + radius, width) - first_column
    return first_row, first_column, columns, rows * columns


@triton.jit
def window_places(start, first_row, first_column, columns, count, BLOCK: tl.constexpr):  # noqa: N803
    """(BLOCK,) rows and columns of the window's cells from number `start` on, and which of them exist."""
    number = start + tl.arange(0, BLOCK)
    return first_row + number // columns, first_column + number % columns, number < count


@triton.jit
def load_rows(
    base,
    rows,
    exist,
    first_channel,
    channels,
    BLOCK_CHANNELS: tl.constexpr,  # noqa: N803
    WIDEN: tl.constexpr,  # noqa: N803
):
    """(rows, BLOCK_CHANNELS) out of a (cells, channels) array, 0 where there is none.

    `WIDEN` is for the interpreter, whose products of bfloat16 are wrong; the values stay the same.
    """
    channel = first_channel + tl.arange(0, BLOCK_CHANNELS)
    there = exist[:, None] & (channel < channels)[None, :]
    values = tl.load(base + rows[:, None] * channels + channel[None, :], mask=there, other=0.0)
    if WIDEN:
        values = values.to(tl.float32)
    return values


@triton.jit
def apart(rows, columns, other_rows, other_columns):
    """Squared distance, float32, and the larger of the distances in rows and columns: (T, B) each."""
    down = tl.abs(rows[:, None] - other_rows[None, :])
    right = tl.abs(columns[:, None] - other_columns[None, :])
    return (down * down + right * right).to(tl.float32), tl.maximum(down, right)


@triton.jit
def products(
    query,
    queries,
    cells,
    alive,
    keys,
    key_cells,
    exist,
    channels,
    CHANNEL_BLOCKS: tl.constexpr,  # noqa: N803
    BLOCK_CHANNELS: tl.constexpr,  # noqa: N803
    PRODUCT: tl.constexpr,  # noqa: N803
    WIDEN: tl.constexpr,  # noqa: N803
):
    """(T, B) dot products of the rows `cells` of `query` with the rows `key_cells` of `keys`, float32.

    Where all channels are one block, `queries` are those rows, loaded once by the caller.
    """
    if CHANNEL_BLOCKS == 1:
        features = load_rows(keys, key_cells, exist, 0, channels, BLOCK_CHANNELS, WIDEN)
        sums = tl.dot(queries, tl.trans(features), input_precision=PRODUCT)
    else:
        sums = tl.zeros((cells.shape[0], key_cells.shape[0]), tl.float32)
        for block in range(CHANNEL_BLOCKS):
            first = block * BLOCK_CHANNELS
            part = load_rows(query, cells, alive, first, channels, BLOCK_CHANNELS, WIDEN)
            features = load_rows(keys, key_cells, exist, first, channels, BLOCK_CHANNELS, WIDEN)
            sums = tl.dot(part, tl.trans(features), sums, input_precision=PRODUCT)
    return sums
