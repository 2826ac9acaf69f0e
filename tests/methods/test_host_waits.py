"""Between two masks the host never waits for the GPU: all of a step is queued before its mask is fetched.

A step with an annotation may wait, and does: for the ids in the mask (`checks.check_mask`), for the
objects that have pixels, for FRTM's synthetic frames, which are painted on the host, for the sizes of
FEELVOS's references.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from pretended_gpu import GPU, Crossings, to_gpu
from small_methods import SMALL, small

from streamvos.methods import Method
from streamvos.nn.transfer import Arrival, send, take
from streamvos.segmenter import Extraction, StreamState, check_mask, decide, label_map_of
from streamvos.types import Features

SIZE = (64, 96)

CASES: dict[str, tuple[str, dict[str, Any]]] = {
    **{name: (name, {}) for name in sorted(set(SMALL) - {"frtm-fast"})},
    "tvos, all keys": ("tvos", {"top_k": None, "spatial_prior": "authors"}),
    "tvos, near keys, soft": ("tvos", {"radius": 3, "history_labels": "soft", "spatial_prior": "paper"}),
    "tvos, not believed": ("tvos", {"search_margin": 0.25, "largest_growth": 3.0, "lost_below": 0.6}),
    "frtm": ("frtm", {"memory_size": 6, "update_interval": 2}),
    "frtm, youtube": ("frtm", {"aggregation": "youtube", "memory_size": 6}),
    "joint": ("joint", {"update_interval": 1}),
    "joint/efficientnet": ("joint/efficientnet", {"update_interval": 1}),
    "feelvos, soft": ("feelvos", {"previous": "soft"}),
    "feelvos, small form": ("feelvos/efficientnet", {}),
}

LEARN = ["frtm", "joint/efficientnet"]
"""Methods that may train in the background."""


def frames(count: int) -> list[torch.Tensor]:
    rng = np.random.Generator(np.random.PCG64(0))
    return [torch.from_numpy(rng.integers(0, 255, (*SIZE, 3), dtype=np.uint8)) for _ in range(count)]


def three_objects() -> torch.Tensor:
    mask = torch.zeros(SIZE, dtype=torch.int64)
    mask[8:32, 10:50], mask[34:60, 50:90], mask[14:26, 66:90] = 1, 2, 5
    return mask


def begun(name: str, options: dict[str, Any], defer: bool, device: str = "cpu") -> tuple[Method, StreamState]:
    """A stream with three objects, some frames old."""
    extract = Extraction(small(name, **options).method, device)
    state = StreamState(extract.method, extract.device, defer)
    for t, frame in enumerate(frames(3)):
        annotation = check_mask(three_objects(), SIZE, extract.device) if t == 0 else None
        step(extract.method, state, extract([frame]), annotation)
    return extract.method, state


def step(method: Method, state: StreamState, features: Features, annotation=None) -> torch.Tensor:
    question = state.ask(features, annotation)
    decision = decide(method, question)
    state.learn(features, question, decision)
    return label_map_of(decision.shown(), decision.object_ids)


@pytest.mark.parametrize(
    ("case", "defer"), [*((case, False) for case in CASES), *((case, True) for case in LEARN)]
)
def test_a_step_without_annotation_waits_for_nothing(case, defer):
    name, options = CASES[case]
    method, state = to_gpu(*begun(name, options, defer))
    state.method = method
    for _ in range(5):  # memories are full then, and whatever is done at intervals has come up
        with torch.inference_mode(), Crossings() as crossings:
            frame = torch.empty((1, 3, *SIZE), device=GPU).contiguous(memory_format=torch.channels_last)
            label_map = step(method, state, method.extractor(frame))
        assert crossings.waits == []
        assert (label_map.device, label_map.shape, label_map.dtype) == (GPU, SIZE, torch.uint8)
        for task in state.target.take_tasks():
            with Crossings():
                task.run()
                state.target.take_over(task)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="NO NVIDIA GPU: waits are only watched for on one")
@pytest.mark.parametrize("case", CASES)
def test_on_a_gpu_a_step_without_annotation_waits_for_nothing(case):
    name, options = CASES[case]
    method, state = begun(name, options, False, "cuda")
    extract = Extraction(method, "cuda")
    features = [extract([frame]) for frame in frames(3)]
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for one in features:
            step(method, state, one)
    finally:
        torch.cuda.set_sync_debug_mode("default")


WAITS: dict[str, Callable[[torch.Tensor], object]] = {
    "a value": lambda x: x.sum().item(),
    "a condition": lambda x: bool((x > 0).any()),
    "a number": lambda x: float(x[0]),
    "a list": lambda x: x.tolist(),
    "the host": lambda x: x.cpu(),
    "the host, by copying": lambda x: torch.zeros(3).copy_(x),
    "whether they are equal": lambda x: torch.equal(x, x),
    "a new tensor": lambda x: torch.tensor([1, 2], device=x.device),
    "another new tensor": lambda x: x.new_tensor([1, 2]),
    "an upload": lambda x: torch.ones(2).to(x.device),
    "a list of indices": lambda x: x[[0, 2]],
    "indices of the host": lambda x: x[torch.tensor([0, 2])],
}

SHAPES: dict[str, Callable[[torch.Tensor], object]] = {
    "places": lambda x: x.nonzero(),
    "a mask": lambda x: x[x > 0],
    "a selection": lambda x: x.masked_select(x > 0),
    "ids": lambda x: x.unique(),
    "counts": lambda x: x.long().bincount(),
}


@pytest.mark.parametrize("name", WAITS)
def test_what_waits_is_found(name):
    with torch.inference_mode(), Crossings() as crossings:
        WAITS[name](torch.empty(3, device=GPU))
    assert crossings.waits


@pytest.mark.parametrize("name", SHAPES)
def test_what_has_a_shape_that_depends_on_values_is_found(name):
    # also where torch's own stand-in for values refuses first
    with Crossings(), pytest.raises((AssertionError, NotImplementedError)):
        SHAPES[name](torch.empty(3, device=GPU))


def test_what_does_not_wait_is_left_alone():
    with Crossings() as crossings:
        x = torch.empty(5, 3, device=GPU)
        take(x, [2, 0]).add_(send((1.0, 2.0, 3.0), torch.float32, x.device)).amax()
        x[2:, 1] = x[:3, 0].clamp_min(torch.tensor(1.0))
        arrival = Arrival(x.sum(1))
    assert crossings.waits == []
    assert len(crossings.sent) == 2
    assert len(crossings.fetched) == 1
    assert arrival.values().shape == (5,)
