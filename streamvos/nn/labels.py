"""Label maps and probabilities as tensors: one channel per label, cells to pixels and back.

>>> one_hot_labels(torch.tensor([[0, 3], [3, 255]]), (3,), (2, 2))[:, 0]
tensor([[1., 0.],
        [0., 1.]])
"""

from __future__ import annotations

import torch
import torch.nn.functional as F


def one_hot_labels(
    label_map: torch.Tensor, object_ids: tuple[int, ...], size: tuple[int, int]
) -> torch.Tensor:
    """A label map as soft label channels at the resolution of the cells.

    One-hot at full size, then bilinear (align_corners=False, no antialiasing): cells at a border hold
    fractions. A void pixel, or any value that is not an id, belongs to no channel.

    Args:
        label_map: (H, W) integer.
        object_ids: the K ids, in the order of the channels 1..K.
        size: (h, w) of the result.

    Returns:
        (1 + K, h, w) float32, background first.
    """
    labels = torch.tensor((0, *object_ids), device=label_map.device, dtype=label_map.dtype)
    channels = (label_map[None] == labels[:, None, None]).float()
    return F.interpolate(channels[None], size, mode="bilinear", align_corners=False)[0]


def resize_probabilities(labels: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Bilinear resize (align_corners=False), then division by the sum over the labels.

    Args:
        labels: (1 + K, h, w) float, not negative, of any sum.
        size: (H, W) of the result.

    Returns:
        (1 + K, H, W) float32, summing to one; (1, 0, 0, ...) where the sum was zero.
    """
    enlarged = F.interpolate(labels[None].float(), size, mode="bilinear", align_corners=False)[0]
    total = enlarged.sum(0, keepdim=True)
    reached = total > 0
    probabilities = enlarged / torch.where(reached, total, 1)
    probabilities[:1] += (~reached).to(probabilities.dtype)
    return probabilities
