"""The segmentation network of FRTM and JOINT: coarse scores to logits at full size.

    network = SegmentationNetwork({"layer5": 512, "layer4": 256, "layer3": 128, "layer2": 64})
    logits = network(scores, features, (480, 854))      # scores (K, 1, 30, 54) -> (K, 480, 854)

Going from the deepest map to the finest, every level reduces the backbone's features, joins them with the
scores of an object (TSE), refines (RRB), lets the deeper level choose channels (CAB), and refines again.
What does not depend on the object is computed once for all of them.

Source: Robinson et al., Learning Fast and Robust Target Models for Video Object Segmentation, CVPR 2020,
section 3.3; Mao et al., Joint Inductive and Transductive Learning for Video Object Segmentation, ICCV
2021, which widens it. Module names are those of the authors' checkpoints.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import nn

from streamvos.types import InputError

Steps = Literal["two-step", "direct", "bilinear"]


class TargetScoreEncoder(nn.Module):
    """TSE: features of the frame and scores of an object to features of that object."""

    def __init__(self, inputs: int, width: int, score_channels: int):
        super().__init__()
        inner = width + score_channels
        self.width = width
        self.reduce = nn.Sequential(nn.Conv2d(inputs, width, 1), nn.ReLU(), nn.Conv2d(width, width, 1))
        self.transform = nn.Sequential(
            nn.Conv2d(inner, inner, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(inner, inner, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(inner, width, 3, padding=1),
            nn.ReLU(),
        )

    def forward(self, feature: torch.Tensor, scores: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """
        Args:
            feature: (1 or K, C, h, w); 1 where the objects share the frame.
            scores: (K, S, h, w).

        Returns:
            (K, width, h, w), and the reduced feature (1 or K, width, h, w).
        """
        reduced = self.reduce(feature)
        if reduced.shape[0] == scores.shape[0]:  # `len` would fix the batch of an exported graph
            return self.transform(torch.cat([reduced, scores.to(reduced.dtype)], dim=1)), reduced
        # the first convolution is linear: its part from the frame is the same for every object
        first = self.transform[0]
        assert isinstance(first, nn.Conv2d)
        of_frame = F.conv2d(reduced, first.weight[:, : self.width], first.bias, padding=1)
        of_objects = F.conv2d(scores.to(first.weight.dtype), first.weight[:, self.width :], padding=1)
        return self.transform[1:](of_frame + of_objects), reduced


class ResidualRefinement(nn.Module):
    """RRB: a 1x1 convolution and a residual block of two 3x3 convolutions."""

    def __init__(self, width: int):
        super().__init__()
        self.conv1x1 = nn.Conv2d(width, width, 1)
        self.bblock = nn.Sequential(
            nn.Conv2d(width, width, 3, padding=1),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.Conv2d(width, width, 3, padding=1, bias=False),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.conv1x1(x)
        return F.relu(x + self.bblock(x))


class ChannelAttention(nn.Module):
    """CAB: the deeper level decides how much each channel of the shallower one counts."""

    def __init__(self, width: int):
        super().__init__()
        self.convreluconv = nn.Sequential(
            nn.Conv2d(2 * width, width, 1), nn.ReLU(), nn.Conv2d(width, width, 1)
        )

    def forward(self, deeper: torch.Tensor, shallower: torch.Tensor) -> torch.Tensor:
        """deeper: (K, width, h', w'), 1 x 1 for the deepest level; shallower: (K, width, h, w)."""
        means = [shallower.mean((2, 3), keepdim=True), deeper.mean((2, 3), keepdim=True)]  # (K, width, 1, 1)
        gate = self.convreluconv(torch.cat(means, dim=1)).sigmoid()
        return shallower * gate + _bilinear(deeper, (shallower.shape[-2], shallower.shape[-1]))


class Head(nn.Module):
    """Features at a quarter of the size to logits at full size.

    Args:
        width: channels of the features.
        steps: "two-step" enlarges twice by two, then bilinearly to the size (FRTM); "direct" enlarges by two
            and then to the size at once (JOINT, and FRTM's YouTube-VOS code); "bilinear" has one convolution
            at a quarter of the size and enlarges its logits, in less than half of the network's time.
    """

    def __init__(self, width: int, steps: Steps):
        super().__init__()
        self.steps = steps
        if steps == "bilinear":
            self.conv = nn.Conv2d(width, 1, 3, padding=1)
            return
        self.conv1 = nn.Conv2d(width, width // 2, 3, padding=1)
        self.conv2 = nn.Conv2d(width // 2, 1, 3, padding=1)

    def forward(self, x: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
        """(K, width, h, w) -> (K, H, W)."""
        if self.steps == "bilinear":
            return _bilinear(self.conv(x).float(), size)[:, 0]
        x = F.relu(self.conv1(double(x)))
        return resize_then_convolve(x, self.conv2, size, twice_first=self.steps == "two-step")[:, 0]


class SegmentationNetwork(nn.Module):
    """The whole network; see the docstring of this module.

    Args:
        channels: level -> channels of the backbone's map, the deepest level first.
        widths: channels of each level inside the network, in the same order.
        score_channels: S.
        head: the steps of `Head`.
    """

    def __init__(
        self,
        channels: Mapping[str, int],
        widths: Sequence[int] = (64, 64, 64, 64),
        score_channels: int = 1,
        head: Steps = "two-step",
    ):
        super().__init__()
        if len(widths) != len(channels):
            raise InputError(f"{len(channels)} levels need as many widths, got {tuple(widths)}")
        self.levels = tuple(channels)
        width_of = dict(zip(self.levels, widths, strict=True))
        self.TSE = nn.ModuleDict(
            {n: TargetScoreEncoder(c, width_of[n], score_channels) for n, c in channels.items()}
        )
        self.RRB1 = nn.ModuleDict({n: ResidualRefinement(width_of[n]) for n in channels})
        self.CAB = nn.ModuleDict({n: ChannelAttention(width_of[n]) for n in channels})
        self.RRB2 = nn.ModuleDict({n: ResidualRefinement(width_of[n]) for n in channels})
        # FRTM does not project between levels of equal width
        self.proj = nn.ModuleDict()
        if len(set(widths)) > 1:
            for before, n in zip(self.levels, self.levels[1:], strict=False):
                self.proj[n] = nn.Sequential(nn.Conv2d(width_of[before], width_of[n], 1), nn.ReLU())
        self.project = Head(widths[-1], head)

    def forward(
        self, scores: torch.Tensor, features: Mapping[str, torch.Tensor], size: tuple[int, int]
    ) -> torch.Tensor:
        """Independent logits of every object.

        Args:
            scores: (K, S, h, w) float, of any grid; resized bilinearly to every level's.
            features: level -> (1 or K, C, h, w); 1 where the objects share the frame.
            size: (H, W) of the result.

        Returns:
            (K, H, W).
        """
        deeper: torch.Tensor | None = None
        for name in self.levels:
            grid = (features[name].shape[-2], features[name].shape[-1])
            x, reduced = self.TSE[name](features[name], _bilinear(scores, grid))
            if deeper is None:
                deeper = reduced.mean((2, 3), keepdim=True).expand(scores.shape[0], -1, -1, -1)
            elif name in self.proj:
                deeper = self.proj[name](deeper)
            deeper = self.RRB2[name](self.CAB[name](deeper, self.RRB1[name](x)))
        assert deeper is not None
        return self.project(deeper, size)


def _bilinear(x: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    if x.shape[-2:] == size:
        return x
    if x.shape[-2:] == (1, 1):
        return x.expand(-1, -1, *size)
    return F.interpolate(x, size, mode="bilinear", align_corners=False)


def double(x: torch.Tensor) -> torch.Tensor:
    """Bicubic enlargement by two, as `F.interpolate(scale_factor=2, mode="bicubic", align_corners=False)`.

    On a CPU torch does this in bfloat16 one number at a time. Two matrix products take a third of the time.
    The four weights of the sums are exact in bfloat16.

    Args:
        x: (K, C, h, w) float.

    Returns:
        (K, C, 2h, 2w).
    """
    h, w = x.shape[-2:]
    if x.device.type == "cpu" and x.dtype == torch.bfloat16:
        return _doubling(h).to(x.dtype) @ (x @ _doubling(w).t().to(x.dtype))
    return F.interpolate(x, (2 * h, 2 * w), mode="bicubic", align_corners=False)


def _doubling(count: int) -> torch.Tensor:
    """(2 count, count) float32: the matrix that doubles a line of `count` numbers."""
    unit = torch.eye(count)[None, None]
    size = (2 * count, count)
    # along the other axis this is a resize to the same size, which changes nothing
    return F.interpolate(unit, size, mode="bicubic", align_corners=False)[0, 0]


def resize_then_convolve(
    x: torch.Tensor, convolution: nn.Conv2d, size: tuple[int, int], twice_first: bool = False
) -> torch.Tensor:
    """`convolution(resize(x))` at a fraction of the cost; equal up to rounding.

    A resize is linear and treats every channel alike, so it may follow the sum over channels: instead of
    enlarging C channels, make one plane for each of the nine taps, enlarge those, and add them shifted.

    Args:
        x: (K, C, h, w) float.
        convolution: C to one channel, 3x3, stride 1, zero padding 1.
        size: (H, W) of the result.
        twice_first: bicubic by two, then bilinear to `size` (FRTM), rather than bicubic to `size` at once.

    Returns:
        (K, 1, H, W), in the dtype of the convolution's weights.
    """
    weight = convolution.weight
    if weight.shape[0] != 1 or weight.shape[2:] != (3, 3) or convolution.padding != (1, 1):
        raise InputError(f"need a 3x3 convolution to one channel with padding 1, got {convolution}")
    taps = F.conv2d(x, weight[0].permute(1, 2, 0).reshape(9, -1, 1, 1).to(x.dtype)).to(weight.dtype)
    height, width = size
    if twice_first:
        taps = double(taps)
        if taps.shape[-2:] != size:
            taps = F.interpolate(taps, size, mode="bilinear", align_corners=False)
    else:
        taps = F.interpolate(taps, size, mode="bicubic", align_corners=False)
    # tap (dy, dx) of pixel (y, x) lies at (y + dy - 1, x + dx - 1), and is zero outside the image
    total = taps[:, 4].clone()
    for tap in (0, 1, 2, 3, 5, 6, 7, 8):
        dy, dx = tap // 3 - 1, tap % 3 - 1
        to = slice(max(0, -dy), height - max(0, dy)), slice(max(0, -dx), width - max(0, dx))
        come = slice(max(0, dy), height + min(0, dy)), slice(max(0, dx), width + min(0, dx))
        total[:, to[0], to[1]] += taps[:, tap, come[0], come[1]]
    if convolution.bias is not None:
        total = total + convolution.bias.to(total.dtype)
    return total[:, None]
