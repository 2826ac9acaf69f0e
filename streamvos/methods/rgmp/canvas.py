"""A frame on the black canvas that a network with a stride can halve without rest, and that canvas scaled.

RGMP's authors grow every side, also one that the stride divides, so that the canvas is always larger than
the frame.

    >>> canvas = Canvas.around((480, 854))
    >>> canvas.size, canvas.scaled(0.5), canvas.scaled(0.75), canvas.scaled(1)
    ((512, 864), (288, 448), (416, 672), (512, 864))
    >>> Canvas.around((480, 854), grow="least").size
    (480, 864)

Source: the authors' code of RGMP (docs/methods.md, RGMP, remark 4); the paper says nothing about sizes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F

Growth = Literal["authors", "least"]


def grown(side: int, stride: int, grow: Growth) -> int:
    """The length of a side after padding: a multiple of `stride`.

    Args:
        side: in pixels.
        stride: the network's stride in pixels.
        grow: "authors" adds `stride` to a side that is already a multiple, "least" adds nothing then.
    """
    rest = side % stride
    return side if grow == "least" and rest == 0 else side + stride - rest


@dataclass(frozen=True, slots=True)
class Canvas:
    """Where a frame lies on its canvas.

    Attributes:
        frame: (H, W) of the frame in pixels.
        size: (H', W') of the canvas.
        stride: both sides are multiples of it.
        grow: see `grown`.
    """

    frame: tuple[int, int]
    size: tuple[int, int]
    stride: int
    grow: Growth

    @classmethod
    def around(cls, frame: tuple[int, int], stride: int = 32, grow: Growth = "authors") -> Canvas:
        """The canvas of frames of that size."""
        height, width = frame
        return cls(frame, (grown(height, stride, grow), grown(width, stride, grow)), stride, grow)

    @property
    def corner(self) -> tuple[int, int]:
        """(top, left) of the frame on the canvas; of an odd margin the smaller half comes first."""
        (height, width), (rows, columns) = self.frame, self.size
        return (rows - height) // 2, (columns - width) // 2

    def scaled(self, scale: float) -> tuple[int, int]:
        """(h, w) of the whole canvas at a scale; 1 leaves it as it is, others are grown like a frame."""
        if scale == 1:
            return self.size
        height, width = (grown(int(side * scale), self.stride, self.grow) for side in self.size)
        return height, width

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
