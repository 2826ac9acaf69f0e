"""The parity gate: is an engine's answer eager's answer?

    error = feature_error(eager(*inputs), engine(*inputs))
    overlap = mask_overlap(masks_with_eager, masks_with_engine)
    parity = judge([error, ...], overlap, clip="synthetic:seed=7")

Two things are asked. Do the tensors agree up to rounding, and do the masks of a whole clip agree, since small
differences may grow while predictions feed back. Whoever calls brings the frames; this room has none.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from streamvos.engines.manifest import Parity
from streamvos.engines.signature import TensorSpec

LEAST_OVERLAP = 0.99
"""J between the two sets of masks."""

CLIP_FRAMES = 50

MOST_ERROR = {"float32": 2e-3, "bfloat16": 5e-2}
"""Relative error of an output, by the arithmetic of the method.

float32: sums in another order leave 1e-6 to 1e-5 after a hundred layers, TF32 and Winograd some 1e-4.
bfloat16: one rounding is 4e-3 at most, and both sides round after most layers but not after the same ones;
the bundled networks differ by 0.5 to 1 %. A wrong stride, dilation or weight makes errors near 1.
"""


def feature_error(expected: Sequence[torch.Tensor], came: Sequence[torch.Tensor]) -> float:
    """The largest relative error of any output: norm of the difference over eager's norm.

    Infinite where number, shape, dtype or strides differ, or something is not finite: strides too, since
    what comes after an engine would round otherwise with them.
    """
    if len(expected) != len(came):
        return float("inf")
    worst = 0.0
    for ours, theirs in zip(expected, came, strict=True):
        if TensorSpec.of(ours) != TensorSpec.of(theirs):
            return float("inf")
        reference = ours.double()
        difference = float((theirs.double() - reference).norm())
        scale = float(reference.norm())
        error = difference / scale if scale else float(difference > 0)
        if not np.isfinite(error):
            return float("inf")
        worst = max(worst, error)
    return worst


def mask_overlap(expected: Sequence[np.ndarray], came: Sequence[np.ndarray]) -> tuple[float, float]:
    """J of every object in every frame, between two sequences of label maps (H, W).

    Returns:
        Mean and least; an object that is in neither label map does not count, and with none at all both
        are 1.
    """
    overlaps = []
    for ours, theirs in zip(expected, came, strict=True):
        for i in set(np.unique(ours)) | set(np.unique(theirs)):
            if i != 0:
                both, either = (ours == i) & (theirs == i), (ours == i) | (theirs == i)
                overlaps.append(float(both.sum() / either.sum()))
    return (float(np.mean(overlaps)), float(np.min(overlaps))) if overlaps else (1.0, 1.0)


def judge(
    error: float, overlap: tuple[float, float], frames: int, clip: str, arithmetic: str = "float32"
) -> Parity:
    """Whether an engine may be used.

    Args:
        error: of the features, the largest over the clip.
        overlap: mean and least J.
        frames: of the clip.
        clip: what it was.
        arithmetic: "float32" or "bfloat16", of the method.
    """
    reasons = []
    if not error <= MOST_ERROR[arithmetic]:
        reasons.append(f"feature error {error:.2g} is above {MOST_ERROR[arithmetic]:.2g} ({arithmetic})")
    if not overlap[0] >= LEAST_OVERLAP:
        reasons.append(f"J with eager's masks {overlap[0]:.4f} is below {LEAST_OVERLAP}")
    finite = error if np.isfinite(error) else 1e9  # JSON has no infinity
    return Parity(
        passed=not reasons,
        feature_error=finite,
        mask_overlap=overlap[0],
        worst_overlap=overlap[1],
        frames=frames,
        clip=clip,
        reason=" and ".join(reasons),
    )
