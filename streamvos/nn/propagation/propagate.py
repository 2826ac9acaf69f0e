"""Propagation of one frame: checks its arguments and chooses between kernels and tiles.

soft = propagate(query, keys, labels, sigmas=(), grid=(60, 107), options=options)  # (L, 60, 107)
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from streamvos.nn.kernels.choice import attempt, wants_kernels
from streamvos.nn.precision import without_autocast
from streamvos.nn.propagation.options import Propagation, PropagationOptions
from streamvos.nn.propagation.tiles import propagate_in_tiles

_MOST = 64  # candidates of a target that fit its registers
_HOTTEST = 1e4  # largest temperature at which the similarities of usual features are finite in float32


def propagate(
    query: Tensor,
    keys: Sequence[Tensor],
    labels: Sequence[Tensor],
    sigmas: Sequence[float],
    grid: tuple[int, int],
    options: PropagationOptions,
    radii: Sequence[int | None] | None = None,
) -> Tensor:
    """Labels of the target frame, from those of its references.

    Cells are numbered row by row: cell i lies at row i // w, column i % w. All tensors are on one device. No
    gradient is recorded. A GPU never waits for the host.

    With `spatial_prior="paper"` on the CPU, distant reference cells that together provably hold less than
    `tiles.NEGLIGIBLE` of a target's weight are skipped: the error is at most that share of the largest label.
    With "authors" nothing may be left out, since the denominator does not depend on distance and labels as
    small as 1e-12 still decide which is the largest.

    Args:
        query: (h*w, C) features of the target, floating point.
        keys: per reference (h*w, C), the most recent one last (only speed depends on it). Each whose dtype is
            not `options.precision` is cast once per call, so a history should store them in that dtype.
        labels: per reference (h*w, L), soft or one-hot, floating point; L counts the background.
        sigmas: per reference the scale of the prior in cells; not read with `spatial_prior="none"`.
        grid: (h, w).
        options: see `PropagationOptions`.
        radii: per reference a radius in place of `options.radius`, for example None for the first frame only.

    Returns:
        (L, h, w) float32. Weights sum to 1 per cell, except with "authors".

    Raises:
        InputError: shapes, counts or values that do not fit together.
    """
    call = Propagation(query, keys, labels, sigmas, grid, options, radii)
    with torch.no_grad(), without_autocast(query.device.type):
        if wants_kernels(options.kernel, query, _within_kernels(call)):

            def run() -> Tensor:  # imported here as Triton may be missing
                from streamvos.nn.propagation.kernels.propagation import propagate_in_kernels

                return propagate_in_kernels(call)

            answer = attempt("propagation", options.kernel, run)
            if answer is not None:
                return answer
        return propagate_in_tiles(call)


def _within_kernels(call: Propagation) -> bool:
    """Whether the candidates fit the kernels' registers and similarities are finite in float32."""
    return (
        (not call.selects or (call.options.top_k or 0) <= _MOST)
        and call.options.temperature <= _HOTTEST
        and len(call.keys) * len(call.query) < 2**31
    )
