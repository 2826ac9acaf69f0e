"""Training FEELVOS's small form on features of the frozen EfficientNet-Lite0.

The first frame of a clip is given; the others are segmented one after the other, each with the masks that
were predicted before it, as at inference. Masks that are fed back are sometimes damaged, so that the network
learns to do without them. Distances have gradients: the nearest cell is found without, and the distance to it
is taken with one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import nn

from streamvos.methods import Method
from streamvos.methods.feelvos import FEELVOS
from streamvos.methods.feelvos.light import (
    LEVELS,
    STRIDE,
    LightDecoder,
    LightExtractor,
    reduce_to_cells,
    thinned,
)
from streamvos.methods.feelvos.options import EFFICIENTNET
from streamvos.nn.matching.distances import squash
from streamvos.nn.stage_embedding import SHARES
from streamvos.training.heads import Recipe
from streamvos.training.losses import mask_loss, overlap
from streamvos.types import VOID

FINE = 4
"""Pixels per cell of the logits that are compared with the truth."""

BLOCK = 48
"""Candidates of which the largest is found first."""


class Trained(nn.Module):
    """What is trained of the small form, in its place in the method."""

    def __init__(self, method: Method):
        super().__init__()
        assert isinstance(method.extractor, LightExtractor)
        assert isinstance(method.decoder, LightDecoder)
        self.embedding, self.head = method.extractor.embedding, method.decoder.head


@dataclass(frozen=True)
class Frame:
    """Cells of one earlier frame of one clip.

    Attributes:
        cells: (M, C) embeddings.
        objects, others: (M,) bool, the cells that are candidates of the object and of everything else.
    """

    cells: torch.Tensor
    objects: torch.Tensor
    others: torch.Tensor


class FEELVOSLoss:
    """Loss of the masks of a clip's later frames, and of the distances themselves.

    Args:
        window: radius of local matching in cells, as at inference.
        certain: least probability of a remembered cell, as at inference.
        direct: weight of the loss of global distances, which reaches the embedding without passing the head.
        damage: share of previous masks that are damaged.
        remember: share of predicted frames that are matched later.
    """

    def __init__(
        self,
        window: int = 10,
        certain: float = 0.8,
        direct: float = 0.3,
        damage: float = 0.6,
        remember: float = 0.7,
    ):
        self.window, self.certain, self.direct = window, certain, direct
        self.damage, self.remember = damage, remember

    def __call__(self, model: nn.Module, batch: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Losses of a `Trained`; "overlap" is the mean IoU.

        Args:
            batch: "stage2" ... "stage6" (B, T, C, h, w) and "labels" (B, T, H, W) uint8: 1 the object, 255
                void; other labels count as background.
        """
        assert isinstance(model, Trained)
        labels = batch["labels"]
        clips, length = labels.shape[:2]
        size = (labels.shape[-2] // FINE, labels.shape[-1] // FINE)
        grid = (batch["stage3"].shape[-2], batch["stage3"].shape[-1])
        embedded = model.embedding({name: batch[name].flatten(0, 1) for name in SHARES})
        cells = embedded.flatten(2).transpose(1, 2).unflatten(0, (clips, length))  # (B, T, M, C)
        share, void = (
            reduce_to_cells((labels == label).flatten(0, 1).float()).flatten(1).unflatten(0, (clips, length))
            for label in (1, VOID)
        )  # (B, T, M)
        truth = labels[..., FINE // 2 :: FINE, FINE // 2 :: FINE]
        even = thinned(torch.zeros_like(void[0, 0], dtype=torch.int64), grid) == 0  # (M,)
        first = [_given(*values, even) for values in zip(cells[:, 0], share[:, 0], void[:, 0], strict=True)]
        recent: list[list[Frame]] = [[] for _ in range(clips)]
        outside = _outside(grid, self.window, labels.device)
        before, masks, distances, overlaps = share[:, 0], [], [], []
        for t in range(1, length):
            known = void[:, 0] <= 0.5 if t == 1 else torch.ones_like(void[:, 0], dtype=torch.bool)
            before = damaged(before.unflatten(1, grid), self.damage).flatten(1)
            cues = []
            for b in range(clips):
                previous = Frame(cells[b, t - 1], before[b] > 0.5, (before[b] <= 0.5) & known[b])
                squared = self._squared(cells[b, t], first[b], recent[b], previous, outside)  # (6, M)
                distances.append(_distance_loss(squared[:4], share[b, t], void[b, t]))
                cues.append(torch.cat([squash(squared), before[b][None]]).unflatten(1, grid))
            levels = {name: batch[name][:, t] for name in LEVELS}
            logits = model.head(torch.stack(cues), levels, size).float()  # (B, H/4, W/4)
            masks.append(mask_loss(logits, truth[:, t]))
            overlaps.append(overlap(logits, truth[:, t]))
            before = reduce_by_two(logits.sigmoid()).flatten(1)
            for b in range(clips):
                if torch.rand(()) < self.remember:
                    sure, absent = before[b] > self.certain, before[b] < 1 - self.certain
                    recent[b].append(Frame(cells[b, t], sure, absent & even))
        mask, distance = torch.stack(masks).mean(), torch.stack(distances).mean()
        return {
            "total": mask + self.direct * distance,
            "mask": mask.detach(),
            "distance": distance.detach(),
            "overlap": torch.stack(overlaps).mean(),
        }

    def _squared(
        self,
        query: torch.Tensor,
        first: Frame,
        recent: Sequence[Frame],
        previous: Frame,
        outside: torch.Tensor,
    ) -> torch.Tensor:
        """(6, M) squared distances, in the order of the method's cues; infinity without a candidate."""
        known = far = _distances(query, first)
        for frame in recent:
            known = torch.minimum(known, _distances(query, frame))
        return torch.cat([far, known, _distances(query, previous, outside)])


def _distances(query: torch.Tensor, frame: Frame, outside: torch.Tensor | None = None) -> torch.Tensor:
    """(2, M): squared distances to the object and to everything else in a frame."""
    masks = (frame.objects, frame.others)
    return torch.stack([_nearest(query, frame.cells, mask.nonzero()[:, 0], outside) for mask in masks])


def _nearest(
    query: torch.Tensor, cells: torch.Tensor, places: torch.Tensor, outside: torch.Tensor | None = None
) -> torch.Tensor:
    """Squared distances (M,) to the nearest of `cells[places]`; infinity where there is none.

    All embeddings are of the same length, so the nearest has the largest product. Rounded products are good
    enough to find it; blocks are searched first for their maxima, which is faster than one search of all.

    Args:
        query: (M, C).
        cells: (M, C).
        places: (N,) int64.
        outside: (M, M), what is added to the products: -inf for pairs that do not count.
    """
    if not len(places):
        return query.new_full((len(query),), math.inf)
    with torch.no_grad():
        places = torch.cat([places, places[-1:].expand(-len(places) % BLOCK)])
        own, all_queries = cells[places].bfloat16(), query.bfloat16().t()
        products = own @ all_queries if outside is None else torch.addmm(outside[places], own, all_queries)
        blocks = products.unflatten(0, (-1, BLOCK))  # (N / BLOCK, BLOCK, M)
        largest, block = blocks.amax(1).max(0)
        inner = blocks[block, :, torch.arange(len(query), device=query.device)].argmax(1)
        nearest = places[block * BLOCK + inner]
    squared = (query - cells[nearest]).square().sum(1)
    return torch.where(largest == -math.inf, math.inf, squared)


@lru_cache(maxsize=2)
def _outside(grid: tuple[int, int], window: int, device: torch.device) -> torch.Tensor:
    """(M, M) bfloat16: -inf for pairs of cells more than `window` rows or columns apart, else 0."""
    rows, columns = (torch.arange(n, device=device) for n in grid)
    far_rows, far_columns = ((x[:, None] - x).abs() > window for x in (rows, columns))
    far = (far_rows[:, None, :, None] | far_columns[None, :, None, :]).flatten(0, 1).flatten(1)
    return torch.zeros(far.shape, dtype=torch.bfloat16, device=device).masked_fill_(far, -math.inf)


def _given(cells: torch.Tensor, share: torch.Tensor, void: torch.Tensor, even: torch.Tensor) -> Frame:
    """The annotated frame; an object that fills no cell has the cell that is most its own."""
    objects = (share >= share.max().clamp_max(0.5)) & (share > 0)
    return Frame(cells, objects, ~objects & (void <= 0.5) & even)


def reduce_by_two(values: torch.Tensor) -> torch.Tensor:
    """(N, H/4, W/4) to the cells of the embedding."""
    return F.avg_pool2d(values[:, None], STRIDE // FINE)[:, 0]


def damaged(masks: torch.Tensor, share: float) -> torch.Tensor:
    """Some of the masks (N, h, w) lack a part or all, are moved by a few cells, or have a part too many."""
    chosen = torch.rand(len(masks)) < share
    return torch.stack([_damage(mask) if k else mask for mask, k in zip(masks, chosen, strict=True)])


def _damage(mask: torch.Tensor) -> torch.Tensor:
    height, width = mask.shape
    kind = int(torch.randint(8, ()))
    if kind == 0:
        return torch.zeros_like(mask)
    if kind == 1:
        rows, columns = torch.randint(-3, 4, (2,)).tolist()
        return mask.roll((rows, columns), (0, 1))
    if kind == 2:  # it has shrunk by a cell
        return -F.max_pool2d(-mask[None], 3, 1, 1)[0]
    if kind == 3:  # a part of it is elsewhere, too
        return torch.maximum(mask, mask.roll(int(torch.randint(4, width, ())), 1))
    places = (mask > 0.5).nonzero()
    hole = torch.zeros_like(mask)
    if len(places):  # a part of it is missing
        top, left = (places[int(torch.randint(len(places), ()))] - 1).clamp_min(0).tolist()
        tall, wide = (int(torch.randint(2, 3 + side // 3, ())) for side in (height, width))
        hole[top : top + tall, left : left + wide] = 1
    return mask * (1 - hole)


def _distance_loss(squared: torch.Tensor, share: torch.Tensor, void: torch.Tensor) -> torch.Tensor:
    """Cross-entropy of "nearer to the object than to the rest", over the hardest quarter of the cells."""
    losses = []
    for own, other in squared.unflatten(0, (-1, 2)):
        known = own.isfinite() & other.isfinite() & (void <= 0.5)
        logits = torch.where(known, other - own, 0.0)
        loss = F.binary_cross_entropy_with_logits(logits, share, reduction="none") * known
        losses.append(loss.topk(max(1, len(loss) // 4)).values.mean())
    return torch.stack(losses).mean()


def _loss_of(method: Method) -> FEELVOSLoss:
    assert isinstance(method, FEELVOS)
    return FEELVOSLoss(method.options.window, method.options.certain)


RECIPE = Recipe(
    method="feelvos",
    options=EFFICIENTNET,
    network=Trained,
    loss=_loss_of,
    training={"steps": 1000, "warmup": 40, "average": 0.99},
)
"""The recipe of the bundled weights."""
