"""Xception-65 as DeepLabv3+ changed it: deeper, without pooling, dilated where a stride is taken away.

    >>> network = Xception65(output_stride=16)
    >>> {name: tuple(x.shape) for name, x in network(torch.zeros(1, 3, 65, 65)).items()}
    {'low': (1, 256, 17, 17), 'high': (1, 2048, 5, 5)}

Every convolution with a stride pads as many pixels before as after, whatever the size, so that a side of n
becomes ceil(n / 2) and cells lie on every second pixel, counted from the first one.

Source: Chen et al., Encoder-Decoder with Atrous Separable Convolution, ECCV 2018, figure 4. Widths, names
and order of the operations follow TensorFlow's deeplab/core/xception.py as it is generally known; they have
not been run against it (docs/methods.md, FEELVOS).
"""

from __future__ import annotations

import torch
from torch import nn

from streamvos.types import InputError

EPSILON = 1e-3
"""Of the batch normalization in this backbone; what follows it uses 1e-5."""

RESIDUAL = 0.25
"""Share of a middle block's own answer in its output before training; sixteen of them add up."""


class SeparableConvolution(nn.Module):
    """Depthwise 3x3, then 1x1, each with batch normalization; ReLU before, or after both.

    Args:
        inputs, outputs: channels.
        stride, dilation: of the 3x3.
        relu_first: ReLU once before (all blocks but the last), else after each half.
        epsilon: of the batch normalizations.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        stride: int,
        dilation: int,
        relu_first: bool,
        epsilon: float = EPSILON,
    ):
        super().__init__()
        self.relu_first = relu_first
        self.depthwise = nn.Conv2d(
            inputs, inputs, 3, stride, padding=dilation, dilation=dilation, groups=inputs, bias=False
        )
        self.depthwise_bn = nn.BatchNorm2d(inputs, epsilon)
        self.pointwise = nn.Conv2d(inputs, outputs, 1, bias=False)
        self.pointwise_bn = nn.BatchNorm2d(outputs, epsilon)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.relu_first:
            return self.pointwise_bn(self.pointwise(self.depthwise_bn(self.depthwise(x.relu()))))
        x = self.depthwise_bn(self.depthwise(x)).relu()
        return self.pointwise_bn(self.pointwise(x)).relu()


class Block(nn.Module):
    """Three separable convolutions and a shortcut; the stride sits in the third.

    Args:
        inputs: channels.
        widths: output channels of the three.
        stride, dilation: of the block.
        shortcut: "conv" (1x1 with the stride), "sum" (the input itself) or "none".
        relu_first: see `SeparableConvolution`.
    """

    def __init__(
        self,
        inputs: int,
        widths: tuple[int, int, int],
        stride: int,
        dilation: int,
        shortcut: str,
        relu_first: bool = True,
    ):
        super().__init__()
        before = (inputs, *widths[:2])
        self.separable1, self.separable2, self.separable3 = (
            SeparableConvolution(before[k], widths[k], stride if k == 2 else 1, dilation, relu_first)
            for k in range(3)
        )
        self.add_input = shortcut == "sum"
        if shortcut == "conv":
            self.shortcut = nn.Conv2d(inputs, widths[2], 1, stride, bias=False)
            self.shortcut_bn = nn.BatchNorm2d(widths[2], EPSILON)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The output, and what the second convolution gave (low-level features of the decoder)."""
        second = self.separable2(self.separable1(x))
        y = self.separable3(second)
        if hasattr(self, "shortcut"):
            y = y + self.shortcut_bn(self.shortcut(x))
        elif self.add_input:
            y = y + x
        return y, second


class Xception65(nn.Module):
    """The network without its classifier.

    Attributes:
        channels: of the maps that `forward` gives.

    Args:
        output_stride: 8 or 16; strides beyond it become dilations of what follows.
        middle: how many blocks of the same shape stand in the middle.

    Raises:
        InputError: another stride.
    """

    def __init__(self, output_stride: int = 8, middle: int = 16):
        super().__init__()
        if output_stride not in (8, 16):
            raise InputError(f"output_stride is 8 or 16, got {output_stride}")
        self.conv1 = nn.Conv2d(3, 32, 3, 2, padding=1, bias=False)
        self.conv1_bn = nn.BatchNorm2d(32, EPSILON)
        self.conv2 = nn.Conv2d(32, 64, 3, padding=1, bias=False)
        self.conv2_bn = nn.BatchNorm2d(64, EPSILON)
        third, inner = (2, 1) if output_stride == 16 else (1, 2)
        self.entry = nn.ModuleList(
            [
                Block(64, (128, 128, 128), 2, 1, "conv"),
                Block(128, (256, 256, 256), 2, 1, "conv"),
                Block(256, (728, 728, 728), third, 1, "conv"),
            ]
        )
        self.middle = nn.ModuleList([Block(728, (728, 728, 728), 1, inner, "sum") for _ in range(middle)])
        # both strides of the exit are taken away: the first block keeps the dilation before it
        self.exit = nn.ModuleList(
            [
                Block(728, (728, 1024, 1024), 1, inner, "conv"),
                Block(1024, (1536, 1536, 2048), 1, 2 * inner, "none", relu_first=False),
            ]
        )
        self.channels = {"low": 256, "high": 2048}
        self._initialize()

    def _initialize(self) -> None:
        """Normal weights that keep the deviation of activations about 1 where nothing is trained yet."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_in", nonlinearity="relu")
        for module in self.modules():
            if isinstance(module, SeparableConvolution) and module.relu_first:
                # one ReLU in front of both halves: the second needs no gain
                nn.init.kaiming_normal_(module.pointwise.weight, mode="fan_in", nonlinearity="linear")
            if isinstance(module, Block) and module.add_input:
                nn.init.constant_(module.separable3.pointwise_bn.weight, RESIDUAL)

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        """Maps for the decoder and for the pyramid.

        Args:
            x: (B, 3, H, W) float RGB in 0..1.

        Returns:
            "low": (B, 256, ceil(H/4), ceil(W/4)), before any ReLU; "high": (B, 2048, h, w).
        """
        x = self.conv1_bn(self.conv1(x * 2 - 1)).relu()
        x = self.conv2_bn(self.conv2(x)).relu()
        x, _ = self.entry[0](x)
        x, low = self.entry[1](x)
        for block in (self.entry[2], *self.middle, *self.exit):
            x, _ = block(x)
        return {"low": low, "high": x}
