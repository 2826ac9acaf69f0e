"""Candidates of matching, and what both kinds of it share: squared distances as products, and equation 1.

reference = sort_reference(embedding, labels, ids=(0, 3, 7))
queries, norms = queries_of(query, reference.center)
squash(queries @ reference.factors.t() + norms[:, None])         # all distances, if one had the room
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor

from streamvos.types import VOID, InputError

_ROWS = 4096  # embeddings that are centered at once


@dataclass(frozen=True)
class Reference:
    """Candidates of global matching, prepared once and sorted by object.

    Attributes:
        center: (C,), mean of the N candidates.
        factors: (N, C + 1): the centered embeddings y and |y|^2, so that one product with (-2 x, 1) gives
            the squared distances, except for |x|^2.
        bounds: the candidates of object k are rows bounds[k] to bounds[k + 1], in their original order.
    """

    center: Tensor
    factors: Tensor
    bounds: tuple[int, ...]


def squash(squared: Tensor) -> Tensor:
    """Equation 1: squared distances, of which rounding may have made negative ones, to 0..1.

    Infinity becomes 1 exactly.
    """
    return torch.tanh(squared.clamp_min(0) / 2)


def channel_table(ids: Sequence[int], device: torch.device | str = "cpu") -> Tensor:
    """What turns labels into channels: (256,) int64, `table[label]` is the place of `label` in `ids`.

    It is len(ids) for labels that are not in it.

    Raises:
        InputError: ids outside 0..255, none, or one twice.
    """
    if not ids or len(set(ids)) != len(ids) or min(ids) < 0 or max(ids) > VOID:
        raise InputError(f"ids are different numbers in 0..{VOID}, at least one, got {list(ids)}")
    table = torch.full((VOID + 1,), len(ids))
    table[list(ids)] = torch.arange(len(ids))
    return table.to(device)


@torch.no_grad()
def sort_reference(embedding: Tensor, labels: Tensor, ids: Sequence[int]) -> Reference:
    """Sort cells by the object they belong to. The host waits for the device once.

    Args:
        embedding: (N, C) float.
        labels: (N,) integer, 0..255; cells whose label is none of `ids` are left out.
        ids: of the objects, in the order of the results; the background is one like the others.

    Raises:
        InputError: shapes that do not fit together, or ids outside 0..255.
    """
    check_labels(embedding, labels)
    channels = channel_table(ids, labels.device)[labels.long()]
    counts = torch.bincount(channels, minlength=len(ids) + 1).tolist()[: len(ids)]
    order = channels.argsort(stable=True)[: sum(counts)]  # (N,), cells of no object are last and left out
    rows = embedding[order]
    center = rows.mean(0) if len(rows) else rows.new_zeros(rows.shape[1])
    return Reference(center, centered_rows(rows, center), (0, *accumulate(counts)))


def centered_rows(values: Tensor, center: Tensor) -> Tensor:
    """(N, C + 1): y = values - center, and |y|^2; in pieces, so that no other copy of all is made."""
    centered = values.new_empty(len(values), values.shape[1] + 1)
    for rows, out in zip(values.split(_ROWS), centered.split(_ROWS), strict=True):
        torch.sub(rows, center, out=out[:, :-1])
        torch.sum(out[:, :-1].square(), 1, out=out[:, -1])
    return centered


def queries_of(query: Tensor, center: Tensor) -> tuple[Tensor, Tensor]:
    """(-2 x, 1) and |x|^2 of the centered query x: (M, C + 1) and (M,)."""
    centered = centered_rows(query, center)
    norms = centered[:, -1].clone()
    centered[:, :-1] *= -2
    centered[:, -1] = 1
    return centered, norms


def kind_of(query: Tensor) -> tuple[str, bool]:
    """Which sizes suit the device, and whether tiles are to run on threads."""
    on_cpu = query.device.type == "cpu"
    return ("cpu" if on_cpu else "gpu"), on_cpu


def check_labels(embedding: Tensor, labels: Tensor) -> None:
    """What can be told without looking into the tensors."""
    if embedding.ndim != 2 or not embedding.is_floating_point():
        raise InputError(
            f"embeddings are (cells, C) floating point, got {tuple(embedding.shape)} {embedding.dtype}"
        )
    if tuple(labels.shape) != (len(embedding),) or labels.is_floating_point():
        raise InputError(
            f"labels are ({len(embedding)},) integers, one per cell, got {tuple(labels.shape)} {labels.dtype}"
        )
