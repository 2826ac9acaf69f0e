"""A frame on a black canvas whose sides are multiples of the network's stride, and that canvas scaled.

RGMP's authors grow every side, also one that the stride divides, so that the canvas is always larger than
the frame.

    >>> canvas = Canvas((480, 854))
    >>> canvas.size, canvas.scaled(0.5), canvas.scaled(0.75), canvas.scaled(1)
    ((512, 864), (288, 448), (416, 672), (512, 864))

Source: the authors' code of RGMP (docs/methods.md, RGMP, remark 4); the paper says nothing about sizes.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F

STRIDE = 32
"""Of the encoder's last stage, in pixels."""


def grown(side: int) -> int:
    """The length of a side after padding: the next larger multiple of `STRIDE`."""
    return side + STRIDE - side % STRIDE


@dataclass(frozen=True, slots=True)
class Canvas:
    """Where a frame of (H, W) pixels lies on its canvas."""

    frame: tuple[int, int]

    @property
    def size(self) -> tuple[int, int]:
        """(H', W') of the canvas in pixels."""
        return grown(self.frame[0]), grown(self.frame[1])

    @property
    def corner(self) -> tuple[int, int]:
        """(top, left) of the frame on the canvas; of an odd margin the smaller half comes first."""
        (height, width), (rows, columns) = self.frame, self.size
        return (rows - height) // 2, (columns - width) // 2

    def scaled(self, scale: float) -> tuple[int, int]:
        """(h, w) of the whole canvas at a scale; 1 leaves it as it is, others are grown like a frame."""
        if scale == 1:
            return self.size
        rows, columns = self.size
        return grown(int(rows * scale)), grown(int(columns * scale))

    def pad(self, maps: torch.Tensor) -> torch.Tensor:
        """(..., H, W) to (..., H', W'), zeros around."""
        (height, width), (rows, columns), (top, left) = self.frame, self.size, self.corner
        return F.pad(maps, (left, columns - width - left, top, rows - height - top))

    def crop(self, maps: torch.Tensor) -> torch.Tensor:
        """(..., H', W') to (..., H, W), a view of the frame's part."""
        (height, width), (top, left) = self.frame, self.corner
        return maps[..., top : top + height, left : left + width]


def resize(maps: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Bilinear, half-pixel centers, no antialiasing: OpenCV's INTER_LINEAR.

    Args:
        maps: (B, C, H, W) float.
        size: (h, w) of the result.
    """
    if maps.shape[-2:] == size:
        return maps
    return F.interpolate(maps, size, mode="bilinear", align_corners=False)
