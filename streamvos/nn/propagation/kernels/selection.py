"""Propagation with the k best keys in the softmax: candidates of every share, then the best of those.

The programs of `best_parts` each hold a tile of targets, a share of the keys and the k best found so far,
whose least is the bar. Most blocks of keys have nothing above the bar and cost one comparison; where one has,
the largest of every target is taken out and takes the place of its least, until none is left. The answer is
exact, whatever comes in; which of equal ones are taken is open, as it is in the tiles. `join_best` chooses
among the shares' candidates and takes the mean of their labels.
"""

import triton
import triton.language as tl

from streamvos.nn.kernels.blocks import load_rows, tile_places, window_around
from streamvos.nn.propagation.kernels.affinity import block_of_bits

# ruff: noqa: N803  (compile-time parameters in capitals, as is usual in Triton)


@triton.jit(do_not_specialize=["references"])
def best_parts(
    query,
    keys,
    offsets,
    settings,
    values,
    places,
    height,
    width,
    across,
    channels,
    references,
    scale,
    SHARES: tl.constexpr,
    BEST: tl.constexpr,
    BLOCK_BEST: tl.constexpr,
    TILE_ROWS: tl.constexpr,
    TILE_COLUMNS: tl.constexpr,
    BLOCK_KEYS: tl.constexpr,
    CHANNEL_BLOCKS: tl.constexpr,
    BLOCK_CHANNELS: tl.constexpr,
    ALIGNED: tl.constexpr,
    INSIDE: tl.constexpr,
    PRODUCT: tl.constexpr,
    WIDEN: tl.constexpr,
):
    """Grid: tiles, shares.

    Args:
        query, keys, offsets, settings: see `softmax_parts`.
        values: (h*w, SHARES, BEST) float32, similarities in bits, written; -inf where there are fewer.
        places: (h*w, SHARES, BEST) int32, reference * h * w + cell, written.
    """
    share = tl.program_id(1)
    top, left, rows, columns = tile_places(tl.program_id(0), across, TILE_ROWS, TILE_COLUMNS)
    alive = (rows < height) & (columns < width)
    cells = rows * width + columns
    queries = load_rows(query, cells, alive, 0, channels, BLOCK_CHANNELS, WIDEN)

    slot = tl.arange(0, BLOCK_BEST)[None, :]
    column = tl.arange(0, BLOCK_KEYS)[None, :]
    # what is no place for a candidate looks as if it held one that cannot be beaten
    held = tl.where(slot < BEST, float("-inf"), float("inf"))
    held = tl.broadcast_to(held, (TILE_ROWS * TILE_COLUMNS, BLOCK_BEST))
    whose = tl.zeros((TILE_ROWS * TILE_COLUMNS, BLOCK_BEST), tl.int32)
    bar = tl.full((TILE_ROWS * TILE_COLUMNS,), float("-inf"), tl.float32)
    for back in range(references):
        reference = references - 1 - back  # the most recent first: the sooner the bar is high, the better
        to_keys = tl.load(offsets + 2 * reference)
        if ALIGNED:
            to_keys = tl.multiple_of(to_keys, 16)
        slope = tl.load(settings + 2 * reference)
        radius = tl.load(settings + 2 * reference + 1).to(tl.int32)
        first_row, first_column, window_columns, count = window_around(
            top, left, radius, height, width, TILE_ROWS, TILE_COLUMNS
        )
        for start in range(share * BLOCK_KEYS, count, SHARES * BLOCK_KEYS):
            bits, key_cells, _exist, _squared = block_of_bits(
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
            names = (reference * height * width + key_cells)[None, :]
            largest, where = tl.max(bits, 1, return_indices=True)
            better = (largest > bar) & alive
            while tl.max(better.to(tl.int32), 0) > 0:
                found = column == where[:, None]
                name = tl.sum(tl.where(found, names, 0), 1)
                least = tl.argmin(held, 1)
                taken = (slot == least[:, None]) & better[:, None]
                held = tl.where(taken, largest[:, None], held)
                whose = tl.where(taken, name[:, None], whose)
                bar = tl.min(held, 1)
                # one that is not above the bar now never will be
                bits = tl.where(found, float("-inf"), bits)
                largest, where = tl.max(bits, 1, return_indices=True)
                better = (largest > bar) & alive

    place = (cells * SHARES + share)[:, None] * BEST + slot
    there = alive[:, None] & (slot < BEST)
    tl.store(values + place, held, mask=there)
    tl.store(places + place, whose, mask=there)


@triton.jit
def join_best(
    values,
    places,
    labels,
    offsets,
    settings,
    out,
    width,
    cell_count,
    label_count,
    CANDIDATES: tl.constexpr,
    BEST: tl.constexpr,
    BLOCK_CANDIDATES: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_LABELS: tl.constexpr,
    OUTSIDE: tl.constexpr,
):
    """Grid: blocks of cells, blocks of labels. `out`: (label_count, cell_count) float32.

    Args:
        values, places: (cell_count, CANDIDATES), see `best_parts`.
        labels: float32 (cell_count, label_count) of the first reference.
    """
    cells = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    alive = cells < cell_count
    label = tl.program_id(1) * BLOCK_LABELS + tl.arange(0, BLOCK_LABELS)
    there = alive[:, None] & (label < label_count)[None, :]
    column = tl.arange(0, BLOCK_CANDIDATES)[None, :]
    exist = alive[:, None] & (column < CANDIDATES)
    candidate = cells[:, None] * CANDIDATES + column
    bits = tl.load(values + candidate, mask=exist, other=float("-inf"))
    names = tl.load(places + candidate, mask=exist, other=0)

    first = tl.where(alive, tl.max(bits, 1), 0.0)
    weight = tl.zeros((BLOCK,), tl.float32)
    soft = tl.zeros((BLOCK, BLOCK_LABELS), tl.float32)
    for _ in range(BEST):
        largest, where = tl.max(bits, 1, return_indices=True)
        found = column == where[:, None]
        name = tl.sum(tl.where(found, names, 0), 1)
        bits = tl.where(found, float("-inf"), bits)
        share = tl.exp2(largest - first)
        weight += share
        reference = name // cell_count
        cell = name % cell_count
        if OUTSIDE:
            down = cell // width - cells // width
            right = cell % width - cells % width
            slope = tl.load(settings + 2 * reference)
            share *= tl.exp2(-(down * down + right * right).to(tl.float32) * slope)
        row = tl.load(offsets + 2 * reference + 1) + cell * label_count
        soft += share[:, None] * tl.load(labels + row[:, None] + label[None, :], mask=there, other=0.0)
    mean = soft / tl.where(alive, weight, 1.0)[:, None]
    tl.store(out + label[None, :] * cell_count + cells[:, None], mean, mask=there)
