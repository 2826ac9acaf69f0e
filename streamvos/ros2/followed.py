"""The objects of the node: their names, their values in the label map, and masks that add or correct them.

Users of the services name objects as they like ("cup"); the label map has values of 1 to 254. A name that is
such a number is its own value.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from streamvos.masks.checks import object_ids
from streamvos.masks.pointing import Point
from streamvos.selection.objects import Selects
from streamvos.types import MAX_OBJECT_ID, InputError

LONGEST_NAME = 128


class Followed:
    """Attributes:
    labels: name -> value in the label map, in the order in which they were added.
    """

    def __init__(self) -> None:
        self.labels: dict[str, int] = {}

    @property
    def names(self) -> Mapping[int, str]:
        """Value in the label map -> name."""
        return {label: name for name, label in self.labels.items()}

    def label_for(self, name: str) -> int:
        """The value that a new object gets.

        Raises:
            InputError: the name is empty, too long or in use, or all values are.
        """
        if not name.strip() or len(name) > LONGEST_NAME or not name.isprintable():
            raise InputError(
                f"the id is {name[:LONGEST_NAME]!r}; expected 1 to {LONGEST_NAME} printable characters"
            )
        if name in self.labels:
            raise InputError(f"object {name!r} is followed already; `correct` changes its mask")
        used = set(self.labels.values())
        if name.isascii() and name.isdecimal():
            label = int(name)
            if not 1 <= label <= MAX_OBJECT_ID or str(label) != name:
                raise InputError(f"the id is {name!r}; numbers are 1 to {MAX_OBJECT_ID}")
            if label in used:
                raise InputError(f"{label} is the value of object {self.names[label]!r} in the label map")
            return label
        free = [one for one in range(1, MAX_OBJECT_ID + 1) if one not in used]
        if not free:
            raise InputError(f"{MAX_OBJECT_ID} objects are followed already; forget one")
        return free[0]

    def label_of(self, name: str) -> int:
        """The value of an object; InputError if it is not followed."""
        if name not in self.labels:
            known = ", ".join(map(repr, self.labels)) or "none"
            raise InputError(f"object {name!r} is not followed; these are: {known}")
        return self.labels[name]


def object_mask(
    selector: Selects,
    image: np.ndarray,
    points: Sequence[Point],
    box: tuple[float, float, float, float] | None,
    mask: np.ndarray | None,
    earlier: np.ndarray | None = None,
) -> np.ndarray:
    """The mask of one object, (H, W) bool.

    Args:
        selector: makes masks of points and boxes.
        image: (H, W, 3) uint8 RGB.
        points, box: see `Selector.select`.
        mask: (H, W) bool; taken as it is where nothing points.
        earlier: (H, W) bool, where the object was; improved by points.

    Raises:
        InputError: nothing is given, or it does not fit the frame.
    """
    if mask is not None and not mask.any():
        raise InputError("the mask is 0 everywhere; paint the object with another value")
    if not points and box is None:
        if mask is None:
            raise InputError("nothing is selected: give points, a box or a mask")
        return mask
    if mask is None and earlier is not None and earlier.any() and box is None:
        mask = earlier
    found, _ = selector.select(image, points, box, mask)
    return found


def merged(masks: Mapping[int, np.ndarray], size: tuple[int, int]) -> np.ndarray | None:
    """The label map of several masks, by value; None of none. A smaller object lies before a larger one."""
    if not masks:
        return None
    label_map = np.zeros(size, np.uint8)
    for label in sorted(masks, key=lambda one: -int(masks[one].sum())):
        label_map[masks[label]] = label
    hidden = set(masks) - set(object_ids(label_map))
    if hidden:
        raise InputError(f"nothing is left of the object with value {min(hidden)}: others cover it")
    return label_map
