"""Masks from clicks and boxes on a frozen frame, and their way to the newest frame.

    selecting = Selecting(make_selector, make_segmenter)
    mask, score = selecting.select(image, points=[(310, 200, 1)])
    carried = selecting.carry(image, label_map, lambda after: frames_after(after))

The networks are loaded with their first use, in this process; calls may come from any thread and wait for
each other.
"""

from __future__ import annotations

import io
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from PIL import Image

from streamvos.console.feeds import thinned
from streamvos.masks.checks import object_ids
from streamvos.masks.pointing import Point
from streamvos.pipeline.clients.published import Picture
from streamvos.selection.objects import Selects
from streamvos.types import InputError, Result

ROUNDS = (24, 8, 3, 1)
"""Most frames that a mask is carried over in each round; while a round runs, new frames come."""


class Follows(Protocol):
    """Follows objects from frame to frame, as `streamvos.segmenter.Segmenter` does."""

    def reset(self) -> None: ...

    def step(self, frame: np.ndarray, mask: np.ndarray | None = None) -> Result: ...


@dataclass(frozen=True)
class Carried:
    """Masks at the newest frame.

    Attributes:
        label_map: (H, W) uint8.
        used: frames that were segmented on the way.
        seen: frames that there were on the way.
    """

    label_map: np.ndarray
    used: int = 0
    seen: int = 0


class Selecting:
    """Selects objects and carries them.

    Args:
        make_selector, make_segmenter: make what selects and what follows; called once, at the first use.
    """

    def __init__(self, make_selector: Callable[[], Selects], make_segmenter: Callable[[], Follows]):
        self._make_selector, self._make_segmenter = make_selector, make_segmenter
        self._selector: Selects | None = None
        self._segmenter: Follows | None = None
        self._selecting, self._carrying = threading.Lock(), threading.Lock()

    def load(self) -> None:
        """Load what selects, so that the first click does not wait for it; errors come with the click."""
        with self._selecting:
            try:
                self._selector = self._selector or self._make_selector()
            except Exception:
                return

    def select(
        self,
        image: np.ndarray,
        points: Sequence[Point] = (),
        box: Sequence[float] | None = None,
        mask: np.ndarray | None = None,
    ) -> tuple[np.ndarray, float]:
        """As `Selector.select`: (H, W) bool, and a guess at its IoU.

        Raises:
            InputError: nothing points at an object, or not within the frame.
        """
        with self._selecting:
            self._selector = self._selector or self._make_selector()
            return self._selector.select(image, points, box, mask)

    def carry(
        self, image: np.ndarray, label_map: np.ndarray, later: Callable[[Picture | None], Sequence[Picture]]
    ) -> Carried:
        """Carry the masks of a frozen frame to the newest one.

        Of many frames between, some are used, evenly chosen; then those that came meanwhile.

        Args:
            image: the frozen frame.
            label_map: (H, W) uint8, objects in it.
            later: gives the frames after one of its frames, or after the frozen one, oldest first.

        Raises:
            InputError: an object is not found in the newest frame.
        """
        frames = later(None)
        if not frames:
            return Carried(label_map)
        used = seen = 0
        with self._carrying:
            segmenter = self._segmenter = self._segmenter or self._make_segmenter()
            segmenter.reset()
            result = segmenter.step(image, label_map)
            for most in ROUNDS:
                chosen = thinned(frames, most)
                for picture in chosen:
                    result = segmenter.step(decoded(picture.jpeg))
                used, seen = used + len(chosen), seen + len(frames)
                if not (frames := later(frames[-1])):
                    break
            found = result.mask
            segmenter.reset()
        lost = sorted(set(object_ids(label_map)) - set(object_ids(found)))
        if lost:
            raise InputError(
                f"object {lost[0]} has left the frozen frame's place: after {seen} frames it is not found "
                "any more; select it in a newer frame"
            )
        return Carried(found, used, seen)


def decoded(jpeg: bytes) -> np.ndarray:
    """(H, W, 3) uint8 RGB."""
    with Image.open(io.BytesIO(jpeg), formats=("JPEG",)) as picture:
        return np.array(picture.convert("RGB"))
