"""Frames as the networks want them.

>>> ImageNetNormalization()(torch.full((1, 3, 2, 2), 0.5))[0, :, 0, 0]
tensor([0.0655, 0.1964, 0.4178])
"""

from __future__ import annotations

import torch
from torch import nn

IMAGE_MEAN = (0.485, 0.456, 0.406)
IMAGE_DEVIATION = (0.229, 0.224, 0.225)


class ImageNetNormalization(nn.Module):
    """(B, 3, H, W) float RGB in 0..1 to zero mean and unit deviation over ImageNet, per color."""

    mean: torch.Tensor
    deviation: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(IMAGE_MEAN).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("deviation", torch.tensor(IMAGE_DEVIATION).view(1, 3, 1, 1), persistent=False)

    def forward(self, frames: torch.Tensor) -> torch.Tensor:
        return (frames - self.mean) / self.deviation
