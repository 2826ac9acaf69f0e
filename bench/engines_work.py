"""What a process of `bench engines` does: a part of a network, eager and compiled in turns.

JOBS["case"](name="tvos", size=[480, 854], batch=1, device="cpu", backends=["aoti"], seconds=2.0)
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from streamvos.engines.eager import choose_device, prepare
from streamvos.engines.engines import COMPILED
from streamvos.engines.exporting import export
from streamvos.engines.gate import feature_error, inputs_in, resized, synthetic_clip
from streamvos.engines.recipes import recipe_for
from streamvos.engines.signature import Signature
from streamvos.methods.parts import ExtractorPart
from streamvos.segmenter import follow
from streamvos.weights import BUNDLED, load_method

from .engine_cases import CASES
from .latency_work import bounded

LEAST_ROUNDS = 5


def one_case(
    name: str, size: list[int], batch: int, device: str, backends: list[str], seconds: float
) -> dict[str, Any]:
    """Milliseconds of every call of every backend, which take turns, and what building took."""
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
        inputs = tuple(tensor.to(place) for tensor in part.example((size[0], size[1]), batch))
    else:
        inputs = inputs_in(method, part, synthetic_clip((size[0], size[1]), 2, batch), place, follow)[-1]
    recipe = recipe_for(method.name, part.name)
    assert recipe is not None
    runs: dict[str, Callable[..., Any]] = {"eager": part.plain}
    building, errors, loading = {}, {}, {}
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
            building[backend] = built - started
    taken: dict[str, list[float]] = {backend: [] for backend in runs}
    with torch.inference_mode():
        end = time.monotonic() + seconds * len(runs)
        while len(taken["eager"]) < LEAST_ROUNDS or time.monotonic() < end:
            for backend, run in runs.items():
                started = _clock(place)
                run(*inputs)
                taken[backend].append(1e3 * (_clock(place) - started))
    return {
        "precision": str(getattr(method.options, "precision", "float32")),
        "threads": torch.get_num_threads(),
        "values": {backend: values[1:] for backend, values in taken.items()},  # the first is cold
        "error": errors,
        "build_s": building,
        "load_ms": loading,
    }


def _clock(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


JOBS = {"case": one_case}
