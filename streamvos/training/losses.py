"""Losses on the affinity between the cells of a target frame and those of its references.

Shapes here: B clips, N reference cells (all reference frames of a clip together), M target cells.
The affinity is (B, N, M), a softmax over the N references.

    logarithms = log_affinity(references, target, temperature=14)
    loss = mass_on_same_label(logarithms.exp(), region_references, region_target)
    loss = loss + cross_entropy_to_matches(logarithms, matches)
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F

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


def cross_entropy_to_matches(logarithms: torch.Tensor, matches: torch.Tensor) -> torch.Tensor:
    """Cross-entropy between true correspondences and the affinity.

    Args:
        logarithms: (B, N, M), see `log_affinity`.
        matches: (B, N, M) weights >= 0 of the reference cells that show the target cell's surface; target
            cells without a match are left out.

    Returns:
        Scalar mean over the target cells with a match; 0 if there is none.
    """
    total = matches.sum(1)
    found = total > 0
    shares = matches / torch.where(found, total, 1.0)[:, None]
    return -(shares * logarithms).sum() / found.sum().clamp_min(1)
