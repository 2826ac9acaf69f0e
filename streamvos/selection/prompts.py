"""Clicks, a box and an earlier mask as maps that the selector's network reads.

window = window_around((200, 120, 420, 460), (480, 854), margin=1.4)
prompts = prompt_maps(window, (384, 384), points=[(310, 290, 1)], box=(200, 120, 420, 460))
prompts.shape                               # (5, 96, 96)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import cv2
import numpy as np

from streamvos.masks.pointing import Point
from streamvos.selection.network import PROMPTS, STRIDE

RADIUS = 1.5
"""Standard deviation of a click's disk, in cells."""


class Window(NamedTuple):
    """A part of a frame, in whole pixels; right and bottom are exclusive."""

    left: int
    top: int
    right: int
    bottom: int

    @property
    def size(self) -> tuple[int, int]:
        """(height, width)."""
        return self.bottom - self.top, self.right - self.left

    @property
    def rows(self) -> slice:
        return slice(self.top, self.bottom)

    @property
    def columns(self) -> slice:
        return slice(self.left, self.right)


def window_around(box: Sequence[float], size: tuple[int, int], margin: float, least: int = 64) -> Window:
    """A square window within a frame around a box, as far as the frame allows it to be square.

    Args:
        box: left, top, right, bottom in pixels.
        size: (H, W) of the frame.
        margin: side of the window over the box's longer side.
        least: smallest side.
    """
    left, top, right, bottom = box
    side = max(margin * max(right - left, bottom - top), least)
    ends = []
    for low, high, length in ((left, right, size[1]), (top, bottom, size[0])):
        start = (low + high - side) / 2
        start = min(max(start, 0), max(length - side, 0))
        ends.append((int(np.floor(start)), int(min(np.ceil(start + side), length))))
    (x0, x1), (y0, y1) = ends
    return Window(x0, y0, x1, y1)


def prompt_maps(
    window: Window,
    size: tuple[int, int],
    points: Sequence[Point] = (),
    box: Sequence[float] | None = None,
    mask: np.ndarray | None = None,
) -> np.ndarray:
    """The channels of `PROMPTS` for a window that is shown at another size.

    Args:
        window: of the frame.
        size: (H, W) of the picture that is made of it, multiples of 32.
        points: clicks.
        box: left, top, right, bottom in pixels of the frame.
        mask: (H, W) of the frame, bool or probabilities.

    Returns:
        (5, H/4, W/4) float32.
    """
    rows, columns = size[0] // STRIDE, size[1] // STRIDE
    maps = np.zeros((len(PROMPTS), rows, columns), np.float32)
    height, width = window.size
    to_cells = np.array([columns / width, rows / height])
    y, x = np.mgrid[:rows, :columns] + 0.5
    for px, py, sign in points:
        cx, cy = (np.array([px, py]) - (window.left, window.top)) * to_cells
        disk = np.exp(-((x - cx) ** 2 + (y - cy) ** 2) / (2 * RADIUS**2))
        channel = 0 if sign > 0 else 1
        maps[channel] = np.maximum(maps[channel], disk)
    if box is not None:
        low = (np.array(box[:2]) - (window.left, window.top)) * to_cells
        high = (np.array(box[2:]) - (window.left, window.top)) * to_cells
        inside = [
            np.clip(np.minimum(np.arange(1, n + 1), high[axis]) - np.maximum(np.arange(n), low[axis]), 0, 1)
            for axis, n in ((1, rows), (0, columns))
        ]
        maps[2] = inside[0][:, None] * inside[1]
    if mask is not None:
        part = np.asarray(mask[window.rows, window.columns], np.float32)
        maps[3] = cv2.resize(part, (columns, rows), interpolation=cv2.INTER_AREA)
        maps[4] = 1
    return maps
