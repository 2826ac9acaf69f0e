"""Residual networks whose strides, dilations and widths are arguments.

The methods cut, widen and dilate their backbones in different ways; the state-dict names stay
torchvision's (`conv1`, `bn1`, `layer1.0.conv1`, ...), so that its ImageNet files load whatever was
changed, as far as the shapes agree.

    >>> network = resnet(50, strides=(1, 2, 1, 1), planes=(64, 128, 256, 256))   # TVOS
    >>> network(torch.zeros(1, 3, 64, 64))["layer4"].shape
    torch.Size([1, 1024, 8, 8])

Source: He et al., Deep Residual Learning for Image Recognition, CVPR 2016; as in torchvision, the
stride of a bottleneck sits in its 3x3 convolution, or, as in the paper and in Detectron's files, in the
1x1 convolution before it (`stride_in_1x1`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

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


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut (18 and 34 layers)."""

    expansion = 1

    def __init__(
        self,
        inputs: int,
        planes: int,
        stride: int,
        dilation: int,
        first_dilation: int,
        shortcut: nn.Module | None,
    ):
        super().__init__()
        self.conv1 = _conv3x3(inputs, planes, stride, first_dilation)
        self.bn1 = nn.BatchNorm2d(planes)
        self.conv2 = _conv3x3(planes, planes, 1, dilation)
        self.bn2 = nn.BatchNorm2d(planes)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = shortcut

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        y = self.relu(self.bn1(self.conv1(x)))
        return self.relu(self.bn2(self.conv2(y)) + shortcut)


class Bottleneck(nn.Module):
    """1x1, 3x3, 1x1 convolutions and a shortcut (50 and 101 layers)."""

    expansion = 4

    def __init__(
        self,
        inputs: int,
        planes: int,
        stride: int,
        dilation: int,
        first_dilation: int,
        shortcut: nn.Module | None,
        stride_in_1x1: bool = False,
    ):
        super().__init__()
        strides = (stride, 1) if stride_in_1x1 else (1, stride)
        self.conv1 = nn.Conv2d(inputs, planes, 1, strides[0], bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.conv2 = _conv3x3(planes, planes, strides[1], first_dilation)
        self.bn2 = nn.BatchNorm2d(planes)
        self.conv3 = nn.Conv2d(planes, planes * self.expansion, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(planes * self.expansion)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = shortcut

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.relu(self.bn2(self.conv2(y)))
        return self.relu(self.bn3(self.conv3(y)) + shortcut)


class ResNet(nn.Module):
    """A residual network without its classifier; see `resnet` for the arguments."""

    def __init__(
        self,
        block: Callable[..., BasicBlock | Bottleneck],
        expansion: int,
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
        self.names: list[str] = []
        self.channels: dict[str, int] = {}
        channels, before = 64, 1
        for number, (count, stride, dilation, width) in enumerate(
            zip(blocks, strides, dilations, planes, strict=True), start=1
        ):
            outputs = width * expansion
            shortcut: nn.Module | None = None
            if stride != 1 or channels != outputs:
                shortcut = nn.Sequential(
                    nn.Conv2d(channels, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)
                )
            # as in torchvision, the first convolution of a dilated stage keeps the dilation before it
            stage = [block(channels, width, stride, dilation, before, shortcut)]
            stage += [block(outputs, width, 1, dilation, dilation, None) for _ in range(count - 1)]
            name = f"layer{number}"
            self.add_module(name, nn.Sequential(*stage))
            self.names.append(name)
            self.channels[name] = outputs
            channels, before = outputs, dilation
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
        depth: which one.
        strides: stride of each stage's first block; the stem before them has stride 4.
        dilations: dilation of each stage's 3x3 convolutions (the first one of a stage takes that of the
            stage before, as in torchvision).
        planes: width of each stage; bottlenecks put out four times as many channels.
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
    cut = strides[:stages], dilations[:stages], planes[:stages]
    if depth < 50:
        return ResNet(BasicBlock, BasicBlock.expansion, BLOCKS[depth][:stages], *cut)
    bottleneck = partial(Bottleneck, stride_in_1x1=stride_in_1x1)
    return ResNet(bottleneck, Bottleneck.expansion, BLOCKS[depth][:stages], *cut)
