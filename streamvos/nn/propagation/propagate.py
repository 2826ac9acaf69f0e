"""Propagation of one frame: checked, prepared, and handed to the tiles.

soft = propagate(query, keys, labels, sigmas=(), grid=(60, 107), options=options)  # (L, 60, 107)
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from streamvos.nn.kernels.choice import attempt, wants_kernels
from streamvos.nn.precision import without_autocast
from streamvos.nn.propagation.options import COMPUTE, Propagation, PropagationOptions
from streamvos.nn.propagation.scene import Scene, norms_of
from streamvos.nn.propagation.selection import selection_tiles, selection_work
from streamvos.nn.propagation.softmax import softmax_tiles, softmax_work
from streamvos.nn.workers import run_tiles, run_whole

_MOST = 64  # candidates of a target that its registers hold
_HOTTEST = 1e4  # temperature up to which the similarities of features that occur are finite in float32


def propagate(
    query: Tensor,
    keys: Sequence[Tensor],
    labels: Sequence[Tensor],
    sigmas: Sequence[float],
    grid: tuple[int, int],
    options: PropagationOptions,
    radii: Sequence[int | None] | None = None,
) -> Tensor:
    """Labels of the target frame, as its references have them.

    Cells are counted row by row: cell i lies at row i // w, column i % w. All tensors live on one device. No
    gradient is recorded. On a GPU nothing waits for the host.

    With `spatial_prior="paper"` on the CPU, reference cells so far away that together they provably hold less
    than `NEGLIGIBLE` of a target's weight are not looked at: the result is off by at most that share of the
    largest label. With "authors" nothing may be left out, since the denominator knows no distance and labels
    as small as 1e-12 still decide which is the largest.

    Args:
        query: (h*w, C) features of the target, floating point.
        keys: per reference (h*w, C); the last one is taken to be the most recent (only speed depends on it).
            Nothing is copied where their dtype is `options.precision` and they are looked at in full rows;
            otherwise each is cast once per call, so a history does well to store them in that dtype.
        labels: per reference (h*w, L), soft or one-hot, floating point; L counts the background.
        sigmas: per reference the reach of the prior in cells; not read with `spatial_prior="none"`.
        grid: (h, w).
        options: how labels travel, see `PropagationOptions`.
        radii: per reference a radius in place of `options.radius`, for example None for the first frame only.

    Returns:
        (L, h, w) float32. Weights sum to 1 per cell, except with "authors".

    Raises:
        InputError: shapes, counts or values that do not fit together.
    """
    call = Propagation(query, keys, labels, sigmas, grid, options, radii)
    with torch.no_grad(), without_autocast(query.device.type):
        if wants_kernels(options.kernel, query, _within_kernels(call)):

            def run() -> Tensor:
                # only where there is Triton
                from streamvos.nn.propagation.kernels.propagation import propagate_in_kernels

                return propagate_in_kernels(call)

            answer = attempt("propagation", options.kernel, run)
            if answer is not None:
                return answer
        return _propagate_in_tiles(call)


def _within_kernels(call: Propagation) -> bool:
    """Whether the kernels can do this: what they hold has to fit, and similarities be finite in float32."""
    return (
        (not call.selects or (call.options.top_k or 0) <= _MOST)
        and call.options.temperature <= _HOTTEST
        and len(call.keys) * len(call.query) < 2**31
    )


def _propagate_in_tiles(call: Propagation) -> Tensor:
    parallel = call.query.device.type == "cpu"
    dtype = COMPUTE[call.options.precision]

    def prepare(reference: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        key = reference[0].to(dtype)
        return key, norms_of(key).amax(), reference[1].float()

    references = run_tiles(list(zip(call.keys, call.labels, strict=True)), lambda: prepare, parallel)
    scene = run_whole(lambda: Scene(call, references), parallel)
    if scene.shared_labels is None:
        tiles, make_work = softmax_tiles(scene), partial(softmax_work, scene)
    else:
        tiles, make_work = selection_tiles(scene), partial(selection_work, scene, scene.shared_labels)
    answers = run_tiles(tiles, make_work, parallel)
    out = call.query.new_empty(call.labels[0].shape[1], *call.grid, dtype=torch.float32)
    for tile, answer in zip(tiles, answers, strict=True):
        place = out[:, tile.top : tile.bottom, tile.left : tile.right]
        place.copy_(answer.unflatten(1, (tile.rows, tile.columns)))
    return out
