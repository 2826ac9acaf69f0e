"""The masks of a clip, for those who compare engines with eager.

masks = list(follow(method, device, frames, mask))
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch

from streamvos.methods import Method
from streamvos.segmenter.segmenter import Segmenter
from streamvos.types import Features


def follow(
    method: Method,
    device: torch.device,
    frames: Sequence[np.ndarray],
    mask: np.ndarray,
    extract: Callable[[torch.Tensor], Features] | None = None,
) -> Iterator[np.ndarray]:
    """Follow the objects of a clip with a method; see `streamvos.engines.gate.Follow`.

    Yields:
        (H, W) uint8 label map of every frame.
    """
    vos = Segmenter(method, device)
    if extract is not None:
        vos.extraction.use(extract)
    for index, frame in enumerate(frames):
        yield vos.step(frame, mask if index == 0 else None).mask
