"""Distance of every cell of a frame to the nearest cell of each object, in the space of embeddings.

Global matching looks at all reference cells of an object, local matching at those of the previous frame
within a window. Both map the squared distance s to 1 - 2 / (1 + exp(s)) = tanh(s / 2), and an object without
a candidate is at distance 1 exactly (Voigtlaender et al., "FEELVOS", CVPR 2019, equations 1 to 3).

    reference = sort_reference(first_embedding, first_labels, ids=(0, 3, 7))      # once per annotation
    global_distances(embedding, reference)                                        # (3, h*w)
    channels = channel_table((0, 3, 7))[labels]                                   # 0, 1, 2, or 3 for others
    local_distances(embedding, previous, channels, objects=3, grid=(120, 214), window=15)

At 480p the global distances are 25,680 x 25,680 and the local ones need 961 neighbors of each of 25,680
cells. Neither matrix is ever stored:
  - s = |x|^2 + |y|^2 - 2 x.y, so tiles of cells meet chunks of candidates in one matrix product that stays in
    the cache, and only minima leave it. The map is monotone, so it comes after the minimum;
  - candidates are sorted by object: a minimum over consecutive columns per object, whatever their number;
  - a window is matched as a whole with a small tile of cells, and cells too far away get infinity: twice the
    products, but in one matrix product, and nothing is copied 961 times;
  - on a GPU, Triton kernels (`streamvos.nn.matching.kernels`) keep the products in registers.

That form of s cancels where embeddings have a common offset (norms of 1e4 leave errors of 4e-3). Distances
do not change when both sides move, so the mean of the reference is subtracted first; products are in the
dtype of the embeddings, never in half precision. On CUDA leave `torch.set_float32_matmul_precision` at its
default: TensorFloat-32 has the same flaw.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor

from streamvos.nn.kernels.choice import Kernel, attempt, wants_kernels
from streamvos.nn.precision import without_autocast
from streamvos.nn.tiling import Box, cover, log_prior, paste
from streamvos.nn.workers import run_tiles, run_whole
from streamvos.types import VOID, InputError

_ROWS = 4096  # embeddings that are centered at once
_QUERIES = {"cpu": 512, "gpu": 4096}  # cells of a tile of global matching
_CHUNK = {"cpu": 512, "gpu": 8192}  # candidates per product with it; on the CPU 1 MB of products
_SIDE = {"cpu": 16, "gpu": 64}  # rows and columns of a tile of local matching


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
    """Equation 1: squared distances (negative ones are rounding errors) to 0..1; infinity to 1 exactly."""
    return torch.tanh(squared.clamp_min(0) / 2)


def channel_table(ids: Sequence[int], device: torch.device | str = "cpu") -> Tensor:
    """A table from labels to channels: (256,) int64, `table[label]` is the index of `label` in `ids`.

    It is len(ids) for labels that are not in `ids`.

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
    """Sort cells by object. The host waits for the device once.

    Args:
        embedding: (N, C) float.
        labels: (N,) integer, 0..255; cells whose label is none of `ids` are left out.
        ids: ids of the objects, background included, in the order of the results.

    Raises:
        InputError: shapes that do not fit together, or ids outside 0..255.
    """
    _check_labels(embedding, labels)
    channels = channel_table(ids, labels.device)[labels.long()]
    counts = torch.bincount(channels, minlength=len(ids) + 1).tolist()[: len(ids)]
    order = channels.argsort(stable=True)[: sum(counts)]  # (N,), cells of no object are last and left out
    rows = embedding[order]
    center = rows.mean(0) if len(rows) else rows.new_zeros(rows.shape[1])
    return Reference(center, _centered_rows(rows, center), (0, *accumulate(counts)))


def _centered_rows(values: Tensor, center: Tensor) -> Tensor:
    """(N, C + 1): y = values - center, and |y|^2; in pieces, to make no second copy of all."""
    centered = values.new_empty(len(values), values.shape[1] + 1)
    for rows, out in zip(values.split(_ROWS), centered.split(_ROWS), strict=True):
        torch.sub(rows, center, out=out[:, :-1])
        torch.sum(out[:, :-1].square(), 1, out=out[:, -1])
    return centered


def _queries_of(query: Tensor, center: Tensor) -> tuple[Tensor, Tensor]:
    """(-2 x, 1) and |x|^2 of the centered query x: (M, C + 1) and (M,)."""
    centered = _centered_rows(query, center)
    norms = centered[:, -1].clone()
    centered[:, :-1] *= -2
    centered[:, -1] = 1
    return centered, norms


def _check_labels(embedding: Tensor, labels: Tensor) -> None:
    if embedding.ndim != 2 or not embedding.is_floating_point():
        raise InputError(
            f"embeddings are (cells, C) floating point, got {tuple(embedding.shape)} {embedding.dtype}"
        )
    if tuple(labels.shape) != (len(embedding),) or labels.is_floating_point():
        raise InputError(
            f"labels are ({len(embedding)},) integers, one per cell, got {tuple(labels.shape)} {labels.dtype}"
        )


def global_distances(query: Tensor, reference: Reference, kernel: Kernel = "auto") -> Tensor:
    """Equation 2: the distance of every cell to the nearest candidate of each object.

    On a GPU nothing waits for the host. The result has no gradient.

    Args:
        query: (M, C) float embeddings.
        reference: candidates.
        kernel: see `streamvos.nn.propagation.PropagationOptions`; kernels take float32.

    Returns:
        (objects, M) in the dtype of `query`, 0..1; 1 exactly for an object without a candidate.

    Raises:
        InputError: embeddings of another length.
    """
    channels = len(reference.center)
    if query.ndim != 2 or query.shape[1] != channels:
        raise InputError(f"query is (cells, {channels}) like the reference, got {tuple(query.shape)}")
    parallel = query.device.type == "cpu"
    kind = "cpu" if parallel else "gpu"
    chunks = _chunks(reference.bounds, _CHUNK[kind])
    objects = len(reference.bounds) - 1

    def make_work() -> Callable[[Tensor], Tensor]:
        def work(tile: Tensor) -> Tensor:
            best = tile.new_full((objects, len(tile)), math.inf)
            for start, stop, pieces in chunks:
                products = torch.mm(tile, reference.factors[start:stop].t())
                for k, first, last in pieces:
                    smallest = products[:, first - start : last - start].amin(1)
                    torch.minimum(best[k], smallest, out=best[k])
            return best

        return work

    possible = query.dtype == reference.factors.dtype == torch.float32
    with torch.no_grad(), without_autocast(query.device.type):
        centered, norms = run_whole(lambda: _queries_of(query, reference.center), parallel)
        if wants_kernels(kernel, query, possible):

            def run() -> Tensor:  # imported here as Triton may be missing
                from streamvos.nn.matching.kernels.matching import smallest_everywhere

                return smallest_everywhere(centered, reference.factors, reference.bounds)

            smallest = attempt("global matching", kernel, run)
            if smallest is not None:
                return squash(smallest.add_(norms))
        tiles = list(centered.split(_QUERIES[kind]))
        answers = torch.cat(run_tiles(tiles, make_work, parallel), dim=1)
    return squash(answers.add_(norms))


def _chunks(bounds: Sequence[int], size: int) -> list[tuple[int, int, list[tuple[int, int, int]]]]:
    """Rows in chunks of at most `size`: (start, stop, [(object, start of its rows in it, stop), ...])."""
    chunks = []
    for start in range(0, bounds[-1], size):
        stop = min(start + size, bounds[-1])
        pieces = [(k, max(start, bounds[k]), min(stop, bounds[k + 1])) for k in range(len(bounds) - 1)]
        chunks.append((start, stop, [piece for piece in pieces if piece[1] < piece[2]]))
    return chunks


def local_distances(
    query: Tensor,
    previous: Tensor,
    channels: Tensor,
    objects: int,
    grid: tuple[int, int],
    window: int,
    sort: bool | None = None,
    kernel: Kernel = "auto",
) -> Tensor:
    """Equation 3: the distance of every cell to the nearest previous cell of each object within a window.

    Candidates are the object's cells in the previous frame at most `window` rows and columns away.

    Args:
        query: (h*w, C) float embeddings, cells row by row.
        previous: (h*w, C), embeddings of the previous frame.
        channels: (h*w,) int64, the object of each cell of the previous frame, 0..objects - 1; `objects` for
            none (see `channel_table`).
        objects: number of objects, background included.
        grid: (h, w).
        window: radius in cells; k of the paper, 15 (31 x 31 cells).
        sort: sort the candidates of each window by object, for one pass over the products, but the host waits
            for their counts; otherwise there is a pass per object and no wait. None = sort on a CPU. Kernels
            need neither.
        kernel: see `global_distances`.

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
    parallel = query.device.type == "cpu"

    def prepare() -> tuple[Tensor, Tensor, Tensor]:
        center = previous.mean(0)
        return *_queries_of(query, center), _centered_rows(previous, center)

    with torch.no_grad(), without_autocast(query.device.type):
        centered, norms, factors = run_whole(prepare, parallel)
        if wants_kernels(kernel, query, query.dtype == previous.dtype == torch.float32):

            def run() -> Tensor:  # imported here as Triton may be missing
                from streamvos.nn.matching.kernels.matching import smallest_around

                return smallest_around(centered, factors, channels, objects, grid, window)

            smallest = attempt("local matching", kernel, run)
            if smallest is not None:
                return squash(smallest.add_(norms))
        neighborhood = _Neighborhood(centered, factors, channels, objects, grid, window)
        sort = parallel if sort is None else sort
        match = neighborhood.sorted_minima if sort else neighborhood.masked_minima
        side = _SIDE["cpu" if parallel else "gpu"]
        tiles = cover(grid, math.ceil(grid[0] / side), math.ceil(grid[1] / side))
        answers = run_tiles(tiles, lambda: match, parallel)
        smallest = paste(tiles, answers, grid).flatten(1)
    return squash(smallest.add_(norms))


@dataclass(frozen=True)
class _Neighborhood:
    """What all tiles of one local matching share.

    Attributes:
        queries: (h*w, C + 1), see `_queries_of`.
        factors: (h*w, C + 1), see `Reference`.
        channels: (h*w,) int64, the object of each cell of the previous frame, `objects` for none.
    """

    queries: Tensor
    factors: Tensor
    channels: Tensor
    objects: int
    grid: tuple[int, int]
    window: int

    def sorted_minima(self, tile: Box) -> Tensor:
        """(objects, tile.cells), in one pass over the products."""
        around = tile.grow(self.window, self.grid)
        channels = around.take(self.channels, self.grid)
        counts = torch.bincount(channels, minlength=self.objects + 1).tolist()[: self.objects]
        order = channels.argsort(stable=True)[: sum(counts)]
        # (candidates, tile.cells)
        products = torch.mm(around.take(self.factors, self.grid)[order], self._cells(tile).t())
        products -= self._log_inside(around, tile)[order]
        best = products.new_full((self.objects, tile.cells), math.inf)
        for k, candidates in enumerate(products.split(counts)):
            if len(candidates):
                best[k] = candidates.amin(0)
        return best

    def masked_minima(self, tile: Box) -> Tensor:
        """The same, in one pass per object; the device never waits for the host."""
        around = tile.grow(self.window, self.grid)
        channels = around.take(self.channels, self.grid)
        products = torch.mm(self._cells(tile), around.take(self.factors, self.grid).t())
        products -= self._log_inside(around, tile).t()
        return torch.stack(
            [products.masked_fill(channels != k, math.inf).amin(1) for k in range(self.objects)]
        )

    def _cells(self, tile: Box) -> Tensor:
        return tile.take(self.queries, self.grid)

    def _log_inside(self, around: Box, tile: Box) -> Tensor:
        """(around.cells, tile.cells): 0 inside the window of a cell, -inf outside."""
        inside = log_prior(around, tile, None, self.window, self.queries.device)
        return inside.to(self.queries.dtype)
