"""How fast every method is on a GPU, end to end, and what the kernels are worth; one command, a few minutes.

    python bench/gpu.py --out docs/results/gpu.json          # every method, 480x854, 1, 3 and 10 objects
    python bench/gpu.py --only kernels --sweep               # which shape of the kernels is fastest here
    python bench/gpu.py --device cpu --quick                 # that all of it runs, in seconds; no figures

A frame's latency is from the picture on the host to its mask on the host. Moving ellipses, whose true masks
are written back as predictions, so that memories fill and target models learn as on a real stream (random
weights follow nothing); their time does not depend on the weights. Build engines beforehand: a missing one
may be built beside, which takes time from what is measured. After the table come the goals, reached or not,
and one line of JSON. What cannot run here is a row that says why.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import shlex
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

import torch
from gpu_kernels import kernel_rows, matching_rows, sweep_rows
from methods import peak_mib, scene
from torch.utils.flop_counter import FlopCounterMode

from streamvos.backends import BACKENDS, choose_device
from streamvos.segmenter import Extraction, StreamState, annotation_of, decide, make_result
from streamvos.types import InputError
from streamvos.weights import load_method

SIZE, OBJECTS, FRAMES, WARM_UP = (480, 854), (1, 3, 10), 40, 8
QUICK_SIZE, QUICK_FRAMES, QUICK_WARM_UP = (48, 80), 2, 1

CASES: dict[str, tuple[str, str | None, dict[str, Any]]] = {
    "tvos": ("tvos", None, {"precision": "auto"}),  # the authors' ResNet-50 and 9 references
    "tvos float32": ("tvos", None, {}),
    "tvos bundled": ("tvos", "default", {}),
    "frtm": ("frtm", None, {"precision": "auto"}),
    "frtm-fast": ("frtm-fast", "default", {}),
    "rgmp": ("rgmp", None, {"precision": "auto"}),
    "joint": ("joint", None, {"precision": "auto"}),
    "feelvos": ("feelvos", None, {"precision": "auto"}),
}
"""Name -> method, weights, options."""

GOALS = dict.fromkeys(CASES, 30.0) | {"tvos bundled": 300.0, "frtm-fast": 250.0, "joint": 60.0}
"""Frames a second at 480 x 854 with three objects."""

PEAKS = {"H100": 989.0, "H200": 989.0, "A100": 312.0, "L4": 121.0, "4090": 165.0}
"""Dense bfloat16 products of the tensor cores by data sheet, in 10^12 operations a second."""


def follow(
    name: str, objects: int, backend: str, device: torch.device, size: tuple[int, int], frames: int, warm: int
) -> dict[str, Any]:
    """One row: a stream of `warm` + `frames` frames, of which the latter count."""
    torch.manual_seed(0)
    method_name, weights, options = CASES[name]
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    extract = Extraction(load_method(method_name, weights, options), device, backend)
    state = StreamState(extract.method, device)
    ids = tuple(range(1, objects + 1))
    seconds = []
    for t in range(1 + warm + frames):
        image, labels = scene(size, objects, t)
        frame, truth = torch.from_numpy(image), torch.from_numpy(labels).to(device)
        certain = torch.nn.functional.one_hot(truth, 1 + objects).movedim(-1, 0).float()
        wait(device)
        started = time.perf_counter()
        features = extract([frame])
        question = state.ask(features, annotation_of(truth) if t == 0 else None)
        decision = decide(extract.method, features, question)
        shown = decision.shown()
        state.learn(features, question, decision if t == 0 else replace(decision, predicted=certain))
        mask = make_result(shown, ids, t).mask
        seconds.append(time.perf_counter() - started)
        assert mask.shape == size
    counted = seconds[1 + warm :]
    held = sum(value.nbytes for value in state.target.state_dict().values())
    return {
        "fps": len(counted) / sum(counted),
        "p50_ms": 1e3 * statistics.median(counted),
        "p99_ms": 1e3 * sorted(counted)[math.ceil(0.99 * len(counted)) - 1],
        "first_ms": 1e3 * seconds[0],
        "peak_mib": peak_mib(device),
        "engines": described(extract),
        "state_mib": held / 2**20,
        **extractor_speed(extract, torch.from_numpy(scene(size, 1, 0)[0]), device, frames),
    }


def described(extract: Extraction) -> str:
    """What really ran: where an engine is missing, eager takes its place."""
    engines = getattr(extract, "engines", None)
    return "" if engines is None else str(engines.describe())


def extractor_speed(
    extract: Extraction, frame: torch.Tensor, device: torch.device, rounds: int
) -> dict[str, Any]:
    """Milliseconds of the extractor alone, and its share of what the device's tensor cores could do."""
    frame = frame.to(device)
    with FlopCounterMode(display=False) as counter:
        extract.method.extractor(frame.permute(2, 0, 1)[None].float() / 255)
    for _ in range(2):
        extract([frame])
    wait(device)
    started = time.perf_counter()
    for _ in range(rounds):
        extract([frame])
    wait(device)
    took = (time.perf_counter() - started) / rounds
    flops = counter.get_total_flops()
    peak = next((value for key, value in PEAKS.items() if key in machine(device)), None)
    share = None if peak is None else flops / took / (peak * 1e12)
    return {"extractor_ms": 1e3 * took, "extractor_gflop": flops / 1e9, "share_of_peak": share}


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def machine(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return platform.processor() or platform.machine()


def attempted(about: dict[str, Any], run: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """The row, or why there is none: one case that fails does not cost the others."""
    try:
        return {**about, **run()}
    except (InputError, RuntimeError, ImportError) as error:
        first = (str(error).strip().splitlines() or [""])[0]
        return {**about, "failed": f"{type(error).__name__}: {first}"[:300]}


def method_rows(given: argparse.Namespace, device: torch.device) -> Iterator[dict[str, Any]]:
    size = QUICK_SIZE if given.quick else tuple(given.size)
    frames, warm = (QUICK_FRAMES, QUICK_WARM_UP) if given.quick else (given.frames, WARM_UP)
    for name in given.methods.split(","):
        for backend in given.backends.split(","):
            if backend not in BACKENDS:
                continue
            for objects in given.objects:
                about = {"case": name, "backend": backend, "objects": objects, "size": list(size)}
                yield attempted(
                    about,
                    lambda name=name, objects=objects, backend=backend: follow(
                        name, objects, backend, device, size, frames, warm
                    ),
                )


def goals(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The best frame rate of every method with three objects beside what is wanted."""
    reached: dict[str, float] = {}
    for row in rows:
        if row["objects"] == 3 and "fps" in row:
            reached[row["case"]] = max(reached.get(row["case"], 0.0), row["fps"])
    return [
        {"case": name, "goal_fps": GOALS[name], "fps": fps, "reached": fps >= GOALS[name]}
        for name, fps in reached.items()
    ]


def print_row(row: dict[str, Any]) -> None:
    head = f"{row['case']:14} {row['backend']:10} x{row['objects']:<3}"
    if "failed" in row:
        print(f"{head} {row['failed']}", flush=True)
        return
    share = "" if row["share_of_peak"] is None else f"{row['share_of_peak']:.0%}"
    print(
        f"{head}{row['fps']:8.1f}{row['p50_ms']:9.2f}{row['p99_ms']:9.2f}{row['first_ms']:10.0f}"
        f"{row['extractor_ms']:11.2f}{share:>7}{row['peak_mib']:9.0f}{row['state_mib']:8.0f}",
        flush=True,
    )


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--methods", default=",".join(CASES), help="comma-separated")
    parser.add_argument(
        "--backends",
        default="eager,cuda-graph,aoti,tensorrt",
        help="comma-separated; unknown ones are left out",
    )
    parser.add_argument("--objects", nargs="+", type=int, default=list(OBJECTS))
    parser.add_argument("--size", nargs=2, type=int, default=list(SIZE), metavar=("HEIGHT", "WIDTH"))
    parser.add_argument("--frames", type=int, default=FRAMES)
    parser.add_argument("--only", choices=("methods", "kernels"), help="one half of it")
    parser.add_argument("--sweep", action="store_true", help="shapes of the kernels too")
    parser.add_argument("--quick", action="store_true", help="tiny sizes: that it runs, no figures")
    parser.add_argument("--out", type=Path, help="a file for the JSON")
    return parser.parse_args()


def main() -> None:
    given = arguments()
    device = choose_device(given.device)
    answer: dict[str, Any] = {
        "benchmark": "gpu",
        "command": shlex.join(["python", *sys.argv]),
        "date": date.today().isoformat(),
        "device": machine(device),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "quick": given.quick,
        "rows": [],
        "kernels": [],
        "sweep": [],
    }
    if given.only != "kernels":
        print(
            f"{'':29}{'fps':>8}{'p50 ms':>9}{'p99 ms':>9}{'first ms':>10}{'extract ms':>11}{'peak':>7}"
            f"{'MiB':>9}{'state':>8}"
        )
        for row in method_rows(given, device):
            answer["rows"].append(row)
            print_row(row)
    if given.only != "methods":
        answer["kernels"] = kernel_rows(device, given.quick) + matching_rows(device, given.quick)
        if given.sweep:
            answer["sweep"] = sweep_rows(device, given.quick)
    answer["goals"] = goals(answer["rows"])
    for goal in answer["goals"]:
        verdict = "yes" if goal["reached"] else "NO"
        print(f"{goal['case']:14} {goal['fps']:8.1f} of {goal['goal_fps']:.0f} {verdict}")
    if given.out:
        given.out.write_text(json.dumps(answer, indent=1) + "\n")
    print(json.dumps(answer))


if __name__ == "__main__":
    main()
