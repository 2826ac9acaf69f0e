"""Kernels against tiles against the dense formulation; the second half of bench/gpu.py.

rows = kernel_rows(torch.device("cuda"), quick=False)       # prints a table
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from itertools import product
from typing import Any

import torch
from test_propagation import GRID, SIGMAS, dense_rows
from test_propagation import scene as propagation_scene

from streamvos.nn.kernels.choice import Kernel, why_not
from streamvos.nn.matching import global_distances, local_distances, sort_reference
from streamvos.nn.propagation import PropagationOptions, propagate
from streamvos.nn.propagation.options import COMPUTE

ROUNDS, QUICK_GRID = 20, (6, 10)

PROPAGATION = {
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
        row = about | {"failed": f"{type(error).__name__}: {str(error).strip().splitlines()[0]}"[:200]}
    answer = row.pop("answer", None)
    if answer is not None and truth is not None:
        row["off"] = float((answer - truth).abs().max())
    print("  ".join(f"{value:.3g}" if isinstance(value, float) else str(value) for value in row.values()))
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
def kernel_rows(device: torch.device, quick: bool) -> list[dict[str, Any]]:
    """Every setting with kernels, in tiles, and where they can say it densely and in torch's attention."""
    rows, rounds = [], 1 if quick else ROUNDS
    print("propagation: setting, how, ms, MiB, largest distance from the tiles in float32")
    for name, (channels, references, options) in PROPAGATION.items():
        given = inputs(channels, references, options, device, quick)
        exact = replace(options, precision="float32", kernel="tiles")
        wide = given[0].float(), [key.float() for key in given[1]], *given[2:]
        truth = propagate(*wide, exact)
        for kernel in ("triton", "tiles"):
            chosen = replace(options, kernel=kernel)
            run = lambda given=given, chosen=chosen: propagate(*given, chosen)  # noqa: E731
            about = {"what": name, "how": kernel}
            rows.append(row_of(about, lambda run=run: measured(run, device, rounds), truth))
        if options.spatial_prior == "none" and options.top_k is None:
            run = lambda given=given: in_torchs_attention(*given)  # noqa: E731
            rows.append(
                row_of({"what": name, "how": "sdpa"}, lambda run=run: measured(run, device, rounds), truth)
            )
        if options == PropagationOptions():
            run = lambda given=given: dense_on(device, *given)  # noqa: E731
            rows.append(
                row_of({"what": name, "how": "dense"}, lambda run=run: measured(run, device, rounds), truth)
            )
    return rows


@torch.inference_mode()
def matching_rows(device: torch.device, quick: bool) -> list[dict[str, Any]]:
    """FEELVOS's matching at stride 4 of 480 x 854: 100 channels, a window of 31 x 31, three objects."""
    grid = QUICK_GRID if quick else (120, 214)
    generator = torch.Generator().manual_seed(0)
    cells = grid[0] * grid[1]
    query, previous = (0.4 * torch.randn(cells, 100, generator=generator).to(device) for _ in range(2))
    channels = torch.randint(4, (cells,), generator=generator).to(device)
    reference = sort_reference(previous, channels, (0, 1, 2, 3))
    works: dict[str, Callable[[Kernel], torch.Tensor]] = {
        "global matching": lambda kernel: global_distances(query, reference, kernel),
        "local matching": lambda kernel: local_distances(
            query, previous, channels, 4, grid, 15, None, kernel
        ),
    }
    rows = []
    for name, work in works.items():
        truth = work("tiles")
        for kernel in ("triton", "tiles"):
            run = lambda work=work, kernel=kernel: work(kernel)  # noqa: E731
            about = {"what": name, "how": kernel}
            rows.append(row_of(about, lambda run=run: measured(run, device, 1 if quick else ROUNDS), truth))
    return rows


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
def sweep_rows(device: torch.device, quick: bool) -> list[dict[str, Any]]:
    """The kernels of propagation in other shapes than the one that is chosen."""
    if (reason := why_not(device.type)) is not None:
        print(f"no shapes to compare: {reason}")
        return []
    from streamvos.nn.kernels.launching import shape_for
    from streamvos.nn.kernels.propagation import propagate_in_kernels

    rows = []
    print("shapes: setting, shape, ms")
    for name, (channels, references, options) in PROPAGATION.items():
        given = inputs(channels, references, options, device, quick)
        usual = shape_for(channels, COMPUTE[options.precision])
        shapes = [
            replace(usual, side=side, block=block, warps=warps)
            for side, block, warps in product((8, 16), (32, 64, 128), (4, 8))
        ] + [replace(usual, shares=shares) for shares in (1, 2, 4, 8)]
        for shape in shapes[:1] if quick else shapes:
            run = lambda given=given, shape=shape, options=options: propagate_in_kernels(  # noqa: E731
                *given, options, None, shape
            )
            about = {"what": name, "shape": str(shape)}
            rows.append(row_of(about, lambda run=run: measured(run, device, 1 if quick else 10), None))
    return rows
