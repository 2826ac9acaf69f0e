"""Residual networks whose strides, dilations and widths are arguments.

The methods cut, widen and dilate their backbones in different ways. The state-dict names are
torchvision's (`conv1`, `bn1`, `layer1.0.conv1`, ...), so its ImageNet files load wherever the shapes agree.

    >>> network = resnet(50, strides=(1, 2, 1, 1), planes=(64, 128, 256, 256))   # TVOS
    >>> network(torch.zeros(1, 3, 64, 64))["layer4"].shape
    torch.Size([1, 1024, 8, 8])

Source: He et al., Deep Residual Learning for Image Recognition, CVPR 2016. The stride of a bottleneck sits in
its 3x3 convolution (torchvision), or in the 1x1 convolution before it (paper, Detectron: `stride_in_1x1`).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from streamvos.types import InputError

IMAGE_MEAN = (0.485, 0.456, 0.406)
IMAGE_DEVIATION = (0.229, 0.224, 0.225)

BLOCKS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3)}


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


def _conv3x3(inputs: int, outputs: int, stride: int, dilation: int) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, stride, padding=dilation, dilation=dilation, bias=False)


def _shortcut(inputs: int, outputs: int, stride: int) -> nn.Module | None:
    if stride == 1 and inputs == outputs:
        return None
    return nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut (18 and 34 layers)."""

    expansion = 1

    def __init__(self, inputs: int, planes: int, stride: int, dilation: int, first_dilation: int):
        super().__init__()
        self.conv1 = _conv3x3(inputs, planes, stride, first_dilation)
        self.bn1 = nn.BatchNorm2d(planes)
        self.conv2 = _conv3x3(planes, planes, 1, dilation)
        self.bn2 = nn.BatchNorm2d(planes)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = _shortcut(inputs, planes, stride)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        y = self.relu(self.bn1(self.conv1(x)))
        return self.relu(self.bn2(self.conv2(y)) + shortcut)


class Bottleneck(nn.Module):
    """1x1, 3x3, 1x1 convolutions and a shortcut (50 and 101 layers)."""

    expansion = 4
    stride_in_1x1 = False

    def __init__(self, inputs: int, planes: int, stride: int, dilation: int, first_dilation: int):
        super().__init__()
        outputs = planes * self.expansion
        strides = (stride, 1) if self.stride_in_1x1 else (1, stride)
        self.conv1 = nn.Conv2d(inputs, planes, 1, strides[0], bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.conv2 = _conv3x3(planes, planes, strides[1], first_dilation)
        self.bn2 = nn.BatchNorm2d(planes)
        self.conv3 = nn.Conv2d(planes, outputs, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = _shortcut(inputs, outputs, stride)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.relu(self.bn2(self.conv2(y)))
        return self.relu(self.bn3(self.conv3(y)) + shortcut)


class CaffeBottleneck(Bottleneck):
    """A bottleneck whose stride sits in its first convolution (Detectron, Caffe)."""

    stride_in_1x1 = True


class ResNet(nn.Module):
    """A residual network without its classifier; see `resnet` for the arguments."""

    def __init__(
        self,
        block: type[BasicBlock | Bottleneck],
        blocks: Sequence[int],
        strides: Sequence[int],
        dilations: Sequence[int],
        planes: Sequence[int],
    ):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 7, 2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, 2, padding=1)
        self.channels: dict[str, int] = {}
        channels, before = 64, 1
        for number, (count, stride, dilation, width) in enumerate(
            zip(blocks, strides, dilations, planes, strict=True), start=1
        ):
            # as in torchvision, the first convolution of a dilated stage keeps the dilation before it
            stage = [block(channels, width, stride, dilation, before)]
            channels, before = width * block.expansion, dilation
            stage += [block(channels, width, 1, dilation, dilation) for _ in range(count - 1)]
            self.add_module(f"layer{number}", nn.Sequential(*stage))
            self.channels[f"layer{number}"] = channels
        self.names = list(self.channels)
        self._initialize()

    def _initialize(self) -> None:
        """Normal weights of deviation sqrt(2 / (kernel area * outputs)), as the TVOS authors draw them."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        """Maps of every stage.

        Args:
            x: (B, 3, H, W) float, normalized RGB.

        Returns:
            name ("layer1", ...) -> (B, C, h, w), after the stage's last ReLU.
        """
        return self.after_conv1(self.conv1(x))

    def after_conv1(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        """What follows the first convolution, for methods that add something to its output (RGMP).

        Args:
            x: (B, 64, H/2, W/2) float, the output of `conv1`.

        Returns:
            as `forward`.
        """
        x = self.maxpool(self.relu(self.bn1(x)))
        maps = {}
        for name in self.names:
            x = getattr(self, name)(x)
            maps[name] = x
        return maps


def resnet(
    depth: int,
    strides: Sequence[int] = (1, 2, 2, 2),
    dilations: Sequence[int] = (1, 1, 1, 1),
    planes: Sequence[int] = (64, 128, 256, 512),
    stages: int = 4,
    stride_in_1x1: bool = False,
) -> ResNet:
    """A ResNet of 18, 34, 50 or 101 layers.

    Args:
        depth: number of layers.
        strides: stride of each stage's first block; the stem before them has stride 4.
        dilations: dilation of each stage's 3x3 convolutions (the first one of a stage takes that of the
            stage before, as in torchvision).
        planes: width of each stage; a bottleneck has four times as many output channels.
        stages: how many of the four stages are built.
        stride_in_1x1: the stride of a bottleneck sits in its first convolution (Detectron, Caffe).

    Raises:
        InputError: an unknown depth, or arguments of the wrong length.
    """
    if depth not in BLOCKS:
        raise InputError(f"ResNet depth {depth!r} is unknown; choose one of {sorted(BLOCKS)}")
    if not 1 <= stages <= 4:
        raise InputError(f"a ResNet has 1 to 4 stages, got stages={stages}")
    for name, values in (("strides", strides), ("dilations", dilations), ("planes", planes)):
        if len(values) < stages or any(value < 1 for value in values):
            raise InputError(f"{name} needs {stages} positive numbers, got {tuple(values)}")
    bottleneck = CaffeBottleneck if stride_in_1x1 else Bottleneck
    return ResNet(
        BasicBlock if depth < 50 else bottleneck,
        BLOCKS[depth][:stages],
        strides[:stages],
        dilations[:stages],
        planes[:stages],
    )
