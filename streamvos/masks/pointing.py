"""Rectangles and clicks on objects, as the command line and pipeline.toml write them.

    >>> Pointing.parse(["1:200,120,420,460"], ["2:310,200", "2:350,90,-1"])
    Pointing(boxes={1: (200, 120, 420, 460)}, points={2: [(310.0, 200.0, 1), (350.0, 90.0, -1)]})

`streamvos.selection` makes masks of them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from streamvos.types import MAX_OBJECT_ID, InputError

Box = tuple[int, int, int, int]
"""(left, top, right, bottom) in pixels, right and bottom exclusive, as in `ObjectResult.box`."""

Point = tuple[float, float, int]
"""(x, y, sign): a click in pixels, (0, 0) is the corner of the first pixel; sign is 1 on the object and -1
beside it."""


SMALLEST_BOX = 4
"""Smallest width and height of a rectangle in pixels; smaller ones are taken for mistakes."""


@dataclass(frozen=True)
class Pointing:
    """What a user points at in a frame, by object id.

    Attributes:
        boxes: a rectangle around the object.
        points: clicks on it and beside it.
    """

    boxes: Mapping[int, Box] = field(default_factory=dict)
    points: Mapping[int, Sequence[Point]] = field(default_factory=dict)

    @classmethod
    def parse(cls, boxes: Iterable[str] | None, points: Iterable[str] | None) -> Pointing:
        """See `parse_boxes` and `parse_points`."""
        return cls(parse_boxes(boxes), parse_points(points))

    @property
    def ids(self) -> tuple[int, ...]:
        """The objects that are pointed at, ascending."""
        return tuple(sorted({*self.boxes, *self.points}))


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
        _check_id(object_id, f"the box {text!r}")
        if object_id in boxes:
            raise InputError(f"the box {text}: object {object_id} has a box already; give each id once")
        boxes[object_id] = left, top, right, bottom
    return boxes


def parse_points(texts: Iterable[str] | None) -> dict[int, list[Point]]:
    """Clicks by object id, in the order in which they are given.

    Args:
        texts: "ID:X,Y" for a click on the object, or "ID:X,Y,-1" for one beside it; None means none.

    Raises:
        InputError: one has another form or an id that is not in 1..254.
    """
    points: dict[int, list[Point]] = {}
    number = r"\s*(-?\d+(?:\.\d+)?)\s*"
    for text in texts or ():
        match = re.fullmatch(rf"\s*(\d+)\s*:{number},{number}(?:,\s*([+-]?1)\s*)?", text)
        if match is None:
            raise InputError(
                f"cannot read the point {text!r}; expected ID:X,Y in pixels, such as 1:310,200, or ID:X,Y,-1 "
                "for a point beside the object"
            )
        object_id, x, y = int(match[1]), float(match[2]), float(match[3])
        _check_id(object_id, f"the point {text!r}")
        points.setdefault(object_id, []).append((x, y, int(match[4] or 1)))
    return points


def box_within(box: Sequence[float], size: tuple[int, int]) -> tuple[float, float, float, float]:
    """The part of a box that lies within a frame.

    Args:
        box: left, top, right, bottom in pixels; may reach beyond the frame.
        size: (H, W) of the frame.

    Raises:
        InputError: the box lies outside of the frame, has its sides swapped, or is too small.
    """
    left, top, right, bottom = box
    shown, (height, width) = f"{left:g},{top:g},{right:g},{bottom:g}", size
    if not (left < right and top < bottom):
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


def _check_id(object_id: int, what: str) -> None:
    if not 1 <= object_id <= MAX_OBJECT_ID:
        raise InputError(f"{what} has the id {object_id}; ids are 1..{MAX_OBJECT_ID}")
