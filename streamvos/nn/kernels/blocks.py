"""Parts that all kernels share: a tile of targets, a window of candidates, rows of features.

Triton compiles the functions of this file into the kernels that call them. Cells of a grid are numbered row
by row; T is the number of cells of a tile, B that of a block of candidates.
"""

import triton
import triton.language as tl

# ruff: noqa: N803  (compile-time parameters in capitals, as is usual in Triton)

LOWEST = tl.constexpr(-3.0e38)
"""Below every similarity, and finite, so that a difference of two of them is a number."""


@triton.jit
def tile_places(number, height, width, SIDE: tl.constexpr):
    """Top and left of a tile; (T,) rows, columns and numbers of its cells, and which lie in the grid."""
    across = tl.cdiv(width, SIDE)
    top = number // across * SIDE
    left = number % across * SIDE
    inside = tl.arange(0, SIDE * SIDE)
    rows = top + inside // SIDE
    columns = left + inside % SIDE
    return top, left, rows, columns, rows * width + columns, (rows < height) & (columns < width)


@triton.jit
def window_around(top, left, radius, height, width, SIDE: tl.constexpr):
    """The cells in reach of any cell of the tile: top, left, columns, count, and the width of the grid."""
    first_row = tl.maximum(top - radius, 0)
    first_column = tl.maximum(left - radius, 0)
    rows = tl.minimum(top + SIDE + radius, height) - first_row
    columns = tl.minimum(left + SIDE + radius, width) - first_column
    return first_row, first_column, columns, rows * columns, width


@triton.jit
def window_places(start, window, BLOCK: tl.constexpr):
    """(B,) rows, columns and numbers of the window's cells from place `start` on, and which of them exist."""
    first_row, first_column, window_columns, count, width = window
    place = start + tl.arange(0, BLOCK)
    rows = first_row + place // window_columns
    columns = first_column + place % window_columns
    return rows, columns, rows * width + columns, place < count


@triton.jit
def load_rows(base, rows, exist, first_channel, channels, BLOCK_CHANNELS: tl.constexpr):
    """(rows, BLOCK_CHANNELS) out of a (cells, channels) array, 0 where there is none."""
    channel = first_channel + tl.arange(0, BLOCK_CHANNELS)
    there = exist[:, None] & (channel < channels)[None, :]
    return tl.load(base + rows[:, None] * channels + channel[None, :], mask=there, other=0.0)


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
    CHANNEL_BLOCKS: tl.constexpr,
    BLOCK_CHANNELS: tl.constexpr,
):
    """(T, B) dot products of the rows `cells` of `query` with the rows `key_cells` of `keys`, float32.

    Where all channels are one block, `queries` are those rows, loaded once by the caller. For float32, three
    products of TensorFloat-32 together are as exact as one of float32, and faster.
    """
    if CHANNEL_BLOCKS == 1:
        features = load_rows(keys, key_cells, exist, 0, channels, BLOCK_CHANNELS)
        sums = tl.dot(queries, tl.trans(features), input_precision="tf32x3")
    else:
        sums = tl.zeros((cells.shape[0], key_cells.shape[0]), tl.float32)
        for block in range(CHANNEL_BLOCKS):
            first = block * BLOCK_CHANNELS
            part = load_rows(query, cells, alive, first, channels, BLOCK_CHANNELS)
            features = load_rows(keys, key_cells, exist, first, channels, BLOCK_CHANNELS)
            sums = tl.dot(part, tl.trans(features), sums, input_precision="tf32x3")
    return sums
