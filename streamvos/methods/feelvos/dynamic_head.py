"""FEELVOS's dynamic segmentation head: one network, run for every object, the background among them.

Its input is the frame's features and three maps of the object: distance to the reference, probability in the
previous frame, distance to the previous frame. The features are the same for all objects. The first layer
is depthwise, so its answer for them is too, and the 1x1 convolution after it is a sum over channels: the
features' share of both is computed once per frame (`SharedStem`), and only the share of the three maps per
object. That is algebra, not an approximation.

    stem, head = SharedStem(256, 256), DynamicHead(256)
    logits = head(stem(features), cues)         # (1, 256, h, w), (objects, 3, h, w) -> (objects, h, w)

Source: Voigtlaender et al., FEELVOS, CVPR 2019, section 3.5. Kernels and initialization as in the
authors' code, which has a ReLU between the depthwise and the 1x1 convolution (docs/methods.md, FEELVOS).
"""

from __future__ import annotations

import torch
from torch import nn

CUES = 3
"""Maps per object, in this order: global distance, previous probability, local distance."""

AT_ONCE = 1 << 24
"""Numbers of one layer's output that are worked on at once: objects beyond that wait their turn."""


def initialize(module: nn.Conv2d, deviation: float) -> nn.Conv2d:
    """Weights from a normal distribution cut at two deviations, no bias."""
    nn.init.trunc_normal_(module.weight, std=deviation, a=-2 * deviation, b=2 * deviation)
    if module.bias is not None:
        nn.init.zeros_(module.bias)
    return module


def _depthwise(channels: int, kernel: int) -> nn.Conv2d:
    return initialize(nn.Conv2d(channels, channels, kernel, padding=kernel // 2, groups=channels), 0.33)


def _pointwise(inputs: int, outputs: int, bias: bool = True) -> nn.Conv2d:
    return initialize(nn.Conv2d(inputs, outputs, 1, bias=bias), 0.06)


class SharedStem(nn.Module):
    """The features' share of the head's first layer, before bias and ReLU of its 1x1 convolution.

    Args:
        features, channels: of the input and of the head.
        kernel: side of the depthwise kernels, odd.
        relu_between: ReLU after the depthwise half.
    """

    def __init__(self, features: int, channels: int, kernel: int = 7, relu_between: bool = True):
        super().__init__()
        self.relu_between = relu_between
        self.depthwise = _depthwise(features, kernel)
        self.pointwise = _pointwise(features, channels, bias=False)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """(B, features, h, w) -> (B, channels, h, w)."""
        x = self.depthwise(features)
        return self.pointwise(x.relu() if self.relu_between else x)


class Layer(nn.Module):
    """Depthwise, 1x1 and ReLU, with biases."""

    def __init__(self, inputs: int, outputs: int, kernel: int, relu_between: bool):
        super().__init__()
        self.relu_between = relu_between
        self.depthwise = _depthwise(inputs, kernel)
        self.pointwise = _pointwise(inputs, outputs)

    def before_relu(self, x: torch.Tensor) -> torch.Tensor:
        x = self.depthwise(x)
        return self.pointwise(x.relu() if self.relu_between else x)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.before_relu(x).relu()


class DynamicHead(nn.Module):
    """What the head does per object; see the head of this file.

    Args:
        channels: of every layer.
        layers: how many, the first included.
        kernel: side of the depthwise kernels, odd.
        relu_between: ReLU after each depthwise half (the authors' code; the paper does not say so).
    """

    def __init__(self, channels: int, layers: int = 4, kernel: int = 7, relu_between: bool = True):
        super().__init__()
        self.cues = Layer(CUES, channels, kernel, relu_between)
        self.layers = nn.Sequential(
            *(Layer(channels, channels, kernel, relu_between) for _ in range(layers - 1))
        )
        self.logit = initialize(nn.Conv2d(channels, 1, 1), 0.01)

    def forward(self, shared: torch.Tensor, cues: torch.Tensor) -> torch.Tensor:
        """Logits of all objects, which compete in a softmax.

        Args:
            shared: (1, channels, h, w), what `SharedStem` made of the frame.
            cues: (objects, 3, h, w), see `CUES`.

        Returns:
            (objects, h, w).
        """
        together = max(AT_ONCE // shared.numel(), 1)
        return torch.cat([self._logits(shared, some) for some in cues.split(together)])

    def _logits(self, shared: torch.Tensor, cues: torch.Tensor) -> torch.Tensor:
        # in this order the sum lies in memory as the features do, by channels, which is faster
        return self.logit(self.layers((shared + self.cues.before_relu(cues)).relu()))[:, 0]
