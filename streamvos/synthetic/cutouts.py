"""Objects cut out of photographs, and how they move over the frames of a clip.

mover.paste(cutout, u, image, labels, label=1)      # at u in 0..1 of its path, in place
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np

Path1D = Callable[[float], float]
"""A value at each place 0..1 of a path."""


@dataclass(frozen=True)
class Cutout:
    """An object without its surroundings: image (h, w, 3) uint8 RGB and alpha (h, w) float32 in 0..1."""

    image: np.ndarray
    alpha: np.ndarray


@dataclass(frozen=True)
class MovingCutout:
    """How a cut-out moves over frames of one size.

    Attributes:
        size: (H, W) of the frames.
        share: its side, the root of its box's area, as a share of the frame's shorter side.
        x, y: of its middle, in pixels.
        zoom: logarithm of a factor to `share`.
        angle: in degrees.
        stretch: logarithm of a factor to its width, and of one to its height with the other sign.
        mirror: whether left and right are exchanged.
        bend: displacements (2, 4, 4) float32 of its surface along x and y, in shares of its longer side.
    """

    size: tuple[int, int]
    share: float
    x: Path1D
    y: Path1D
    zoom: Path1D
    angle: Path1D
    stretch: Path1D
    mirror: bool
    bend: Callable[[float], np.ndarray]

    def paste(self, cutout: Cutout, u: float, image: np.ndarray, labels: np.ndarray, label: int) -> None:
        """Draw the cut-out at `u` in 0..1 of its path into image and label map, in place."""
        (height, width), (h, w) = self.size, cutout.alpha.shape
        scale = self.share * min(height, width) / np.sqrt(h * w) * np.exp(self.zoom(u))
        sides = np.array([np.exp(self.stretch(u)), np.exp(-self.stretch(u))]) * scale
        turn = np.deg2rad(self.angle(u))
        matrix = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]]) * sides
        if self.mirror:
            matrix[:, 0] *= -1
        offset = np.array([self.x(u), self.y(u)]) - matrix @ np.array([w / 2, h / 2])
        # only the box that the object can cover is drawn
        corners = matrix @ np.array([[0, w, 0, w], [0, 0, h, h]]) + offset[:, None]
        margin = 0.1 * float(np.ptp(corners, axis=1).max()) + 2
        left, top = np.floor(np.maximum(corners.min(1) - margin, 0)).astype(int)
        right, bottom = np.ceil(np.minimum(corners.max(1) + margin, [width, height])).astype(int)
        if right - left < 2 or bottom - top < 2:
            return
        inverse = np.linalg.inv(matrix)
        ys, xs = np.mgrid[top:bottom, left:right].astype(np.float32)
        source = np.einsum("ij,jhw->ihw", inverse, np.stack([xs - offset[0], ys - offset[1]])).astype(
            np.float32
        )
        bend = self.bend(u)
        for axis in (0, 1):
            field = cv2.resize(bend[axis], (right - left, bottom - top), interpolation=cv2.INTER_CUBIC)
            source[axis] += field * max(h, w)
        blur = 1 / max(float(sides.mean()), 1e-3)
        image_of, alpha_of = cutout.image, cutout.alpha
        if blur > 1.5:  # averaging before taking fewer pixels
            image_of, alpha_of = (cv2.GaussianBlur(x, (0, 0), 0.4 * blur) for x in (image_of, alpha_of))
        drawn = cv2.remap(image_of, source[0], source[1], cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
        alpha = cv2.remap(alpha_of, source[0], source[1], cv2.INTER_LINEAR, borderValue=0)
        box = (slice(top, bottom), slice(left, right))
        image[box] = np.round(image[box] + alpha[..., None] * (drawn.astype(np.float32) - image[box]))
        labels[box][alpha > 0.5] = label
