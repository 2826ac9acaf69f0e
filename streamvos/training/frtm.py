"""Training FRTM's segmentation network on features of the frozen backbone.

Each clip runs as at inference: a target model is fitted to the first frame, scores the next ones, and learns
from what the segmentation network makes of its scores. Only the segmentation network is trained. The authors
show it scores of models of the first frame alone; docs/methods.md, FRTM, lists the other differences.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import nn

from streamvos.methods.base import Method
from streamvos.methods.frtm import EFFICIENTNET, FRTM
from streamvos.methods.frtm.memory import ObjectModel, refit, remember
from streamvos.methods.frtm.method import levels_of
from streamvos.methods.frtm.options import TARGET_LEVEL
from streamvos.nn.aggregation import winners_of_odds
from streamvos.nn.precision import without_autocast
from streamvos.nn.target_model.learning import Samples, learn_both, make_samples, project, score
from streamvos.nn.target_model.sample_weights import SampleWeights
from streamvos.training.disturbance import chance, unseen_parts
from streamvos.training.heads import Recipe
from streamvos.training.losses import mask_loss, overlap

STRIDE = 4
"""Masks are compared at this stride, that of the segmentation network's last features."""

LEARNING_RATES = (0.1, 0.5)
"""A clip's frames lie apart, so one counts as much as several neighbors would."""

UNSEEN = 0.1
"""Share of the clips in which the target model learns later masks that lack a part of the object."""


class FRTMLoss:
    """`mask_loss` of a clip's later frames, given the first; "overlap" is the mean IoU.

    Args:
        method: an `FRTM`; its options fit the target models.
    """

    def __init__(self, method: Method):
        assert isinstance(method, FRTM)
        self.method = method

    def __call__(self, network: nn.Module, batch: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Losses of a `SegmentationNetwork` on a batch of `FeatureClips`."""
        labels = batch["labels"]  # (B, T, H, W)
        clips, length = labels.shape[:2]
        flat = levels_of({name: batch[name].flatten(0, 1) for name in batch if name != "labels"})
        levels = {name: level.unflatten(0, (clips, length)) for name, level in flat.items()}
        truth = labels[..., STRIDE // 2 :: STRIDE, STRIDE // 2 :: STRIDE]
        size = (truth.shape[-2], truth.shape[-1])
        with torch.no_grad(), without_autocast(labels.device.type):
            seen = levels[TARGET_LEVEL].float()  # (B, T, C, h, w), by the target models
            known = unseen_parts(F.avg_pool2d((labels[:, 0] == 1).float(), STRIDE), UNSEEN)  # (B, H/4, W/4)
            models = [self._start(own[0], first == 1) for own, first in zip(seen, labels[:, 0], strict=True)]
        losses, overlaps = [], []
        for t in range(1, length):
            with torch.no_grad(), without_autocast(labels.device.type):
                projected = project(seen[:, t], torch.stack([m.weights.projection for m in models]))
                scores = score(projected, torch.cat([m.weights.filter for m in models]))
            logits = network(
                disturb(scores)[:, None], {name: level[:, t] for name, level in levels.items()}, size
            )
            losses.append(mask_loss(logits, truth[:, t]))
            with torch.no_grad(), without_autocast(labels.device.type):
                overlaps.append(overlap(logits, truth[:, t]))
                objects = logits.float().sigmoid()
                objects = torch.where(chance(objects, 0.5), objects * known, objects)
                self._learn(models, projected, objects)
        return {"total": torch.stack(losses).mean(), "overlap": torch.stack(overlaps).mean()}

    def _start(self, features: torch.Tensor, mask: torch.Tensor) -> ObjectModel:
        """The model of an object with mask (H, W) bool in a frame's features (C, h, w)."""
        options = self.method.options
        # the frame's features and their mirror image; augmented frames, as at inference, cost more
        first = torch.stack([features, features.flip(-1)])
        samples = self._samples(torch.stack([mask, mask.flip(-1)]).float(), first)
        shares = torch.tensor([2 / 3, 1 / 3], dtype=torch.float64)
        initial = self.method.initial_weights(1, features.shape[0], options.target_channels)
        weights = learn_both(first, samples, shares.to(first), initial, options.init_iterations, options.rule)
        low, high = LEARNING_RATES
        importance = SampleWeights(options.memory_size, low + (high - low) * float(torch.rand(())), shares)
        return ObjectModel.begin(weights, project(first, weights.projection), samples, importance)

    def _learn(self, models: Sequence[ObjectModel], projected: torch.Tensor, objects: torch.Tensor) -> None:
        """Half of the models learn from a frame: projected (B, c, h, w), predicted (B, H, W) in 0..1."""
        for k, model in enumerate(models):
            won = winners_of_odds(objects[k : k + 1])[1:]
            if torch.rand(()) < 0.5 and int((won > 0.5).sum()) * STRIDE**2 >= self.method.options.min_pixels:
                remember([model], projected[k : k + 1], self._samples(won, projected))
                refit([model], self.method.options.update_iterations, self.method.options.rule)

    def _samples(self, labels: torch.Tensor, features: torch.Tensor) -> Samples:
        options = self.method.options
        grid = (features.shape[-2], features.shape[-1])
        return make_samples(labels, grid, options.least_share, options.min_pixels, options.pixel_weights)


def disturb(scores: torch.Tensor) -> torch.Tensor:
    """Scores (B, h, w) as worse target models might give them: other gains, offsets and smooth errors."""
    count, size = len(scores), scores.shape[-2:]
    normal = scores.new_empty(3, count, 1, 1).normal_()
    smooth = F.interpolate(scores.new_empty(count, 1, 4, 6).normal_(), size, mode="bicubic")[:, 0]
    half = torch.rand_like(normal[0]) < 0.5
    other = scores * (0.2 * normal[0]).exp() + 0.05 * normal[1] + 0.1 * normal[2] * smooth
    return torch.where(half, other, scores)


def segmentation_network(method: Method) -> nn.Module:
    """What is trained."""
    assert isinstance(method, FRTM)
    return method.decoder.refiner


RECIPE = Recipe(
    "frtm-fast",
    EFFICIENTNET,
    segmentation_network,
    FRTMLoss,
    training={"steps": 1300, "average": 0.995},
    clips={"stills_first": 200},
)
"""How the bundled weights of `frtm-fast` were trained."""
