"""EfficientNet-Lite0: a small backbone with ImageNet weights that every method can run on.

    >>> network = EfficientNetLite0(stages=6)
    >>> {name: tuple(x.shape[1:]) for name, x in network(torch.zeros(1, 3, 64, 96)).items()}["stage5"]
    (112, 4, 6)

Batch normalization is folded into the convolutions, so the network is frozen: convolutions with a bias,
ReLU6 and sums. Strides follow TensorFlow: of an even side the extra row or column of padding lies at the
bottom or right, so a map has ceil(side / stride) rows or columns.

Source: Tan and Le, EfficientNet, ICML 2019, in its "Lite" form (no squeeze-and-excitation, ReLU6), as
published in TensorFlow's TPU repository.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from streamvos.types import InputError

STEM = 32
"""Channels after the first convolution, at stride 2."""

STAGES = (
    # blocks, kernel, stride, expansion, channels
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)

CHANNELS = {f"stage{n}": stage[-1] for n, stage in enumerate(STAGES, start=1)}
"""Stage -> channels; the strides of stages 1 to 7 are 2, 4, 8, 16, 16, 32, 32."""

MEAN, DEVIATION = 127 / 255, 128 / 255
"""What the published weights expect to be subtracted from RGB in 0..1, and to divide by."""


class SameConv2d(nn.Conv2d):
    """A convolution with a bias and TensorFlow's "same" padding, without padding a copy of its input."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1):
        super().__init__(inputs, outputs, kernel, stride, padding=kernel // 2, groups=groups)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.stride == (1, 1):
            return super().forward(x)
        # an even side has one row of padding less at the top: one row more shifts the windows by one stride
        # and one pixel, and the first row of outputs is dropped
        more = [1 - side % 2 for side in x.shape[-2:]]
        padding = (self.kernel_size[0] // 2 + more[0], self.kernel_size[1] // 2 + more[1])
        y = F.conv2d(x, self.weight, self.bias, self.stride, padding, groups=self.groups)
        return y[..., more[0] :, more[1] :]


class InvertedResidual(nn.Module):
    """1x1 expansion, depthwise convolution, 1x1 projection; a shortcut where the shape stays."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, expansion: int):
        super().__init__()
        inner = inputs * expansion
        self.expand = SameConv2d(inputs, inner, 1) if expansion > 1 else None
        self.depthwise = SameConv2d(inner, inner, kernel, stride, groups=inner)
        self.project = SameConv2d(inner, outputs, 1)
        self.is_residual = stride == 1 and inputs == outputs

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        # in place: a frame's time goes into memory, and the largest maps are made here
        y = x if self.expand is None else F.relu6(self.expand(x), inplace=True)
        y = self.project(F.relu6(self.depthwise(y), inplace=True))
        return y.add_(x) if self.is_residual else y


class EfficientNetLite0(nn.Module):
    """The network up to a stage, without its classifier.

    Args:
        stages: how many of the seven stages are built.

    Attributes:
        channels: stage ("stage1", ...) -> channels.
    """

    def __init__(self, stages: int = 7):
        super().__init__()
        if not 1 <= stages <= len(STAGES):
            raise InputError(f"EfficientNet-Lite0 has 1 to {len(STAGES)} stages, got stages={stages}")
        self.channels = {name: CHANNELS[name] for name in list(CHANNELS)[:stages]}
        self.stem = SameConv2d(3, STEM, 3, stride=2)
        channels = STEM
        for number, (blocks, kernel, stride, expansion, outputs) in enumerate(STAGES[:stages], start=1):
            stage = []
            for block in range(blocks):
                stage.append(InvertedResidual(channels, outputs, kernel, 1 if block else stride, expansion))
                channels = outputs
            self.add_module(f"stage{number}", nn.Sequential(*stage))

    def forward(self, frames: torch.Tensor) -> dict[str, torch.Tensor]:
        """Maps of every stage.

        Args:
            frames: (B, 3, H, W) float, RGB in 0..1.

        Returns:
            stage -> (B, C, h, w), not rectified.
        """
        x = F.relu6(self.stem((frames - MEAN) / DEVIATION), inplace=True)
        maps = {}
        for name in self.channels:
            x = getattr(self, name)(x)
            maps[name] = x
        return maps
