"""Similarities of a tile of targets with a block of keys, for both kernels of propagation."""

import triton
import triton.language as tl

from streamvos.nn.kernels.blocks import apart, products, window_places


@triton.jit
def block_of_bits(
    query,
    queries,
    cells,
    alive,
    rows,
    columns,
    keys,
    start,
    first_row,
    first_column,
    window_columns,
    count,
    radius,
    slope,
    width,
    channels,
    scale,
    BLOCK_KEYS: tl.constexpr,  # noqa: N803
    CHANNEL_BLOCKS: tl.constexpr,  # noqa: N803
    BLOCK_CHANNELS: tl.constexpr,  # noqa: N803
    INSIDE: tl.constexpr,  # noqa: N803
    PRODUCT: tl.constexpr,  # noqa: N803
    WIDEN: tl.constexpr,  # noqa: N803
):
    """(T, BLOCK_KEYS) similarities in bits, -inf out of reach; what the keys are; squared distances.

    `slope` is log2(e) / sigma^2; the prior enters here where INSIDE.
    """
    key_rows, key_columns, exist = window_places(
        start, first_row, first_column, window_columns, count, BLOCK_KEYS
    )
    key_cells = key_rows * width + key_columns
    bits = scale * products(
        query,
        queries,
        cells,
        alive,
        keys,
        key_cells,
        exist,
        channels,
        CHANNEL_BLOCKS,
        BLOCK_CHANNELS,
        PRODUCT,
        WIDEN,
    )
    squared, distance = apart(rows, columns, key_rows, key_columns)
    if INSIDE:
        bits -= squared * slope
    bits = tl.where(exist[None, :] & (distance <= radius), bits, float("-inf"))
    return bits, key_cells, exist, squared
