"""FEELVOS's embedding layer: from features to the space in which nearest neighbors are looked for.

    embedding = EmbeddingLayer(256, 100)(features)          # (B, 256, h, w) -> (B, 100, h, w)

Source: Voigtlaender et al., FEELVOS, CVPR 2019, section 3.2. The authors' code puts a ReLU after both halves,
so that embeddings are not negative; the paper mentions none.
"""

from __future__ import annotations

import torch
from torch import nn

DEVIATION = 0.03
"""Of the noise that is added to the identity before training."""


class EmbeddingLayer(nn.Module):
    """Depthwise 3x3, then 1x1, with biases and without normalization; begins as the identity plus noise.

    Args:
        inputs, outputs: channels.
        relu: after each half.
    """

    def __init__(self, inputs: int, outputs: int, relu: bool = True):
        super().__init__()
        self.activation = nn.ReLU() if relu else nn.Identity()
        self.depthwise = nn.Conv2d(inputs, inputs, 3, padding=1, groups=inputs)
        self.pointwise = nn.Conv2d(inputs, outputs, 1)
        for convolution in (self.depthwise, self.pointwise):
            nn.init.trunc_normal_(convolution.weight, std=DEVIATION, a=-2 * DEVIATION, b=2 * DEVIATION)
            nn.init.zeros_(convolution.bias)  # type: ignore[arg-type]
        with torch.no_grad():
            self.depthwise.weight[:, 0, 1, 1] += 1
            self.pointwise.weight[:, :, 0, 0] += torch.eye(outputs, inputs)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return self.activation(self.pointwise(self.activation(self.depthwise(features))))
