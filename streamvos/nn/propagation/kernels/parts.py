"""The kernels of propagation, with all keys in the softmax or with the k best.

The programs of `softmax_parts` and `best_parts` each hold a tile of targets and a share of the keys.
`softmax_parts` updates the largest similarity, the total weight and the weighted labels, rescaled when the
largest grows; `join_parts` sums the shares.

`best_parts` holds the k best keys found so far, whose least is the bar. Most blocks of keys have nothing
above the bar and cost one comparison; otherwise the largest of every target replaces its least, until none is
left. The answer is exact; which of equal keys are chosen is open, as it is in the tiles. `join_best` chooses
among the candidates of the shares and takes the mean of their labels.
"""

import triton
import triton.language as tl

from streamvos.nn.kernels.blocks import (
    LOWEST,
    apart,
    load_rows,
    products,
    tile_places,
    window_around,
    window_places,
)

# ruff: noqa: N803  (compile-time parameters in capitals, as is usual in Triton)


@triton.jit
def reference_at(
    number, keys, offsets, settings, top, left, height, width, SIDE: tl.constexpr, ALIGNED: tl.constexpr
):
    """Keys of a reference, log2(e) / sigma^2 and radius, and the window of the tile at (top, left)."""
    to_keys = tl.load(offsets + 2 * number)
    if ALIGNED:
        to_keys = tl.multiple_of(to_keys, 16)
    slope = tl.load(settings + 2 * number)
    radius = tl.load(settings + 2 * number + 1).to(tl.int32)
    return keys + to_keys, slope, radius, window_around(top, left, radius, height, width, SIDE)


@triton.jit
def block_of_bits(
    targets,
    reference,
    start,
    channels,
    scale,
    BLOCK: tl.constexpr,
    CHANNEL_BLOCKS: tl.constexpr,
    BLOCK_CHANNELS: tl.constexpr,
    INSIDE: tl.constexpr,
):
    """Similarities in bits, -inf out of reach; the numbers of the keys; which exist; squared distances.

    The first and the last are (T, BLOCK), the others (BLOCK,). The prior is included where INSIDE.
    """
    query, queries, rows, columns, cells, alive = targets
    keys, slope, radius, window = reference
    key_rows, key_columns, key_cells, exist = window_places(start, window, BLOCK)
    bits = scale * products(
        query, queries, cells, alive, keys, key_cells, exist, channels, CHANNEL_BLOCKS, BLOCK_CHANNELS
    )
    squared, distance = apart(rows, columns, key_rows, key_columns)
    if INSIDE:
        bits -= squared * slope
    bits = tl.where(exist[None, :] & (distance <= radius), bits, float("-inf"))
    return bits, key_cells, exist, squared


@triton.jit(do_not_specialize=["references"])
def softmax_parts(
    query,
    keys,
    offsets,
    settings,
    height,
    width,
    channels,
    references,
    scale,
    labels,
    label_count,
    largest,
    total,
    carried,
    SHARES: tl.constexpr,
    SIDE: tl.constexpr,
    BLOCK: tl.constexpr,
    CHANNEL_BLOCKS: tl.constexpr,
    BLOCK_CHANNELS: tl.constexpr,
    BLOCK_LABELS: tl.constexpr,
    ALIGNED: tl.constexpr,
    INSIDE: tl.constexpr,
    OUTSIDE: tl.constexpr,
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
    top, left, rows, columns, cells, alive = tile_places(tl.program_id(0), height, width, SIDE)
    queries = load_rows(query, cells, alive, 0, channels, BLOCK_CHANNELS)
    targets = (query, queries, rows, columns, cells, alive)
    label = tl.program_id(2) * BLOCK_LABELS + tl.arange(0, BLOCK_LABELS)
    known = label < label_count

    most = tl.full((SIDE * SIDE,), LOWEST, tl.float32)
    weight = tl.zeros((SIDE * SIDE,), tl.float32)
    soft = tl.zeros((SIDE * SIDE, BLOCK_LABELS), tl.float32)
    for number in range(references):
        reference = reference_at(number, keys, offsets, settings, top, left, height, width, SIDE, ALIGNED)
        _keys, slope, _radius, window = reference
        to_labels = tl.load(offsets + 2 * number + 1)
        for start in range(share * BLOCK, window[3], SHARES * BLOCK):
            bits, key_cells, exist, squared = block_of_bits(
                targets, reference, start, channels, scale, BLOCK, CHANNEL_BLOCKS, BLOCK_CHANNELS, INSIDE
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
            soft = soft * shrink[:, None] + tl.dot(weights, values, input_precision="tf32x3")

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


@triton.jit(do_not_specialize=["references"])
def best_parts(
    query,
    keys,
    offsets,
    settings,
    height,
    width,
    channels,
    references,
    scale,
    values,
    places,
    SHARES: tl.constexpr,
    BEST: tl.constexpr,
    BLOCK_BEST: tl.constexpr,
    SIDE: tl.constexpr,
    BLOCK: tl.constexpr,
    CHANNEL_BLOCKS: tl.constexpr,
    BLOCK_CHANNELS: tl.constexpr,
    ALIGNED: tl.constexpr,
    INSIDE: tl.constexpr,
):
    """Grid: tiles, shares.

    Args:
        query, keys, offsets, settings: see `softmax_parts`.
        values: (h*w, SHARES, BEST) float32, similarities in bits, written; -inf where there are fewer.
        places: (h*w, SHARES, BEST) int32, reference * h * w + cell, written.
    """
    share = tl.program_id(1)
    top, left, rows, columns, cells, alive = tile_places(tl.program_id(0), height, width, SIDE)
    queries = load_rows(query, cells, alive, 0, channels, BLOCK_CHANNELS)
    targets = (query, queries, rows, columns, cells, alive)

    slot = tl.arange(0, BLOCK_BEST)[None, :]
    column = tl.arange(0, BLOCK)[None, :]
    # slots beyond BEST hold infinity, which no candidate beats
    held = tl.where(slot < BEST, float("-inf"), float("inf"))
    held = tl.broadcast_to(held, (SIDE * SIDE, BLOCK_BEST))
    whose = tl.zeros((SIDE * SIDE, BLOCK_BEST), tl.int32)
    bar = tl.full((SIDE * SIDE,), float("-inf"), tl.float32)
    for back in range(references):
        number = references - 1 - back  # the most recent first: it raises the bar soonest
        reference = reference_at(number, keys, offsets, settings, top, left, height, width, SIDE, ALIGNED)
        window = reference[3]
        for start in range(share * BLOCK, window[3], SHARES * BLOCK):
            bits, key_cells, _exist, _squared = block_of_bits(
                targets, reference, start, channels, scale, BLOCK, CHANNEL_BLOCKS, BLOCK_CHANNELS, INSIDE
            )
            names = (number * height * width + key_cells)[None, :]
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
                # a key that is not above the bar now never will be
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
