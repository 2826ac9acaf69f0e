"""What of a mask is believed: networks also find what only looks like the object.

Three rules, which come with a method's weights. A piece of a mask that lies apart from where the object just
was (`MethodOptions.search_margin`) is something else, if another piece lies there. A mask whose pixels are
unsure on average (`MethodOptions.lost_below`) shows no object. Nor does one that is suddenly many times as
large as the object lately was (`MethodOptions.largest_growth`): that is what stands in front of it. What is
not believed is emptied, and the target learns that those pixels are background; an object of which nothing
is left is "lost", and then found wherever it comes back.

Nothing here waits for a GPU: extents and limits stay tensors.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F

from streamvos.nn.labels import winners

FRAMES = 20
"""Areas that are remembered of each object, those of frames that show it."""

_UPPER_QUARTILE = FRAMES * 3 // 4 - 1  # of the sorted areas; one large mask among them changes little

PATIENCE = 1.03
"""By which the largest area grows with every frame without the object, which may have come closer."""

LEAST_MARGIN = 0.04
"""Of the frame's longer side: as far as anything may move from one frame to the next."""

CELLS = 80
"""Along the frame's longer side; what touches the same or neighboring cells is one piece of a mask."""

LONGEST_WAY = CELLS // 2
"""How many cells beyond the place of the object a piece may reach, followed along the piece."""


class ExtentHistory:
    """How large the objects of one stream lately were, and where they were last.

    An extent is an object's number of pixels and its box (left, top, right, bottom); all 0 if it is hidden.

    Attributes:
        object_ids: K ids, ascending.
    """

    def __init__(self) -> None:
        self.object_ids: tuple[int, ...] = ()
        self._areas = torch.empty(0, FRAMES)  # (K, FRAMES) float32, oldest first
        self._largest = torch.empty(0)  # (K,) float32: the largest since the object's mask was given
        self._unseen = torch.empty(0)  # (K,) float32: frames since the object was last seen
        self._boxes = torch.empty(0, 4)  # (K, 4) float32, in the last frame

    def limits(self, growth: float | None, margin: float | None, size: tuple[int, int]) -> torch.Tensor:
        """(K, 5) float32: of each object the pixels above which a mask is not believed, and a box.

        A size that an object once had is always believed: what left the frame step by step comes back fast.
        Pieces of a mask that reach into the box are believed; after frames without the object, all are.

        Args:
            growth: how many times as large as lately an object may be; None: as large as it likes.
            margin: how far the box reaches beyond that of the last frame, in its sides; None: everywhere.
            size: (H, W) of the frames.
        """
        lately = self._areas.sort(1).values[:, _UPPER_QUARTILE]
        if growth is None:
            area = torch.full_like(lately, torch.inf)
        else:
            area = torch.maximum(lately * growth, self._largest) * PATIENCE**self._unseen
        start, end = self._boxes[:, :2], self._boxes[:, 2:]
        sides = end - start
        if margin is None:
            reach = torch.full_like(sides, torch.inf)
        else:
            reach = torch.clamp_min(margin * sides, LEAST_MARGIN * max(size))
            reach = torch.where(sides > 0, reach, torch.inf)  # hidden: anywhere
        return torch.cat([area[:, None], start - reach, end + reach], 1)

    def add(self, extents: torch.Tensor, object_ids: tuple[int, ...], named: Sequence[int] = ()) -> None:
        """Remember a frame.

        Args:
            extents: (K, 5) float32.
            object_ids: K ids, ascending.
            named: objects whose masks were given; what was known of their areas is replaced.
        """
        areas, rows, largest, unseen = extents[:, 0], [], [], []
        for k, one in enumerate(object_ids):
            area = areas[k : k + 1]
            if one in named or one not in self.object_ids:
                rows.append(area.expand(FRAMES))
                largest.append(area)
                unseen.append(torch.zeros_like(area))
                continue
            before = self.object_ids.index(one)
            row, frames = self._areas[before], self._unseen[before : before + 1]
            rows.append(torch.where(area > 0, torch.cat([row[1:], area]), row))
            largest.append(torch.maximum(self._largest[before : before + 1], area))
            unseen.append(torch.where(area > 0, 0, frames + 1))
        self.object_ids = object_ids
        self._areas = torch.stack(rows) if rows else areas.new_empty(0, FRAMES)
        self._largest, self._unseen = (
            torch.cat(one) if one else areas.new_empty(0) for one in (largest, unseen)
        )
        self._boxes = extents[:, 1:]

    def forget(self, object_id: int) -> None:
        """Remember nothing of an object, if anything is known of it."""
        kept = [k for k, one in enumerate(self.object_ids) if one != object_id]
        self.object_ids = tuple(self.object_ids[k] for k in kept)
        self._areas, self._largest, self._unseen, self._boxes = (one[kept] for one in self._tensors())

    def state_dict(self) -> dict[str, torch.Tensor]:
        """Everything but the ids."""
        return dict(zip(("areas", "largest", "unseen", "boxes"), self._tensors(), strict=True))

    def load_state_dict(self, state: dict[str, torch.Tensor], object_ids: tuple[int, ...]) -> None:
        """Continue with a state of these objects; ValueError if it is of another number."""
        tensors = tuple(state[name].float() for name in self.state_dict())
        count = len(object_ids)
        if [one.shape for one in tensors] != [(count, FRAMES), (count,), (count,), (count, 4)]:
            raise ValueError(
                f"extents of {count} objects have shapes {[tuple(one.shape) for one in tensors]}"
            )
        self.object_ids, (self._areas, self._largest, self._unseen, self._boxes) = object_ids, tensors

    def _tensors(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        return self._areas, self._largest, self._unseen, self._boxes


def extents_of(label_map: torch.Tensor, labels: Sequence[int]) -> torch.Tensor:
    """(K, 5) float32 on the label map's device: of each of K labels the pixels and the box."""
    height, width = label_map.shape
    extents = torch.zeros(len(labels), 5, device=label_map.device)
    for k, one in enumerate(labels):
        own = label_map == one
        pixels = own.view(torch.uint8)  # of which the largest is found five times as fast as `any` is
        columns, rows = pixels.amax(0), pixels.amax(1)
        left, top = columns.argmax(), rows.argmax()  # the first that have one
        right, bottom = width - columns.flip(0).argmax(), height - rows.flip(0).argmax()
        extents[k] = torch.stack([own.sum(), left, top, right, bottom]) * columns.amax()
    return extents


def without_unbelieved(
    probabilities: torch.Tensor, limits: torch.Tensor | None, lost_below: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Give the pixels of masks, and of pieces of them, that are not believed to the background.

    Args:
        probabilities: (1 + K, H, W) float32, background first.
        limits: (K, 5) float32, the largest believed area in pixels and the box of each object; None: any.
        lost_below: the lowest believed mean probability of a mask over its own pixels.

    Returns:
        The probabilities, the same tensor or another one; and the extents (K, 5) float32 of the masks in it.
    """
    labels, ids = winners(probabilities), range(1, len(probabilities))
    extents = extents_of(labels, ids)
    if limits is not None:
        far = (extents[:, 1:3] < limits[:, 1:3]).any(1) | (extents[:, 3:] > limits[:, 3:]).any(1)
        some = [k for k in ids if _unknown_or(far[k - 1])]
        if some:
            # a list as an index would be sent to the GPU, and waited for
            boxes = torch.stack([limits[k - 1, 1:] for k in some])
            near = _near(torch.stack([labels == k for k in some]), boxes)
            probabilities = probabilities.clone()
            for k, kept in zip(some, near, strict=True):
                elsewhere = probabilities[k] * ~kept
                probabilities[k] -= elsewhere
                probabilities[0] += elsewhere
            labels = winners(probabilities)
            extents = extents_of(labels, ids)
    area = extents[:, 0]
    believed = torch.stack([(probabilities[k] * (labels == k)).sum() for k in ids]) >= lost_below * area
    if limits is not None:
        believed &= area <= limits[:, 0]
    if _unknown_or(~believed.all()):
        objects = probabilities[1:] * believed.view(-1, 1, 1)
        background = probabilities[:1] + (probabilities[1:] - objects).sum(0, keepdim=True)
        probabilities = torch.cat([background, objects])
        extents = extents * believed[:, None]
    return probabilities, extents


def _unknown_or(condition: torch.Tensor) -> bool:
    """Whether something holds, or lies on a GPU, where asking would be waiting."""
    return condition.device.type != "cpu" or bool(condition)


def _near(own: torch.Tensor, boxes: torch.Tensor) -> torch.Tensor:
    """(N, H, W) bool: boxes (N, 4) and the pieces of masks (N, H, W) bool that reach into them.

    Everything, if no piece does.
    """
    height, width = own.shape[1:]
    cell = -(-max(height, width) // CELLS)
    y, x = (torch.arange(side, device=own.device) for side in (height, width))
    left, top, right, bottom = boxes.T[:, :, None]
    inside = ((y >= top) & (y < bottom))[:, :, None] & ((x >= left) & (x < right))[:, None]
    # (N, h, w) float32: 1 where a cell has a pixel of the mask
    cells, reached = (F.max_pool2d(one.float(), cell, ceil_mode=True) for one in (own, own & inside))
    for _ in range(LONGEST_WAY):
        before, reached = reached, F.max_pool2d(reached, 3, 1, 1) * cells
        if not _unknown_or((reached != before).any()):
            break
    # a cell more, for the unsure pixels at a piece's edge; other pieces are farther away
    pieces = F.max_pool2d(reached, 3, 1, 1).bool()
    pieces = pieces.repeat_interleave(cell, 1).repeat_interleave(cell, 2)[:, :height, :width]
    return inside | pieces | ~reached.any(2).any(1)[:, None, None]
