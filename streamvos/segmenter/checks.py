"""What a caller gives, checked before anything changes: frames and label maps."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from streamvos.types import MAX_OBJECT_ID, VOID, Annotation, InputError

SMALLEST_SIDE = 16
"""Frames narrower or lower than this have too few cells to follow anything in."""


def annotation_of(given: torch.Tensor) -> Annotation:
    """What a mask, (H, W) int64 as checked, names.

    Raises:
        InputError: nothing.
    """
    named = tuple(int(i) for i in torch.unique(given) if int(i) not in (0, VOID))
    if not named:
        raise InputError("the mask names no object: every pixel is 0 (background) or 255 (void)")
    return Annotation(given, named)


def check_frame(frame: np.ndarray | torch.Tensor, size: tuple[int, int] | None) -> torch.Tensor:
    """A frame as (H, W, 3) uint8.

    Args:
        frame: as the caller gave it.
        size: (H, W) that it must have; None = any.

    Raises:
        InputError: it is something else.
    """
    tensor = _as_tensor(frame, "frame", "(H, W, 3) uint8 RGB")
    if tensor.dtype != torch.uint8 or tensor.ndim != 3 or tensor.shape[2] != 3:
        raise InputError(
            f"frame must be (H, W, 3) uint8 RGB, got {tuple(tensor.shape)} {_dtype_name(tensor)}"
        )
    height, width = int(tensor.shape[0]), int(tensor.shape[1])
    if min(height, width) < SMALLEST_SIDE:
        raise InputError(
            f"frame must be at least {SMALLEST_SIDE} pixels high and wide, got {height} x {width} (H x W)"
        )
    if size is not None and (height, width) != size:
        raise InputError(
            f"the frame size changed mid-stream: expected {size[0]} x {size[1]} (H x W), "
            f"got {height} x {width}; resize the frame, or call reset() and begin with a mask of the new size"
        )
    return tensor


def check_mask(mask: np.ndarray | torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """A label map as (H, W) int64, of the frame's size.

    Raises:
        InputError: it is something else.
    """
    expected = f"an integer label map ({size[0]}, {size[1]})"
    tensor = _as_tensor(mask, "mask", expected)
    if tensor.dtype == torch.bool:
        tensor = tensor.long()
    if tensor.is_floating_point() and not torch.isfinite(tensor).all():
        raise InputError(f"mask must be {expected}, got NaN or infinity in it")
    if tensor.is_floating_point() or tensor.is_complex() or tuple(tensor.shape) != size:
        raise InputError(f"mask must be {expected}, got {tuple(tensor.shape)} {_dtype_name(tensor)}")
    tensor = tensor.long()
    lowest, highest = int(tensor.min()), int(tensor.max())
    if lowest < 0 or highest > VOID:
        raise InputError(
            f"mask values must be 0 (background), 1..{MAX_OBJECT_ID} (objects) or {VOID} (void), "
            f"got values from {lowest} to {highest}"
        )
    return tensor


def _as_tensor(value: Any, name: str, expected: str) -> torch.Tensor:
    if isinstance(value, torch.Tensor):
        return value.detach()
    if not isinstance(value, np.ndarray):
        raise InputError(
            f"{name} must be {expected}, a NumPy array or torch tensor, got {type(value).__name__}"
        )
    try:
        # torch refuses negative strides and read-only memory; a copy settles both
        safe = value if value.flags.writeable and value.flags.c_contiguous else value.copy()
        return torch.from_numpy(safe)
    except TypeError:
        raise InputError(f"{name} must be {expected}, got dtype {value.dtype}") from None


def _dtype_name(tensor: torch.Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")
