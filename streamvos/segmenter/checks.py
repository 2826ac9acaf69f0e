"""Frames and masks from the caller, checked before anything changes."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from streamvos.masks.checks import check_label_map, named_objects
from streamvos.types import Annotation, InputError

SMALLEST_SIDE = 16
"""Frames narrower or lower than this have too few cells to follow anything in."""


def check_mask(mask: np.ndarray | torch.Tensor, size: tuple[int, int], device: torch.device) -> Annotation:
    """A mask as an annotation of the frame.

    Args:
        mask: (H, W) integer or bool label map, as the caller gave it.
        size: (H, W) of the frame.
        device: where the annotation's label map, (H, W) int64, is put.

    Raises:
        InputError: it is no label map of this size, or names no object.
    """
    given: Any = mask
    if isinstance(mask, torch.Tensor):
        try:
            given = mask.detach().cpu().numpy()
        except TypeError:  # bfloat16, which NumPy does not have
            got = f"{tuple(mask.shape)} {_dtype_name(mask)}"
            raise InputError(f"the mask must be an integer label map {size}, got {got}") from None
    label_map = check_label_map(given, size)
    ids = named_objects(label_map)
    return Annotation(torch.from_numpy(label_map.astype(np.int64)).to(device), tuple(ids))


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
