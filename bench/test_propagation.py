"""Propagation against the dense formulation, in time and in memory, within one run.

    make bench                                   # pytest-benchmark's table
    python bench/test_propagation.py             # ratios as a table, and one line of JSON last
    python bench/test_propagation.py --size 30 54

480 x 854 pixels are 60 x 107 cells; nine references, 256 channels, two labels, two threads.
"""

from __future__ import annotations

import argparse
import json
import platform
import resource
import statistics
import subprocess
import sys
import time

import pytest
import torch

from streamvos.nn.propagation import PropagationOptions, propagate

GRID, REFERENCES, CHANNELS, LABELS, THREADS = (60, 107), 9, 256, 2, 2
SIGMAS = (21.0,) * 5 + (8.0,) * 4


def scene(
    grid: tuple[int, int] = GRID, channels: int = CHANNELS, references: int = REFERENCES, scale: float = 3.0
):
    """Features that resemble their neighbors in time, as those of a video do; norms as after a BatchNorm."""
    generator = torch.Generator().manual_seed(0)
    cells = grid[0] * grid[1]
    base = torch.randn(cells, channels, generator=generator)
    frames = [base + 0.5 * torch.randn(cells, channels, generator=generator) for _ in range(references + 1)]
    frames = [scale * torch.nn.functional.normalize(frame, dim=1) for frame in frames]
    labels = [torch.rand(cells, LABELS, generator=generator).softmax(1) for _ in range(references)]
    return frames[-1], frames[:-1], labels


def dense(query, keys, labels, sigmas, grid, temperature: float = 1.0) -> torch.Tensor:
    """What the authors' code does: one matrix, references x targets."""
    height, width = grid
    rows, columns = torch.arange(height).float(), torch.arange(width).float()
    weights = (torch.cat(list(keys)) @ query.t()).mul_(temperature).softmax(0)
    distance = (
        (rows[:, None, None, None] - rows[:, None]).square() + (columns[:, None, None] - columns).square()
    ).reshape(height * width, height * width)
    for sigma in set(sigmas):
        prior = torch.exp(-distance / sigma**2)
        for k in [k for k, one in enumerate(sigmas) if one == sigma]:
            weights[k * len(query) : (k + 1) * len(query)].mul_(prior)
    return (torch.cat(list(labels)).t() @ weights).view(-1, height, width)


def tiled(precision: str):
    options = PropagationOptions(precision=precision)
    dtype = torch.bfloat16 if precision == "bfloat16" else torch.float32

    def run(query, keys, labels, sigmas, grid):
        return propagate(query, keys, labels, sigmas, grid, options)

    return run, dtype


def shipped(query, keys, labels, sigmas, grid):
    """The setting of the bundled weights: half the channels, twelve references and the first."""
    options = PropagationOptions(14.0, "none", top_k=10, radius=20, precision="bfloat16")
    return propagate(query, keys, labels, sigmas, grid, options)


def variants(grid: tuple[int, int]):
    """Name -> (function, arguments); histories hold keys in the precision they are compared in."""
    query, keys, labels = scene(grid)
    small, small_keys, small_labels = scene(grid, channels=128, references=13, scale=1.0)
    result = {"dense": (dense, (query, keys, labels, SIGMAS, grid))}
    for precision in ("float32", "bfloat16"):
        run, dtype = tiled(precision)
        arguments = (query.to(dtype), [key.to(dtype) for key in keys], labels, SIGMAS, grid)
        result[precision] = (run, arguments)
    half = [key.bfloat16() for key in small_keys]
    result["shipped"] = (shipped, (small.bfloat16(), half, small_labels, (), grid))
    return result


@pytest.mark.parametrize("name", ["dense", "float32", "bfloat16", "shipped"])
@pytest.mark.benchmark(group="propagation, 480x854, 9 references, 256 channels")
def test_propagation(benchmark, name):
    torch.set_num_threads(THREADS)
    function, arguments = variants(GRID)[name]
    with torch.inference_mode():
        benchmark.pedantic(function, arguments, rounds=3, warmup_rounds=1)


def peak_memory(name: str, grid: tuple[int, int]) -> float:
    """MiB that one call adds to a fresh process that holds the inputs."""
    setup = f"import sys; sys.path.insert(0, {sys.path[0]!r}); import test_propagation"
    code = f"{setup}; test_propagation.print_peak({name!r}, {grid!r})"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return float(answer.stdout)


def print_peak(name: str, grid: tuple[int, int]) -> None:
    torch.set_num_threads(THREADS)
    function, arguments = variants(grid)[name]
    tiny = variants((8, 8))[name]
    with torch.inference_mode():
        tiny[0](*tiny[1])  # libraries allocate their own working memory at the first call
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        function(*arguments)
    print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", nargs=2, type=int, default=GRID, metavar=("ROWS", "COLUMNS"), help="cells")
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    grid = (given.size[0], given.size[1])
    torch.set_num_threads(THREADS)
    runs = variants(grid)
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    with torch.inference_mode():
        truth = dense(*runs["dense"][1])
        errors = {
            name: float((function(*arguments) - truth).abs().max())
            for name, (function, arguments) in runs.items()
            if name != "shipped"
        }
        for _ in range(given.rounds):  # interleaved, so that a busy moment touches all alike
            for name, (function, arguments) in runs.items():
                started = time.perf_counter()
                function(*arguments)
                seconds[name].append(time.perf_counter() - started)
    rows = {}
    print(
        f"{'':10} {'best':>9} {'median':>9} {'speed':>7} {'memory':>10} {'of dense':>9} {'largest error':>14}"
    )
    memory = {name: peak_memory(name, grid) for name in runs}
    for name, values in seconds.items():
        row = {
            "best_s": min(values),
            "median_s": statistics.median(values),
            "speedup": min(seconds["dense"]) / min(values),
            "peak_mib": memory[name],
            "memory_share": memory[name] / memory["dense"],
            "max_error": errors.get(name),
        }
        rows[name] = row
        error = "" if row["max_error"] is None else f"{row['max_error']:.1e}"
        print(
            f"{name:10} {row['best_s']:8.3f}s {row['median_s']:8.3f}s {row['speedup']:6.2f}x "
            f"{row['peak_mib']:6.0f} MiB {row['memory_share']:8.1%} {error:>14}"
        )
    about = {
        "grid": grid,
        "torch": torch.__version__,
        "threads": THREADS,
        "machine": platform.processor() or platform.machine(),
    }
    print(json.dumps({"benchmark": "propagation", **about, "rows": rows}))


if __name__ == "__main__":
    main()
