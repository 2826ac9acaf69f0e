"""What a process of `bench gpu` does: follow a stream, build engines, compare kernels. One job, some rows.

rows = JOBS["follow"](device="cuda", case="tvos bundled", backend="eager", objects=3, ...)
"""

from __future__ import annotations

import gc
import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from streamvos.engines import gate
from streamvos.engines.building import Builder
from streamvos.engines.cache import EngineCache
from streamvos.engines.eager import choose_device
from streamvos.engines.recipes import recipe_for
from streamvos.methods import Method
from streamvos.segmenter import Extraction, StreamState, check_mask, decide, follow, make_result
from streamvos.weights import load_method

from ..latency_work import bounded
from ..machine import memory_mib
from ..scenes import Scene
from .cases import CASES
from .kernels import kernel_rows, matching_rows, sweep_rows

PEAKS = {"H100": 989.0, "H200": 989.0, "A100": 312.0, "L4": 121.0, "4090": 165.0}
"""Dense bfloat16 products of the tensor cores by data sheet, in 10^12 operations a second."""

LEAST_OVERLAP = gate.LEAST_OVERLAP
"""Of masks, where weights are no noise."""


@lru_cache(maxsize=1)
def method_of(case: str) -> Method:
    """The method of a case, the same in every process, so that engines of random weights are found again."""
    torch.manual_seed(0)
    name, weights, options = CASES[case]
    method = load_method(name, weights, options)
    return method if weights is not None else bounded(method)


@lru_cache(maxsize=2 * 64)
def scene_of(size: tuple[int, int], objects: int, t: int) -> tuple[np.ndarray, np.ndarray]:
    """Pictures are the same in every case, and take longer to make than many a network to run."""
    return _scene(size, objects).frame(t)


_scene = lru_cache(maxsize=4)(Scene)


def follow_case(
    case: str,
    backend: str,
    objects: int,
    size: Sequence[int],
    frames: int,
    warm: int,
    cache: str | None,
    device: torch.device,
) -> list[dict[str, Any]]:
    """One row: a stream of `warm` + `frames` frames, of which the latter count."""
    size = (size[0], size[1])
    method = method_of(case)
    for part in method.inner_parts().values():
        part.replace(None)  # what ran in the case before
    if device.type == "cuda":
        gc.collect()  # networks and their parts refer to each other
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    extract = Extraction(method, device, backend, _cache(cache))
    state = StreamState(method, device)
    ids = tuple(range(1, objects + 1))
    seconds = []
    for t in range(1 + warm + frames):
        image, labels = scene_of(size, objects, t)
        frame, truth = torch.from_numpy(image), torch.from_numpy(labels).to(device).long()
        certain = torch.nn.functional.one_hot(truth, 1 + objects).movedim(-1, 0).float()
        wait(device)
        started = time.perf_counter()
        features = extract([frame])
        question = state.ask(features, check_mask(truth, size, device) if t == 0 else None)
        decision = decide(method, question)
        shown = decision.shown()
        state.learn(features, question, decision if t == 0 else replace(decision, predicted=certain))
        mask = make_result(shown, ids, t, method.options.uncertain_below).mask
        seconds.append(time.perf_counter() - started)
        assert mask.shape == size
    held = sum(value.nbytes for value in state.target.state_dict().values())
    row = {
        "values": [1e3 * one for one in seconds[1 + warm :]],
        "first_ms": 1e3 * seconds[0],
        "peak_mib": peak_mib(device),
        "engines": extract.engines.describe(),
        "state_mib": held / 2**20,
    }
    return [row | extractor_speed(extract, torch.from_numpy(scene_of(size, 1, 0)[0]), device, frames)]


def extractor_speed(
    extract: Extraction, frame: torch.Tensor, device: torch.device, rounds: int
) -> dict[str, Any]:
    """Milliseconds of the extractor alone, and its share of what the device's tensor cores could do."""
    frame = frame.to(device)
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
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


def build_engines(
    case: str,
    part: str,
    backend: str,
    objects: int | None,
    size: Sequence[int],
    gate_frames: int,
    cache: str | None,
    device: torch.device,
) -> list[dict[str, Any]]:
    """A row for each engine that a part needs with so many objects."""
    method = method_of(case)
    if part not in method.parts():  # of another form of the method
        return []
    # masks of random weights are noise that feeds back, and agree with nothing; features are compared
    gate.LEAST_OVERLAP = 0.0 if CASES[case][1] is None else LEAST_OVERLAP
    recipe = recipe_for(method.name, part)
    assert recipe is not None
    clip = gate.synthetic_clip((size[0], size[1]), gate_frames, objects or 2)
    builder, rows = Builder(method, recipe, device, _cache(cache), follow, clip), []
    for inputs in builder.inputs():
        built = builder.build(backend, inputs)
        rows.append(
            {
                "inputs": str(built.plan.signature),
                "passed": built.parity.passed,
                "parity": str(built.parity),
                "milliseconds": built.milliseconds,
            }
        )
    return rows


def _cache(folder: str | None) -> EngineCache:
    return EngineCache(None if folder is None else Path(folder))


def peak_mib(device: torch.device) -> float:
    """Most memory of the GPU, or of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    return memory_mib(peak=True) or 0.0


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def machine(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return platform.processor() or platform.machine()


def on_device(job: Callable[..., list[dict[str, Any]]]) -> Callable[..., list[dict[str, Any]]]:
    """The job, which is given its device by name."""
    return lambda device, **given: job(device=choose_device(device), **given)


JOBS = {
    "follow": on_device(follow_case),
    "build": on_device(build_engines),
    "propagation": on_device(kernel_rows),
    "matching": on_device(matching_rows),
    "sweep": on_device(sweep_rows),
}
