"""A mask from a rectangle by color alone, without weights.

A rectangle drawn around an object also holds background in its corners, and a method would track that too.
GrabCut (Rother, Kolmogorov, Blake, SIGGRAPH 2004; OpenCV's) separates the two by color: pixels around the
rectangle are background, pixels inside may be either.

    mask, score = GrabCut().select(frame.image, box=(200, 120, 420, 460))
"""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np

from streamvos.masks.pointing import Box, Point, box_within
from streamvos.types import InputError

_SIDE = 400  # pixels; larger windows are shrunk for GrabCut, which gets slower but no better with size
_MARGIN = 0.5  # of the box's longer side, added around it to learn the background from
_SMALLEST_SHARE = 0.08  # of the box; a smaller result of GrabCut is noise
_SMALLEST_PART = 0.1  # of the largest connected part; smaller parts are noise


class GrabCut:
    """Selects what differs in color from the surroundings of a box; see the docstring of this module."""

    def select(
        self,
        frame: np.ndarray,
        points: Sequence[Point] = (),
        box: Sequence[float] | None = None,
        mask: np.ndarray | None = None,
    ) -> tuple[np.ndarray, float]:
        """See `Selector.select`; only boxes are understood, and the score is always 0.5.

        Raises:
            InputError: there is no box, or there are clicks or an earlier mask; see `object_in_box`.
        """
        if box is None or points or mask is not None:
            raise InputError("GrabCut selects by a box alone; give one, or select without GrabCut")
        left, top, right, bottom = (round(side) for side in box)
        return object_in_box(frame, (left, top, right, bottom)), 0.5


def object_in_box(image: np.ndarray, box: Box) -> np.ndarray:
    """The pixels of the object in a rectangle; the result is deterministic.

    Where color does not separate the object (the rectangle fills the picture, or everything looks alike), the
    result is the ellipse that touches the rectangle's sides.

    Args:
        image: (H, W, 3) uint8 RGB.
        box: may reach beyond the picture; the part outside is cut off.

    Returns:
        (H, W) bool, False outside of the box.

    Raises:
        InputError: the box lies outside of the picture, has its sides swapped, or is too small.
    """
    left, top, right, bottom = map(int, box_within(box, (image.shape[0], image.shape[1])))
    margin = max(round(_MARGIN * max(right - left, bottom - top)), 8)
    window = np.s_[
        max(top - margin, 0) : min(bottom + margin, image.shape[0]),
        max(left - margin, 0) : min(right + margin, image.shape[1]),
    ]
    inside = np.zeros(image.shape[:2], np.uint8)
    inside[top:bottom, left:right] = 1
    mask = np.zeros(image.shape[:2], bool)
    mask[window] = _cut(image[window], inside[window])
    if mask.sum() < max(_SMALLEST_SHARE * (right - left) * (bottom - top), 1):
        mask[:] = False
        y, x = ((np.arange(n) + 0.5) / n * 2 - 1 for n in (bottom - top, right - left))
        mask[top:bottom, left:right] = y[:, None] ** 2 + x**2 <= 1
    return mask


def _cut(window: np.ndarray, inside: np.ndarray) -> np.ndarray:
    """GrabCut's foreground, (h, w) bool, where `inside`, (h, w) uint8, is 1; without specks."""
    height, width = window.shape[:2]
    scale = min(1.0, _SIDE / max(height, width))
    small_size = max(round(width * scale), 1), max(round(height * scale), 1)
    small = cv2.resize(window, small_size, interpolation=cv2.INTER_AREA)
    small_inside = cv2.resize(inside, small_size, interpolation=cv2.INTER_NEAREST_EXACT) != 0
    if small_inside.all():
        return np.zeros((height, width), bool)  # there is no background to learn from
    states = np.where(small_inside, cv2.GC_PR_FGD, cv2.GC_BGD).astype(np.uint8)
    models = np.zeros((1, 65)), np.zeros((1, 65))
    cv2.setRNGSeed(7)  # GrabCut starts from a k-means with random centers
    try:
        cv2.grabCut(small[..., ::-1].copy(), states, (0, 0, 0, 0), *models, 3, cv2.GC_INIT_WITH_MASK)
    except cv2.error:  # too few pixels for its ten colors
        return np.zeros((height, width), bool)
    found = ((states == cv2.GC_FGD) | (states == cv2.GC_PR_FGD)).astype(np.float32)
    enlarged = cv2.resize(_without_specks(found), (width, height), interpolation=cv2.INTER_LINEAR) > 0.5
    return np.asarray(enlarged & (inside != 0))


def _without_specks(found: np.ndarray) -> np.ndarray:
    """The larger connected parts, with their small holes filled; (h, w) float32 of 0 and 1."""
    opened = cv2.morphologyEx(found.astype(np.uint8), cv2.MORPH_CLOSE, np.ones((3, 3), np.uint8))
    count, labels, statistics, _ = cv2.connectedComponentsWithStats(opened, connectivity=4)
    if count < 2:
        return np.zeros_like(found)
    areas = statistics[1:, cv2.CC_STAT_AREA]
    kept = np.flatnonzero(areas >= _SMALLEST_PART * areas.max()) + 1
    return np.isin(labels, kept).astype(np.float32)
