"""An embedding of several stages of a frozen EfficientNet-Lite0, so that it knows both parts and edges.

embedding = StageEmbedding(128)
embedding(network(frames))              # (B, 128, ceil(H / 8), ceil(W / 8)), unit vectors
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import nn

from streamvos.nn.efficientnet import CHANNELS

SHARES = {"stage2": 0.3, "stage3": 0.6, "stage4": 0.6, "stage5": 1.0, "stage6": 0.6}
"""Stage -> length of its part of the embedding before training."""


class StageEmbedding(nn.Module):
    """Maps of the backbone to a unit vector for every cell of stride 8.

    Every stage is divided by its norm and projected on its own grid, the sum taken at stride 8.
    """

    def __init__(self, channels: int):
        super().__init__()
        self.project = nn.ModuleDict()
        for stage, share in SHARES.items():
            self.project[stage] = projection = nn.Conv2d(CHANNELS[stage], channels, 1)
            nn.init.normal_(projection.weight, std=share / channels**0.5)
        self.residual = nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=1, groups=channels),
            nn.ReLU(),
            nn.Conv2d(channels, channels, 1),
        )

    def forward(self, maps: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """stage -> (B, C, h, w) to (B, channels, ceil(H / 8), ceil(W / 8)) float32."""
        grid = maps["stage3"].shape[-2:]
        own = {stage: self.project[stage](self._unit(maps[stage], stage)) for stage in SHARES}
        x = own["stage2"] + own["stage3"]
        for part in (own["stage4"] + own["stage5"], own["stage6"]):  # strides 16 and 32
            x = x + F.interpolate(part, grid, mode="bilinear", align_corners=False)
        return F.normalize((x + self.residual(x)).float(), dim=1)

    @staticmethod
    def _unit(features: torch.Tensor, stage: str) -> torch.Tensor:
        if stage == "stage2":
            features = F.avg_pool2d(features, 2, ceil_mode=True)
        return F.normalize(features, dim=1)
