"""streamvos: follow chosen objects through live video, online, in real time.

    import streamvos
    vos = streamvos.load()
    mask = streamvos.read_label_map("first.png")        # 0 is background, 1..254 are objects
    with streamvos.open_source("camera:0") as source:   # or a file, a folder, "rtsp://..."
        for frame in source:
            result = vos.step(frame.image, mask if frame.index == 0 else None)
            result.mask                                 # (H, W) uint8 label map
            result.probabilities                        # (1 + objects, H, W) float32, background first
            result.objects[3].score                     # and .state, .box, .area

A mask of a later frame adds or corrects objects, `vos.forget(3)` drops one, `vos.snapshot()` and
`vos.restore(blob)` move a stream to another process. A client reaches a pipeline that `streamvos serve` runs:

    with streamvos.Client("door") as client:
        client.annotate("front", mask)
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from streamvos.lazy import import_on_use
from streamvos.types import Frame, InputError, ObjectResult, Result, SinkError, SourceError, StreamvosError

if TYPE_CHECKING:
    from streamvos.masks.labelmap import read_label_map
    from streamvos.pipeline.clients.client import Client, PipelineError
    from streamvos.segmenter import Segmenter
    from streamvos.selection.selector import Selector
    from streamvos.sources import open_source
    from streamvos.types import TruncatedError

__all__ = ["Client", "Frame", "InputError", "ObjectResult", "PipelineError", "Result", "Segmenter"]
__all__ += ["Selector", "SinkError", "SourceError", "StreamvosError", "TruncatedError", "load"]
__all__ += ["open_source", "read_label_map"]
__version__ = "0.1.0"

__getattr__ = import_on_use(
    __name__,
    {
        "streamvos.masks.labelmap": ["read_label_map"],
        "streamvos.pipeline.clients.client": ["Client", "PipelineError"],
        "streamvos.segmenter": ["Segmenter"],
        "streamvos.selection.selector": ["Selector"],
        "streamvos.sources": ["open_source"],
        "streamvos.types": ["TruncatedError"],
    },
)


def load(
    method: str | None = None,
    weights: str | Path | None = "default",
    device: str = "auto",
    backend: str = "eager",
    **options: Any,
) -> Segmenter:
    """Make a segmenter for one stream.

    Args:
        method: "tvos", "rgmp", "frtm-fast", "joint", "feelvos" (these have bundled weights) or "frtm"; None =
            that of the weights' file, or else "tvos".
        weights: "default" (bundled), a path (ours, or an author's checkpoint), or None (random).
        device: "auto" (an NVIDIA GPU if there is one), "cpu", "cuda:0", ...
        backend: how the networks run: "eager", "aoti", "tensorrt", "cuda-graph" or "auto" (docs/engines.md).
        **options: options of the method, such as `top_k=5` or `temperature=20`; see docs/methods.md.

    Raises:
        InputError: an unknown method, option, device or backend, or weights that do not fit.

    >>> vos = load("tvos", device="cpu", top_k=5)
    """
    from streamvos.segmenter import Segmenter
    from streamvos.weights import load_method, method_of

    name = method_of(weights) if method is None else method
    return Segmenter(load_method(name, weights, options), device, backend)
