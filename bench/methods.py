"""What a frame costs in every method, where the time goes, and how that grows.

    python bench/methods.py                                  # every method, 480x854, 1 and 5 objects
    python bench/methods.py --weights default --methods tvos,rgmp,frtm-fast,joint,feelvos
    python bench/methods.py --methods frtm-fast --objects 1 --precision bfloat16
    python bench/methods.py --growth --figure docs/results/methods.png

Random weights of the authors' networks (the time does not depend on them), or the bundled weights and their
networks (`--weights default`); moving ellipses, whose true masks are written back as predictions, so that
memories fill and target models learn as they do on a real stream. Every case runs in a process of its own,
whose peak memory is then its own. The table has medians and the slowest frame; one line of JSON comes last.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from streamvos.engines.eager import choose_device, eager_run
from streamvos.methods import METHODS, Method
from streamvos.nn.resnet import BasicBlock, Bottleneck
from streamvos.weights import load_method

PHASES = ("extract", "read", "decode", "write")
SIZE, OBJECTS, FRAMES, WARM_UP = (480, 854), (1, 5), 24, 3
RESIDUAL = 0.2


def scene(size: tuple[int, int], objects: int, t: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """(H, W, 3) uint8 and (H, W) int64: textured ellipses of a twentieth of the frame, wandering."""
    height, width = size
    rng = np.random.Generator(np.random.PCG64(seed))
    coarse = rng.integers(0, 255, (1 + objects, 12, 16, 3), dtype=np.uint8)
    textures = [np.kron(one, np.ones((-(-height // 12), -(-width // 16), 1), np.uint8)) for one in coarse]
    image, labels = textures[0][:height, :width].copy(), np.zeros(size, np.int64)
    rows, columns = np.ogrid[:height, :width]
    for k in range(objects):
        angle = 2 * np.pi * (k / objects + t / 240)
        y, x = height * (0.5 + 0.28 * np.sin(angle)), width * (0.5 + 0.3 * np.cos(angle))
        inside = ((rows - y) / (0.16 * height)) ** 2 + ((columns - x) / (0.1 * width)) ** 2 < 1
        image[inside], labels[inside] = textures[1 + k][:height, :width][inside], k + 1
    return image, labels


def bounded(method: Method) -> Method:
    """Random residual branches scaled down; their sum grows with the depth, beyond what float32 holds."""
    for block in method.networks.modules():
        if isinstance(block, (BasicBlock, Bottleneck)):
            last = block.bn3 if isinstance(block, Bottleneck) else block.bn2
            last.weight.data.mul_(RESIDUAL)
    return method


def one_case(
    method: str,
    weights: str | None,
    size: tuple[int, int],
    objects: int,
    frames: int,
    device: str,
    **options: Any,
) -> dict[str, Any]:
    """Seconds of every phase of every frame, and memory."""
    torch.manual_seed(0)
    place = choose_device(device)
    network = load_method(method, weights, options).eval().to(place)
    extract = eager_run(network.extractor, place)
    target = network.target()
    ids = tuple(range(1, objects + 1))
    seconds: dict[str, list[float]] = {phase: [] for phase in PHASES}

    def clock() -> float:
        if place.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()

    with torch.inference_mode():
        for t in range(frames + 1):
            image, labels = scene(size, objects, t)
            picture = torch.from_numpy(image).to(place).permute(2, 0, 1)[None].float().div_(255)
            label_map = torch.from_numpy(labels).to(place)
            started = clock()
            features = extract(picture)
            if t == 0:
                target.annotate(features, label_map, ids)
                first = clock() - started
                continue
            extracted = clock()
            evidence = target.read(features)
            read = clock()
            network.decoder(evidence, size)
            decoded = clock()
            truth = torch.nn.functional.one_hot(label_map, 1 + objects).permute(2, 0, 1).float()
            before_write = clock()
            target.write(features, truth)
            marks = (extracted - started, read - extracted, decoded - read, clock() - before_write)
            for phase, value in zip(PHASES, marks, strict=True):
                seconds[phase].append(value)
    state = sum(value.nbytes for value in target.state_dict().values())
    answer = {"first_s": first, "state_mib": state / 2**20, "peak_mib": peak_mib(place)}
    return answer | {"seconds": seconds}


def peak_mib(device: torch.device) -> float:
    """Most memory this process ever held: of the GPU if there is one, else resident."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024


def in_own_process(threads: int, **case: Any) -> dict[str, Any]:
    command = [sys.executable, __file__, "--case", json.dumps(case)]
    environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
    answer = subprocess.run(command, capture_output=True, text=True, env=environment)
    if answer.returncode:
        raise SystemExit(f"{case}: {answer.stderr.strip().splitlines()[-1]}")
    return json.loads(answer.stdout.splitlines()[-1])


def summary(case: dict[str, Any], answer: dict[str, Any], warm_up: int = WARM_UP) -> dict[str, Any]:
    """One row of the table: medians in milliseconds after the warm-up."""
    seconds = {phase: values[warm_up:] for phase, values in answer.pop("seconds").items()}
    whole = [sum(parts) for parts in zip(*seconds.values(), strict=True)]
    row = {f"{phase}_ms": 1e3 * statistics.median(values) for phase, values in seconds.items()}
    row |= {"frame_ms": 1e3 * statistics.median(whole), "mean_ms": 1e3 * statistics.fmean(whole)}
    row |= {"slowest_ms": 1e3 * max(whole), "frames": len(whole)}
    return {**case, **row, **answer}


COLUMNS = {
    "extract": "extract_ms",
    "read": "read_ms",
    "decode": "decode_ms",
    "write": "write_ms",
    "frame": "frame_ms",
    "mean": "mean_ms",
    "slowest": "slowest_ms",
}


def print_row(row: dict[str, Any]) -> None:
    name = f"{row['method']} {row['size'][0]}x{row['size'][1]} x{row['objects']}"
    cells = "".join(f"{row[key]:>9.0f}" for key in COLUMNS.values())
    print(
        f"{name:26}{cells}{row['first_s']:>8.1f}s{row['state_mib']:>8.0f}{row['peak_mib']:>8.0f}", flush=True
    )


def plot(rows: list[dict[str, Any]], path: Path) -> None:
    """Time per frame against objects and against pixels."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(10, 4), sharey=True)
    for method in dict.fromkeys(row["method"] for row in rows):
        own = [row for row in rows if row["method"] == method]
        large = max(row["size"][0] for row in own)
        by_objects = sorted((r["objects"], r["mean_ms"]) for r in own if r["size"][0] == large)
        by_pixels = sorted((r["size"][0], r["mean_ms"]) for r in own if r["objects"] == 1)
        axes[0].plot(*zip(*by_objects, strict=True), marker="o", label=method)
        axes[1].plot(*zip(*by_pixels, strict=True), marker="o", label=method)
    axes[0].set(xlabel="objects", ylabel="mean milliseconds a frame", yscale="log")
    axes[1].set(xlabel="height in pixels, one object")
    axes[1].legend()
    figure.tight_layout()
    figure.savefig(path, dpi=110)


def cases(given: argparse.Namespace) -> list[dict[str, Any]]:
    rows = []
    for method in given.methods.split(","):
        options = {"precision": given.precision} if given.precision else {}
        base = {"method": method, "weights": None if given.weights == "none" else given.weights}
        base |= {"device": given.device, "frames": given.frames, "options": options}
        rows += [{**base, "size": given.size, "objects": k} for k in given.objects]
        if given.growth:
            height, width = given.size
            smaller = [[height // 2, width // 2], [3 * height // 4, 3 * width // 4]]
            rows += [{**base, "size": size, "objects": 1} for size in smaller]
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--methods", default=",".join(METHODS), help="comma-separated")
    parser.add_argument("--weights", default="none", help="none (random, the authors' networks) or default")
    parser.add_argument("--size", nargs=2, type=int, default=list(SIZE), metavar=("HEIGHT", "WIDTH"))
    parser.add_argument("--objects", nargs="+", type=int, default=list(OBJECTS))
    parser.add_argument("--frames", type=int, default=FRAMES, help=f"of which {WARM_UP} are not counted")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", help="float32, bfloat16 or auto; default: the method's own")
    parser.add_argument("--growth", action="store_true", help="smaller frames too")
    parser.add_argument("--figure", type=Path, help="draw time against objects and size")
    parser.add_argument("--case", type=json.loads, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.case:
        case = given.case
        options = case.pop("options")
        print(json.dumps(one_case(**{**case, "size": tuple(case["size"])}, **options)))
        return
    rows = []
    print(f"{'milliseconds':26}" + "".join(f"{name:>9}" for name in COLUMNS) + "    first   state    peak")
    for case in cases(given):
        answer = in_own_process(given.threads, **case)
        rows.append(summary({n: v for n, v in case.items() if n != "frames"}, answer))
        print_row(rows[-1])
    if given.figure:
        plot(rows, given.figure)
    machine = torch.cuda.get_device_name() if given.device.startswith("cuda") else platform.processor()
    about = {"torch": torch.__version__, "threads": given.threads, "machine": machine or platform.machine()}
    print(json.dumps({"benchmark": "methods", **about, "rows": rows}))


if __name__ == "__main__":
    main()
