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
from streamvos.training.disturbance import chance, disturb, move
from streamvos.training.heads import Recipe
from streamvos.training.losses import mask_loss, overlap
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
            overlaps.append(overlap(logits, truth[:, t]))
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
