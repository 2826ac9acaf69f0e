"""From clicks, a box or an earlier mask to the mask of one object, without a GPU in a tenth of a second.

    selector = Selector()
    mask, score = selector.select(frame.image, points=[(310, 200, 1)])
    mask, score = selector.select(frame.image, points=[(310, 200, 1), (350, 90, -1)], mask=mask)

The network looks twice: at the whole frame, or at a window around the box or the earlier mask; then at a
window around what it found, at full resolution. What it computed of a frame is kept for the next click on it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import torch

from streamvos.engines.eager import choose_device
from streamvos.masks.pointing import Point, box_within
from streamvos.nn.efficientnet import EfficientNetLite0
from streamvos.nn.precision import in_precision
from streamvos.selection.grabcut import object_in_box
from streamvos.selection.network import SelectorNetwork
from streamvos.selection.prompts import Window, prompt_maps, window_around
from streamvos.types import InputError
from streamvos.weights import bundled_backbone, read_checkpoint, selector_path

FIRST_SIDE, SECOND_SIDE = 512, 384
"""Longest side of the picture at the first and the second look, in pixels."""

MARGIN = 1.5
"""Side of a window over the longer side of what lies in it."""

KEPT = 8
"""Windows of a frame whose features are kept."""


class Selector:
    """Selects objects in frames; keeps what it computed of the last frame. Not for several threads at once.

    Args:
        weights: "default" (bundled), a file of `streamvos train selector`, or None (random).
        device: "auto", "cpu", "cuda:0", ...

    Raises:
        InputError: weights that do not fit, or no such device.
    """

    def __init__(self, weights: str | Path | None = "default", device: str = "auto"):
        self.device = choose_device(device)
        self._backbone, self._network = EfficientNetLite0(stages=6), SelectorNetwork()
        self._backbone.load_state_dict(bundled_backbone())
        if weights is not None:
            path = selector_path() if weights == "default" else Path(weights)
            own, given = self._network.state_dict(), read_checkpoint(path).tensors
            if {n: v.shape for n, v in own.items()} != {n: v.shape for n, v in given.items()}:
                raise InputError(f"{path} holds no weights of the selector")
            self._network.load_state_dict(given)
        for network in (self._backbone, self._network):
            network.eval().to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._frame: np.ndarray | None = None
        self._seen: dict[tuple[Window, int], dict[str, torch.Tensor]] = {}

    def select(
        self,
        frame: np.ndarray,
        points: Sequence[Point] = (),
        box: Sequence[float] | None = None,
        mask: np.ndarray | None = None,
    ) -> tuple[np.ndarray, float]:
        """The mask of one object.

        Args:
            frame: (H, W, 3) uint8 RGB.
            points: clicks (x, y, sign) in pixels; sign is +1 on the object and -1 beside it.
            box: left, top, right, bottom in pixels around the object.
            mask: (H, W) bool, an earlier mask of it that is to be improved.

        Returns:
            (H, W) bool, never empty, and a guess at its IoU with the object, 0..1. Where the network finds
            nothing, it is what color separates in the box, or what is as likely as the clicked pixel.

        Raises:
            InputError: a frame, click, box or mask of another form, or nothing that points at an object.
        """
        _check(frame, points, box, mask)
        size = (frame.shape[0], frame.shape[1])
        if self._frame is None or self._frame.shape != frame.shape or not np.array_equal(self._frame, frame):
            self._frame, self._seen = frame.copy(), {}
        near = _bounds(points, box, mask)
        if box is None and mask is None:
            window, side = Window(0, 0, size[1], size[0]), FIRST_SIDE
        else:
            window, side = window_around(near, size, MARGIN), SECOND_SIDE
        found, score = self._look(window, side, points, box, mask)
        if (found > 0.5).any():
            near = _bounds(points, box, found > 0.5)
            closer = window_around(near, size, MARGIN)
            if _detail(closer, SECOND_SIDE) > 1.15 * _detail(window, side):
                found, score = self._look(closer, SECOND_SIDE, points, box, found)
        mask_found = found > 0.5
        if not mask_found.any():  # the network is sure of nothing; the user is
            if box is not None:
                left, top, right, bottom = (round(side) for side in box)
                mask_found = object_in_box(frame, (left, top, right, bottom))
            else:
                pointed = [found[int(y), int(x)] for x, y, sign in points if sign > 0]
                mask_found = found >= max(pointed, default=float(found.max()))
        return mask_found, score

    def _look(
        self,
        window: Window,
        side: int,
        points: Sequence[Point],
        box: Sequence[float] | None,
        mask: np.ndarray | None,
    ) -> tuple[np.ndarray, float]:
        """Probabilities (H, W) float32 of the whole frame, 0 beyond the window, and the score."""
        assert self._frame is not None
        size = _shown_size(window, side)
        prompts = torch.from_numpy(prompt_maps(window, size, points, box, mask))[None].to(self.device)
        with torch.inference_mode(), in_precision("bfloat16", self.device):
            maps = self._maps(window, size, side)
            logits, score = self._network(maps, prompts)
        cells = logits[0].float().cpu().numpy()
        height, width = window.size
        found = np.zeros(self._frame.shape[:2], np.float32)
        large = cv2.resize(cells, (width, height), interpolation=cv2.INTER_LINEAR)
        found[window.rows, window.columns] = 1 / (1 + np.exp(-large))
        return found, float(score.sigmoid())

    def _maps(self, window: Window, size: tuple[int, int], side: int) -> dict[str, torch.Tensor]:
        key = (window, side)
        if key not in self._seen:
            assert self._frame is not None
            part = self._frame[window.rows, window.columns]
            shrinks = max(window.size) > max(size)
            shown = cv2.resize(
                part, size[::-1], interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
            )
            frames = torch.from_numpy(shown).to(self.device).permute(2, 0, 1)[None].float().div_(255)
            while len(self._seen) >= KEPT:
                self._seen.pop(next(iter(self._seen)))
            self._seen[key] = self._backbone(frames.contiguous(memory_format=torch.channels_last))
        return self._seen[key]


def _shown_size(window: Window, side: int) -> tuple[int, int]:
    """(H, W) at which a window is shown: multiples of 32, the longer one about `side`."""
    height, width = window.size
    scale = side / max(height, width)
    sides = [max(32, round(scale * length / 32) * 32) for length in (height, width)]
    return sides[0], sides[1]


def _detail(window: Window, side: int) -> float:
    """Pixels that are shown for each pixel of the frame."""
    return side / max(window.size)


def _bounds(
    points: Sequence[Point], box: Sequence[float] | None, mask: np.ndarray | None
) -> tuple[float, float, float, float]:
    """The box around all that was given or found; clicks beside the object do not count."""
    boxes = [] if box is None else [tuple(box)]
    boxes += [(x, y, x + 1, y + 1) for x, y, sign in points if sign > 0]
    if mask is not None and mask.any():
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        boxes.append((columns[0], rows[0], columns[-1] + 1, rows[-1] + 1))
    low, high = np.min(boxes, axis=0), np.max(boxes, axis=0)
    return float(low[0]), float(low[1]), float(high[2]), float(high[3])


def _check(
    frame: np.ndarray, points: Sequence[Point], box: Sequence[float] | None, mask: np.ndarray | None
) -> None:
    if not isinstance(frame, np.ndarray) or frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape[2] != 3:
        got = f"{getattr(frame, 'shape', type(frame).__name__)} {getattr(frame, 'dtype', '')}"
        raise InputError(f"the frame must be (H, W, 3) uint8 RGB, got {got}")
    height, width = frame.shape[:2]
    for x, y, sign in points:
        if sign not in (1, -1):
            raise InputError(f"the sign of the point {x:g},{y:g} must be 1 or -1, got {sign!r}")
        if not (0 <= x < width and 0 <= y < height):
            raise InputError(
                f"the point {x:g},{y:g} lies outside of the frame, which is {width} x {height} (W x H)"
            )
    if box is not None:
        box_within(box, (height, width))
    if mask is not None and mask.shape != (height, width):
        raise InputError(f"the mask is {mask.shape}, the frame {(height, width)} (H, W)")
    is_given = mask is not None and bool(np.any(mask))
    if box is None and not is_given and not any(sign > 0 for _, _, sign in points):
        raise InputError("nothing points at an object: give a box, an earlier mask, or a click with sign 1")
