"""Checks of label maps: shape and values, the objects they name, and resizing.

Masks come from callers, clients, files and the command line; all of them are checked here, so that the same
mistake has the same message everywhere.

    >>> mask = check_label_map(np.array([[0, 3], [255, 3]]))
    >>> mask.dtype.name, object_ids(mask)
    ('uint8', [3])
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from streamvos.types import MAX_OBJECT_ID, VOID, InputError

MASK_BYTES = 2**26
"""The largest mask that a pipeline accepts from a client: 8192 x 8192 pixels."""


def check_label_map(mask: Any, size: tuple[int, int] | None = None, name: str = "the mask") -> np.ndarray:
    """A label map as a contiguous (H, W) uint8 array, without a copy where it is one already.

    Args:
        mask: (H, W) bool or any integer dtype; 0 is background, 1..254 are object ids, 255 is void.
        size: required (H, W); None allows any.
        name: its name in error messages.

    Raises:
        InputError: it has another shape or dtype, is empty, or has values outside 0..255.
    """
    expected = f"an integer label map ({size[0]}, {size[1]})" if size else "an integer label map (H, W)"
    try:
        array = np.asarray(mask)
    except ValueError:  # rows of different lengths
        raise InputError(f"{name} must be {expected}, got a {type(mask).__name__}") from None
    got = f"{array.shape} {array.dtype}" if hasattr(mask, "shape") else f"a {type(mask).__name__}"
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        got += " with NaN or infinity in it"
    is_size = array.ndim == 2 and array.size > 0 and (size is None or array.shape == tuple(size))
    if array.dtype.kind not in "iub" or not is_size:
        raise InputError(f"{name} must be {expected}, got {got}")
    if array.dtype.kind != "b" and array.dtype != np.uint8:
        lowest, highest = int(array.min()), int(array.max())
        if lowest < 0 or highest > VOID:
            raise InputError(
                f"{name} must hold 0 (background), 1..{MAX_OBJECT_ID} (objects) and {VOID} (void), got "
                f"values {lowest}..{highest}"
            )
    return np.ascontiguousarray(array, np.uint8)


def object_ids(label_map: np.ndarray) -> list[int]:
    """The object ids in a (H, W) uint8 label map, ascending, without background and void."""
    return [label for label in label_areas(label_map) if label != VOID]


def label_areas(label_map: np.ndarray) -> dict[int, int]:
    """The number of pixels of each label but 0 in a (H, W) uint8 label map, by ascending label."""
    counts = np.bincount(label_map.ravel(), minlength=VOID + 1)
    return {one: int(counts[one]) for one in range(1, VOID + 1) if counts[one]}


def describe_areas(areas: Mapping[int, int]) -> str:
    """What `label_areas` found, for people.

    >>> describe_areas(label_areas(np.array([[0, 3], [255, 3]], np.uint8)))
    'object 3 (2 pixels), void (1 pixel)'
    """
    names = {label: "void" if label == VOID else f"object {label}" for label in areas}
    return ", ".join(f"{names[one]} ({area} pixel{'s' * (area != 1)})" for one, area in areas.items())


def named_objects(label_map: np.ndarray, name: str = "the mask") -> list[int]:
    """As `object_ids`, for a mask that must name an object; InputError if it names none."""
    ids = object_ids(label_map)
    if not ids:
        raise InputError(
            f"{name} names no object: every pixel is 0 (background) or {VOID} (void); paint each object "
            f"with its id, 1..{MAX_OBJECT_ID}"
        )
    return ids


def fit_label_map(
    label_map: np.ndarray, size: tuple[int, int], native_size: tuple[int, int], name: str = "the mask"
) -> np.ndarray:
    """A label map at the size of the frames, which may have been resized.

    Args:
        label_map: (H, W) uint8, as `check_label_map` returns it.
        size: (H, W) of the frames.
        native_size: (H, W) of the frames before they were resized.
        name: its name in error messages.

    Returns:
        (H, W) uint8 of `size`: `label_map` itself if it has this size, else resized to the nearest pixel.

    Raises:
        InputError: it has neither size, or an object has no pixel left after resizing.
    """
    if label_map.shape == size:
        return label_map
    if label_map.shape != native_size:
        native = f" ({_text(native_size)} before they are resized to the height)" * (size != native_size)
        raise InputError(
            f"{name} is {_text(label_map.shape)}, the frames are {_text(size)}{native}; both must agree "
            "(W x H)"
        )
    # the source pixel under the center of each target pixel: floor((n + 1/2) * old / new)
    rows, columns = (
        (2 * np.arange(new) + 1) * old // (2 * new) for new, old in zip(size, native_size, strict=True)
    )
    resized = np.ascontiguousarray(label_map[rows][:, columns])
    lost = sorted(set(object_ids(label_map)) - set(object_ids(resized)))
    if lost:
        raise InputError(
            f"object {lost[0]} of {name} has no pixel left at {_text(size)}; give a larger height"
        )
    return resized


def _text(size: tuple[int, ...]) -> str:
    return f"{size[1]} x {size[0]}"
