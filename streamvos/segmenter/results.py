"""From probabilities to what the user gets: the label map, and score, state and box of every object."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch

from streamvos.nn.labels import winners
from streamvos.types import ObjectResult, Result, State

UNCERTAIN_BELOW = 0.6
"""An object whose own pixels are believed less than this, on average, is "uncertain"."""


@torch.inference_mode()
def make_result(probabilities: torch.Tensor, object_ids: tuple[int, ...], index: int) -> Result:
    """A `Result` whose mask is made now and whose other parts are made when asked.

    Args:
        probabilities: (1 + K, H, W) float32 on any device; must not be written to afterwards.
        object_ids: the K ids.
        index: of the frame.
    """
    mask = label_map_of(probabilities, object_ids).cpu().numpy()

    @lru_cache(maxsize=1)
    def on_host() -> np.ndarray:
        return probabilities.float().cpu().numpy()

    @lru_cache(maxsize=1)
    def objects() -> dict[int, ObjectResult]:
        channels = on_host()
        return {i: _describe(i, mask == i, channels[k]) for k, i in enumerate(object_ids, start=1)}

    return Result(mask, index, object_ids, on_host, objects)


def _describe(object_id: int, pixels: np.ndarray, probability: np.ndarray) -> ObjectResult:
    rows = np.flatnonzero(pixels.any(1))
    if not len(rows):
        return ObjectResult(object_id, 0.0, "lost", None, 0)
    top, bottom = int(rows[0]), int(rows[-1]) + 1
    columns = np.flatnonzero(pixels[top:bottom].any(0))
    left, right = int(columns[0]), int(columns[-1]) + 1
    window = pixels[top:bottom, left:right]
    area = int(window.sum())
    score = float(probability[top:bottom, left:right][window].mean(dtype=np.float64))
    state: State = "tracking" if score >= UNCERTAIN_BELOW else "uncertain"
    return ObjectResult(object_id, score, state, (left, top, right, bottom), area)


def label_map_of(probabilities: torch.Tensor, object_ids: tuple[int, ...]) -> torch.Tensor:
    """(H, W) uint8: the id of the most probable channel; the lowest id wins a tie. Ids ascend."""
    return winners(probabilities, (0, *object_ids))
