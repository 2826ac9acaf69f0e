"""Training TVOS's embedding and refiner on features of the frozen backbone.

A clip runs as at inference: labels are carried from the first frame and from the refiner's own masks. Real
frames lie up to a dozen stored frames apart, and the other objects of a clip look alike.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import nn

from streamvos.methods.base import Method
from streamvos.methods.tvos.method import TVOS
from streamvos.methods.tvos.options import EFFICIENTNET
from streamvos.nn.propagation.blocks import Reference, blocks_of, means_of, propagate_in_blocks
from streamvos.training.disturbance import chance, disturb, unseen_parts
from streamvos.training.heads import Recipe
from streamvos.training.losses import mask_loss, overlap
from streamvos.types import VOID

CELL = 8
"""Pixels along a side of a cell."""

NEAR = 3
"""Cells so close to an object are near it."""

TEMPERATURES = (14.0, 28.0)
"""Of the softmax in training; one is drawn for each step."""

MOST_LABELS = 6
"""Objects beyond this many count as one."""

DISTURBED = 0.3
"""Share of the remembered masks that are disturbed."""

UNSEEN = 0.3
"""Share of the clips in which the memory lacks a part of the object."""


class TVOSLoss:
    """Losses of embedding and refiner on clips of features, unrolled as at inference.

    "arrival" is the cross-entropy of the labels that reach cells of a later frame from the first frame, and
    from the first and the preceding one together; half of the cells lie on or near an object. "mask" is the
    loss of the refined mask of one object; the labels that it refines are carried by the embedding as it is
    now, from the true first mask and the masks refined before, without gradient. Some of the latter are
    disturbed, and in some clips one side of the object is missing in all of them, so that the refiner learns
    to end drift.

    Args:
        method: the one whose parts are trained.
        queries: cells of a frame whose labels count.
    """

    def __init__(self, method: Method, queries: int = 256):
        assert isinstance(method, TVOS)
        self.options, self.queries = method.options, queries

    def __call__(self, network: nn.Module, batch: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Losses of `trained_parts` on a batch of `FeatureClips`; "overlap" is the mean IoU."""
        labels = batch["labels"]  # (B, T, H, W)
        maps = {name: value for name, value in batch.items() if name != "labels"}
        embedding = network.get_submodule("embedding")(
            {name: value.flatten(0, 1) for name, value in maps.items()}
        )
        embedding = embedding.unflatten(0, labels.shape[:2])  # (B, T, C, h, w)
        arrival = self._arrival(embedding, cell_labels(labels, CELL))
        mask, mean_overlap = self._masks(network.get_submodule("refiner"), embedding.detach(), maps, labels)
        return {
            "total": arrival + mask,
            "arrival": arrival.detach(),
            "mask": mask.detach(),
            "overlap": mean_overlap,
        }

    def _arrival(self, embedding: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Embedding (B, T, C, h, w), labels (B, T, L, h, w)."""
        h, w = labels.shape[-2:]
        near = F.max_pool2d(1 - labels[:, :, 0], 2 * NEAR + 1, 1, NEAR).flatten(2) > 0.05  # (B, T, h*w)
        keys, labels = embedding.flatten(3), labels.flatten(3).transpose(2, 3)  # (B, T, C, h*w), (.., h*w, L)
        temperature = TEMPERATURES[int(torch.randint(len(TEMPERATURES), ()))]
        losses = []
        for t in range(1, embedding.shape[1]):
            share = near[:, t] / near[:, t].sum(1, keepdim=True).clamp_min(1) + 1 / (h * w)
            chosen = share.multinomial(min(self.queries, h * w))  # (B, Q)
            queries = keys[:, t].gather(2, chosen[:, None].expand(-1, keys.shape[2], -1))  # (B, C, Q)
            truth = labels[:, t].gather(1, chosen[..., None].expand(-1, -1, labels.shape[-1]))  # (B, Q, L)
            outside = ~within(chosen, (h, w), self.options.radius)  # (B, Q, h*w)
            past = [0] if t == 1 else [0, t - 1]
            logits = [
                (temperature * (queries.transpose(1, 2) @ keys[:, r]))
                .float()
                .masked_fill(outside, -torch.inf)
                for r in past
            ]
            for count in range(1, 1 + len(past)):
                given = torch.cat([labels[:, r] for r in past[:count]], dim=1)  # (B, N, L)
                arrived = torch.cat(logits[:count], dim=2).softmax(2) @ given
                # a label that no cell in reach has cannot arrive
                reach = torch.cat([~outside] * count, dim=2).to(given.dtype) @ given
                expected = truth * (reach > 0.5)
                costs = -(expected * (arrived.float() + 1e-3).log())
                losses.append(costs.sum() / expected.sum().clamp_min(1))
        return torch.stack(losses).mean()

    def _masks(
        self,
        refiner: nn.Module,
        embedding: torch.Tensor,
        maps: Mapping[str, torch.Tensor],
        labels: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Loss and mean IoU of the later frames' masks."""
        options, size = self.options, (labels.shape[-2] // 4, labels.shape[-1] // 4)
        truth = labels[..., 2::4, 2::4]  # (B, T, H/4, W/4)
        given = F.avg_pool2d((labels[:, 0] == 1).float(), CELL)  # (B, h, w)
        seen = unseen_parts(given, UNSEEN)
        given = given * seen
        grid = (given.shape[-2], given.shape[-1])
        settings = options.propagation(embedding.device)
        others = F.avg_pool2d(((labels > 1) & (labels != VOID)).float(), CELL)  # (B, T, h, w)
        history: list[list[Reference]] = [[] for _ in given]
        losses, overlaps = [], []
        for t in range(labels.shape[1]):
            keys = [blocks_of(own.to(settings.dtype)) for own in embedding[:, t]]
            if t:
                alone = [[past[0]._replace(radius=options.first_radius)] for past in history]
                arrived, first = (
                    torch.stack(
                        [
                            propagate_in_blocks(key, past, grid, settings, options.blocks)[1]
                            for key, past in zip(keys, references, strict=True)
                        ]
                    )
                    for references in (history, alone)
                )
                levels = {level: maps[level][:, t] for level in options.levels}
                logits = refiner(arrived, first, levels, size)
                losses.append(mask_loss(logits, truth[:, t]))
                overlaps.append(overlap(logits, truth[:, t]))
                # what `merge_logits` makes of a single object
                given = F.avg_pool2d((2 * logits.detach().float()).sigmoid(), CELL // 4)
                given = torch.where(chance(given, DISTURBED), disturb(given), given)
                given = torch.where(chance(given, 0.5), given * seen, given)
                drifted = torch.maximum(given, others[:, t])
                given = torch.where(chance(given, DISTURBED / 3), drifted, given)
            for past, key, own in zip(history, keys, given, strict=True):
                labels_of_both = blocks_of(torch.stack([1 - own, own]))
                past.append(Reference(key, means_of(key), labels_of_both, options.radius))
        return torch.stack(losses).mean(), torch.stack(overlaps).mean()


def cell_labels(labels: torch.Tensor, cell: int) -> torch.Tensor:
    """(B, T, H, W) label maps to the share of every label in every cell, (B, T, L, h, w); void has none."""
    highest = min(int(labels.where(labels != VOID, 0).max()), MOST_LABELS)
    known = labels.clamp(max=highest).where(labels != VOID, VOID)
    shares = torch.stack([(known == label).float() for label in range(1 + highest)], dim=2)
    return F.avg_pool2d(shares.flatten(0, 1), cell).unflatten(0, labels.shape[:2])


def within(cells: torch.Tensor, grid: tuple[int, int], radius: int | None) -> torch.Tensor:
    """(B, Q) numbers of cells to (B, Q, h*w): whether a cell lies within the radius."""
    reach = max(grid) if radius is None else radius
    rows = (cells // grid[1])[..., None] - torch.arange(grid[0], device=cells.device)  # (B, Q, h)
    columns = (cells % grid[1])[..., None] - torch.arange(grid[1], device=cells.device)  # (B, Q, w)
    return ((rows.abs() <= reach)[..., None] & (columns.abs() <= reach)[:, :, None]).flatten(2)


def trained_parts(method: Method) -> nn.Module:
    """What is trained of the form on EfficientNet-Lite0: "embedding" and "refiner"."""
    parts = {"embedding": "extractor.embedding", "refiner": "decoder.refiner"}
    return nn.ModuleDict({name: method.get_submodule(place) for name, place in parts.items()})


RECIPE = Recipe(
    "tvos",
    EFFICIENTNET,
    trained_parts,
    TVOSLoss,
    training={"steps": 1600, "learning_rate": 1.5e-3, "warmup": 50},
)
"""How the bundled weights were trained."""
