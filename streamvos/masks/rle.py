"""COCO's run-length encoding of masks, for results in JSON lines.

A mask is read column by column; the lengths of its alternating runs of 0 and 1, beginning with 0, are packed
into printable characters. pycocotools' `mask.decode` accepts the result, and its `mask.encode` gives the same
text (COCO API, maskApi.c).

    >>> encode_rles(np.array([[0, 1], [1, 1]], np.uint8), [1])
    {1: {'size': [2, 2], 'counts': '13'}}
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TypedDict

import numpy as np

from streamvos.masks.checks import check_label_map
from streamvos.types import InputError


class Rle(TypedDict):
    """One mask: its size [H, W] and its packed counts."""

    size: list[int]
    counts: str


def encode_rles(label_map: np.ndarray, ids: Iterable[int]) -> dict[int, Rle]:
    """The run-length encodings of several objects of one label map, by object id.

    Args:
        label_map: (H, W), integer or bool.
        ids: the labels to encode; the mask of an absent one is empty.

    Raises:
        InputError: the label map is not (H, W).
    """
    label_map = check_label_map(label_map)
    height, width = label_map.shape
    columns = label_map.ravel(order="F")
    starts = np.concatenate([[0], np.flatnonzero(columns[1:] != columns[:-1]) + 1])
    ends = np.append(starts[1:], columns.size)
    labels = columns[starts]
    encoded: dict[int, Rle] = {}
    for label in ids:
        own = labels == label
        # Runs of one label never touch, so zeros and ones alternate: gap, run, gap, run, ..., rest.
        edges = np.stack([starts[own], ends[own]], axis=1).ravel()
        counts = np.diff(edges, prepend=0)
        rest = columns.size - (int(edges[-1]) if edges.size else 0)
        counts = np.append(counts, rest) if rest else counts
        encoded[int(label)] = {"size": [height, width], "counts": _pack(counts.astype(np.int64))}
    return encoded


def decode_rle(rle: Mapping[str, object]) -> np.ndarray:
    """The mask of an encoding, (H, W) uint8 of 0 and 1.

    Args:
        rle: "size" [H, W] and "counts", packed (str or bytes).

    Raises:
        InputError: an entry is missing, or the counts do not add up to the size.
    """
    size, counts = rle.get("size"), rle.get("counts")
    if isinstance(counts, bytes):
        counts = counts.decode("ascii", errors="replace")
    is_size = isinstance(size, (list, tuple)) and len(size) == 2 and all(isinstance(n, int) for n in size)
    if not isinstance(size, (list, tuple)) or not is_size or not isinstance(counts, str):
        raise InputError(f"an RLE needs size [H, W] and packed counts, got {dict(rle)!r:.100}")
    height, width = size
    runs = _unpack(counts)
    # no run is longer than all of them, so the sum cannot overflow
    if ((runs < 0) | (runs > height * width)).any() or int(runs.sum()) != height * width:
        raise InputError(f"an RLE of size {height}x{width} has counts that add up to {int(runs.sum())}")
    values = (np.arange(len(runs)) % 2).astype(np.uint8)
    return np.repeat(values, runs).reshape((height, width), order="F")


def _pack(counts: np.ndarray) -> str:
    """Counts as text: from the fourth on the difference to the last but one, in groups of 5 bits.

    The lowest group comes first; a sixth bit marks that more follow; the last group's top bit is the sign.
    """
    values = counts.copy()
    values[3:] -= counts[1:-2]
    groups = np.zeros((len(values), 13), np.uint8)  # 13 x 5 bits hold any 64-bit number
    used = np.zeros((len(values), 13), bool)
    unfinished = np.ones(len(values), bool)
    for place in range(13):
        low = values & 31
        values >>= 5
        ends = np.where(low & 16, values == -1, values == 0)
        groups[:, place] = low + 32 * ~ends + 48
        used[:, place] = unfinished
        unfinished &= ~ends
        if not unfinished.any():
            break
    return groups[used].tobytes().decode("ascii")


def _unpack(text: str) -> np.ndarray:
    """Counts from text, (n,) int64."""
    counts: list[int] = []
    value = place = 0
    for character in text:
        group = ord(character) - 48
        if not 0 <= group < 64 or place > 12:
            raise InputError(f"an RLE holds {character!r}, which is not part of packed counts")
        value |= (group & 31) << (5 * place)
        place += 1
        if group & 32:
            continue
        if group & 16:
            value -= 1 << (5 * place)
        if len(counts) > 2:
            value += counts[-2]
        counts.append(value)
        value = place = 0
    if place:
        raise InputError("an RLE ends in the middle of a count")
    try:
        return np.array(counts, np.int64)
    except OverflowError:
        raise InputError("an RLE holds a count that no mask can have") from None
