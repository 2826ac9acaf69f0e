"""What a process of `bench streaming` does: one method at one height on a data set.

JOBS["begin"](method="tvos", ...)               # {"threads": 2}
JOBS["offline"](sequence="goat")                # {"scores": {"J": ...}, "ms": [first, second, ...]}
JOBS["streaming"](sequence="goat", fps=30, first_ms=200, ms=131)
"""

from __future__ import annotations

from typing import Any

import torch

import streamvos
from streamvos.datasets.davis import DavisDataset
from streamvos.metrics.sequences import evaluate
from streamvos.segmenter import Segmenter

_vos: Segmenter | None = None
_data: DavisDataset | None = None
_height: int | None = None


def _begin(
    method: str, weights: str | None, backend: str, device: str, root: str, sequences: list[str], height: int
) -> dict[str, Any]:
    """Load, and take two frames, since first ones are slow."""
    global _vos, _data, _height
    torch.manual_seed(0)
    _vos, _height = streamvos.load(method, weights, device, backend), height
    _data = DavisDataset(root, sequences=sequences)
    size = height, max(1, round(_data[0].image(0).shape[1] * height / _data[0].image(0).shape[0]))
    image, mask = torch.zeros((*size, 3), dtype=torch.uint8).numpy(), torch.ones(size, dtype=torch.uint8)
    for given in (mask.numpy(), None):
        _vos.step(image, given)
    return {"threads": torch.get_num_threads()}


def _offline(sequence: str) -> dict[str, Any]:
    assert _vos is not None
    assert _data is not None
    done = evaluate(_vos, _data[sequence], height=_height)
    return {"scores": done.score.percent(), "ms": [1e3 * value for value in done.seconds]}


def _streaming(sequence: str, fps: float, first_ms: float, ms: float) -> dict[str, Any]:
    assert _vos is not None
    assert _data is not None
    done = evaluate(
        _vos,
        _data[sequence],
        height=_height,
        fps=fps,
        cost=lambda frame, measured: 1e-3 * (ms if frame else first_ms),
    )
    return {
        "scores": done.score.percent(),
        "processed": len(done.costs) / len(done.counted),
        "behind": done.behind,
    }


JOBS = {"begin": _begin, "offline": _offline, "streaming": _streaming}
