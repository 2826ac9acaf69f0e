"""What FRTM does with one stream: start objects, score frames, learn from predictions.

With `defer`, an object begins with a model trained on its given mask alone, without the synthetic frames; a
background task trains the full model. Later tasks add the remembered frames, which takes most of the time,
and refit the filters when that is due.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import NamedTuple

import torch

from streamvos.methods.background import Modes, TrainingTask, TrainingTasks, use_on_current_stream
from streamvos.methods.base import Target
from streamvos.methods.frtm.augmentation import augment
from streamvos.methods.frtm.memory import Draft, ObjectModel, refit, remember, study
from streamvos.methods.frtm.options import TARGET_LEVEL, FRTMOptions
from streamvos.methods.state_dicts import ids_of, part_of, with_prefix
from streamvos.nn.target_model.learning import (
    Samples,
    TargetWeights,
    learn_both,
    make_samples,
    project,
    score,
)
from streamvos.nn.transfer import Arrival, take
from streamvos.types import Evidence, Features, InputError

TargetFeatures = Callable[[torch.Tensor], torch.Tensor]
"""Frames (B, 3, H, W) -> the features that the target model works on, (B, C, h, w)."""

InitialWeights = Callable[[int, int, int], TargetWeights]
"""(object id, channels of the features, channels of the target model) -> where learning starts."""


def soft_labels(probabilities: torch.Tensor, options: FRTMOptions) -> torch.Tensor:
    """(1 + K, H, W) as decoded to (K, H, W), what a target model learns: a winner's share where it wins."""
    objects = probabilities[1:]
    if options.aggregation != "youtube":
        return objects
    # every object's share is known everywhere, but only winners are learned from
    winner = probabilities.argmax(0, keepdim=True) - 1
    channels = torch.arange(len(objects), device=objects.device)[:, None, None]
    return torch.where(winner == channels, objects, 0)


class _Pending(NamedTuple):
    """A frame to learn from once the host knows which objects were visible in it.

    Attributes:
        object_ids: K.
        projected: (K, c, h, w).
        soft: (K, H, W).
        seen: (K,) bool, on its way to the host.
        mode: torch's modes in which the frame was tracked.
    """

    object_ids: tuple[int, ...]
    projected: torch.Tensor
    soft: torch.Tensor
    seen: Arrival
    mode: Modes


class FRTMTarget(Target):
    """The target models of one stream's objects.

    An annotated object is learned anew from that frame; the others go on as if it were predicted.

    The host has to know which objects were visible in a frame before it is learned from. On a GPU it does not
    wait for that: the frame is learned from at the start of the next call, when the answer has long arrived.

    Attributes:
        late: whether learning waits for the next call; None = on a GPU.
    """

    def __init__(
        self, options: FRTMOptions, target_features: TargetFeatures, initial_weights: InitialWeights
    ):
        self.options = options
        self._target_features, self._initial_weights = target_features, initial_weights
        self._models: dict[int, ObjectModel] = {}
        self._size: tuple[int, int] | None = None
        self._projections: torch.Tensor | None = None  # (K, c, C, 1, 1), of all objects
        self._read: tuple[Features, torch.Tensor] | None = None  # the frame between read and write, projected
        self._tasks = TrainingTasks()
        self._pending: _Pending | None = None
        self.late: bool | None = None

    @property
    def object_ids(self) -> tuple[int, ...]:
        return tuple(self._models)

    def annotate(
        self,
        features: Features,
        label_map: torch.Tensor,
        object_ids: tuple[int, ...],
        named: tuple[int, ...] | None = None,
        probabilities: torch.Tensor | None = None,
    ) -> None:
        self._settle()
        new, old = self.new_and_kept(object_ids, named)
        if old:
            self._check(features)
        if tuple(label_map.shape) != features.size:
            raise InputError(f"the label map is {tuple(label_map.shape)}, the frame {features.size}")
        if probabilities is not None and probabilities.shape != (1 + len(object_ids), *features.size):
            raise InputError(
                f"{len(object_ids)} objects, but probabilities of shape {tuple(probabilities.shape)}"
            )
        for i in new:
            if not (label_map == i).any():
                raise InputError(f"object {i} has no pixel to learn from")
        started = {i: self._start(features, label_map == i, i, alone=self.defer) for i in new}
        if old:
            if probabilities is None:
                soft = torch.stack([label_map == i for i in old]).to(features["frame"].dtype)
            else:
                soft = soft_labels(probabilities, self.options)[[object_ids.index(i) for i in old]]
            self._remember(features, old, soft)
            self._settle()
        self._tasks.cancel(set(self._models) - set(old))
        self._models = {i: started[i] if i in started else self._models[i] for i in object_ids}
        self._size, self._projections, self._read = features.size, None, None
        if self.defer and self.options.augmentations > 1:  # otherwise nothing was left out
            own = Features({name: features[name].clone() for name in ("frame", TARGET_LEVEL)}, features.size)
            for i in new:
                self._put_off(i, partial(self._start, own, label_map == i, i))

    def read(self, features: Features) -> Evidence:
        self._settle()
        if not self._models:
            raise InputError("no object to look for yet; annotate a frame first")
        self._check(features)
        projected = self._project(features)
        self._read = (features, projected)
        filters = torch.cat([model.weights.filter for model in self._models.values()])  # (K, c, 3, 3)
        levels = {name: level for name, level in features.maps.items() if name != "frame"}
        return Evidence({**levels, "scores": score(projected, filters)}, self.object_ids)

    def write(self, features: Features, probabilities: torch.Tensor) -> None:
        self._settle()
        self._check(features)
        if probabilities.shape != (1 + len(self._models), *features.size):
            raise InputError(
                f"{len(self._models)} objects, but probabilities of shape {tuple(probabilities.shape)}"
            )
        if self._models:
            self._remember(features, self.object_ids, soft_labels(probabilities, self.options))
        self._read = None

    def forget(self, object_id: int) -> None:
        self._settle()
        self.check_followed(object_id)
        self._models = {i: model for i, model in self._models.items() if i != object_id}
        self._projections, self._read = None, None
        self._tasks.cancel((object_id,))

    def state_dict(self) -> dict[str, torch.Tensor]:
        self._settle()
        state = {"object_ids": torch.tensor(self.object_ids, dtype=torch.int64)}
        if self._size is not None:
            state["size"] = torch.tensor(self._size, dtype=torch.int64)
        for i, model in self._models.items():
            state |= with_prefix(f"{i}.", model.state_dict())
        return state

    def load_state_dict(self, state: Mapping[str, torch.Tensor]) -> None:
        ids = ids_of(state, "FRTM")
        if ids and ("size" not in state or state["size"].shape != (2,)):
            raise InputError("the state lacks the size of its frames")
        first = self.options.first_importance
        models = {i: ObjectModel.from_state(part_of(state, f"{i}."), first(1)) for i in ids}
        grids = {model.grid for model in models.values()}
        if len(grids) > 1:
            raise InputError(f"the state's objects have features of different sizes: {sorted(grids)}")
        size = [int(side) for side in state["size"]] if "size" in state else None
        self._tasks.cancel(self._models)
        self._pending = None
        self._models, self._size = models, None if size is None else (size[0], size[1])
        self._projections, self._read = None, None

    def take_tasks(self) -> list[TrainingTask]:
        if self._pending is not None and self._pending.seen.ready():  # otherwise with the next frame
            self._settle()
        return self._tasks.hand_out()

    def take_over(self, task: TrainingTask) -> bool:
        self._settle()
        for i in self._tasks.finish(task):  # there is one, or none
            model, learned = self._models[i], task.collect()
            use_on_current_stream(learned.tensors())
            if isinstance(learned, Draft):
                with task.mode():
                    model.adopt(learned)
            else:
                # samples remembered since then were projected by weights that are given up here
                learned.frames = model.frames
                self._models[i], self._projections, self._read = learned, None, None
            return True
        return False

    def _put_off(self, object_id: int, work: Callable[[], ObjectModel]) -> None:
        self._tasks.add(TrainingTask((object_id,), work, self._models[object_id].matrix.device))

    def _start(
        self, features: Features, mask: torch.Tensor, object_id: int, alone: bool = False
    ) -> ObjectModel:
        """The model of an object, from its mask (H, W) bool on its first frame; without others if `alone`."""
        options = self.options
        images, masks = (
            (features["frame"][:0], mask[None]) if alone else self._augment(features["frame"], mask)
        )
        own = features[TARGET_LEVEL]  # (1, C, h, w)
        parts = images.split(options.objects_per_batch)
        synthetic = [self._target_features(part).to(own.dtype) for part in parts]
        x = _solvable(torch.cat([own, *synthetic]))  # (n, C, h, w)
        importance = options.first_importance(len(x))
        shares = importance.values[: len(x)].to(x)
        samples = self._samples(masks.to(x.dtype), (x.shape[-2], x.shape[-1]))
        initial = self._initial_weights(object_id, x.shape[1], options.target_channels)
        weights = learn_both(x, samples, shares, initial, options.init_iterations, options.rule)
        model = ObjectModel.begin(weights, project(x, weights.projection), samples, importance)
        if options.last_init_step == "authors":
            refit([model], options.update_iterations, options.rule)
        return model

    def _augment(self, frame: torch.Tensor, mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(n - 1, 3, H, W) synthetic frames, and (n, H, W) the masks, the given one first."""
        options = self.options
        if options.augmentations == 1:
            return frame[:0], mask[None]
        image = (frame[0].permute(1, 2, 0) * 255).round().to(torch.uint8).cpu().numpy()
        images, masks = augment(image, mask.cpu().numpy(), options.augmentations, options.fill, options.seed)
        synthetic = torch.from_numpy(images[1:]).to(frame.device).permute(0, 3, 1, 2).to(frame.dtype) / 255
        return synthetic, torch.from_numpy(masks).to(frame.device)

    def _remember(self, features: Features, object_ids: tuple[int, ...], soft: torch.Tensor) -> None:
        """Learn from the visible objects of a tracked frame, soft (K, H, W), and refit those due."""
        every = self._project(features)  # (K, c, h, w)
        rows = [self.object_ids.index(i) for i in object_ids]
        projected = every if len(rows) == len(every) else take(every, rows)
        seen = Arrival((soft > 0.5).sum((1, 2)) >= self.options.min_pixels)
        self._pending = _Pending(object_ids, projected, soft, seen, Modes())
        late = soft.device.type != "cpu" if self.late is None else self.late
        if not late:
            self._settle()

    def _settle(self) -> None:
        """Learn from the pending frame, now that the host needs to know which objects were visible."""
        pending, self._pending = self._pending, None
        if pending is not None:
            visible = pending.seen.values().tolist()
            with pending.mode():
                self._learn_from(pending, visible)

    def _learn_from(self, frame: _Pending, visible: list[bool]) -> None:
        object_ids, projected, soft = frame.object_ids, frame.projected, frame.soft
        models = [self._models[i] for i in object_ids]
        for part in self._batches([k for k, seen in enumerate(visible) if seen]):
            grid = (projected.shape[-2], projected.shape[-1])
            samples = self._samples(take(soft, part).to(projected.dtype), grid)
            if not self.defer:
                remember([models[k] for k in part], take(projected, part), samples)
                continue
            for row, k in enumerate(part):
                one = Samples(*(value[row : row + 1].clone() for value in samples))
                models[k].waiting.append((projected[k : k + 1].clone(), one))
        for model in models:
            model.frames += 1
        interval = self.options.update_interval
        due = [k for k, model in enumerate(models) if visible[k] and model.frames % interval == 0]
        if self.defer:
            for k in due:
                models[k].due = True
            self._put_learning_off(object_ids)
            return
        for part in self._batches(due):
            refit([models[k] for k in part], self.options.update_iterations, self.options.rule)

    def _put_learning_off(self, object_ids: tuple[int, ...]) -> None:
        """Tasks for the objects that have something to learn and no unfinished task."""
        options = self.options
        for i in object_ids:
            model = self._models[i]
            if self._tasks.concern(i) or not (model.waiting or model.due):
                continue
            iterations, model.due = options.update_iterations if model.due else 0, False
            self._put_off(i, partial(study, model, model.stop_waiting(), iterations, options.rule))

    def _project(self, features: Features) -> torch.Tensor:
        """(K, c, h, w), the frame as the target models of all objects see it."""
        if self._read is not None and self._read[0] is features:
            return self._read[1]
        if self._projections is None:
            self._projections = torch.stack([model.weights.projection for model in self._models.values()])
        return project(_solvable(features[TARGET_LEVEL]), self._projections)

    def _samples(self, labels: torch.Tensor, grid: tuple[int, int]) -> Samples:
        options = self.options
        return make_samples(labels, grid, options.least_share, options.min_pixels, options.pixel_weights)

    def _batches(self, rows: Sequence[int]) -> Iterator[list[int]]:
        for start in range(0, len(rows), self.options.objects_per_batch):
            yield list(rows[start : start + self.options.objects_per_batch])

    def _check(self, features: Features) -> None:
        if self._models and features.size != self._size:
            raise InputError(f"the objects were given in frames of {self._size}, this one is {features.size}")


def _solvable(features: torch.Tensor) -> torch.Tensor:
    """At least in float32, in which the target model can be fitted."""
    return features.to(torch.promote_types(features.dtype, torch.float32))
