"""Results at another size than that of the frames that were segmented, such as the source's own.

frame, result = at_size(frame, result, source.native_size)
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import cv2
import numpy as np

from streamvos.types import VOID, Frame, ObjectResult, Result


def at_size(
    frame: Frame, result: Result, size: tuple[int, int], given: np.ndarray | None = None
) -> tuple[Frame, Result]:
    """A frame and its result at another size; the frame's picture becomes black, and takes no memory.

    A pixel gets the object with the highest probability there, interpolated linearly, so that edges are
    smooth.

    Args:
        frame, result: what a segmenter took and gave.
        size: (H, W) in pixels.
        given: (H, W) uint8 of that size, a label map whose pixels other than void are certain.
    """
    if result.mask.shape == size and given is None:
        return frame, result
    mask = _resized(result, size)
    if given is not None:
        mask = np.where(given == VOID, mask, given)
    black = np.broadcast_to(np.zeros(3, np.uint8), (*size, 3))
    return replace(frame, image=black), replace(result, mask=mask, _objects=_objects_of(mask, result))


def _resized(result: Result, size: tuple[int, int]) -> np.ndarray:
    mask, best = np.zeros(size, np.uint8), None
    for label, channel in zip((0, *result.object_ids), result.probabilities, strict=True):
        resized = cv2.resize(channel, size[::-1], interpolation=cv2.INTER_LINEAR)
        if best is None:
            best = resized
            continue
        is_better = resized > best
        mask[is_better], best[is_better] = label, resized[is_better]
    return mask


def _objects_of(mask: np.ndarray, result: Result) -> Callable[[], dict[int, ObjectResult]]:
    """Scores are those of the frame; boxes, areas and whether an object is lost, those of the mask."""

    def objects() -> dict[int, ObjectResult]:
        found = {}
        for key, one in result.objects.items():
            left, top, width, height = cv2.boundingRect((mask == key).view(np.uint8))
            area = int((mask == key).sum())
            state = "lost" if not area else "uncertain" if one.state == "lost" else one.state
            box = (left, top, left + width, top + height) if area else None
            found[key] = replace(one, state=state, box=box, area=area)
        return found

    return objects
