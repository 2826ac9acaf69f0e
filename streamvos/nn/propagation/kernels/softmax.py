"""Propagation with all keys in the softmax: one pass of running sums, then the sum of the parts.

The programs of `softmax_parts` each hold a tile of targets and a share of the keys, and keep the largest
similarity, the total weight and the weighted labels, rescaled when the largest grows. `join_parts` brings
the shares together.
"""

import triton
import triton.language as tl

from streamvos.nn.kernels.blocks import LOWEST, load_rows, tile_places, window_around
from streamvos.nn.propagation.kernels.affinity import block_of_bits

# ruff: noqa: N803  (compile-time parameters in capitals, as is usual in Triton)


@triton.jit(do_not_specialize=["references"])
def softmax_parts(
    query,
    keys,
    labels,
    offsets,
    settings,
    largest,
    total,
    carried,
    height,
    width,
    across,
    channels,
    label_count,
    references,
    scale,
    SHARES: tl.constexpr,
    TILE_ROWS: tl.constexpr,
    TILE_COLUMNS: tl.constexpr,
    BLOCK_KEYS: tl.constexpr,
    CHANNEL_BLOCKS: tl.constexpr,
    BLOCK_CHANNELS: tl.constexpr,
    BLOCK_LABELS: tl.constexpr,
    ALIGNED: tl.constexpr,
    INSIDE: tl.constexpr,
    OUTSIDE: tl.constexpr,
    PRODUCT: tl.constexpr,
    SUM: tl.constexpr,
    WIDEN: tl.constexpr,
):
    """Grid: tiles, shares, blocks of labels.

    Args:
        query: (h*w, channels).
        keys, labels: (h*w, channels) and float32 (h*w, label_count) of the first reference.
        offsets: (references, 2) int64, from there to those of each reference, in elements.
        settings: (references, 2) float32, log2(e) / sigma^2 and radius.
        largest, total: (SHARES, h*w) float32, written.
        carried: (SHARES, h*w, label_count) float32, written.
    """
    share = tl.program_id(1)
    top, left, rows, columns = tile_places(tl.program_id(0), across, TILE_ROWS, TILE_COLUMNS)
    alive = (rows < height) & (columns < width)
    cells = rows * width + columns
    queries = load_rows(query, cells, alive, 0, channels, BLOCK_CHANNELS, WIDEN)
    label = tl.program_id(2) * BLOCK_LABELS + tl.arange(0, BLOCK_LABELS)
    known = label < label_count

    most = tl.full((TILE_ROWS * TILE_COLUMNS,), LOWEST, tl.float32)
    weight = tl.zeros((TILE_ROWS * TILE_COLUMNS,), tl.float32)
    soft = tl.zeros((TILE_ROWS * TILE_COLUMNS, BLOCK_LABELS), tl.float32)
    for reference in range(references):
        to_keys = tl.load(offsets + 2 * reference)
        if ALIGNED:
            to_keys = tl.multiple_of(to_keys, 16)
        to_labels = tl.load(offsets + 2 * reference + 1)
        slope = tl.load(settings + 2 * reference)
        radius = tl.load(settings + 2 * reference + 1).to(tl.int32)
        first_row, first_column, window_columns, count = window_around(
            top, left, radius, height, width, TILE_ROWS, TILE_COLUMNS
        )
        for start in range(share * BLOCK_KEYS, count, SHARES * BLOCK_KEYS):
            bits, key_cells, exist, squared = block_of_bits(
                query,
                queries,
                cells,
                alive,
                rows,
                columns,
                keys + to_keys,
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
                BLOCK_KEYS,
                CHANNEL_BLOCKS,
                BLOCK_CHANNELS,
                INSIDE,
                PRODUCT,
                WIDEN,
            )
            more = tl.maximum(most, tl.max(bits, 1))
            shrink = tl.exp2(most - more)
            most = more
            weights = tl.exp2(bits - most[:, None])
            weight = weight * shrink + tl.sum(weights, 1)
            if OUTSIDE:
                weights *= tl.exp2(-squared * slope)
            values = tl.load(
                labels + to_labels + key_cells[:, None] * label_count + label[None, :],
                mask=exist[:, None] & known[None, :],
                other=0.0,
            )
            soft = soft * shrink[:, None] + tl.dot(weights, values, input_precision=SUM)

    place = share * height * width + cells
    tl.store(largest + place, most, mask=alive)
    tl.store(total + place, weight, mask=alive)
    where = carried + place[:, None] * label_count + label[None, :]
    tl.store(where, soft, mask=alive[:, None] & known[None, :])


@triton.jit
def join_parts(
    largest,
    total,
    carried,
    out,
    cell_count,
    label_count,
    SHARES: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_LABELS: tl.constexpr,
):
    """Grid: blocks of cells, blocks of labels. `out`: (label_count, cell_count) float32."""
    cells = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    alive = cells < cell_count
    label = tl.program_id(1) * BLOCK_LABELS + tl.arange(0, BLOCK_LABELS)
    there = alive[:, None] & (label < label_count)[None, :]
    most = tl.full((BLOCK,), LOWEST, tl.float32)
    for share in range(SHARES):
        most = tl.maximum(most, tl.load(largest + share * cell_count + cells, mask=alive, other=LOWEST))
    weight = tl.zeros((BLOCK,), tl.float32)
    soft = tl.zeros((BLOCK, BLOCK_LABELS), tl.float32)
    for share in range(SHARES):
        place = share * cell_count + cells
        factor = tl.exp2(tl.load(largest + place, mask=alive, other=LOWEST) - most)
        weight += factor * tl.load(total + place, mask=alive, other=1.0)
        where = carried + place[:, None] * label_count + label[None, :]
        soft += factor[:, None] * tl.load(where, mask=there, other=0.0)
    mean = soft / tl.where(alive, weight, 1.0)[:, None]
    tl.store(out + label[None, :] * cell_count + cells[:, None], mean, mask=there)
