"""Kernels against tiles against the dense formulation; the second half of `bench gpu`.

rows = kernel_rows("bundled bfloat16", quick=False, device=torch.device("cuda"))
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from itertools import product
from typing import Any

import torch

from streamvos.nn.kernels.choice import Kernel, why_not
from streamvos.nn.matching.distances import global_distances, local_distances, sort_reference
from streamvos.nn.propagation import PropagationOptions, propagate
from streamvos.nn.propagation.options import Propagation

from .dense import GRID, SIGMAS, dense_rows
from .dense import scene as propagation_scene

ROUNDS, QUICK_GRID = 20, (6, 10)

SETTINGS = {
    "authors float32": (256, 9, PropagationOptions()),
    "authors bfloat16": (256, 9, PropagationOptions(precision="bfloat16")),
    "no prior bfloat16": (256, 9, PropagationOptions(spatial_prior="none", precision="bfloat16")),
    "bundled bfloat16": (
        128,
        10,
        PropagationOptions(14.0, "none", top_k=10, radius=24, precision="bfloat16"),
    ),
    "best float32": (128, 10, PropagationOptions(14.0, "none", top_k=10)),
}
"""Name -> channels, references, options."""


def measured(run: Callable[[], torch.Tensor], device: torch.device, rounds: int) -> dict[str, Any]:
    """Milliseconds of a call, and MiB that it takes beside what is there, once it is warm."""
    answer = run()
    cuda = device.type == "cuda"
    if cuda:
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
    started = time.perf_counter()
    for _ in range(rounds):
        answer = run()
    if cuda:
        torch.cuda.synchronize()
    took = {"ms": 1e3 * (time.perf_counter() - started) / rounds, "answer": answer}
    return took | ({"peak_mib": (torch.cuda.max_memory_allocated() - before) / 2**20} if cuda else {})


def row_of(
    about: dict[str, Any], run: Callable[[], dict[str, Any]], truth: torch.Tensor | None
) -> dict[str, Any]:
    """The row, without the answer but with its distance from the truth, or why there is none."""
    try:
        row = about | run()
    except Exception as error:  # Triton's errors have no root of their own
        first = (str(error).strip().splitlines() or [""])[0]
        row = about | {"failed": f"{type(error).__name__}: {first}"[:200]}
    answer = row.pop("answer", None)
    if answer is not None and truth is not None:
        row["off"] = float((answer - truth).abs().max())
    return row


def inputs(
    channels: int, references: int, options: PropagationOptions, device: torch.device, quick: bool
) -> tuple[Any, ...]:
    """What `propagate` is given, but for the options."""
    grid = QUICK_GRID if quick else GRID
    scale = 3.0 if channels == 256 else 1.0
    query, keys, labels = propagation_scene(grid, channels, references, scale)
    dtype = torch.bfloat16 if options.precision == "bfloat16" else torch.float32
    sigmas = SIGMAS if options.spatial_prior != "none" else ()
    return (
        query.to(device, dtype),
        [key.to(device, dtype) for key in keys],
        [label.to(device) for label in labels],
        sigmas,
        grid,
    )


@torch.inference_mode()
def kernel_rows(name: str, quick: bool, device: torch.device) -> list[dict[str, Any]]:
    """A setting with kernels, in tiles, and where they can say it densely and in torch's attention."""
    rounds = 1 if quick else ROUNDS
    channels, references, options = SETTINGS[name]
    given = inputs(channels, references, options, device, quick)
    wide = given[0].float(), [key.float() for key in given[1]], *given[2:]
    truth = propagate(*wide, replace(options, precision="float32", kernel="tiles"))
    ways: dict[str, Callable[[], torch.Tensor]] = {
        kernel: lambda kernel=kernel: propagate(*given, replace(options, kernel=kernel))
        for kernel in ("triton", "tiles")
    }
    if options.spatial_prior == "none" and options.top_k is None:
        ways["sdpa"] = lambda: in_torchs_attention(*given)
    if options == PropagationOptions():
        ways["dense"] = lambda: dense_on(device, *given)
    return [
        row_of({"what": name, "how": how}, lambda run=run: measured(run, device, rounds), truth)
        for how, run in ways.items()
    ]


@torch.inference_mode()
def matching_rows(name: str, quick: bool, device: torch.device) -> list[dict[str, Any]]:
    """FEELVOS's matching at stride 4 of 480 x 854: 100 channels, a window of 31 x 31, three objects."""
    grid = QUICK_GRID if quick else (120, 214)
    generator = torch.Generator().manual_seed(0)
    cells = grid[0] * grid[1]
    query, previous = (0.4 * torch.randn(cells, 100, generator=generator).to(device) for _ in range(2))
    channels = torch.randint(4, (cells,), generator=generator).to(device)
    reference = sort_reference(previous, channels, (0, 1, 2, 3))

    def work(kernel: Kernel) -> torch.Tensor:
        if name == "global matching":
            return global_distances(query, reference, kernel)
        return local_distances(query, previous, channels, 4, grid, 15, None, kernel)

    truth, rounds = work("tiles"), 1 if quick else ROUNDS
    kernels: tuple[Kernel, ...] = ("triton", "tiles")
    return [
        row_of(
            {"what": name, "how": kernel},
            lambda kernel=kernel: measured(lambda: work(kernel), device, rounds),
            truth,
        )
        for kernel in kernels
    ]


def in_torchs_attention(query, keys, labels, sigmas, grid) -> torch.Tensor:
    """All keys without a prior, which is what torch's fused attention can do; values as wide as keys."""
    values = torch.cat(labels)
    wide = torch.nn.functional.pad(values, (0, query.shape[1] - values.shape[1])).to(query.dtype)
    soft = torch.nn.functional.scaled_dot_product_attention(
        query[None, None], torch.cat(keys)[None, None], wide[None, None], scale=1.0
    )[0, 0]
    return soft[:, : values.shape[1]].float().t().reshape(-1, *grid)


def dense_on(device: torch.device, *given: Any) -> torch.Tensor:
    """`dense_rows` makes its priors on the CPU, once; that they are there is part of its memory."""
    with device:
        return dense_rows(*given)


@torch.inference_mode()
def sweep_rows(name: str, quick: bool, device: torch.device) -> list[dict[str, Any]]:
    """The kernels of propagation in other shapes than the one that is chosen."""
    if why_not(device.type) is not None:
        return []
    from streamvos.nn.kernels.launching import shape_for
    from streamvos.nn.propagation.kernels.propagation import propagate_in_kernels

    channels, references, options = SETTINGS[name]
    given = inputs(channels, references, options, device, quick)
    usual = shape_for(channels, options.dtype)
    shapes = [
        replace(usual, side=side, block=block, warps=warps)
        for side, block, warps in product((8, 16), (32, 64, 128), (4, 8))
    ] + [replace(usual, shares=shares) for shares in (1, 2, 4, 8)]
    return [
        row_of(
            {"what": name, "shape": str(shape)},
            lambda shape=shape: measured(
                lambda: propagate_in_kernels(Propagation(*given, options), shape), device, 1 if quick else 10
            ),
            None,
        )
        for shape in (shapes[:1] if quick else shapes)
    ]
