"""The label map of several objects that are pointed at, each with a box, clicks or both.

selector = make_selector("learned")
pointing = Pointing(boxes={1: (200, 120, 420, 460)}, points={2: [(80, 60, 1)]})
label_map = select_objects(selector, frame.image, pointing)
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal, Protocol, get_args

import numpy as np

from streamvos.masks.checks import object_ids
from streamvos.masks.pointing import Point, Pointing
from streamvos.types import InputError

Selection = Literal["learned", "grabcut", "sam"]
"""Who makes masks: our network, color alone (boxes only), or a model of the SAM family that the user has."""


class Selects(Protocol):
    """What makes the mask of one object; `Selector.select` says how."""

    def select(
        self,
        frame: np.ndarray,
        points: Sequence[Point] = (),
        box: Sequence[float] | None = None,
        mask: np.ndarray | None = None,
    ) -> tuple[np.ndarray, float]: ...


def make_selector(
    selection: str = "learned",
    sam_encoder: Path | None = None,
    sam_decoder: Path | None = None,
    device: str = "auto",
) -> Selects:
    """What makes masks.

    Args:
        selection: see `Selection`.
        sam_encoder, sam_decoder: ONNX files for "sam".
        device: where our network runs.

    Raises:
        InputError: an unknown selection; files that are missing or not wanted; see `Selector` and
            `SamSelector`.
    """
    check_selection(selection, sam_encoder, sam_decoder)
    if selection == "grabcut":
        from streamvos.selection.grabcut import GrabCut

        return GrabCut()
    if selection == "sam":
        from streamvos.selection.sam import SamSelector

        assert sam_encoder is not None
        assert sam_decoder is not None
        return SamSelector(sam_encoder, sam_decoder)
    from streamvos.selection.selector import Selector

    return Selector(device=device)


def check_selection(selection: str, sam_encoder: Path | None, sam_decoder: Path | None) -> None:
    """Raise the `InputError` of `make_selector` that needs no model: names and files that do not fit."""
    files = [path for path in (sam_encoder, sam_decoder) if path is not None]
    if selection not in get_args(Selection):
        raise InputError(f"unknown selection {selection!r}; choose {', '.join(get_args(Selection))}")
    if selection != "sam" and files:
        raise InputError(f"{files[0]} is a model for the selection 'sam', not for {selection!r}")
    if selection == "sam" and len(files) < 2:
        raise InputError("the selection 'sam' needs two ONNX files, an encoder and a decoder")


def select_objects(selector: Selects, image: np.ndarray, pointing: Pointing) -> np.ndarray:
    """The label map of the objects that are pointed at.

    Args:
        image: (H, W, 3) uint8 RGB.
        pointing: at one object or several. Where two objects overlap, the smaller one is in front.

    Returns:
        (H, W) uint8; 0 is background.

    Raises:
        InputError: see `Selector.select`; or nothing is found, or an object is entirely behind others.
    """
    masks: dict[int, np.ndarray] = {}
    for object_id in pointing.ids:
        points, box = pointing.points.get(object_id, ()), pointing.boxes.get(object_id)
        try:
            mask, _ = selector.select(image, points, box)
        except InputError as error:
            raise InputError(f"object {object_id}: {error}") from None
        if not mask.any():
            raise InputError(f"object {object_id}: nothing was found there; point at it in another place")
        masks[object_id] = mask
    label_map = np.zeros(image.shape[:2], np.uint8)
    for object_id in sorted(masks, key=lambda one: (-int(masks[one].sum()), one)):
        label_map[masks[object_id]] = object_id
    hidden = sorted(set(masks) - set(object_ids(label_map)))
    if hidden:
        raise InputError(
            f"nothing is left of object {hidden[0]}: others cover it; point at them more closely"
        )
    return label_map
