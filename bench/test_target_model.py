"""Learning a target model against double backward, within one run.

    make bench                                    # pytest-benchmark's table
    python bench/test_target_model.py             # ratios as a table, and one line of JSON last
    python bench/test_target_model.py --memory 20 --threads 1

480 x 854 pixels, 30 x 54 cells, 96 channels, a memory of 80 samples, 10 iterations of conjugate gradient,
two threads. `double backward` is what the authors' code does: scores of all samples enlarged to full size,
and two automatic derivatives per product. `convolutions` multiplies on the grid, sample by sample, without
derivatives. `update` solves with the normal matrix that is kept; `a sample` is what keeping it costs on every
frame with a full memory, where one sample comes and another goes. `amortized` is the update and eight
samples: what all frames from one update to the next cost together. Errors are of the filter, relative to
its largest weight, against the same step in float64.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F

from streamvos.methods.frtm.memory import ObjectModel, remember
from streamvos.nn.target_model.conjugate_gradient import conjugate_gradient
from streamvos.nn.target_model.learning import (
    LearningRule,
    Samples,
    TargetWeights,
    draw_weights,
    learn_filters,
    make_samples,
    normal_equations,
    pixel_weights,
)
from streamvos.nn.target_model.sample_weights import SampleWeights
from streamvos.nn.target_model.stencil import apply_stencil

SIZE, STRIDE, CHANNELS, MEMORY, ITERATIONS, THREADS, INTERVAL = (480, 854), 16, 96, 80, 10, 2, 8
RULE = LearningRule()
PENALTY, PRECONDITIONER = RULE.penalties[1], RULE.regularization[1]
WIDTHS = (17, 12, 12, 10, 10)


class Scene(NamedTuple):
    """A full memory, at full size and as the method keeps it."""

    projected: torch.Tensor
    labels: torch.Tensor
    samples: Samples
    model: ObjectModel

    @property
    def shares(self) -> torch.Tensor:
        return self.model.importance.values.float()

    @property
    def filters(self) -> torch.Tensor:
        return self.model.weights.filter


def scene(size: tuple[int, int], memory: int) -> Scene:
    """Objects of a twentieth of the frame, and features in which they can be told from the rest."""
    torch.manual_seed(0)
    grid = (-(-size[0] // STRIDE), -(-size[1] // STRIDE))
    rows, columns = torch.meshgrid(torch.arange(size[0]), torch.arange(size[1]), indexing="ij")
    labels = torch.stack(
        [
            ((rows / size[0] - 0.5) / 0.13).square()
            + ((columns / size[1] - 0.2 - 0.5 * k / memory) / 0.1).square()
            < 1
            for k in range(memory)
        ]
    ).float()
    direction = torch.randn(CHANNELS, 1, 1)
    coarse = F.interpolate(labels[:, None], grid, mode="area")
    projected = torch.randn(memory, CHANNELS, *grid) + 2 * coarse * direction
    samples = make_samples(labels, grid)
    importance = SampleWeights(memory, 0.1, 1.1 ** torch.arange(memory, dtype=torch.float64))
    importance.values /= importance.values.sum()
    importance.insert()  # after the first insertion every frame is like the next
    weights = TargetWeights(torch.zeros(CHANNELS, 8, 1, 1), draw_weights(8, CHANNELS).filter)
    return Scene(projected, labels, samples, ObjectModel.begin(weights, projected, samples, importance))


def double_backward(given: Scene) -> torch.Tensor:
    """(1, c, 3, 3): one Gauss-Newton step on residuals at full size, products by automatic derivatives."""
    size = (given.labels.shape[1], given.labels.shape[2])
    scale = given.shares.sqrt().view(-1, 1, 1) * pixel_weights(given.labels > 0.5)
    filters = given.filters.clone().requires_grad_()

    def residuals() -> list[torch.Tensor]:
        scores = F.conv2d(given.projected, filters, padding=1)
        enlarged = F.interpolate(scores, size, mode="bilinear", align_corners=False)[:, 0]
        return [scale * (enlarged - given.labels), PRECONDITIONER * filters]

    found = residuals()
    dummies = [torch.zeros_like(part, requires_grad=True) for part in found]
    (adjoint,) = torch.autograd.grad(found, filters, dummies, create_graph=True)

    def multiply(direction: torch.Tensor) -> torch.Tensor:
        forward = torch.autograd.grad(adjoint, dummies, direction.view_as(filters), retain_graph=True)
        (back,) = torch.autograd.grad(found, filters, forward, retain_graph=True)
        return back.flatten()[None]

    (gradient,) = torch.autograd.grad(found, filters, [part.detach() for part in found], retain_graph=True)
    constant = torch.full((filters.numel(),), PRECONDITIONER)
    step, _ = conjugate_gradient(multiply, -gradient.flatten()[None], constant, ITERATIONS)
    return filters.detach() + step.view_as(filters)


@torch.inference_mode()
def convolutions(given: Scene) -> torch.Tensor:
    """(1, c, 3, 3): the same step on the grid, with the stencil of every sample."""
    projected, shares = given.projected, given.shares.view(-1, 1, 1, 1)
    stencil, right = given.samples.stencil * shares, given.samples.right[:, None] * shares
    columns, grid = projected.flatten(2), (projected.shape[-2], projected.shape[-1])

    def scores(flat: torch.Tensor) -> torch.Tensor:
        taps = flat.view(-1, 9).flip(1).t()
        return F.fold(taps @ columns, grid, 3, padding=1)

    def adjoint(errors: torch.Tensor) -> torch.Tensor:
        taps = (F.unfold(errors, 3, padding=1) @ columns.transpose(1, 2)).sum(0)
        return taps.t().flip(1).reshape(1, -1)

    def multiply(direction: torch.Tensor) -> torch.Tensor:
        return adjoint(apply_stencil(stencil, scores(direction[0]))) + PENALTY * direction

    flat = given.filters.reshape(1, -1)
    downhill = adjoint(right) - multiply(flat)
    constant = torch.full_like(flat[0], PRECONDITIONER)
    return (flat + conjugate_gradient(multiply, downhill, constant, ITERATIONS)[0]).view_as(given.filters)


@torch.inference_mode()
def update(given: Scene) -> torch.Tensor:
    """(1, c, 3, 3): the same step with the matrix that is kept."""
    model = given.model
    return learn_filters(model.weights.filter, [model.matrix], model.right[None], ITERATIONS, RULE)[0]


@torch.inference_mode()
def a_sample(given: Scene) -> None:
    """One sample comes and one goes, from the label on."""
    grid = (given.projected.shape[-2], given.projected.shape[-1])
    remember([given.model], given.projected[:1], make_samples(given.labels[:1], grid))


@torch.inference_mode()
def in_float64(given: Scene) -> torch.Tensor:
    """(1, c, 3, 3): the same step with little rounding, of which ten iterations make much."""
    grid = (given.projected.shape[-2], given.projected.shape[-1])
    matrix, right = torch.zeros_like(given.model.matrix), torch.zeros_like(given.model.right)
    for k, share in enumerate(given.model.importance.values):
        samples = make_samples(given.labels[k : k + 1].double(), grid)
        matrices, rights = normal_equations(given.projected[k : k + 1].double(), samples)
        matrix += share * matrices[0]
        right += share * rights[0]
    return learn_filters(given.filters.double(), [matrix], right[None], ITERATIONS, RULE)[0]


RUNS: dict[str, Callable[[Scene], torch.Tensor | None]] = {
    "double backward": double_backward,
    "convolutions": convolutions,
    "update": update,
    "a sample": a_sample,
}


@pytest.mark.parametrize("name", RUNS)
@pytest.mark.benchmark(group="FRTM's update, memory of 80, 480x854")
def test_target_model(benchmark, name):
    torch.set_num_threads(THREADS)
    benchmark.pedantic(RUNS[name], (scene(SIZE, MEMORY),), rounds=3, warmup_rounds=1)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", nargs=2, type=int, default=SIZE, metavar=("H", "W"), help="pixels")
    parser.add_argument("--memory", type=int, default=MEMORY, help="samples")
    parser.add_argument("--threads", type=int, default=THREADS)
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    full = scene((given.size[0], given.size[1]), given.memory)
    answers = {name: RUNS[name](full) for name in ("double backward", "convolutions", "update")}
    truth = in_float64(full)
    seconds: dict[str, list[float]] = {name: [] for name in RUNS}
    for _ in range(given.rounds):  # interleaved, so that a busy moment touches all alike
        for name, run in RUNS.items():
            started = time.perf_counter()
            run(full)
            seconds[name].append(time.perf_counter() - started)
    seconds["amortized"] = [
        one + INTERVAL * other for one, other in zip(seconds["update"], seconds["a sample"], strict=True)
    ]
    rows = {}
    print(
        "".join(
            f"{word:>{width}}"
            for word, width in zip(("", "best", "median", "speed", "error"), WIDTHS, strict=True)
        )
    )
    for name, values in seconds.items():
        answer = answers.get(name)
        rows[name] = {
            "best_s": min(values),
            "median_s": statistics.median(values),
            "speedup": min(seconds["double backward"]) / min(values),
            "median_speedup": statistics.median(seconds["double backward"]) / statistics.median(values),
            "error": None if answer is None else float((answer - truth).abs().max() / truth.abs().max()),
        }
        row = rows[name]
        cells = (
            name,
            f"{row['best_s'] * 1e3:.1f} ms",
            f"{row['median_s'] * 1e3:.1f} ms",
            f"{row['speedup']:.1f}x",
            "" if row["error"] is None else f"{row['error']:.0e}",
        )
        print("".join(f"{cell:>{width}}" for cell, width in zip(cells, WIDTHS, strict=True)))
    about = {
        "size": given.size,
        "memory": given.memory,
        "iterations": ITERATIONS,
        "torch": torch.__version__,
        "threads": given.threads,
        "machine": platform.processor() or platform.machine(),
    }
    print(json.dumps({"benchmark": "target model", **about, "rows": rows}))


if __name__ == "__main__":
    main()
