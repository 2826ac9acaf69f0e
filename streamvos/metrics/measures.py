"""How well a predicted mask agrees with the true one: region similarity J and boundary accuracy F.

J is the Jaccard index of the two regions. F is the F-measure of precision and recall of the two
outlines, where an outline pixel counts as found if the other outline passes within a small distance.
Both are defined here as the DAVIS 2017 evaluation defines them (Perazzi et al., "A Benchmark Dataset
and Evaluation Methodology for Video Object Segmentation", CVPR 2016, section 5; Pont-Tuset et al.,
"The 2017 DAVIS Challenge on Video Object Segmentation", 2017).

    >>> truth = np.zeros((480, 854), np.uint8)
    >>> truth[100:200, 100:200] = 1
    >>> prediction = np.roll(truth, 10, axis=1)  # nine tenths of the square stay in place
    >>> round(region_similarity(truth, prediction), 4)  # 90 columns shared of 110
    0.8182

Everything is computed inside the rectangle that holds both masks: outside it neither mask has a
pixel or an outline, so the result is the same and the cost follows the object, not the frame.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

import cv2
import numpy as np

from streamvos.masks.checks import check_label_map
from streamvos.types import VOID, InputError

TOLERANCE = 0.008
"""Boundary tolerance of DAVIS, as a part of the frame's diagonal."""

_LARGEST_KERNEL = 16  # pixels; up to here a dilation is faster than a distance transform (0.8 to 4 ms)


def region_similarity(truth: np.ndarray, prediction: np.ndarray) -> float:
    """Region similarity J: the intersection over the union of two masks.

    Args:
        truth: (H, W) bool or integer in 0..255; every pixel that is not 0 belongs to the object,
            255 too, because a single mask is often stored as 0 and 255. `measure_objects` knows void.
        prediction: (H, W) bool or integer, the same.

    Returns:
        J in 0..1; 1 if both masks are empty.

    Raises:
        InputError: a mask is no label map (`check_label_map`), or the sizes differ.
    """
    truth, prediction = _label_maps(truth, prediction)
    return _measure(truth != 0, prediction != 0, radius=None)[0]


def boundary_accuracy(truth: np.ndarray, prediction: np.ndarray, tolerance: float = TOLERANCE) -> float:
    """Boundary accuracy F: the F-measure of the precision and recall of the outlines.

    The outline of a mask is the set of pixels that differ from their neighbor to the east, south or
    south-east (in the last row only east, in the last column only south, the corner never). A pixel
    of the predicted outline is right (precision), and one of the true outline is found (recall), if
    the other outline has a pixel at a distance of at most `boundary_radius`. If only the prediction
    has no outline, precision is 1 and recall 0; if only the truth has none, the other way round; if
    neither has one, F is 1. F is 0 where precision and recall both are.

    Args:
        truth: (H, W) bool or integer in 0..255; every pixel that is not 0 belongs to the object.
        prediction: (H, W) bool or integer, the same.
        tolerance: below 1 a part of the diagonal, from 1 upwards pixels; rounded up to whole pixels.

    Returns:
        F in 0..1.

    Raises:
        InputError: a mask is no label map (`check_label_map`), the sizes differ, or the tolerance is
            negative or not finite.
    """
    truth, prediction = _label_maps(truth, prediction)
    return _measure(truth != 0, prediction != 0, boundary_radius(truth.shape, tolerance))[1]


def boundary_radius(size: Sequence[int], tolerance: float = TOLERANCE) -> int:
    """How far apart two outlines may lie and still match, in whole pixels.

    Args:
        size: (H, W) of the frame; of a frame of 480 x 854 the radius is 8.
        tolerance: below 1 a part of the diagonal, from 1 upwards pixels; rounded up.

    Raises:
        InputError: the tolerance is negative or not finite.
    """
    if not (math.isfinite(tolerance) and tolerance >= 0):
        raise InputError(f"the boundary tolerance is {tolerance}; it must be finite and not negative")
    height, width = size
    return math.ceil(tolerance if tolerance >= 1 else tolerance * math.hypot(height, width))


def measure_objects(
    truth: np.ndarray, prediction: np.ndarray, object_ids: Sequence[int]
) -> tuple[np.ndarray, np.ndarray]:
    """J and F of every object of one frame, F with the tolerance of DAVIS.

    Args:
        truth: (H, W) integer label map; 255 is void. For every object J leaves void pixels out, and F takes
            both masks as empty there (the rim of a void region that cuts an object is an outline of both).
        prediction: (H, W) integer label map.
        object_ids: the K ids to measure. Other ids count as background.

    Returns:
        J and F, each (K,) float64 in 0..1, in the order of `object_ids`.

    Raises:
        InputError: a label map is not (H, W) integers in 0..255, or the sizes differ.
    """
    truth, prediction = _label_maps(truth, prediction)
    radius = boundary_radius(truth.shape)
    void = truth == VOID
    if void.any():  # rare, so the copy rarely costs time
        prediction = np.where(void, np.uint8(0), prediction)
    scores = np.empty((2, len(object_ids)))
    for column, object_id in enumerate(object_ids):
        scores[:, column] = _measure(truth == object_id, prediction == object_id, radius)
    return scores[0], scores[1]


def _label_maps(truth: np.ndarray, prediction: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    truth = check_label_map(truth, name="the truth")
    return truth, check_label_map(prediction, (truth.shape[0], truth.shape[1]), "the prediction")


def _measure(truth: np.ndarray, prediction: np.ndarray, radius: int | None) -> tuple[float, float]:
    """J and F (nan without a radius) of two (H, W) bool masks."""
    truth, prediction = truth.view(np.uint8), prediction.view(np.uint8)
    window = _window(cv2.bitwise_or(truth, prediction))
    if window is None:  # neither has a pixel
        return 1.0, 1.0
    truth, prediction = truth[window], prediction[window]
    shared = int(np.count_nonzero(truth & prediction))
    region = shared / int(np.count_nonzero(truth | prediction))
    return region, math.nan if radius is None else _outline_agreement(truth, prediction, radius)


def _window(mask: np.ndarray) -> tuple[slice, slice] | None:
    """The rectangle of the mask's pixels and of every pixel that its outline may touch.

    A pixel just outside to the north or west differs from its eastern or southern neighbor, so one more row
    and column there. One more to the south and east keeps the window's last row and column, where the outline
    is defined differently, empty unless they are the frame's own.
    """
    left, top, width, height = cv2.boundingRect(mask)
    if width == 0:
        return None
    return slice(max(top - 1, 0), top + height + 1), slice(max(left - 1, 0), left + width + 1)


def _outline_agreement(truth: np.ndarray, prediction: np.ndarray, radius: int) -> float:
    """F of two masks that are not both empty."""
    true_outline, predicted_outline = outline(truth), outline(prediction)
    true_length = int(np.count_nonzero(true_outline))
    predicted_length = int(np.count_nonzero(predicted_outline))
    if true_length == 0 or predicted_length == 0:  # masks that fill the frame have no outline
        return float(true_length == predicted_length)  # else of precision and recall one is 1, the other 0
    found = int(np.count_nonzero(true_outline & _grow(predicted_outline, radius)))
    right = int(np.count_nonzero(predicted_outline & _grow(true_outline, radius)))
    precision, recall = right / predicted_length, found / true_length
    return 2 * precision * recall / (precision + recall) if precision + recall > 0 else 0.0


def outline(mask: np.ndarray) -> np.ndarray:
    """The boundary pixels of a mask, as `boundary_accuracy` defines them.

    Args:
        mask: (H, W) uint8 of 0 and 1, or bool.

    Returns:
        (H, W) uint8, 1 on the boundary.
    """
    mask = mask.view(np.uint8)
    edges = np.zeros_like(mask)
    here = mask[:-1, :-1]
    edges[:-1, :-1] = (here ^ mask[:-1, 1:]) | (here ^ mask[1:, :-1]) | (here ^ mask[1:, 1:])
    edges[-1, :-1] = mask[-1, :-1] ^ mask[-1, 1:]
    edges[:-1, -1] = mask[:-1, -1] ^ mask[1:, -1]
    return edges


def _grow(edges: np.ndarray, radius: int) -> np.ndarray:
    """(H, W) uint8, 1 wherever a pixel of `edges` (one at least is set) is at most `radius` away."""
    if radius <= _LARGEST_KERNEL:
        return cv2.dilate(edges, _disk(radius)).astype(np.uint8, copy=False)
    # The cost of a dilation grows with the square of the radius (36 at 4K), that of the exact
    # distance does not. Whole squared distances keep their order in float32, so <= is exact.
    distance = cv2.distanceTransform(1 - edges, cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    return (distance <= radius).view(np.uint8)


@lru_cache(maxsize=_LARGEST_KERNEL + 1)
def _disk(radius: int) -> np.ndarray:
    y, x = np.ogrid[-radius : radius + 1, -radius : radius + 1]
    return (x * x + y * y <= radius * radius).astype(np.uint8)
