"""FEELVOS's matching against the dense formulation, in time and in memory, within one run.

    make bench                                   # pytest-benchmark's table
    python bench/test_matching.py                # ratios as a table, and one line of JSON last
    python bench/test_matching.py --size 240 432 --threads 1 --rounds 3

480 x 854 pixels are 120 x 214 cells of stride 4; 100 channels, a window of 15 cells, one and five objects
besides the background, two threads. Our reference is sorted once per annotation, which is not in the time.

The dense form of global matching is the matrix of all squared distances, from one product, and per object a
masked minimum; that of local matching holds the distances to all 961 neighbors of every cell, made offset by
offset as in the authors' code without their CUDA operation (unfolding the neighbors themselves would need 9.9
GB). "chunks" is the same with global matching in 500 portions of cells, as in their code; ratios are to
"dense". On a machine that does other work compare `cpu`, the processor seconds of all threads.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from streamvos.methods.feelvos.networks import grid_size
from streamvos.nn.matching.distances import global_distances, local_distances, sort_reference

SIZE, CHANNELS, WINDOW, THREADS, OBJECTS = (480, 854), 100, 15, 2, (1, 5)
PARTS = ("global", "local", "both")
WIDTHS = (8, 8, 8, 8, 8, 10, 10, 9)


class Scene:
    """Embeddings of three frames that resemble each other, not negative, and boxes for objects."""

    def __init__(self, grid: tuple[int, int], objects: int):
        generator = torch.Generator().manual_seed(0)
        self.grid, self.count = grid, objects + 1
        cells = grid[0] * grid[1]
        base = torch.randn(cells, CHANNELS, generator=generator)
        self.first, self.previous, self.now = (
            0.5 * (base + 0.3 * torch.randn(cells, CHANNELS, generator=generator)).relu() for _ in range(3)
        )
        labels = torch.zeros(grid, dtype=torch.int64)
        for k in range(objects):
            top, left = grid[0] * k // (objects + 1), grid[1] * k // (objects + 1)
            labels[top : top + grid[0] // 3, left : left + grid[1] // 4] = k + 1
        self.labels = labels.flatten()
        self.reference = sort_reference(self.first, self.labels, tuple(range(self.count)))


def ours(scene: Scene, part: str) -> list[torch.Tensor]:
    found = []
    if part != "local":
        found.append(global_distances(scene.now, scene.reference))
    if part != "global":
        found.append(
            local_distances(scene.now, scene.previous, scene.labels, scene.count, scene.grid, WINDOW)
        )
    return found


def dense(scene: Scene, part: str) -> list[torch.Tensor]:
    found = []
    if part != "local":
        found.append(dense_global(scene, scene.now))
    if part != "global":
        found.append(dense_local(scene))
    return found


def in_chunks(scene: Scene, part: str) -> list[torch.Tensor]:
    """The dense form, but global matching in 500 portions of cells, as in the authors' code."""
    found = []
    if part != "local":
        portions = scene.now.split(math.ceil(len(scene.now) / 500))
        found.append(torch.cat([dense_global(scene, portion) for portion in portions], 1))
    if part != "global":
        found.append(dense_local(scene))
    return found


def dense_global(scene: Scene, x: torch.Tensor) -> torch.Tensor:
    """All distances at once; per object those of other objects get 1e20, as in the authors' code."""
    y = scene.first
    squared = x.square().sum(1, keepdim=True) - 2 * (x @ y.t()) + y.square().sum(1)
    rows = []
    for k in range(scene.count):
        others = (scene.labels != k).float() * 1e20
        rows.append((squared + others).amin(1))
    return torch.tanh(torch.stack(rows).clamp_min(0) / 2)


def dense_local(scene: Scene) -> torch.Tensor:
    """All distances at once, then equation 1, then 1 for what is another object's, then the minimum."""
    (h, w), side = scene.grid, 2 * WINDOW + 1
    now, border = scene.now.view(h, w, CHANNELS), (WINDOW,) * 4
    previous = F.pad(scene.previous.view(h, w, CHANNELS), (0, 0, *border), value=1e10)
    labels = F.pad(scene.labels.view(h, w), border, value=-1)
    squared = torch.stack(
        [
            (now - previous[top : top + h, left : left + w]).square().sum(-1)
            for top in range(side)
            for left in range(side)
        ]
    )
    distance = torch.tanh(squared / 2)
    whose = labels.unfold(0, h, 1).unfold(1, w, 1).flatten(0, 1)
    rows = [distance.where(whose == k, 1).amin(0) for k in range(scene.count)]
    return torch.stack(rows).flatten(1)


FORMS = {"dense": dense, "chunks": in_chunks, "ours": ours}


@pytest.mark.parametrize("objects", OBJECTS)
@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.benchmark(group="matching, 480x854")
def test_matching(benchmark, form, part, objects):
    torch.set_num_threads(THREADS)
    scene = Scene(grid_size(SIZE), objects)
    with torch.inference_mode():
        benchmark.pedantic(FORMS[form], (scene, part), rounds=2, warmup_rounds=0)


def peak_memory(form: str, part: str, objects: int, grid: tuple[int, int], threads: int) -> float:
    """MiB that one call adds to a fresh process that holds the inputs."""
    setup = f"import sys; sys.path.insert(0, {sys.path[0]!r}); import test_matching"
    code = f"{setup}; test_matching.print_peak({form!r}, {part!r}, {objects}, {grid!r}, {threads})"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return float(answer.stdout)


def print_peak(form: str, part: str, objects: int, grid: tuple[int, int], threads: int) -> None:
    """Linux only. Not `ru_maxrss`: a child inherits that of the process which started it."""

    def resident(field: str) -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith(field))

    torch.set_num_threads(threads)
    scene, tiny = Scene(grid, objects), Scene((16, 16), objects)
    with torch.inference_mode():
        FORMS[form](tiny, part)  # libraries allocate their own working memory at the first call
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
        before = resident("VmRSS")
        FORMS[form](scene, part)
    print((resident("VmHWM") - before) / 1024)


def measure(scene: Scene, part: str, rounds: int) -> tuple[dict[str, dict[str, float]], float]:
    """Seconds of all forms, and the largest difference of ours from the dense one."""
    seconds: dict[str, list[float]] = {form: [] for form in FORMS}
    processor: dict[str, list[float]] = {form: [] for form in FORMS}
    with torch.inference_mode():
        answers = {form: torch.cat(function(scene, part)) for form, function in FORMS.items()}  # warms up
        for _ in range(rounds):  # interleaved, so that a busy moment touches all alike
            for form, function in FORMS.items():
                started, used = time.perf_counter(), time.process_time()
                function(scene, part)
                seconds[form].append(time.perf_counter() - started)
                processor[form].append(time.process_time() - used)
    times = {
        form: {
            "best_s": min(seconds[form]),
            "median_s": statistics.median(seconds[form]),
            "cpu_s": min(processor[form]),
        }
        for form in FORMS
    }
    return times, float((answers["ours"] - answers["dense"]).abs().max())


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", nargs=2, type=int, default=SIZE, metavar=("H", "W"), help="pixels")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=THREADS)
    parser.add_argument("--objects", nargs="+", type=int, default=OBJECTS)
    parser.add_argument("--parts", nargs="+", default=PARTS, choices=PARTS)
    parser.add_argument(
        "--whole", action="store_true", help="the dense local form unfolds everything at once"
    )
    given = parser.parse_args()
    grid = grid_size((given.size[0], given.size[1]))
    torch.set_num_threads(given.threads)
    rows: dict[str, dict[str, float]] = {}
    head = ("best", "median", "cpu", "speed", "by cpu", "memory", "of dense", "error")
    print(f"{'':23}" + "".join(f" {word:>{width}}" for word, width in zip(head, WIDTHS, strict=True)))
    for objects in given.objects:
        scene = Scene(grid, objects)
        for part in given.parts:
            times, error = measure(scene, part, given.rounds)
            memory = {form: peak_memory(form, part, objects, grid, given.threads) for form in FORMS}
            for form, row in times.items():
                row |= {
                    "speedup": times["dense"]["best_s"] / row["best_s"],
                    "cpu_ratio": times["dense"]["cpu_s"] / row["cpu_s"],
                    "peak_mib": memory[form],
                    "memory_share": memory[form] / memory["dense"],
                    "max_difference": error,
                }
                name = f"{part}, {objects} obj., {form}"
                rows[name] = row
                cells = (
                    *(f"{row[key]:.2f}s" for key in ("best_s", "median_s", "cpu_s")),
                    f"{row['speedup']:.2f}x",
                    f"{row['cpu_ratio']:.2f}x",
                    f"{row['peak_mib']:.0f} MiB",
                    f"{row['memory_share']:.1%}",
                    f"{error:.1e}",
                )
                print(
                    f"{name:23}"
                    + "".join(f" {cell:>{width}}" for cell, width in zip(cells, WIDTHS, strict=True)),
                    flush=True,
                )
    about = {
        "grid": grid,
        "torch": torch.__version__,
        "threads": given.threads,
        "machine": platform.processor() or platform.machine(),
    }
    print(json.dumps({"benchmark": "matching", **about, "rows": rows}))


if __name__ == "__main__":
    main()
