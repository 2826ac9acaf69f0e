"""What FRTM knows of one object: its target model, the samples it learns from, and their sum.

Learning needs the weighted sum of the normal equations of all samples. The sum is updated with every sample
that is added or replaced, so an update costs the same however many there are; a replaced sample is
subtracted, for which its projected features are stored. An insertion scales the old sum by about 0.9, and its
rounding errors with it, so they do not accumulate. The sum is stored and solved in float64: normal equations
square the condition of the problem, and the system is too small for that to cost anything.

The normal equations of a new sample cost the most. They can be deferred: samples wait, and a draft of the
model takes them in while the model itself is used unchanged.

    draft = study(model, model.stop_waiting(), iterations=10, rule=rule)     # in any thread
    model.adopt(draft)
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import torch

from streamvos.methods.state_dicts import check_shapes, part_of, with_prefix
from streamvos.nn.target_model.conjugate_gradient import Directions
from streamvos.nn.target_model.learning import (
    LearningRule,
    Samples,
    TargetWeights,
    learn_filters,
    normal_equations,
)
from streamvos.nn.target_model.sample_weights import SampleWeights
from streamvos.types import InputError

MOST_WAITING = 8
"""Samples of an object that wait for a task; of more than these the oldest is never learned from."""

Sample = tuple[torch.Tensor, Samples]
"""(1, c, h, w) and its quadratic form."""


class Exchange(NamedTuple):
    """How a sample enters a memory.

    Attributes:
        slot: where.
        scale: what the sums are multiplied by.
        gone: the weight with which the slot's old sample is then subtracted; 0 = the slot was empty.
        new: the weight of the new sample.
        importance: of every slot, afterwards.
    """

    slot: int
    scale: float
    gone: float
    new: float
    importance: SampleWeights


class ObjectModel:
    """One object's target model and memory.

    Args:
        weights: as fitted to the first frame.
        projected: (n, c, h, w), the first frame's samples.
        samples: the quadratic forms of these n samples.
        importance: of their slots, 0..n-1.

    Attributes:
        weights: the target model's two convolutions.
        frames: how many frames were tracked since the object's first.
        importance: of every slot.
        matrix, right: (9c, 9c) and (9c,) float64, the weighted sum of the samples' normal equations.
        directions: what the last learning passes on to the next.
        waiting: samples to take in, oldest first, where that is deferred.
        due: whether new filters are to be learned with them.
    """

    def __init__(
        self, weights: TargetWeights, projected: torch.Tensor, samples: Samples, importance: SampleWeights
    ):
        self.weights, self.frames, self.importance = weights, 0, importance
        self.directions: Directions | None = None
        self.waiting: deque[Sample] = deque(maxlen=MOST_WAITING)
        self.due = False
        capacity, (h, w) = len(importance.values), projected.shape[-2:]
        # not zeros: pages that were never written take no memory
        self._projected = projected.new_empty(capacity, *projected.shape[1:])
        self._samples = Samples(projected.new_empty(capacity, 9, h, w), projected.new_empty(capacity, h, w))
        self.store(slice(0, len(projected)), projected, samples)
        size = 9 * projected.shape[1]
        self.matrix = projected.new_zeros(size, size, dtype=torch.float64)
        self.right = projected.new_zeros(size, dtype=torch.float64)

    @classmethod
    def begin(
        cls, weights: TargetWeights, projected: torch.Tensor, samples: Samples, importance: SampleWeights
    ) -> ObjectModel:
        """The model of an object on its first frame; see the class for the arguments."""
        model = cls(weights, projected, samples, importance)
        # one by one: in full they are some megabytes each
        for k in range(len(projected)):
            one = slice(k, k + 1)
            matrix, right = normal_equations(projected[one], samples.part(one))
            share = float(importance.values[k])
            model.matrix.add_(matrix[0], alpha=share)
            model.right.add_(right[0], alpha=share)
        return model

    @property
    def grid(self) -> tuple[int, int]:
        """(h, w) of the features."""
        return self._projected.shape[-2], self._projected.shape[-1]

    def make_room(self) -> Exchange:
        """Choose the slot of a new sample and say how the sums change; nothing is changed yet."""
        before, importance = self.importance.values.clone(), self.importance.copy()
        slot = importance.insert()
        after = importance.values
        gone = float(before[slot])
        before[slot] = 0
        heaviest = int(before.argmax())  # all that stay are scaled alike; this one has the most digits
        scale = float(after[heaviest] / before[heaviest]) if before[heaviest] > 0 else 0.0
        return Exchange(slot, scale, scale * gone, float(after[slot]), importance)

    def remembered(self, slot: int) -> Sample:
        """(1, c, h, w) and the sample, of one slot."""
        part = slice(slot, slot + 1)
        return self._projected[part], self._samples.part(part)

    def state_dict(self) -> dict[str, torch.Tensor]:
        """Tensors only; copies."""
        filled = len(self.importance)
        state = {
            "projection": self.weights.projection,
            "filter": self.weights.filter,
            "projected": self._projected[:filled],
            "stencil": self._samples.stencil[:filled],
            "labels": self._samples.right[:filled],
            "matrix": self.matrix,
            "right": self.right,
            "frames": torch.tensor(self.frames),
        }
        if self.directions is not None:
            state |= with_prefix("directions.", self.directions._asdict())
        state |= with_prefix("importance.", self.importance.state_dict())
        return {name: value.clone() for name, value in state.items()}

    @classmethod
    def from_state(cls, state: Mapping[str, torch.Tensor], importance: SampleWeights) -> ObjectModel:
        """What `state_dict` described.

        Args:
            state: of one object.
            importance: fresh, of the right capacity and rule.

        Raises:
            InputError: something is missing or does not fit together.
        """
        importance.load_state_dict(part_of(state, "importance."))
        _check(state, len(importance))
        weights = TargetWeights(state["projection"].clone(), state["filter"].clone())
        model = cls(weights, state["projected"], Samples(state["stencil"], state["labels"]), importance)
        model.matrix, model.right = state["matrix"].clone(), state["right"].clone()
        model.frames = int(state["frames"])
        if "directions.direction" in state:
            kept = (state[f"directions.{name}"].clone() for name in Directions._fields)
            model.directions = Directions(*kept)
        return model

    def store(self, slots: slice, projected: torch.Tensor, samples: Samples) -> None:
        """Put samples into slots; the sums are the caller's."""
        self._projected[slots] = projected
        for kept, value in zip(self._samples, samples, strict=True):
            kept[slots] = value

    def stop_waiting(self) -> list[Sample]:
        """Take the waiting samples out."""
        samples = list(self.waiting)
        self.waiting.clear()
        return samples

    def adopt(self, draft: Draft) -> None:
        """Become what a draft of this model has become; this model was not changed meanwhile."""
        for slot, (projected, samples) in draft.exchanged.items():
            self.store(slice(slot, slot + 1), projected, samples)
        self.weights, self.directions, self.importance = draft.weights, draft.directions, draft.importance
        self.matrix, self.right = draft.matrix, draft.right

    def tensors(self) -> Iterator[torch.Tensor]:
        """All tensors on the device of the features, except the waiting samples."""
        yield from (*self.weights, self.matrix, self.right, *(self.directions or ()))
        yield from (self._projected, *self._samples)


class Draft(ObjectModel):
    """A model's next version, made while the model itself is in use; the model's slots are only read.

    Attributes:
        exchanged: slot -> the new sample.
    """

    def __init__(self, model: ObjectModel):
        self.weights, self.frames, self.importance = model.weights, model.frames, model.importance
        self.directions = model.directions
        self.matrix, self.right = model.matrix.clone(), model.right.clone()
        self._projected, self._samples = model._projected, model._samples
        self.exchanged: dict[int, Sample] = {}

    def remembered(self, slot: int) -> Sample:
        return self.exchanged.get(slot) or super().remembered(slot)

    def store(self, slots: slice, projected: torch.Tensor, samples: Samples) -> None:
        self.exchanged[slots.start] = projected, samples

    def tensors(self) -> Iterator[torch.Tensor]:
        yield from (*self.weights, self.matrix, self.right, *(self.directions or ()))


def study(model: ObjectModel, waiting: Sequence[Sample], iterations: int, rule: LearningRule) -> Draft:
    """Take samples in, one after the other, and learn new filters unless `iterations` is 0.

    Args:
        model: is not changed; it may be read meanwhile, in other threads too.
        waiting: oldest first.
        iterations: of conjugate gradient.
        rule: of learning.

    Returns:
        The draft for the model to adopt.
    """
    draft = Draft(model)
    for projected, samples in waiting:
        remember([draft], projected, samples)
    if iterations:
        refit([draft], iterations, rule)
    return draft


def remember(models: Sequence[ObjectModel], projected: torch.Tensor, samples: Samples) -> None:
    """A sample for each of several objects.

    Args:
        models: the K objects.
        projected: (K, c, h, w).
        samples: of K samples.
    """
    changes = [model.make_room() for model in models]
    replaced = [k for k, change in enumerate(changes) if change.gone > 0]
    old = [models[k].remembered(changes[k].slot) for k in replaced]
    all_projected = torch.cat([projected, *(features for features, _ in old)])
    all_samples = Samples(
        torch.cat([samples.stencil, *(sample.stencil for _, sample in old)]),
        torch.cat([samples.right, *(sample.right for _, sample in old)]),
    )
    matrices, rights = normal_equations(all_projected, all_samples)
    for k, (model, change) in enumerate(zip(models, changes, strict=True)):
        terms = [(k, change.new)]
        if change.gone > 0:
            terms.append((len(models) + replaced.index(k), -change.gone))
        for total, parts in ((model.matrix, matrices), (model.right, rights)):
            total.mul_(change.scale)
            for row, weight in terms:
                total.add_(parts[row], alpha=weight)
        one = slice(k, k + 1)
        model.store(slice(change.slot, change.slot + 1), projected[one], samples.part(one))
        model.importance = change.importance


def refit(models: Sequence[ObjectModel], iterations: int, rule: LearningRule) -> None:
    """New filters for several objects, learned from their memories."""
    before = None
    if rule.forgetting is not None:
        kept = [model.directions or Directions.none(model.right[None]) for model in models]
        before = Directions(*map(torch.cat, zip(*kept, strict=True)))
    filters, directions = learn_filters(
        torch.cat([model.weights.filter for model in models]),
        [model.matrix for model in models],
        torch.stack([model.right for model in models]),
        iterations,
        rule,
        before,
    )
    for k, model in enumerate(models):
        part = slice(k, k + 1)
        model.weights = TargetWeights(model.weights.projection, filters[part])
        model.directions = (
            None if rule.forgetting is None else Directions(*(each[part] for each in directions))
        )


def _check(state: Mapping[str, torch.Tensor], filled: int) -> None:
    """Raises InputError unless `state` describes a model whose memory holds `filled` samples."""
    projected, projection = state.get("projected"), state.get("projection")
    if projected is None or projected.ndim != 4 or projection is None or projection.ndim != 4 or not filled:
        raise InputError(f"the state of an object has no samples of features (keys {sorted(state)[:12]})")
    _, channels, h, w = projected.shape
    size = 9 * channels
    shapes: dict[str, tuple[int, ...]] = {
        "projection": (channels, projection.shape[1], 1, 1),
        "filter": (1, channels, 3, 3),
        "projected": (filled, channels, h, w),
        "stencil": (filled, 9, h, w),
        "labels": (filled, h, w),
        "matrix": (size, size),
        "right": (size,),
        "frames": (),
    }
    if part_of(state, "directions."):
        shapes |= {
            "directions.direction": (1, size),
            "directions.residual": (1, size),
            "directions.rho": (1, 1),
        }
    check_shapes(state, shapes)
