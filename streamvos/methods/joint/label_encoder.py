"""Masks to targets: what JOINT's two branches learn to carry from frame to frame.

    encoder = TwoHeadLabelEncoder()
    labels = encoder(masks)                    # masks (B, 1, 480, 832), 0..1
    labels.induction.shape                     # (B, 16, 30, 52)

A mask at full resolution says more than its thumbnail: sixteen channels per feature cell hold its outline.
The learner (induction) and the transformer (transduction) get encodings of their own, and the learner a
weight for each of its labels, which may be negative.

Source: Mao et al., Joint Inductive and Transductive Learning for Video Object Segmentation, ICCV 2021,
section 3.4; the layers are those of the authors' code.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn


class Labels(NamedTuple):
    """What masks become; each (B, D, h, w).

    Attributes:
        induction: what the filters shall put out, not negative.
        importance: how much each of these counts, any sign.
        transduction: what the attention carries, not negative.
    """

    induction: torch.Tensor
    importance: torch.Tensor
    transduction: torch.Tensor


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions at half the size, and a shortcut; no normalization."""

    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, 2, padding=1, bias=False)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.downsample = nn.Conv2d(inputs, outputs, 3, 2, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.relu(self.conv2(F.relu(self.conv1(x))) + self.downsample(x))


class TwoHeadLabelEncoder(nn.Module):
    """See the head of this file.

    Args:
        widths: of the stem and of the two blocks of each head.
        outputs: D.
    """

    def __init__(self, widths: tuple[int, int, int] = (16, 32, 64), outputs: int = 16):
        super().__init__()
        stem, middle, last = widths
        self.stem = nn.Conv2d(1, stem, 3, 2, padding=1)
        self.induction = nn.Sequential(ResidualBlock(stem, middle), ResidualBlock(middle, last))
        self.transduction = nn.Sequential(ResidualBlock(stem, middle), ResidualBlock(middle, last))
        self.induction_label = nn.Conv2d(last, outputs, 3, padding=1)
        self.induction_importance = nn.Conv2d(last, outputs, 3, padding=1)
        self.transduction_label = nn.Conv2d(last, outputs, 3, padding=1)
        nn.init.zeros_(self.induction_importance.weight)  # in the beginning every label counts alike
        assert self.induction_importance.bias is not None
        nn.init.ones_(self.induction_importance.bias)

    def forward(self, masks: torch.Tensor) -> Labels:
        """
        Args:
            masks: (B, 1, H, W) float, 0..1, soft or hard.

        Returns:
            Encodings of ceil(H / 16) x ceil(W / 16) cells.
        """
        x = F.max_pool2d(F.relu(self.stem(masks)), 3, 2, padding=1)
        induction, transduction = self.induction(x), self.transduction(x)
        return Labels(
            F.relu(self.induction_label(induction)),
            self.induction_importance(induction),
            F.relu(self.transduction_label(transduction)),
        )
