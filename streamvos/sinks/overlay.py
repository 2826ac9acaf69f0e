"""Pictures with the objects drawn over them: color, contour, label.

picture = Overlay()(frame.image, result)
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from streamvos.masks.labelmap import davis_palette
from streamvos.types import InputError, Result


@dataclass(frozen=True, slots=True)
class Overlay:
    """How objects are drawn over a picture.

    Attributes:
        opacity: opacity of the object's color over the picture, 0..1.
        contour: width in pixels of the line along the object's inner edge; 0 for none.
        labels: whether to write each object's id, and its state unless that is "tracking".
        boxes: whether to draw each object's box.

    Raises:
        InputError: a value out of its range.
    """

    opacity: float = 0.45
    contour: int = 2
    labels: bool = True
    boxes: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.opacity <= 1:
            raise InputError(f"opacity must lie within 0..1, got {self.opacity!r}")
        if not isinstance(self.contour, int) or not 0 <= self.contour <= 64:
            raise InputError(f"contour must be a whole number of pixels within 0..64, got {self.contour!r}")

    def __call__(self, image: np.ndarray, result: Result) -> np.ndarray:
        """A picture with the result drawn over it.

        Args:
            image: (H, W, 3) uint8 RGB; not changed.
            result: the result to draw, of the same size.

        Returns:
            (H, W, 3) uint8 RGB, a new array.
        """
        mask = np.ascontiguousarray(result.mask)
        drawn = image.copy()
        left, top, width, height = cv2.boundingRect((mask != 0).view(np.uint8))
        if width and height:
            # One pixel of margin shows where an object ends at the window's edge.
            window = np.s_[
                max(top - 1, 0) : min(top + height + 1, mask.shape[0]),
                max(left - 1, 0) : min(left + width + 1, mask.shape[1]),
            ]
            drawn[window] = self._colored(image[window], np.ascontiguousarray(mask[window]))
        if self.labels or self.boxes:
            self._annotate(drawn, result)
        return drawn

    def _colored(self, image: np.ndarray, mask: np.ndarray) -> np.ndarray:
        inside = (mask != 0).view(np.uint8)
        labels = cv2.merge([mask, mask, mask])
        colors = cv2.LUT(labels, _FILL)
        mixed = cv2.addWeighted(colors, self.opacity, image, 1 - self.opacity, 0)
        drawn = cv2.copyTo(mixed, inside, image.copy())
        if self.contour:
            edge = _inner_edge(mask, self.contour)
            drawn = cv2.copyTo(cv2.LUT(labels, _LINE), edge, drawn)
        return np.asarray(drawn)

    def _annotate(self, drawn: np.ndarray, result: Result) -> None:
        height, width = drawn.shape[:2]
        # Text keeps its share of the picture from 240 rows to 4K.
        scale = max(0.4, height / 960)
        thickness = max(1, round(height / 480))
        for key, item in sorted(result.objects.items()):
            if item.box is None:
                continue
            left, top, right, bottom = item.box
            color = tuple(int(value) for value in _LINE[0, key])
            if self.boxes:
                cv2.rectangle(drawn, (left, top), (right - 1, bottom - 1), color, thickness)
            if not self.labels:
                continue
            # Above the object's topmost pixels; the corner of a box can lie far from the object itself.
            peak = np.flatnonzero(result.mask[top, left:right] == key)
            middle = left + (int(peak.mean()) if peak.size and not self.boxes else 0)
            text = str(key) if item.state == "tracking" else f"{key} {item.state}"
            (wide, high), below = cv2.getTextSize(text, cv2.FONT_HERSHEY_SIMPLEX, scale, thickness)
            pad = thickness + 1
            x = min(max(middle - (0 if self.boxes else wide // 2 + pad), 0), max(width - wide - 2 * pad, 0))
            y = min(max(top - high - below - 2 * pad, 0), max(height - high - below - 2 * pad, 0))
            cv2.rectangle(drawn, (x, y), (x + wide + 2 * pad, y + high + below + 2 * pad), color, cv2.FILLED)
            bright = 0.299 * color[0] + 0.587 * color[1] + 0.114 * color[2] > 128
            ink = (0, 0, 0) if bright else (255, 255, 255)
            place = (x + pad, y + pad + high)
            cv2.putText(drawn, text, place, cv2.FONT_HERSHEY_SIMPLEX, scale, ink, thickness, cv2.LINE_AA)


def _inner_edge(mask: np.ndarray, width: int) -> np.ndarray:
    """(H, W) uint8, 1 where a pixel of an object lies within `width` pixels of another label."""
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * width + 1, 2 * width + 1))
    # The border of the picture is not an edge: there, cv2's default border never wins a maximum or minimum.
    differs = np.not_equal(cv2.dilate(mask, kernel), cv2.erode(mask, kernel))
    return (differs & (mask != 0)).view(np.uint8)


def _line_colors() -> np.ndarray:
    """(256, 3) uint8: the palette drawn halfway to its brightest, so that lines show on dark pictures."""
    palette = davis_palette().astype(np.float64)
    brightest = np.maximum(palette.max(axis=1, keepdims=True), 1)
    return np.round((palette + palette * (255 / brightest)) / 2).astype(np.uint8)


_FILL = davis_palette()[None]
_LINE = _line_colors()[None]
