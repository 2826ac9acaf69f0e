"""Independent probabilities of each object to one distribution per pixel.

The published methods do this in three ways, each a function here. Given masks (of objects that start or are
corrected on this frame) are inserted before.

    >>> p = torch.tensor([[[0.9]], [[0.5]]])            # two objects, one pixel
    >>> odds_softmax(torch.cat([1 - p.max(0, keepdim=True).values, p]))[:, 0, 0]
    tensor([0.0110, 0.8901, 0.0989])
"""

from __future__ import annotations

import torch

from streamvos.nn.labels import winners
from streamvos.types import VOID, Annotation

CLAMP = 1e-7
"""Probabilities are clamped to this distance from 0 and 1 before odds are taken (RGMP, FRTM and JOINT)."""


def odds_softmax(probabilities: torch.Tensor) -> torch.Tensor:
    """Odds over the sum of all odds: the softmax of the log-odds (RGMP, eq. 1).

    Args:
        probabilities: (1 + K, H, W) float, independent of each other, background first.

    Returns:
        (1 + K, H, W), summing to 1.
    """
    p = probabilities.clamp(CLAMP, 1 - CLAMP)
    return (p / (1 - p)).log().softmax(0)


def shares_of_odds(objects: torch.Tensor) -> torch.Tensor:
    """The aggregation of FRTM's authors before the winner is chosen: a softmax over the odds themselves.

    The probability of the background is one minus that of the most probable object.

    Args:
        objects: (K, H, W) float, the independent probability of each object.

    Returns:
        (1 + K, H, W), background first, summing to 1.
    """
    p = objects.clamp(CLAMP, 1 - CLAMP)
    p = torch.cat([(1 - p).min(0, keepdim=True).values, p])  # (1 + K, H, W)
    return (p / (1 - p)).softmax(0)


def winners_of_odds(objects: torch.Tensor) -> torch.Tensor:
    """`shares_of_odds` of the largest channel of each pixel; 0 in the others."""
    shares = shares_of_odds(objects)
    channels = torch.arange(len(shares), dtype=torch.uint8, device=shares.device).view(-1, 1, 1)
    return shares * (winners(shares) == channels)


def merge_logits(logits: torch.Tensor) -> torch.Tensor:
    """The aggregation of JOINT's (and LWL's) authors: the background is where no object is.

    Args:
        logits: (K, H, W) float, independent of each other; a given mask is +-100.

    Returns:
        (1 + K, H, W): softmax over the log-odds of the background and the logits; with one object s,
        sigmoid(2 s).
    """
    background = (1 - logits.sigmoid()).prod(0, keepdim=True).clamp(CLAMP, 1 - CLAMP)  # (1, H, W)
    return torch.cat([(background / (1 - background)).log(), logits]).softmax(0)


def all_ids(object_ids: tuple[int, ...], annotation: Annotation | None) -> tuple[int, ...]:
    """The ids of the tracked and of the given objects, ascending."""
    return object_ids if annotation is None else tuple(sorted({*object_ids, *annotation.object_ids}))


def insert_given_channels(
    objects: torch.Tensor,
    object_ids: tuple[int, ...],
    annotation: Annotation,
    low: float = 0,
    high: float = 1,
) -> torch.Tensor:
    """Predicted channels and given masks in one stack, before aggregation.

    The channel of a given object is `high` on its pixels and `low` elsewhere, except on void pixels, where
    its prediction stands. The other channels become `low` on all given pixels.

    Args:
        objects: (K, H, W), a channel for each of `object_ids`: probabilities, or logits.
        object_ids: ascending.
        annotation: the given masks.
        low, high: the values of certainty on the scale of `objects`.

    Returns:
        (K', H, W) for `all_ids`.
    """
    masks = annotation.masks().to(objects.dtype)  # (K given, H, W)
    taken, void = masks.sum(0) > 0, annotation.label_map == VOID
    given = dict(zip(annotation.object_ids, masks * (high - low) + low, strict=True))
    predicted = dict(zip(object_ids, objects, strict=True))
    channels = []
    for i in all_ids(object_ids, annotation):
        if i not in given:
            channels.append(predicted[i].masked_fill(taken, low))
        else:
            channels.append(torch.where(void, predicted[i], given[i]) if i in predicted else given[i])
    return torch.stack(channels)


def insert_given(
    probabilities: torch.Tensor, object_ids: tuple[int, ...], annotation: Annotation
) -> torch.Tensor:
    """Insert given masks into aggregated probabilities.

    Given pixels are certain; elsewhere the probability of a corrected object goes to the background.

    Args:
        probabilities: (1 + K, H, W), summing to 1, background first.
        object_ids: the K ids, ascending.
        annotation: the given masks.

    Returns:
        (1 + K', H, W) for `all_ids`, summing to 1.
    """
    objects = insert_given_channels(probabilities[1:], object_ids, annotation)  # (K', H, W)
    changed = (annotation.label_map != 0) & (annotation.label_map != VOID)
    for i in set(object_ids) & set(annotation.object_ids):
        changed = changed | (probabilities[1 + object_ids.index(i)] > 0)
    background = torch.where(changed, (1 - objects.sum(0)).clamp_min(0), probabilities[0])
    return torch.cat([background[None], objects])
