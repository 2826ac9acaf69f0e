"""Frames and masks from the caller, checked before anything changes."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import torch

from streamvos.masks.checks import check_label_map, describe_areas, label_areas, named_objects
from streamvos.types import Annotation, InputError

logger = logging.getLogger(__name__)

SMALLEST_SIDE = 16
"""Pixels; frames with a shorter side have too few cells to follow anything in."""


def check_mask(mask: np.ndarray | torch.Tensor, size: tuple[int, int], device: torch.device) -> Annotation:
    """A mask as an annotation of the frame.

    The objects and their sizes are logged (INFO).

    Args:
        mask: (H, W) integer or bool label map, as the caller gave it.
        size: (H, W) of the frame.
        device: the device of the annotation's label map, (H, W) int64.

    Raises:
        InputError: this is no label map of this size, or it names no object.
    """
    given: Any = mask
    if isinstance(mask, torch.Tensor):
        try:
            given = mask.detach().cpu().numpy()
        except TypeError:  # bfloat16, which NumPy does not have
            raise InputError(f"the mask must be an integer label map {size}, got {_describe(mask)}") from None
    label_map = check_label_map(given, size)
    ids = named_objects(label_map)
    logger.info("the mask names %s", describe_areas(label_areas(label_map)))
    return Annotation(torch.from_numpy(label_map.astype(np.int64)).to(device), tuple(ids))


def check_frame(frame: np.ndarray | torch.Tensor, size: tuple[int, int] | None) -> torch.Tensor:
    """A frame as an (H, W, 3) uint8 tensor.

    Args:
        frame: as the caller gave it.
        size: (H, W) that it must have; None = any.

    Raises:
        InputError: another type, shape or size.
    """
    if not isinstance(frame, np.ndarray | torch.Tensor):
        raise InputError(
            f"frame must be (H, W, 3) uint8 RGB, a NumPy array or torch tensor, got {type(frame).__name__}"
        )
    if str(frame.dtype).removeprefix("torch.") != "uint8" or frame.ndim != 3 or frame.shape[2] != 3:
        raise InputError(f"frame must be (H, W, 3) uint8 RGB, got {_describe(frame)}")
    if isinstance(frame, torch.Tensor):
        tensor = frame.detach()
    else:
        # torch refuses negative strides and read-only memory; a copy settles both
        safe = frame if frame.flags.writeable and frame.flags.c_contiguous else frame.copy()
        tensor = torch.from_numpy(safe)
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


def _describe(array: np.ndarray | torch.Tensor) -> str:
    return f"{tuple(array.shape)} of dtype {str(array.dtype).removeprefix('torch.')}"
