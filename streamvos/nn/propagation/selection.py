"""The k largest of very many, exactly, in two cheap steps.

A full selection among 10^4 similarities for each of thousands of cells costs more than the product that
made them. The k best groups of neighbors, by their maxima, hold the k best entries; so one pass for the
maxima and two small selections are enough.

    >>> values, rows = largest(torch.randn(4096, 64), best=10, group=group_size(4096, 10))
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def group_size(count: int, best: int) -> int:
    """How many keys share a maximum: the two steps cost about count / group + best * group."""
    if count <= 64 * best:
        return 1
    return int(2 ** round(math.log2(math.sqrt(count / best) / 2)))


def largest(bits: Tensor, best: int, group: int) -> tuple[Tensor, Tensor]:
    """Values and rows of the `best` largest entries of every column.

    The k best groups by their maxima hold the k best entries: every group left out has a maximum, so all its
    entries, at most as large as k maxima. Which of equal entries is taken is open.

    Args:
        bits: (group * m, T).

    Returns:
        (T, best) float32 and (T, best) int64.
    """
    rows, columns = bits.shape
    if group == 1:
        values, found = bits.t().topk(best, dim=1, sorted=False)
        return values, found
    grouped = bits.view(rows // group, group, columns)
    maxima = grouped.amax(1).t()
    chosen = maxima.topk(min(best, maxima.shape[1]), dim=1, sorted=False).indices
    column = torch.arange(columns, device=bits.device)[:, None]
    candidates = grouped[chosen, :, column].flatten(1)
    values, found = candidates.topk(best, dim=1, sorted=False)
    return values, chosen.gather(1, found // group) * group + found % group
