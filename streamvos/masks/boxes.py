"""A first mask from rectangles, for users who have a camera and no label map.

A rectangle drawn around an object also holds background in its corners, and a method would track that too.
GrabCut (Rother, Kolmogorov, Blake, SIGGRAPH 2004; OpenCV's) separates the two by color: pixels around the
rectangle are background, pixels inside may be either.

    >>> boxes = parse_boxes(["1:200,120,420,460"])
    >>> boxes
    {1: (200, 120, 420, 460)}

    label_map = label_map_from_boxes(frame.image, boxes)
    vos.step(frame.image, label_map)
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

import numpy as np

from streamvos.masks.checks import object_ids
from streamvos.types import MAX_OBJECT_ID, InputError

Box = tuple[int, int, int, int]
"""(left, top, right, bottom) in pixels, right and bottom exclusive, as in `ObjectResult.box`."""

SMALLEST_BOX = 4
"""Smallest width and height of a rectangle in pixels; smaller ones are taken for mistakes."""

_SIDE = 400  # pixels; larger windows are shrunk for GrabCut, which gets slower but no better with size
_MARGIN = 0.5  # of the box's longer side, added around it to learn the background from
_SMALLEST_SHARE = 0.08  # of the box; a smaller result of GrabCut is noise
_SMALLEST_PART = 0.1  # of the largest connected part; smaller parts are noise


def parse_boxes(texts: Iterable[str] | None) -> dict[int, Box]:
    """Rectangles by object id.

    Args:
        texts: "ID:LEFT,TOP,RIGHT,BOTTOM" each; None means none.

    Raises:
        InputError: one has another form or an id that is not in 1..254, or an id is given twice.
    """
    boxes: dict[int, Box] = {}
    number = r"\s*(-?\d+)\s*"
    for text in texts or ():
        match = re.fullmatch(rf"\s*(\d+)\s*:{number},{number},{number},{number}", text)
        if match is None:
            raise InputError(
                f"cannot read the box {text!r}; expected ID:LEFT,TOP,RIGHT,BOTTOM in whole pixels, such as "
                "1:200,120,420,460"
            )
        object_id, left, top, right, bottom = map(int, match.groups())
        if not 1 <= object_id <= MAX_OBJECT_ID:
            raise InputError(f"the box {text!r} has the id {object_id}; ids are 1..{MAX_OBJECT_ID}")
        if object_id in boxes:
            raise InputError(f"the box {text}: object {object_id} has a box already; give each id once")
        boxes[object_id] = left, top, right, bottom
    return boxes


def label_map_from_boxes(image: np.ndarray, boxes: Mapping[int, Box]) -> np.ndarray:
    """The label map of the objects in rectangles.

    Args:
        image: (H, W, 3) uint8 RGB.
        boxes: id -> rectangle around the object. Where two objects overlap, the smaller one is in front.

    Returns:
        (H, W) uint8; 0 is background.

    Raises:
        InputError: see `object_in_box`; or an object is entirely behind others.
    """
    masks = {object_id: object_in_box(image, box) for object_id, box in boxes.items()}
    label_map = np.zeros(image.shape[:2], np.uint8)
    for object_id in sorted(masks, key=lambda one: (-int(masks[one].sum()), one)):
        label_map[masks[object_id]] = object_id
    hidden = sorted(set(boxes) - set(object_ids(label_map)))
    if hidden:
        raise InputError(
            f"nothing is left of object {hidden[0]}: other boxes cover it; draw them closer to their objects"
        )
    return label_map


def object_in_box(image: np.ndarray, box: Box) -> np.ndarray:
    """The pixels of the object in a rectangle; the result is deterministic.

    Where color does not separate the object (the rectangle fills the picture, or everything looks alike), the
    result is the ellipse that touches the rectangle's sides.

    Args:
        image: (H, W, 3) uint8 RGB.
        box: may reach beyond the picture; the part outside is cut off.

    Returns:
        (H, W) bool, False outside of the box.

    Raises:
        InputError: the box lies outside of the picture, has its sides swapped, or is too small.
    """
    left, top, right, bottom = _inside(box, image.shape[0], image.shape[1])
    margin = max(round(_MARGIN * max(right - left, bottom - top)), 8)
    window = np.s_[
        max(top - margin, 0) : min(bottom + margin, image.shape[0]),
        max(left - margin, 0) : min(right + margin, image.shape[1]),
    ]
    inside = np.zeros(image.shape[:2], np.uint8)
    inside[top:bottom, left:right] = 1
    mask = np.zeros(image.shape[:2], bool)
    mask[window] = _cut(image[window], inside[window])
    if mask.sum() < max(_SMALLEST_SHARE * (right - left) * (bottom - top), 1):
        mask[:] = False
        y, x = ((np.arange(n) + 0.5) / n * 2 - 1 for n in (bottom - top, right - left))
        mask[top:bottom, left:right] = y[:, None] ** 2 + x**2 <= 1
    return mask


def _inside(box: Box, height: int, width: int) -> Box:
    left, top, right, bottom = box
    shown = f"{left},{top},{right},{bottom}"
    if right <= left or bottom <= top:
        raise InputError(
            f"the box {shown} is empty; expected LEFT,TOP,RIGHT,BOTTOM with LEFT < RIGHT and TOP < BOTTOM"
        )
    cut = max(left, 0), max(top, 0), min(right, width), min(bottom, height)
    if cut[2] - cut[0] < SMALLEST_BOX or cut[3] - cut[1] < SMALLEST_BOX:
        raise InputError(
            f"the box {shown} has less than {SMALLEST_BOX} x {SMALLEST_BOX} pixels within the frame, which "
            f"is {width} x {height} (W x H)"
        )
    return cut


def _cut(window: np.ndarray, inside: np.ndarray) -> np.ndarray:
    """GrabCut's foreground, (h, w) bool, where `inside`, (h, w) uint8, is 1; without specks."""
    import cv2  # the supervisor parses boxes and does without it

    height, width = window.shape[:2]
    scale = min(1.0, _SIDE / max(height, width))
    small_size = max(round(width * scale), 1), max(round(height * scale), 1)
    small = cv2.resize(window, small_size, interpolation=cv2.INTER_AREA)
    small_inside = cv2.resize(inside, small_size, interpolation=cv2.INTER_NEAREST_EXACT) != 0
    if small_inside.all():
        return np.zeros((height, width), bool)  # there is no background to learn from
    states = np.where(small_inside, cv2.GC_PR_FGD, cv2.GC_BGD).astype(np.uint8)
    models = np.zeros((1, 65)), np.zeros((1, 65))
    cv2.setRNGSeed(7)  # GrabCut starts from a k-means with random centers
    try:
        cv2.grabCut(small[..., ::-1].copy(), states, (0, 0, 0, 0), *models, 3, cv2.GC_INIT_WITH_MASK)
    except cv2.error:  # too few pixels for its ten colors
        return np.zeros((height, width), bool)
    found = ((states == cv2.GC_FGD) | (states == cv2.GC_PR_FGD)).astype(np.float32)
    enlarged = cv2.resize(_without_specks(found), (width, height), interpolation=cv2.INTER_LINEAR) > 0.5
    return np.asarray(enlarged & (inside != 0))


def _without_specks(found: np.ndarray) -> np.ndarray:
    """The larger connected parts, with their small holes filled; (h, w) float32 of 0 and 1."""
    import cv2

    opened = cv2.morphologyEx(found.astype(np.uint8), cv2.MORPH_CLOSE, np.ones((3, 3), np.uint8))
    count, labels, statistics, _ = cv2.connectedComponentsWithStats(opened, connectivity=4)
    if count < 2:
        return np.zeros_like(found)
    areas = statistics[1:, cv2.CC_STAT_AREA]
    kept = np.flatnonzero(areas >= _SMALLEST_PART * areas.max()) + 1
    return np.isin(labels, kept).astype(np.float32)
