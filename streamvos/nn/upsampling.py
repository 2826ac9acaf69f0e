"""Enlarging maps before a convolution with one output, at a fraction of the cost.

A resize is linear and treats every channel alike, so it may come after the sum over channels: instead of
enlarging C channels and convolving them, make one plane for each of the nine taps at the small size,
enlarge those, and add them shifted.

    logits = resize_then_convolve(x, convolution, (480, 854))     # x (K, 32, 240, 427) -> (K, 1, 480, 854)
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from streamvos.types import InputError


def double(x: torch.Tensor) -> torch.Tensor:
    """Bicubic enlargement by two, as `F.interpolate(scale_factor=2, mode="bicubic", align_corners=False)`.

    On processors torch does this in bfloat16 one number at a time. Two products with matrices, mostly zeros,
    take a third of the time; the four weights of the sums are exact in bfloat16.

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
    """(2 count, count) float32, what a line of `count` numbers is multiplied by."""
    unit = torch.eye(count)[None, None]
    size = (2 * count, count)
    # along the other axis this is a resize to the same size, which changes nothing
    return F.interpolate(unit, size, mode="bicubic", align_corners=False)[0, 0]


def resize_then_convolve(
    x: torch.Tensor, convolution: nn.Conv2d, size: tuple[int, int], twice_first: bool = False
) -> torch.Tensor:
    """`convolution(resize(x))`, computed the other way round; equal up to rounding.

    Args:
        x: (K, C, h, w) float.
        convolution: C to one channel, 3x3, stride 1, zero padding 1.
        size: (H, W) of the result.
        twice_first: bicubic by two, then bilinear to `size` (FRTM), rather than bicubic to `size`
            at once.

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
    # tap (dy, dx) of pixel (y, x) lies at (y + dy - 1, x + dx - 1), and is zero outside the picture
    total = taps[:, 4].clone()
    for tap in (0, 1, 2, 3, 5, 6, 7, 8):
        dy, dx = tap // 3 - 1, tap % 3 - 1
        to = slice(max(0, -dy), height - max(0, dy)), slice(max(0, -dx), width - max(0, dx))
        come = slice(max(0, dy), height + min(0, dy)), slice(max(0, dx), width + min(0, dx))
        total[:, to[0], to[1]] += taps[:, tap, come[0], come[1]]
    if convolution.bias is not None:
        total = total + convolution.bias.to(total.dtype)
    return total[:, None]
