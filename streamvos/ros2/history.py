"""The newest pictures, so that an object can be selected in one that has passed.

A person needs seconds to point. The mask is made in the picture that was pointed at, and followed through
some of the pictures since, to the newest.
"""

from __future__ import annotations

from collections import OrderedDict

import numpy as np

from streamvos.segmenter import Segmenter
from streamvos.types import InputError

KEPT_BYTES = 2**26
"""Size of the pictures that are kept, 64 MiB: 2 s of 480p at 30 frames/s."""

MOST_STEPS = 8
"""Pictures that a mask is followed through, evenly chosen; new ones wait meanwhile."""


class History:
    """Pictures by their stamps in ns, oldest first."""

    def __init__(self) -> None:
        self._pictures: OrderedDict[int, np.ndarray] = OrderedDict()
        self._bytes = 0

    def add(self, stamp_ns: int, image: np.ndarray) -> None:
        """Keep a picture, (H, W, 3) uint8, and forget the oldest ones that are too many."""
        if stamp_ns == 0 or stamp_ns in self._pictures:
            return
        self._pictures[stamp_ns] = image
        self._bytes += image.nbytes
        while self._bytes > KEPT_BYTES and len(self._pictures) > 1:
            self._bytes -= self._pictures.popitem(last=False)[1].nbytes

    def clear(self) -> None:
        self._pictures.clear()
        self._bytes = 0

    def picture(self, stamp_ns: int) -> np.ndarray:
        """The picture with a stamp; InputError if it is not kept."""
        if stamp_ns not in self._pictures:
            kept = list(self._pictures)
            shown = f"from {kept[0] / 1e9:.3f} to {kept[-1] / 1e9:.3f} s" if kept else "none"
            raise InputError(
                f"no picture with the stamp {stamp_ns / 1e9:.9f} s is kept; kept are {len(kept)}: {shown}"
            )
        return self._pictures[stamp_ns]

    def follow(self, segmenter: Segmenter, stamp_ns: int, mask: np.ndarray, newest: np.ndarray) -> np.ndarray:
        """The mask in the newest picture of an object that was selected in an earlier one.

        Args:
            segmenter: a fresh one.
            stamp_ns: of the earlier picture.
            mask: (H, W) bool, the object in it.
            newest: (H, W, 3) uint8.

        Raises:
            InputError: the object is not found any more.
        """
        later = [image for stamp, image in self._pictures.items() if stamp > stamp_ns and image is not newest]
        count = min(len(later), MOST_STEPS - 1)
        chosen = [later[(k + 1) * len(later) // (count + 1)] for k in range(count)]
        segmenter.step(self.picture(stamp_ns), mask.astype(np.uint8))
        for image in (*chosen, newest):
            result = segmenter.step(image)
        if not result.mask.any():
            raise InputError("the object has left the picture since then; select it in a newer one")
        return np.asarray(result.mask == 1)
