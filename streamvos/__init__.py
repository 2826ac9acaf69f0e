"""streamvos: follow chosen objects through live video, online, in real time.

import streamvos
vos = streamvos.load("tvos")
result = vos.step(frame, mask)      # a mask starts, adds or corrects objects; ids are yours
result = vos.step(frame)            # later frames
result.mask                         # (H, W) uint8 label map
result.probabilities                # (1 + objects, H, W) float32, background first
result.objects[3].score             # and .state, .box, .area
vos.forget(3); vos.reset(); blob = vos.snapshot(); vos.restore(blob)

with streamvos.Client("door") as client:            # a pipeline that `streamvos serve` runs
    client.annotate("front", mask)
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from streamvos.types import Frame, InputError, ObjectResult, Result, SinkError, SourceError, StreamvosError

if TYPE_CHECKING:
    from streamvos.pipeline.clients.client import Client
    from streamvos.segmenter import Segmenter

__version__ = "0.1.0"

_ROOMS = {"Segmenter": "streamvos.segmenter", "Client": "streamvos.pipeline.clients.client"}


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
        backend: how the networks run: "eager", "inductor", "aoti", "tensorrt" or "auto" (docs/engines.md).
        **options: of the method, such as `top_k=5` or `temperature=20`; see `streamvos.methods`.

    Raises:
        InputError: an unknown method, option, device or backend, or weights that do not fit.

    >>> vos = load("tvos", device="cpu", top_k=5)
    """
    from streamvos.segmenter import Segmenter
    from streamvos.weights import load_method

    return Segmenter(load_method(method, weights, options), device, backend)


def __getattr__(name: str) -> Any:
    # torch takes seconds to import, and processes that read cameras or write files do without it
    if name in _ROOMS:
        return getattr(import_module(_ROOMS[name]), name)
    raise AttributeError(f"module 'streamvos' has no attribute {name!r}")


__all__ = [
    "Client",
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
