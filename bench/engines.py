"""What compiling a network is worth: eager and aoti in turns, in the same process.

    python bench/engines.py                                  # every case, 480x854, one frame
    python bench/engines.py --cases tvos frtm-fast --batch 4
    python bench/engines.py --cases "joint/decoder" --batch 3        # three objects
    python bench/engines.py --device cuda --backends aoti cuda-graph tensorrt

Calls take turns (eager, aoti, eager, ...), so that whatever else the machine does meets them alike;
medians and minima are printed. Memory is kept between calls, as in a stream (`--fresh`: it is not). "error"
is the relative difference to eager's features. Weights are the bundled ones where there are some, else
random, on which time does not depend. Every case runs in a process of its own. A table for people; one line
of JSON last.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from methods import bounded

from streamvos.engines.eager import choose_device, prepare
from streamvos.engines.engines import COMPILED
from streamvos.engines.exporting import export
from streamvos.engines.gate import feature_error, inputs_in, resized, synthetic_clip
from streamvos.engines.recipes import recipe_for
from streamvos.engines.signature import Signature
from streamvos.methods.parts import ExtractorPart
from streamvos.segmenter import follow
from streamvos.weights import BUNDLED, load_method

SIZE, ROUNDS = (480, 854), 15

KEEP = {"MALLOC_TRIM_THRESHOLD_": str(2**31 - 1), "MALLOC_MMAP_THRESHOLD_": str(2**25)}
"""glibc keeps memory that is freed, as it does by itself after some frames of a stream."""

AUTHORS: dict[str, tuple[str, dict[str, Any]]] = {
    "tvos of the authors": ("tvos", {}),
    "frtm of the authors": ("frtm", {}),
    "feelvos, stride 16": ("feelvos", {"output_stride": 16}),
    "rgmp of the authors": ("rgmp", {}),
    "frtm of the authors/refiner": ("frtm", {}),
    "rgmp of the authors/run": ("rgmp", {"scales": (1.0,)}),
    "joint of the authors/backbone": ("joint", {}),
    "joint of the authors/decoder": ("joint", {}),
    "feelvos, stride 16/head": ("feelvos", {"output_stride": 16}),
}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    **{name: (name, {}) for name in BUNDLED},
    "tvos, float32": ("tvos", {"precision": "float32"}),
    "tvos/refiner": ("tvos", {}),
    "rgmp/run": ("rgmp", {}),
    "frtm-fast/refiner": ("frtm-fast", {}),
    "joint/decoder": ("joint", {}),
    "feelvos/head": ("feelvos", {}),
    **{name: (method, {"weights": None, **options}) for name, (method, options) in AUTHORS.items()},
}
"""Name -> method and options; "weights" None = random ones of the authors' network.

What follows a slash is the part, else it is the extractor; of an inner part the batch is the objects.
"""


def one_case(
    name: str, size: tuple[int, int], batch: int, device: str, backends: list[str]
) -> dict[str, Any]:
    """Times of every backend, and what building took."""
    method_name, options = CASES[name]
    options = dict(options)
    weights = options.pop("weights", "default" if method_name in BUNDLED else None)
    torch.manual_seed(0)
    place = choose_device(device)
    method = load_method(method_name, weights, options)
    method = (method if weights is not None else bounded(method)).eval().to(place)
    prepare(method.extractor, place)
    part = method.parts()[name.partition("/")[2] or "extractor"]
    if isinstance(part, ExtractorPart):
        inputs = tuple(tensor.to(place) for tensor in part.example(size, batch))
    else:
        inputs = inputs_in(method, part, synthetic_clip(size, 2, batch), place, follow)[-1]
    recipe = recipe_for(method.name, part.name)
    assert recipe is not None
    runs: dict[str, Callable[..., Any]] = {"eager": part.plain}
    seconds, errors, loading = {}, {}, {}
    with torch.inference_mode():
        expected = part.plain(*inputs)
    with tempfile.TemporaryDirectory() as folder:
        for backend in backends:
            path = Path(folder) / f"{backend}.pt2"
            given = resized(part, inputs, 2)
            signature = Signature.of(*given).of_any_batch(part, recipe.most)
            started = time.perf_counter()
            COMPILED[backend].build(export(part, given, signature), path, signature, recipe.freezing)
            built = time.perf_counter()
            runs[backend] = COMPILED[backend].load(path, place, part.plain)
            loading[backend] = 1e3 * (time.perf_counter() - built)
            with torch.inference_mode():
                errors[backend] = feature_error(expected, runs[backend](*inputs))
            seconds[backend] = built - started
    taken: dict[str, list[float]] = {backend: [] for backend in runs}
    with torch.inference_mode():
        for _ in range(ROUNDS):
            for backend, run in runs.items():
                started = _clock(place)
                run(*inputs)
                taken[backend].append(1e3 * (_clock(place) - started))
    return {
        "case": name,
        "precision": str(getattr(method.options, "precision", "float32")),
        "ms": {backend: round(statistics.median(values), 2) for backend, values in taken.items()},
        "least_ms": {backend: round(min(values), 2) for backend, values in taken.items()},
        "error": errors,
        "build_s": {backend: round(value, 1) for backend, value in seconds.items()},
        "load_ms": {backend: round(value, 1) for backend, value in loading.items()},
    }


def _clock(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def in_own_process(threads: int, fresh: bool, **case: Any) -> dict[str, Any]:
    command = [sys.executable, __file__, "--case", json.dumps(case)]
    environment = os.environ | {"OMP_NUM_THREADS": str(threads)} | ({} if fresh else KEEP)
    answer = subprocess.run(command, capture_output=True, text=True, env=environment)
    if answer.returncode:
        raise SystemExit(f"{case}: {answer.stderr.strip().splitlines()[-1]}")
    return json.loads(answer.stdout.splitlines()[-1])


def print_row(row: dict[str, Any]) -> None:
    eager = row["ms"]["eager"]
    cells = "".join(
        f"{ms:>10.1f} {eager / ms:>5.2f}x" if backend != "eager" else f"{ms:>10.1f}"
        for backend, ms in row["ms"].items()
    )
    error = max(row["error"].values(), default=0.0)
    build = max(row["build_s"].values(), default=0.0)
    print(f"{row['case']:22}{row['precision']:>10}{cells}{error:>10.1e}{build:>9.0f}s", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cases", nargs="+", default=list(CASES), choices=list(CASES))
    parser.add_argument("--backends", nargs="+", default=["aoti"], choices=list(COMPILED))
    parser.add_argument("--size", nargs=2, type=int, default=list(SIZE), metavar=("HEIGHT", "WIDTH"))
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--fresh", action="store_true", help="memory is given back and zeroed in every call")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", type=Path, help="write the JSON line here too")
    parser.add_argument("--case", type=json.loads, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.case:
        print(json.dumps(one_case(**{**given.case, "size": tuple(given.case["size"])})))
        return
    place = choose_device(given.device)
    backends = [one for one in given.backends if COMPILED[one].missing(place) is None]
    columns = "".join(f"{name:>10}" + (" " * 7 if name != "eager" else "") for name in ["eager", *backends])
    print(f"{'milliseconds':22}{'':10}{columns}{'error':>10}{'build':>10}")
    rows = []
    for name in given.cases:
        case = {"name": name, "size": given.size, "batch": given.batch, "device": given.device}
        rows.append(in_own_process(given.threads, given.fresh, **case, backends=backends))
        print_row(rows[-1])
    machine = torch.cuda.get_device_name() if place.type == "cuda" else platform.processor()
    about = {"torch": torch.__version__, "threads": given.threads, "machine": machine or platform.machine()}
    line = json.dumps(
        {"benchmark": "engines", **about, "size": given.size, "batch": given.batch, "rows": rows}
    )
    print(line)
    if given.json is not None:
        given.json.write_text(line + "\n")


if __name__ == "__main__":
    main()
