"""Training RGMP's light form on features of the frozen backbone.

A clip runs as at inference: the first frame with its mask is the reference, and the network's own soft mask
of each frame guides the next one, through which the gradient flows back (backpropagation through time). The
mask that guides the first prediction is wrong in the ways in which predictions are wrong (`disturb`), or
empty, so that the network learns to correct masks and to find an object again from its reference.

Source: Wug Oh et al., CVPR 2018, section 3.2: the two stages (clips made of stills, then videos) are those of
`streamvos.training.features`.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import nn

from streamvos.methods import Method
from streamvos.methods.rgmp import EFFICIENTNET, RGMP
from streamvos.methods.rgmp.light import LEVELS, LightRuns
from streamvos.training.heads import Recipe
from streamvos.training.losses import mask_loss
from streamvos.types import VOID

STRIDE = 4
"""Masks are predicted and compared at this stride."""

AGAIN = 0.15
"""Share of later guides that are disturbed too."""


class RGMPLoss:
    """`mask_loss` of a clip's later frames, given the first; "overlap" is the mean IoU.

    Other objects are background: the loss takes 1 for the object, 255 for void, anything else for background.
    """

    def __call__(self, network: nn.Module, batch: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Losses of a `LightGuidedNetwork` on a batch of `FeatureClips`."""
        labels = batch["labels"]  # (B, T, H, W)
        size = (labels.shape[2] // STRIDE, labels.shape[3] // STRIDE)
        truth = labels[..., STRIDE // 2 :: STRIDE, STRIDE // 2 :: STRIDE]
        soft = F.interpolate((labels == 1).float(), size, mode="bilinear")  # as at inference
        maps = [{level: batch[level][:, t] for level in LEVELS} for t in range(labels.shape[1])]
        shares, cells = network.refer(maps[0], soft[:, 0])  # type: ignore[operator]
        others = F.interpolate(((labels > 1) & (labels != VOID)).float(), size, mode="bilinear")
        guides = first_guides(soft, others[:, 1])
        losses, overlaps = [], []
        for t in range(1, labels.shape[1]):
            # the last frame is not attended to here: trained with it, validation was worse (docs/methods.md)
            logits = network(maps[t], guides, shares, cells, cells)  # (B, h, w)
            losses.append(mask_loss(logits, truth[:, t]))
            overlaps.append(overlap(logits.detach() > 0, truth[:, t] == 1))
            guides = logits.float().sigmoid()
            guides = torch.where(chance(guides, AGAIN), disturb(guides), guides)
        return {"total": torch.stack(losses).mean(), "overlap": torch.stack(overlaps).mean()}


def guided_network(method: Method) -> nn.Module:
    """What is trained."""
    assert isinstance(method, RGMP)
    assert isinstance(method.runs, LightRuns)
    return method.runs.network


RECIPE = Recipe(
    "rgmp",
    EFFICIENTNET,
    guided_network,
    lambda method: RGMPLoss(),
    training={"steps": 1800},
    clips={"stills_first": 350},
)
"""How the bundled weights were trained."""


def first_guides(soft: torch.Tensor, others: torch.Tensor) -> torch.Tensor:
    """(B, h, w) masks that guide the first prediction.

    Args:
        soft: the true masks of all frames, (B, T, h, w).
        others: where other objects are in the frame to predict, (B, h, w).

    A third comes from the reference, which may be far away in time; most others from the frame to predict,
    moved a little, as neighboring frames of a video differ. Most are then disturbed; some have drifted to
    other objects, or are empty.
    """
    near = move(soft[:, 1], 0.06)
    guides = torch.where(chance(near, 0.35), soft[:, 0], near)
    guides = torch.where(chance(guides, 0.7), disturb(guides), guides)
    guides = torch.where(chance(guides, 0.15), torch.maximum(guides, others), guides)
    return guides * ~chance(guides, 0.08)


def disturb(masks: torch.Tensor) -> torch.Tensor:
    """Masks (B, h, w) as predictions go wrong.

    Each is grown, shrunk or blurred, or loses a part, or gets a part that does not belong to it, or lies
    somewhere else.
    """
    reach = 2 * int(torch.randint(1, 6, ())) + 1
    field = F.interpolate(masks.new_empty(len(masks), 1, 4, 6).normal_(), masks.shape[1:], mode="bicubic")
    gate = (3 * field[:, 0]).sigmoid()
    elsewhere = move(masks, 0.5)
    kinds = [
        _pool(masks, reach),
        1 - _pool(1 - masks, reach),
        F.avg_pool2d(masks[:, None], reach, 1, reach // 2)[:, 0],
        masks * gate,
        torch.maximum(masks, elsewhere * gate),
        torch.maximum(masks, _pool(masks, 21) * gate),
        elsewhere,
    ]
    chosen = torch.randint(len(kinds), (len(masks),), device=masks.device)
    return torch.stack(kinds)[chosen, torch.arange(len(masks), device=masks.device)]


def move(masks: torch.Tensor, amount: float) -> torch.Tensor:
    """Masks (B, h, w), each shifted by about `amount` of the frame, and scaled and turned a little."""
    count = len(masks)
    scale = (amount * masks.new_empty(count, 2).normal_()).clamp(-0.4, 0.4).exp()
    turn, shift = 0.15 * masks.new_empty(count).normal_(), 2 * amount * masks.new_empty(count, 2).normal_()
    # around the mask's own center
    rows, columns = (torch.linspace(-1, 1, side, device=masks.device) for side in masks.shape[1:])
    total = masks.sum((1, 2)).clamp_min(1e-3)
    center = torch.stack([(masks.sum(1) * columns).sum(1), (masks.sum(2) * rows).sum(1)], 1) / total[:, None]
    cosine, sine = turn.cos(), turn.sin()
    linear = (
        torch.stack([torch.stack([cosine, -sine], 1), torch.stack([sine, cosine], 1)], 1) * scale[:, None]
    )
    offset = center - (linear @ (center + shift)[:, :, None])[:, :, 0]
    grid = F.affine_grid(
        torch.cat([linear, offset[:, :, None]], 2), [count, 1, *masks.shape[1:]], align_corners=False
    )
    return F.grid_sample(masks[:, None], grid, align_corners=False)[:, 0]


def overlap(found: torch.Tensor, true: torch.Tensor) -> torch.Tensor:
    """Mean IoU of masks (B, h, w) bool; 1 where both are empty."""
    both, either = (found & true).sum((1, 2)), (found | true).sum((1, 2))
    return torch.where(either > 0, both / either.clamp_min(1), 1.0).mean()


def chance(masks: torch.Tensor, share: float) -> torch.Tensor:
    """(B, 1, 1) bool, true for about this share of the masks."""
    return torch.rand((len(masks), 1, 1), device=masks.device) < share


def _pool(masks: torch.Tensor, reach: int) -> torch.Tensor:
    """The largest value in a square of `reach` cells."""
    tall = F.max_pool2d(masks[:, None], (reach, 1), 1, (reach // 2, 0))
    return F.max_pool2d(tall, (1, reach), 1, (0, reach // 2))[:, 0]
