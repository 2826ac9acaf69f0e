"""FEELVOS after its backbone: DeepLabv3+'s pyramid and decoder, the embedding layer, the dynamic head.

    size = grid_size(frame)                                         # (480, 854) -> (120, 214)
    features = decoder(pyramid(maps["high"]), maps["low"], size)    # (1, 256, h, w)
    embedding, shared = EmbeddingLayer(256, 100)(features), stem(features)
    logits = DynamicHead(256)(shared, cues)         # (1, 256, h, w), (objects, 3, h, w) -> (objects, h, w)

Everything lies on a grid of a quarter of the frame. Its corner cells lie on the frame's corner pixels, as in
TensorFlow's DeepLab: cell i of n lies at pixel i (N - 1) / (n - 1) of N.

The dynamic head is one network that runs for every object, the background among them. Its input is the
frame's features and three maps of the object: distance to the reference, probability in the previous frame,
distance to the previous frame. The first layer is depthwise, so its answer for the features is the same for
all objects, and the 1x1 convolution after it is a sum over channels: the features' share of both (the stem)
is computed once per frame, and only the share of the three maps per object. That is algebra, not an
approximation.

Sources: Voigtlaender et al., FEELVOS, CVPR 2019, sections 3.2 and 3.5, and the authors' code, which has ReLUs
that the paper does not mention (docs/methods.md, FEELVOS); Chen et al., Encoder-Decoder with Atrous Separable
Convolution, ECCV 2018, with the defaults of TensorFlow's deeplab/model.py as FEELVOS uses it: order of the
branches and of the concatenations as it is generally known.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from streamvos.methods.feelvos.xception import SeparableConvolution

STRIDE = 4
"""Pixels per cell of the grid."""

EPSILON = 1e-5
"""Of the batch normalizations after the backbone."""

KEEP = 0.9
"""Share of the pyramid's features that dropout keeps in training."""

DEVIATION = 0.03
"""Of the noise that is added to the embedding layer's identity before training."""

CUES = 3
"""Maps per object, in this order: global distance, previous probability, local distance."""

AT_ONCE = 1 << 24
"""Numbers in one layer's output that are computed at once; objects beyond that are computed after them."""


def grid_size(size: tuple[int, int], stride: int = STRIDE) -> tuple[int, int]:
    """(h, w) in cells of a frame of (H, W) pixels: floor((n - 1) / stride + 1) along each side."""
    return (size[0] - 1) // stride + 1, (size[1] - 1) // stride + 1


def nearest_pixels(pixels: int, cells: int, device: torch.device | str = "cpu") -> torch.Tensor:
    """The pixel nearest to each cell, of two equally near ones the later.

    Args:
        pixels: N, along one side.
        cells: n, along the same side.

    Returns:
        (n,) int64; pixel 0 where there is one cell only.
    """
    gaps = max(cells - 1, 1)
    # whole numbers: floor(x + 1/2) of the exact quotient
    return (2 * torch.arange(cells, device=device) * (pixels - 1) + gaps) // (2 * gaps)


def sample_nearest(values: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """The values of the pixels nearest to the cells.

    Args:
        values: (..., H, W) of any dtype.
        size: (h, w) of the result.

    Returns:
        (..., h, w), a copy.
    """
    rows = nearest_pixels(values.shape[-2], size[0], values.device)
    columns = nearest_pixels(values.shape[-1], size[1], values.device)
    return values.index_select(-2, rows).index_select(-1, columns)


def resize_bilinear(maps: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Bilinear, corners aligned, no antialiasing; the maps themselves where the size is theirs.

    Args:
        maps: (B, C, h, w) float.
        size: (h, w) of the result.
    """
    if tuple(maps.shape[-2:]) == tuple(size):
        return maps
    return F.interpolate(maps, size, mode="bilinear", align_corners=True)


class Convolution(nn.Module):
    """1x1, batch normalization, ReLU."""

    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, 1, bias=False)
        self.bn = nn.BatchNorm2d(outputs, eps=EPSILON)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.bn(self.conv(x)).relu()


def _separable(inputs: int, outputs: int, dilation: int = 1) -> SeparableConvolution:
    """Depthwise 3x3, then 1x1, each followed by batch normalization and ReLU."""
    return SeparableConvolution(inputs, outputs, 1, dilation, relu_first=False, epsilon=EPSILON)


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
        self.dilated = nn.ModuleList([_separable(inputs, outputs, rate) for rate in rates])
        self.projection = Convolution((2 + len(rates)) * outputs, outputs)
        self.dropout = nn.Dropout(1 - KEEP)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, inputs, h, w) -> (B, outputs, h, w)."""
        whole = self.pooling(x.mean((2, 3), keepdim=True)).expand(-1, -1, *x.shape[-2:])
        branches = [whole, self.point(x), *(branch(x) for branch in self.dilated)]
        return self.dropout(self.projection(torch.cat(branches, 1)))


class FeatureDecoder(nn.Module):
    """Pyramid features and low-level ones, on the grid of stride 4.

    Args:
        channels: of the pyramid, and of the result.
        low: channels of the backbone's low-level map.
        low_channels: to which they are reduced.
    """

    def __init__(self, channels: int, low: int, low_channels: int):
        super().__init__()
        self.low = Convolution(low, low_channels)
        self.conv1 = _separable(channels + low_channels, channels)
        self.conv2 = _separable(channels, channels)

    def forward(self, pyramid: torch.Tensor, low: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
        """(B, channels, h, w) where `size` is (h, w); both inputs are resized to it, corners aligned."""
        maps = [resize_bilinear(pyramid, size), resize_bilinear(self.low(low), size)]
        return self.conv2(self.conv1(torch.cat(maps, 1)))


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


def _initialize(module: nn.Conv2d, deviation: float) -> nn.Conv2d:
    """Weights from a normal distribution cut at two deviations, no bias."""
    nn.init.trunc_normal_(module.weight, std=deviation, a=-2 * deviation, b=2 * deviation)
    if module.bias is not None:
        nn.init.zeros_(module.bias)
    return module


class HeadLayer(nn.Module):
    """Depthwise and 1x1, before the ReLU that follows.

    Args:
        inputs, outputs: channels.
        kernel: side of the depthwise kernels, odd.
        relu_between: ReLU after the depthwise half too (the authors' code; the paper does not say so).
        bias: of the 1x1 convolution; the stem has none, since the head's first layer adds it.
    """

    def __init__(
        self, inputs: int, outputs: int, kernel: int = 7, relu_between: bool = True, bias: bool = True
    ):
        super().__init__()
        self.relu_between = relu_between
        depthwise = nn.Conv2d(inputs, inputs, kernel, padding=kernel // 2, groups=inputs)
        self.depthwise = _initialize(depthwise, 0.33)
        self.pointwise = _initialize(nn.Conv2d(inputs, outputs, 1, bias=bias), 0.06)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, inputs, h, w) -> (B, outputs, h, w)."""
        x = self.depthwise(x)
        return self.pointwise(x.relu() if self.relu_between else x)


class DynamicHead(nn.Module):
    """What the head does per object; see the head of this file.

    Args:
        channels: of every layer.
        layers: how many, the first included.
        kernel, relu_between: see `HeadLayer`.
    """

    def __init__(self, channels: int, layers: int = 4, kernel: int = 7, relu_between: bool = True):
        super().__init__()
        self.cues = HeadLayer(CUES, channels, kernel, relu_between)
        self.layers = nn.ModuleList(
            HeadLayer(channels, channels, kernel, relu_between) for _ in range(layers - 1)
        )
        self.logit = _initialize(nn.Conv2d(channels, 1, 1), 0.01)

    def forward(self, shared: torch.Tensor, cues: torch.Tensor) -> torch.Tensor:
        """Logits of all objects, which compete in a softmax.

        Args:
            shared: (1, channels, h, w), what the stem made of the frame.
            cues: (objects, 3, h, w), see `CUES`.

        Returns:
            (objects, h, w).
        """
        together = max(AT_ONCE // shared.numel(), 1)
        return torch.cat([self._logits(shared, some) for some in cues.split(together)])

    def _logits(self, shared: torch.Tensor, cues: torch.Tensor) -> torch.Tensor:
        # in this order the sum lies in memory as the features do, by channels, which is faster
        x = (shared + self.cues(cues)).relu()
        for layer in self.layers:
            x = layer(x).relu()
        return self.logit(x)[:, 0]
