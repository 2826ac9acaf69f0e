"""streamvos: follow chosen objects through live video, online, in real time.

import streamvos
vos = streamvos.load("tvos")
result = vos.step(frame, mask)      # a mask starts, adds or corrects objects; ids are yours
result = vos.step(frame)            # later frames
result.mask                         # (H, W) uint8 label map
result.probabilities                # (1 + objects, H, W) float32, background first
result.objects[3].score             # and .state, .box, .area
vos.forget(3); vos.reset(); blob = vos.snapshot(); vos.restore(blob)
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from streamvos.segmenter import Segmenter
from streamvos.types import (
    Frame,
    InputError,
    ObjectResult,
    Result,
    SinkError,
    SourceError,
    StreamvosError,
)
from streamvos.weights import load_method

__version__ = "0.1.0"


def load(
    method: str = "tvos",
    weights: str | Path | None = "default",
    device: str = "auto",
    backend: str = "eager",
    **options: Any,
) -> Segmenter:
    """A segmenter for one stream.

    Args:
        method: "tvos", "frtm-fast", "frtm", "rgmp", "joint" or "feelvos"; the first two have bundled weights.
        weights: "default" (bundled), a path (a file of ours or an author's checkpoint, recognized by
            its keys), or None (random, for tests and timing).
        device: "auto" (an NVIDIA GPU if there is one), "cpu", "cuda:0", ...
        backend: how the networks run; "eager".
        **options: of the method, such as `top_k=5` or `temperature=20`; see `streamvos.methods`.

    Raises:
        InputError: an unknown method, option, device or backend, or weights that do not fit.

    >>> vos = load("tvos", device="cpu", top_k=5)
    """
    return Segmenter(load_method(method, weights, options), device, backend)


__all__ = [
    "Frame",
    "InputError",
    "ObjectResult",
    "Result",
    "Segmenter",
    "SinkError",
    "SourceError",
    "StreamvosError",
    "load",
]
