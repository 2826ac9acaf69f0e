"""Training JOINT's head on cached features of the frozen backbone.

A clip runs as a stream does: the filters are fitted to the first frame and go on learning, every frame is
remembered with its own soft prediction, and both attentions carry the labels. The loss is that of the
masks and, decoupled from the learner, that of what each attention alone carries: the first channel of an
encoding is the mask. Gradients pass through the steps of the learner, but not through predictions.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import nn

from streamvos.methods import Method
from streamvos.methods.joint import EFFICIENTNET
from streamvos.methods.joint.few_shot import FewShotProblem, convolve, steepest_descent
from streamvos.methods.joint.light import LEVELS, LightHead, LightNetwork, with_places
from streamvos.methods.joint.transformer import TEMPERATURE
from streamvos.training.disturbance import chance, disturb, unseen_parts
from streamvos.training.heads import Recipe
from streamvos.training.losses import mask_loss, overlap
from streamvos.types import VOID

DISTURBED, DRIFTED = 0.3, 0.1
"""Shares of the remembered masks that are disturbed, and that cover other objects too."""

UNSEEN = 0.1
"""Share of the clips in which half of the remembered masks lack one side of the object."""

CLEAR = 1e-3
"""Carried masks are kept at this distance from 0 and 1 before their logits are taken."""


class JOINTLoss:
    """Losses of a `LightHead` on a batch of `FeatureClips`.

    Args:
        first_steps: steps of the learner on the first frame.
        later_steps: on all frames so far, after each later one.
        attention: weight of the loss of what the attentions carry.
    """

    def __init__(self, first_steps: int = 4, later_steps: int = 1, attention: float = 0.3):
        self.first_steps, self.later_steps, self.attention = first_steps, later_steps, attention

    def __call__(self, model: nn.Module, batch: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """ "total"; "mask", "far" and "near", the losses that it sums up; "overlap", the mean IoU."""
        assert isinstance(model, LightHead)
        labels = batch["labels"]
        maps = {name: value for name, value in batch.items() if name != "labels"}
        quarter = labels[..., 2::4, 2::4]
        others = ((quarter > 1) & (quarter != VOID)).float()
        first = (quarter[:, 0] == 1).float()
        seen = unseen_parts(first, UNSEEN)

        def mistake(masks: torch.Tensor, now: int) -> torch.Tensor:
            masks = torch.where(chance(masks, DISTURBED), disturb(masks), masks)
            masks = torch.where(chance(masks, DRIFTED), torch.maximum(masks, others[:, now]), masks)
            return torch.where(chance(masks, 0.5), masks * seen, masks)

        answers = unroll(model, maps, first, self.first_steps, self.later_steps, mistake)
        logits, far, near = (x.float().flatten(0, 1) for x in answers)
        truth = quarter[:, 1:].flatten(0, 1)
        with torch.autocast(labels.device.type, enabled=False):
            coarse = labels[:, 1:, 8::16, 8::16].flatten(0, 1)
            losses = {
                "mask": mask_loss(logits, truth),
                "far": mask_loss(far.logit(CLEAR), coarse),
                "near": mask_loss(near.logit(CLEAR), coarse),
            }
            total = losses["mask"] + self.attention * (losses["far"] + losses["near"])
        return {"total": total, **losses, "overlap": overlap(logits, truth)}


def unroll(
    model: LightHead,
    maps: Mapping[str, torch.Tensor],
    first: torch.Tensor,
    first_steps: int,
    later_steps: int,
    mistake: Callable[[torch.Tensor, int], torch.Tensor] | None = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Follow one object in each of B clips.

    Args:
        maps: stage -> (B, T, C, h, w).
        first: (B, H/4, W/4) float, the masks of the first frames.
        first_steps, later_steps: of the learner.
        mistake: changes the masks (B, H/4, W/4) of a frame, by its number, before they are remembered.

    Returns:
        Of the later frames: logits (B, T - 1, H/4, W/4), and the masks that the attention to all frames and
        that to the last frame carry, (B, T - 1, H/16, W/16).
    """
    clips, length = maps["stage5"].shape[:2]
    view = model.see({name: value.flatten(0, 1) for name, value in maps.items()})
    tokens, keys = (x.unflatten(0, (clips, length)) for x in (view.induction, view.transduction))
    clip = _Clip(model, tokens, keys, (maps["stage5"].shape[-2], maps["stage5"].shape[-1]))
    clip.remember(first, first_steps)
    answers = []
    for now in range(1, length):
        induced, far, near = clip.read(now)
        logits = model.decode(model.join(induced, far, near), {name: maps[name][:, now] for name in LEVELS})
        if now + 1 < length:  # two logits, of the object and of the background, compete at inference
            masks = (2 * logits.detach().float()).sigmoid()
            clip.remember(masks if mistake is None else mistake(masks, now), later_steps)
        answers.append((logits, far[:, 0], near[:, 0]))
    logits, far, near = (torch.stack(parts, dim=1) for parts in zip(*answers, strict=True))
    return logits, far, near


class _Clip:
    """What is remembered of B clips: `LightMemory` for training, where all frames are kept.

    Args:
        model: the head.
        tokens: (B, T, h*w, C), features of the learner.
        keys: (B, T, h*w, E).
        grid: (h, w).
    """

    def __init__(self, model: LightHead, tokens: torch.Tensor, keys: torch.Tensor, grid: tuple[int, int]):
        self.model, self.tokens, self.keys, self.grid = model, tokens.float(), keys.float(), grid
        self.induction: list[torch.Tensor] = []  # each (B, D, h, w)
        self.importance: list[torch.Tensor] = []
        self.carried: list[torch.Tensor] = []  # each (B, h*w, D)
        self.filters = self.tokens.new_zeros(len(tokens), 1, model.labels, tokens.shape[-1], 3, 3)

    def remember(self, masks: torch.Tensor, steps: int) -> None:
        """The masks (B, 4h, 4w) of the next frame, and some steps of the learner."""
        encoded = self.model.label_encoder(masks[:, None])
        self.induction.append(encoded.induction.float())
        self.importance.append(encoded.importance.float())
        self.carried.append(encoded.transduction.float().flatten(2).transpose(1, 2))
        with torch.autocast(masks.device.type, enabled=False):
            problem = FewShotProblem(
                self.tokens[:, : len(self.carried)].flatten(1, 2),
                torch.stack(self.induction, dim=1)[:, None],
                torch.stack(self.importance, dim=1)[:, None],
                self.grid,
            )
            regularization = self.model.learner.regularization
            self.filters = steepest_descent(self.filters, problem, regularization, steps)

    def read(self, now: int) -> tuple[torch.Tensor, ...]:
        """The answers (B, D, h, w) of the filters and of both attentions on frame `now`."""
        with torch.autocast(self.tokens.device.type, enabled=False):
            induced = convolve(self.tokens[:, now], self.filters, self.grid)[:, 0, 0]
            queries, last = self.keys[:, now], self.keys[:, now - 1]
            carried = _attend(queries, self.keys[:, :now].flatten(1, 2), torch.cat(self.carried, dim=1))
            places = with_places(queries, self.grid, True), with_places(last, self.grid, False)
            near = _attend(*places, self.carried[-1])
            return induced, *(x.transpose(1, 2).unflatten(2, self.grid) for x in (carried, near))


def _attend(queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """(B, M, D) from (B, M, E), (B, L, E) and (B, L, D)."""
    return F.softmax(queries @ keys.transpose(1, 2) / TEMPERATURE, dim=-1) @ values


def _head(method: Method) -> nn.Module:
    assert isinstance(method.networks, LightNetwork)
    return method.networks.head


RECIPE = Recipe(
    "joint",
    EFFICIENTNET,
    _head,
    lambda method: JOINTLoss(),
    training={"steps": 2400, "learning_rate": 1.5e-3, "warmup": 60},
    clips={"stills": 0.5, "stills_first": 150, "dropout": 0.1},
)
"""How the training of the bundled weights begins; their model card has the rest."""
