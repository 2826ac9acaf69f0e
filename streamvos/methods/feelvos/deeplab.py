"""DeepLabv3+ between backbone and classifier: a pyramid of dilated convolutions, and a decoder at stride 4.

    pyramid = Pyramid(2048, 256, rates=(12, 24, 36))
    decoder = Decoder(256, low=256, low_channels=48)
    features = decoder(pyramid(maps["high"]), maps["low"], grid_size(frame))        # (B, 256, h, w)

Source: Chen et al., Encoder-Decoder with Atrous Separable Convolution, ECCV 2018, with the defaults of
TensorFlow's deeplab/model.py as FEELVOS uses it: separable convolutions, whose halves both have batch
normalization and ReLU; order of the branches and of the concatenations as it is generally known.
"""

from __future__ import annotations

import torch
from torch import nn

from streamvos.methods.feelvos.aligned_corners import resize_bilinear

EPSILON = 1e-5
KEEP = 0.9
"""Share of the pyramid's features that dropout keeps in training."""


class Convolution(nn.Module):
    """1x1, batch normalization, ReLU."""

    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, 1, bias=False)
        self.bn = nn.BatchNorm2d(outputs, eps=EPSILON)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.bn(self.conv(x)).relu()


class SeparableConvolution(nn.Module):
    """Depthwise 3x3, then 1x1, each followed by batch normalization and ReLU."""

    def __init__(self, inputs: int, outputs: int, dilation: int = 1):
        super().__init__()
        self.depthwise = nn.Conv2d(
            inputs, inputs, 3, padding=dilation, dilation=dilation, groups=inputs, bias=False
        )
        self.depthwise_bn = nn.BatchNorm2d(inputs, eps=EPSILON)
        self.pointwise = nn.Conv2d(inputs, outputs, 1, bias=False)
        self.pointwise_bn = nn.BatchNorm2d(outputs, eps=EPSILON)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.depthwise_bn(self.depthwise(x)).relu()
        return self.pointwise_bn(self.pointwise(x)).relu()


class Pyramid(nn.Module):
    """Atrous spatial pyramid pooling.

    The mean over the whole map is one of the branches, at inference too: the features of a frame depend on
    its size.

    Args:
        inputs, outputs: channels; every branch has `outputs`.
        rates: dilations of the separable branches.
    """

    def __init__(self, inputs: int, outputs: int, rates: tuple[int, ...]):
        super().__init__()
        self.pooling = Convolution(inputs, outputs)
        self.point = Convolution(inputs, outputs)
        self.dilated = nn.ModuleList([SeparableConvolution(inputs, outputs, rate) for rate in rates])
        self.projection = Convolution((2 + len(rates)) * outputs, outputs)
        self.dropout = nn.Dropout(1 - KEEP)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, inputs, h, w) -> (B, outputs, h, w)."""
        whole = self.pooling(x.mean((2, 3), keepdim=True)).expand(-1, -1, *x.shape[-2:])
        branches = [whole, self.point(x), *(branch(x) for branch in self.dilated)]
        return self.dropout(self.projection(torch.cat(branches, 1)))


class Decoder(nn.Module):
    """Pyramid features and low-level ones, on the grid of stride 4.

    Args:
        channels: of the pyramid, and of the result.
        low: channels of the backbone's low-level map.
        low_channels: to which they are reduced.
    """

    def __init__(self, channels: int, low: int, low_channels: int):
        super().__init__()
        self.low = Convolution(low, low_channels)
        self.conv1 = SeparableConvolution(channels + low_channels, channels)
        self.conv2 = SeparableConvolution(channels, channels)

    def forward(self, pyramid: torch.Tensor, low: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
        """(B, channels, h, w) where `size` is (h, w); both inputs are resized to it, corners aligned."""
        maps = [resize_bilinear(pyramid, size), resize_bilinear(self.low(low), size)]
        return self.conv2(self.conv1(torch.cat(maps, 1)))
