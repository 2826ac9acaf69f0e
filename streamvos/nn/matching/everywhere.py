"""Global matching: the nearest of all reference cells of each object.

distances = global_distances(embedding, reference)               # (objects, M)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from streamvos.nn.kernels.choice import Kernel, attempt, wants_kernels
from streamvos.nn.matching.candidates import Reference, kind_of, queries_of, squash
from streamvos.nn.precision import without_autocast
from streamvos.nn.workers import run_tiles, run_whole
from streamvos.types import InputError

_QUERIES = {"cpu": 512, "gpu": 4096}  # cells of a tile
_CHUNK = {"cpu": 512, "gpu": 8192}  # candidates that meet it at once; on the CPU 1 MB of products


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
    kind, parallel = kind_of(query)
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
        centered, norms = run_whole(lambda: queries_of(query, reference.center), parallel)
        if wants_kernels(kernel, query, possible):

            def run() -> Tensor:
                from streamvos.nn.matching.kernels.matching import (
                    smallest_everywhere,  # only where there is Triton
                )

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
