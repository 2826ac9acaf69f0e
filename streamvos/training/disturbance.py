"""Masks made wrong in the ways in which predictions are wrong, so that networks learn to correct them.

guides = torch.where(chance(masks, 0.3), disturb(masks), masks)
"""

from __future__ import annotations

import torch
import torch.nn.functional as F


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


def unseen_parts(masks: torch.Tensor, share: float) -> torch.Tensor:
    """What of masks (B, h, w) a memory has seen, (B, h, w) in 0..1: of about `share` of them not one side.

    As of an object that turns: the missing side, at most two thirds, was never seen as the object's.
    """
    count, (rows, columns) = len(masks), masks.shape[1:]
    y, x = (torch.linspace(-1, 1, side, device=masks.device) for side in (rows, columns))
    angle = 2 * torch.pi * masks.new_empty(count, 1, 1).uniform_()
    noise = F.interpolate(masks.new_empty(count, 1, 4, 6).normal_(), (rows, columns), mode="bicubic")[:, 0]
    along = angle.cos() * x + angle.sin() * y[:, None] + 0.15 * noise  # (B, h, w), grows towards one side
    kept = 0.35 + 0.5 * torch.rand(count, device=masks.device)
    seen = torch.ones_like(masks)
    for k in chance(masks, share).flatten().nonzero().flatten().tolist():
        inside = along[k][masks[k] > 0.5]
        if len(inside):
            seen[k] = ((inside.quantile(float(kept[k])) - along[k]) / 0.03).sigmoid()
    return seen


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


def chance(masks: torch.Tensor, share: float) -> torch.Tensor:
    """(B, 1, 1) bool, true for about this share of the masks."""
    return torch.rand((len(masks), 1, 1), device=masks.device) < share


def _pool(masks: torch.Tensor, reach: int) -> torch.Tensor:
    """The largest value in a square of `reach` cells."""
    tall = F.max_pool2d(masks[:, None], (reach, 1), 1, (reach // 2, 0))
    return F.max_pool2d(tall, (1, reach), 1, (0, reach // 2))[:, 0]
