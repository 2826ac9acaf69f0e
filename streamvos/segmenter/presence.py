"""Whether a mask is believed: networks answer "somewhere" also when the object is hidden.

Two rules, both of which come with a method's weights. A mask whose pixels are unsure on average
(`MethodOptions.lost_below`) shows no object. Nor does one that is suddenly many times as large as the object
lately was (`MethodOptions.largest_growth`): that is what stands in front of it. Such a mask is emptied, the
object is "lost", and the target learns that those pixels are background.

Nothing here waits for a GPU: areas and limits stay tensors.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from streamvos.nn.labels import winners

FRAMES = 20
"""Areas that are remembered of each object, those of frames that show it."""

_UPPER_QUARTILE = FRAMES * 3 // 4 - 1  # of the sorted areas; one large mask among them changes little

PATIENCE = 1.03
"""By which the largest area grows with every frame without the object, which may have come closer."""


class AreaHistory:
    """How large the objects of one stream lately were.

    Attributes:
        object_ids: K ids, ascending.
    """

    def __init__(self) -> None:
        self.object_ids: tuple[int, ...] = ()
        self._areas = torch.empty(0, FRAMES)  # (K, FRAMES) float32, oldest first
        self._largest = torch.empty(0)  # (K,) float32: the largest since the object's mask was given
        self._unseen = torch.empty(0)  # (K,) float32: frames since the object was last seen

    def limits(self, growth: float) -> torch.Tensor:
        """(K,) float32: the pixels above which a mask is not believed.

        A size that an object once had is always believed: what left the frame step by step comes back fast.

        Args:
            growth: how many times as large as lately an object may be.
        """
        lately = self._areas.sort(1).values[:, _UPPER_QUARTILE]
        return torch.maximum(lately * growth, self._largest) * PATIENCE**self._unseen

    def add(self, areas: torch.Tensor, object_ids: tuple[int, ...], named: Sequence[int] = ()) -> None:
        """Remember a frame.

        Args:
            areas: (K,) float32, pixels of each object.
            object_ids: K ids, ascending.
            named: objects whose masks were given; what was known of their areas is replaced.
        """
        rows, largest, unseen = [], [], []
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

    def forget(self, object_id: int) -> None:
        """Remember nothing of an object, if anything is known of it."""
        kept = [k for k, one in enumerate(self.object_ids) if one != object_id]
        self.object_ids = tuple(self.object_ids[k] for k in kept)
        self._areas, self._largest, self._unseen = (one[kept] for one in self._tensors())

    def state_dict(self) -> dict[str, torch.Tensor]:
        """Everything but the ids."""
        return dict(zip(("areas", "largest", "unseen"), self._tensors(), strict=True))

    def load_state_dict(self, state: dict[str, torch.Tensor], object_ids: tuple[int, ...]) -> None:
        """Continue with a state of these objects; ValueError if it is of another number."""
        areas, largest, unseen = (state[name].float() for name in ("areas", "largest", "unseen"))
        count = len(object_ids)
        if areas.shape != (count, FRAMES) or largest.shape != (count,) or unseen.shape != (count,):
            raise ValueError(f"areas of {count} objects have shape {tuple(areas.shape)}")
        self.object_ids, self._areas, self._largest, self._unseen = object_ids, areas, largest, unseen

    def _tensors(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        return self._areas, self._largest, self._unseen


def areas_of(label_map: torch.Tensor, labels: Sequence[int]) -> torch.Tensor:
    """(K,) float32: pixels of each of K labels."""
    counts = [(label_map == one).sum() for one in labels]
    return torch.stack(counts).float() if counts else torch.empty(0, device=label_map.device)


def without_unbelieved(
    probabilities: torch.Tensor, limits: torch.Tensor | None, lost_below: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Give the pixels of masks that are not believed to the background.

    Args:
        probabilities: (1 + K, H, W) float32, background first.
        limits: (K,) float32, the largest believed areas in pixels; None: any.
        lost_below: the lowest believed mean probability of a mask over its own pixels.

    Returns:
        The probabilities, the same tensor or another one; and the areas (K,) float32 of the masks in it.
    """
    count = len(probabilities) - 1
    labels = winners(probabilities)
    areas, sums = [], []
    for k in range(1, 1 + count):
        own = labels == k
        areas.append(own.sum())
        sums.append((probabilities[k] * own).sum())
    area = torch.stack(areas).float()
    believed = torch.stack(sums) >= lost_below * area
    if limits is not None:
        believed &= area <= limits
    if believed.device.type == "cpu" and bool(believed.all()):  # on a GPU, asking would be waiting
        return probabilities, area
    kept = probabilities[1:] * believed.view(-1, 1, 1)
    background = probabilities[:1] + (probabilities[1:] - kept).sum(0, keepdim=True)
    emptied = torch.cat([background, kept])
    return emptied, area * believed
