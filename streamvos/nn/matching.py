"""How far every cell of a frame is from the nearest cell of each object, in the space of embeddings.

Global matching looks at all reference cells of an object, local matching at those of the previous frame
within a window. Both map the squared distance s to 1 - 2 / (1 + exp(s)) = tanh(s / 2), and an object without
a candidate is at distance 1 exactly (Voigtlaender et al., "FEELVOS", CVPR 2019, equations 1 to 3).

    reference = sort_reference(first_embedding, first_labels, ids=(0, 3, 7))      # once per annotation
    global_distances(embedding, reference)                                        # (3, h*w)
    channels = channel_table((0, 3, 7))[labels]                                   # 0, 1, 2, or 3 for others
    local_distances(embedding, previous, channels, objects=3, grid=(120, 214), window=15)

At 480p the global distances are 25,680 x 25,680 and the local ones need 961 neighbors of each of 25,680
cells. Neither is ever held:
  - s = |x|^2 + |y|^2 - 2 x.y, so tiles of cells meet chunks of candidates in one matrix product that stays in
    the cache, and only minima leave it. The map is monotone, so it comes after the minimum;
  - candidates are sorted by object: a minimum over consecutive columns per object, whatever their number;
  - a window is matched as a whole with a small tile of cells, and what is too far away gets infinity: twice
    the products, but in the form that processors are fast at, and nothing is copied 961 times.

That form of s cancels where embeddings have a common offset (norms of 1e4 leave errors of 4e-3). Distances
do not change when both sides move, so the mean of the reference is subtracted first; products are in the
dtype of the embeddings, never in half precision. On CUDA leave `torch.set_float32_matmul_precision` at its
default: TensorFloat-32 has the same flaw.

Where a gradient is asked for, the nearest cells are found without one and their distances computed anew
from the differences: the gradient of a minimum is that of its smallest entry.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor

from streamvos.nn.tiling import Box, cover, log_prior
from streamvos.nn.workers import run_tiles, run_whole
from streamvos.types import VOID, InputError

NOBODY = -1
"""Stands for the nearest cell where there is no candidate."""

_QUERIES = {"cpu": 512, "gpu": 4096}  # cells of a tile in global matching
_CHUNK = {"cpu": 512, "gpu": 8192}  # candidates that meet it at once; on the CPU 1 MB of products
_ROWS = 4096  # embeddings that are centered at once
_SIDE = {"cpu": 16, "gpu": 64}  # of a tile in local matching; with a radius of 15 its window is 46 x 46


@dataclass(frozen=True)
class Reference:
    """Candidates of global matching, made ready once.

    Attributes:
        center: (C,), mean of the N candidates.
        factors: (N, C + 1): the centered embeddings y and |y|^2, so that one product with (-2 x, 1) gives
            the squared distances, but for |x|^2.
        bounds: the candidates of object k are rows bounds[k] to bounds[k + 1], as they came.
        embedding: (N, C), where a gradient is to reach them.
    """

    center: Tensor
    factors: Tensor
    bounds: tuple[int, ...]
    embedding: Tensor | None = None

    def rows(self) -> Tensor:
        """(N, C), what the candidates are, sorted."""
        return self.factors[:, :-1] + self.center if self.embedding is None else self.embedding


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


def sort_reference(embedding: Tensor, labels: Tensor, ids: Sequence[int]) -> Reference:
    """Sort cells by the object they belong to. The host waits for the device once.

    Args:
        embedding: (N, C) float.
        labels: (N,) integer, 0..255; cells whose label is none of `ids` are left out.
        ids: of the objects, in the order of the results; the background is one like the others.

    Raises:
        InputError: shapes that do not fit together, or ids outside 0..255.
    """
    _check_labels(embedding, labels)
    with torch.no_grad():
        channels = channel_table(ids, labels.device)[labels.long()]
        counts = torch.bincount(channels, minlength=len(ids) + 1).tolist()[: len(ids)]
        order = channels.argsort(stable=True)[: sum(counts)]
        rows = embedding[order]
        center = rows.mean(0) if len(rows) else rows.new_zeros(rows.shape[1])
        factors = _centered(rows, center)
    bounds = (0, *accumulate(counts))
    return Reference(center, factors, bounds, embedding[order] if _wants_gradient(embedding) else None)


def global_distances(query: Tensor, reference: Reference) -> Tensor:
    """Equation 2: the distance of every cell to the nearest candidate of each object.

    On a GPU nothing waits for the host. No gradient goes to the centers, which cancel.

    Args:
        query: (M, C) float embeddings.
        reference: candidates.

    Returns:
        (objects, M) in the dtype of `query`, 0..1; 1 exactly for an object without a candidate.

    Raises:
        InputError: embeddings of another length.
    """
    channels = len(reference.center)
    if query.ndim != 2 or query.shape[1] != channels:
        raise InputError(f"query is (cells, {channels}) like the reference, got {tuple(query.shape)}")
    kind, parallel = _kind(query)
    chunks = _chunks(reference.bounds, _CHUNK[kind])
    indices = _wants_gradient(query) or reference.embedding is not None

    def make_work() -> Callable[[Tensor], Tensor]:
        def work(tile: Tensor) -> Tensor:
            best = _Minima(len(reference.bounds) - 1, tile, indices)
            for start, stop, pieces in chunks:
                products = torch.mm(tile, reference.factors[start:stop].t())
                for k, first, last in pieces:
                    best.see(k, products[:, first - start : last - start], first)
            return best.cells if indices else best.values

        return work

    with torch.no_grad(), _without_autocast(query.device.type):
        centered, norms = run_whole(lambda: _queries(query, reference.center), parallel)
        tiles = list(centered.split(_QUERIES[kind]))
        answers = torch.cat(run_tiles(tiles, make_work, parallel), dim=1)
    if indices:
        return _distances_to(query, reference.rows(), answers)
    return squash(answers.add_(norms))


def local_distances(
    query: Tensor,
    previous: Tensor,
    channels: Tensor,
    objects: int,
    grid: tuple[int, int],
    window: int,
    sort: bool | None = None,
) -> Tensor:
    """Equation 3: the distance of every cell to the nearest cell of each object near its place before.

    Candidates are the cells of the previous frame at most `window` rows and columns away that belong to the
    object; the grid ends at its border.

    Args:
        query: (h*w, C) float embeddings, cells row by row.
        previous: (h*w, C), those of the previous frame.
        channels: (h*w,) int64, the object of each cell of the previous frame, 0..objects - 1; `objects` for
            none (see `channel_table`).
        objects: how many, the background included.
        grid: (h, w).
        window: k of the paper, 15; a radius, so that the window has 31 x 31 cells.
        sort: sort the candidates of each window by object, so that every product is looked at once, for which
            the host has to know their counts; otherwise all products are looked at once per object, and
            nothing waits for the host. None = sort on a CPU.

    Returns:
        (objects, h*w) in the dtype of `query`, 0..1; 1 exactly where an object has no candidate.

    Raises:
        InputError: shapes that do not fit together, no objects, or a negative window.
    """
    if query.shape != previous.shape or query.ndim != 2 or len(query) != grid[0] * grid[1]:
        raise InputError(
            f"a grid of {grid[0]} x {grid[1]} needs query and previous of ({grid[0] * grid[1]}, C), "
            f"got {tuple(query.shape)} and {tuple(previous.shape)}"
        )
    if window < 0:
        raise InputError(f"the window is a radius of at least 0 cells, got {window}")
    if objects < 1:
        raise InputError(f"there is at least one object, the background, got {objects}")
    _check_labels(previous, channels)
    kind, parallel = _kind(query)
    indices = _wants_gradient(query, previous)

    def prepare() -> tuple[Tensor, Tensor, Tensor]:
        center = previous.mean(0)
        return *_queries(query, center), _centered(previous, center)

    with torch.no_grad(), _without_autocast(query.device.type):
        centered, norms, factors = run_whole(prepare, parallel)
        neighborhood = _Neighborhood(centered, factors, channels, objects, grid, window, indices)
        sort = parallel if sort is None else sort
        match = neighborhood.sorted_minima if sort else neighborhood.masked_minima
        side = _SIDE[kind]
        tiles = cover(grid, math.ceil(grid[0] / side), math.ceil(grid[1] / side))
        answers = run_tiles(tiles, lambda: match, parallel)
        best = torch.empty((objects, *grid), dtype=answers[0].dtype, device=query.device)
        for tile, answer in zip(tiles, answers, strict=True):
            place = best[:, tile.top : tile.bottom, tile.left : tile.right]
            place.copy_(answer.unflatten(1, (tile.rows, tile.columns)))
    if indices:
        return _distances_to(query, previous, best.flatten(1))
    return squash(best.flatten(1).add_(norms))


# --- how the minima are found -----------------------------------------------------------------------------


class _Minima:
    """The smallest product of every cell of a tile per object, and where asked, whose it is."""

    def __init__(self, objects: int, tile: Tensor, indices: bool):
        self.values = tile.new_full((objects, len(tile)), math.inf)
        self.cells = torch.full((objects if indices else 0, len(tile)), NOBODY, device=tile.device)

    def see(self, k: int, products: Tensor, cells: int | Tensor) -> None:
        """Take note of more candidates of object k.

        Args:
            products: (T, n) with n >= 1.
            cells: (n,) which candidates those are, or the number of the first of consecutive ones.
        """
        if not len(self.cells):
            torch.minimum(self.values[k], products.amin(1), out=self.values[k])
            return
        smallest, place = products.min(1)
        found = cells[place] if isinstance(cells, Tensor) else place + cells
        # equal, not only smaller, would let a candidate at infinity in
        better = smallest < self.values[k]
        self.cells[k] = torch.where(better, found, self.cells[k])
        self.values[k] = torch.where(better, smallest, self.values[k])


@dataclass(frozen=True)
class _Neighborhood:
    """What all tiles of one local matching share.

    Attributes:
        queries: (h*w, C + 1), see `_queries`.
        factors: (h*w, C + 1), see `Reference`.
        channels: (h*w,) int64, the object of each cell of the previous frame, `objects` for none.
    """

    queries: Tensor
    factors: Tensor
    channels: Tensor
    objects: int
    grid: tuple[int, int]
    window: int
    indices: bool

    def sorted_minima(self, tile: Box) -> Tensor:
        """(objects, tile.cells): every product is looked at once."""
        around = tile.grow(self.window, self.grid)
        channels = around.take(self.channels, self.grid)
        counts = torch.bincount(channels, minlength=self.objects + 1).tolist()[: self.objects]
        order = channels.argsort(stable=True)[: sum(counts)]
        # transposed on both sides of the sum: tile cells in rows, candidates in columns
        products = torch.mm(around.take(self.factors, self.grid)[order], self._cells(tile).t())
        products -= self._log_inside(around, tile)[order]
        best = _Minima(self.objects, self._cells(tile), self.indices)
        cells = self._numbers(around)[order] if self.indices else order
        start = 0
        for k, count in enumerate(counts):
            if count:
                best.see(k, products[start : start + count].t(), cells[start : start + count])
            start += count
        return best.cells if self.indices else best.values

    def masked_minima(self, tile: Box) -> Tensor:
        """The same, with a pass over the products per object, and nothing that waits for the host."""
        around = tile.grow(self.window, self.grid)
        channels = around.take(self.channels, self.grid)
        products = torch.mm(self._cells(tile), around.take(self.factors, self.grid).t())
        products -= self._log_inside(around, tile).t()
        best = _Minima(self.objects, self._cells(tile), self.indices)
        cells = self._numbers(around) if self.indices else 0
        for k in range(self.objects):
            best.see(k, products.masked_fill(channels != k, math.inf), cells)
        return best.cells if self.indices else best.values

    def _cells(self, tile: Box) -> Tensor:
        return tile.take(self.queries, self.grid)

    def _log_inside(self, around: Box, tile: Box) -> Tensor:
        """(around.cells, tile.cells): 0 inside the window of a cell, -inf outside."""
        inside = log_prior(around, tile, None, self.window, self.queries.device)
        return inside.to(self.queries.dtype)

    def _numbers(self, around: Box) -> Tensor:
        """Number of each cell of `around` in the grid."""
        return around.take(torch.arange(len(self.factors), device=self.factors.device), self.grid)


def _chunks(bounds: Sequence[int], size: int) -> list[tuple[int, int, list[tuple[int, int, int]]]]:
    """Rows in chunks of at most `size`: (start, stop, [(object, start of its rows in it, stop), ...])."""
    chunks = []
    for start in range(0, bounds[-1], size):
        stop = min(start + size, bounds[-1])
        pieces = [(k, max(start, bounds[k]), min(stop, bounds[k + 1])) for k in range(len(bounds) - 1)]
        chunks.append((start, stop, [piece for piece in pieces if piece[1] < piece[2]]))
    return chunks


def _distances_to(query: Tensor, reference: Tensor, nearest: Tensor) -> Tensor:
    """(objects, M): equation 1 for known nearest cells, from differences, with a gradient.

    Args:
        query: (M, C).
        reference: (N, C).
        nearest: (objects, M) int64, rows of `reference` or `NOBODY`.
    """
    if not len(reference):
        return query.new_ones(nearest.shape)
    squared = (query - reference[nearest.clamp_min(0)]).square().sum(-1)
    return torch.where(nearest == NOBODY, 1, squash(squared))


# --- small parts ------------------------------------------------------------------------------------------


def _centered(values: Tensor, center: Tensor) -> Tensor:
    """(N, C + 1): y = values - center, and |y|^2; in pieces, so that no other copy of all is made."""
    centered = values.new_empty(len(values), values.shape[1] + 1)
    for rows, out in zip(values.split(_ROWS), centered.split(_ROWS), strict=True):
        torch.sub(rows, center, out=out[:, :-1])
        torch.sum(out[:, :-1].square(), 1, out=out[:, -1])
    return centered


def _queries(query: Tensor, center: Tensor) -> tuple[Tensor, Tensor]:
    """(-2 x, 1) and |x|^2 of the centered query x: (M, C + 1) and (M,)."""
    centered = _centered(query, center)
    norms = centered[:, -1].clone()
    centered[:, :-1] *= -2
    centered[:, -1] = 1
    return centered, norms


def _kind(query: Tensor) -> tuple[str, bool]:
    """Which sizes suit the device, and whether tiles are to run on threads."""
    on_cpu = query.device.type == "cpu"
    return ("cpu" if on_cpu else "gpu"), on_cpu


def _wants_gradient(*tensors: Tensor) -> bool:
    return torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)


def _without_autocast(device: str) -> AbstractContextManager[object]:
    """A caller's autocast must not round the products."""
    if torch.amp.is_autocast_available(device):
        return torch.autocast(device, enabled=False)
    return nullcontext()


def _check_labels(embedding: Tensor, labels: Tensor) -> None:
    """What can be told without looking into the tensors."""
    if embedding.ndim != 2 or not embedding.is_floating_point():
        raise InputError(
            f"embeddings are (cells, C) floating point, got {tuple(embedding.shape)} {embedding.dtype}"
        )
    if tuple(labels.shape) != (len(embedding),) or labels.is_floating_point():
        raise InputError(
            f"labels are ({len(embedding)},) integers, one per cell, got {tuple(labels.shape)} {labels.dtype}"
        )
