"""Propagation against the dense formulation, in time and in memory, within one run.

    make bench                                   # pytest-benchmark's table
    python -m bench.test_propagation             # ratios as a table, and one line of JSON last
    python -m bench.test_propagation --size 30 54 --threads 1

480 x 854 pixels are 60 x 107 cells; nine references, 256 channels, two labels, two threads. The dense form
is timed in both orientations of its matrix; ratios are to the authors' one (`dense`). On a machine that does
other work compare `cpu`, the processor seconds of all threads, best with one thread.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from bench.gpu.dense import GRID, SIGMAS, dense, dense_rows, scene
from streamvos.nn.propagation import PropagationOptions, propagate

THREADS = 2
WIDTHS = (8, 8, 7, 8, 9, 9, 9, 14)


EXACT = {
    "float32": PropagationOptions(),
    "bfloat16": PropagationOptions(precision="bfloat16"),
}
MATCHING = {  # with 128 channels, as for weights that were trained for it
    "top10": PropagationOptions(20.0, "none", top_k=10, radius=15),
    "top10 half": PropagationOptions(20.0, "none", top_k=10, radius=15, precision="bfloat16"),
}
SHIPPED = PropagationOptions(14.0, "none", top_k=10, radius=20, precision="bfloat16")
NAMES = ["dense", "dense rows", *EXACT, *MATCHING, "shipped"]


def variants(grid: tuple[int, int], names: list[str] = NAMES):
    """Name -> (function, arguments); histories hold keys in the precision they are compared in."""
    query, keys, labels = scene(grid)
    small, small_keys, small_labels = scene(grid, channels=128, references=13, scale=1.0)

    def tiled(options, query, keys, labels, sigmas):
        dtype = torch.bfloat16 if options.precision == "bfloat16" else torch.float32
        return propagate, (query.to(dtype), [key.to(dtype) for key in keys], labels, sigmas, grid, options)

    makers = {
        "dense": lambda: (dense, (query, keys, labels, SIGMAS, grid)),
        "dense rows": lambda: (dense_rows, (query, keys, labels, SIGMAS, grid)),
        "shipped": lambda: tiled(SHIPPED, small, small_keys, small_labels, ()),
    }
    for name, options in EXACT.items():
        makers[name] = lambda options=options: tiled(options, query, keys, labels, SIGMAS)
    for name, options in MATCHING.items():
        makers[name] = lambda options=options: tiled(options, small, small_keys[:10], small_labels[:10], ())
    return {name: makers[name]() for name in names}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.benchmark(group="propagation, 480x854")
def test_propagation(benchmark, name):
    torch.set_num_threads(THREADS)
    function, arguments = variants(GRID, [name])[name]
    with torch.inference_mode():
        benchmark.pedantic(function, arguments, rounds=3, warmup_rounds=1)


def peak_memory(name: str, grid: tuple[int, int]) -> float:
    """MiB that one call adds to a fresh process that holds the inputs."""
    code = f"from bench.test_propagation import print_peak; print_peak({name!r}, {grid!r})"
    command = [sys.executable, "-c", code]
    root = Path(__file__).resolve().parents[1]
    answer = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True)
    return float(answer.stdout)


def print_peak(name: str, grid: tuple[int, int]) -> None:
    """Linux only. Not `ru_maxrss`: a child inherits that of the process which started it."""

    def resident(field: str) -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith(field))

    torch.set_num_threads(THREADS)
    function, arguments = variants(grid, [name])[name]
    tiny = variants((8, 8), [name])[name]
    with torch.inference_mode():
        tiny[0](*tiny[1])  # libraries allocate their own working memory at the first call
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
        before = resident("VmRSS")
        function(*arguments)
    print((resident("VmHWM") - before) / 1024)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", nargs=2, type=int, default=GRID, metavar=("ROWS", "COLUMNS"), help="cells")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=THREADS)
    parser.add_argument("--only", default=",".join(NAMES), help="comma-separated; dense is always run")
    given = parser.parse_args()
    grid = (given.size[0], given.size[1])
    names = [name for name in NAMES if name == "dense" or name in given.only.split(",")]
    torch.set_num_threads(given.threads)
    runs = variants(grid, names)
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    processor: dict[str, list[float]] = {name: [] for name in runs}
    with torch.inference_mode():
        truth = dense(*runs["dense"][1])
        errors = dict.fromkeys(runs)
        for name, (function, arguments) in runs.items():  # also warms up
            answer = function(*arguments)
            if name in EXACT or name == "dense rows":
                errors[name] = float((answer - truth).abs().max())
        for _ in range(given.rounds):  # interleaved, so that a busy moment touches all alike
            for name, (function, arguments) in runs.items():
                started, used = time.perf_counter(), time.process_time()
                function(*arguments)
                seconds[name].append(time.perf_counter() - started)
                processor[name].append(time.process_time() - used)
    memory = {name: peak_memory(name, grid) for name in runs}
    rows = {}
    head = ("best", "median", "speed", "cpu", "of dense", "memory", "of dense", "largest error")
    print(f"{'':10}" + "".join(f" {word:>{width}}" for word, width in zip(head, WIDTHS, strict=True)))
    for name, values in seconds.items():
        rows[name] = {
            "best_s": min(values),
            "median_s": statistics.median(values),
            "speedup": min(seconds["dense"]) / min(values),
            "cpu_s": min(processor[name]),
            "cpu_ratio": min(processor["dense"]) / min(processor[name]),
            "peak_mib": memory[name],
            "memory_share": memory[name] / memory["dense"],
            "max_error": errors[name],
        }
        row = rows[name]
        error = "" if errors[name] is None else f"{errors[name]:.1e}"
        cells = (
            f"{row['best_s']:.3f}s",
            f"{row['median_s']:.3f}s",
            f"{row['speedup']:.2f}x",
            f"{row['cpu_s']:.3f}s",
            f"{row['cpu_ratio']:.2f}x",
            f"{row['peak_mib']:.0f} MiB",
            f"{row['memory_share']:.1%}",
            error,
        )
        print(f"{name:10}" + "".join(f" {cell:>{width}}" for cell, width in zip(cells, WIDTHS, strict=True)))
    about = {
        "grid": grid,
        "torch": torch.__version__,
        "threads": given.threads,
        "machine": platform.processor() or platform.machine(),
    }
    print(json.dumps({"benchmark": "propagation", **about, "rows": rows}))


if __name__ == "__main__":
    main()
