"""Losses on the affinity between the cells of a target frame and those of its references.

Shapes here: B clips, N reference cells (all reference frames of a clip together), M target cells.
The affinity is (B, N, M), a softmax over the N references.

    logarithms = log_affinity(references, target, temperature=14)
    loss = mass_on_same_label(logarithms.exp(), region_references, region_target)
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F

from streamvos.types import VOID

IGNORE = -1
"""The label of target cells that the losses ignore."""


def log_affinity(references: torch.Tensor, target: torch.Tensor, temperature: float) -> torch.Tensor:
    """Log of the softmax over reference cells of temperature * similarity, in float32.

    Args:
        references: (B, N, C) embeddings.
        target: (B, M, C) embeddings.
        temperature: multiplies the dot products (TVOS eq. 6 without the spatial prior).

    Returns:
        (B, N, M).
    """
    return F.log_softmax(temperature * torch.bmm(references.float(), target.float().transpose(1, 2)), dim=1)


def mass_on_same_label(
    affinity: torch.Tensor,
    references: torch.Tensor,
    target: torch.Tensor,
    floor: float = 1e-14,
    missing: Literal["ignore", "floor"] = "ignore",
) -> torch.Tensor:
    """-log of the probability that label propagation gives a target cell its own label (TVOS eq. 5).

    Args:
        affinity: (B, N, M), a softmax over the references.
        references: (B, N) integer labels.
        target: (B, M) integer labels; IGNORE leaves a cell out.
        floor: added to the probability before the logarithm; the authors' is the default.
        missing: the cost of a label that no reference has: none, or -log(floor) as in the authors' code.

    Returns:
        Scalar mean over the cells that count; 0 if none does.
    """
    same = references[:, :, None] == target[:, None, :]
    mass = (affinity * same).sum(1)
    found = target != IGNORE
    if missing == "ignore":
        found = found & same.any(1)
    counts = found.float()
    return (-(mass + floor).log() * counts).sum() / counts.sum().clamp_min(1)


def mask_loss(logits: torch.Tensor, truth: torch.Tensor, hardest: float = 0.3) -> torch.Tensor:
    """Loss of one object's masks: cross-entropy, most of it on the hardest pixels, and Lovász hinge.

    Args:
        logits: (N, H, W) float.
        truth: (N, H, W) uint8; 1 the object, 255 void, which counts for nothing, else background.
        hardest: share of the pixels whose mean cross-entropy is added to the mean over all (bootstrapping).

    Returns:
        Scalar mean over the masks.

    Source: Wu, Shen, van den Hengel, Bridging Category-level and Instance-level Semantic Image
    Segmentation, 2016 (bootstrapping, as FEELVOS uses it); Berman et al., The Lovász-Softmax Loss, CVPR 2018
    (as JOINT uses it).
    """
    logits, known = logits.float().flatten(1), (truth != VOID).flatten(1)
    true = (truth == 1).flatten(1).float()
    pixels = F.binary_cross_entropy_with_logits(logits, true, reduction="none") * known
    worst = pixels.topk(max(1, int(hardest * pixels.shape[1])), dim=1).values
    return 0.5 * pixels.mean() + 0.5 * worst.mean() + lovasz_hinge(logits, true, known)


def lovasz_hinge(logits: torch.Tensor, true: torch.Tensor, known: torch.Tensor) -> torch.Tensor:
    """The convex surrogate of 1 - IoU of Berman et al., CVPR 2018.

    Args:
        logits: (N, P) float.
        true: (N, P) float, 0 or 1.
        known: (N, P) bool; other pixels count for nothing.

    Returns:
        Scalar mean over the N masks.
    """
    errors = torch.where(known, 1 - logits * (2 * true - 1), -1.0)
    sorted_errors, order = errors.sort(dim=1, descending=True)
    true, known = (true * known).gather(1, order), known.gather(1, order)
    total = true.sum(1, keepdim=True)
    intersection = total - true.cumsum(1)
    union = total + ((1 - true) * known).cumsum(1)
    jaccard = 1 - intersection / union.clamp_min(1)
    slopes = torch.cat([jaccard[:, :1], jaccard[:, 1:] - jaccard[:, :-1]], dim=1)
    return (sorted_errors.relu() * slopes).sum(1).mean()


def overlap(logits: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
    """Mean IoU of the masks where logits are positive; 1 where prediction and truth are empty.

    Args:
        logits, truth: as for `mask_loss`; pixels that are void count for nothing.
    """
    found, true, known = logits.detach() > 0, truth == 1, truth != VOID
    both, either = (found & true).flatten(1).sum(1), ((found | true) & known).flatten(1).sum(1)
    return torch.where(either > 0, both / either.clamp_min(1), 1.0).mean()
