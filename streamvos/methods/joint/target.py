"""The state of a stream in JOINT: where each object is looked for, and what is remembered of it.

The order of the steps is the authors': a frame is read in the windows that the last frame determined. When
its probabilities are known, it is remembered if that is due (then the filters learn on and the memory's
encoding is refreshed), and the windows move. All of that happens in `write`.

With `defer`, a background task remembers a frame in a draft of the memory, which then replaces it; frames
that fall due meanwhile are skipped. New objects begin with filters of a few steps, and a task takes the
full number; the features of their first window are needed for the next frame and cannot wait.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import NamedTuple

import torch

from streamvos.methods.background import TrainingTask, TrainingTasks, use_on_current_stream
from streamvos.methods.base import Target
from streamvos.methods.joint.crops import (
    TargetState,
    Windows,
    begin,
    cut_image,
    cut_masks,
    first_windows,
    follow,
    search_windows,
)
from streamvos.methods.joint.few_shot import FewShotProblem, steepest_descent
from streamvos.methods.joint.memory import JOINTMemory
from streamvos.methods.joint.network import JOINTNetwork, Labels, View
from streamvos.methods.joint.options import JOINTOptions
from streamvos.methods.parts import Part
from streamvos.methods.state_dicts import check_shapes, ids_of, part_of, with_prefix
from streamvos.nn.precision import resolve_precision
from streamvos.nn.transfer import take
from streamvos.types import Evidence, Features, InputError

FIRST_STEPS = 5
"""Steps of the learner on an object's first frame if the others are deferred."""


class Seen(NamedTuple):
    """A frame as the target saw it: K objects, K windows, and K rows of the view."""

    features: Features
    object_ids: tuple[int, ...]
    view: View
    windows: Windows


class JOINTTarget(Target):
    """Windows and memories of the objects of one stream.

    Args:
        network, options: the method's.
        backbone: runs the networks on windows, see `streamvos.methods.joint.method.backbone_part`.
    """

    def __init__(self, network: JOINTNetwork, options: JOINTOptions, backbone: Part):
        self.network, self.options, self._backbone = network, options, backbone
        self.memories: list[JOINTMemory] = []
        self.state: TargetState | None = None  # rows in the order of the ids
        self._object_ids: tuple[int, ...] = ()
        self._seen: Seen | None = None
        self._tasks = TrainingTasks()

    @property
    def object_ids(self) -> tuple[int, ...]:
        return self._object_ids

    def annotate(
        self,
        features: Features,
        label_map: torch.Tensor,
        object_ids: tuple[int, ...],
        named: tuple[int, ...] | None = None,
        probabilities: torch.Tensor | None = None,
    ) -> None:
        given, kept = self.new_and_kept(object_ids, named)
        masks = (label_map[None] == torch.tensor(object_ids, device=label_map.device)[:, None, None]).float()
        soft = masks if probabilities is None else probabilities[1:]  # (K, H, W)
        if soft.shape != masks.shape:
            raise InputError(f"probabilities are {tuple(soft.shape)}, expected {tuple(masks.shape)}")
        new = None
        if given:
            new = self._begin(features, masks[[object_ids.index(i) for i in given]], given)
        for i in set(self._object_ids) - set(kept):
            self._drop(i)
        # the tracked objects advance first, as in the authors' wrapper, and then the new ones join
        if kept:
            self._advance(features, soft[[object_ids.index(i) for i in kept]])
        if new is not None:
            self._join(given, *new)
            steps = self.options.init_iterations
            if self.defer and steps > FIRST_STEPS:
                for memory in new[0]:
                    self._put_off(memory, partial(memory.draft().refit, steps))
        self._seen = None

    def read(self, features: Features) -> Evidence:
        seen = self._look(features, with_layers=True)
        tokens = seen.view.transduction  # (K, h*w, C)
        queries = self.network.transformer.queries(
            tokens, resolve_precision(self.options.precision, tokens.device)
        )
        said: dict[int, torch.Tensor] = {}
        for memory in self.memories:
            row = seen.object_ids.index(memory.object_ids[0])
            answer = memory.read(seen.view.induction[row], queries[row])
            said |= dict(zip(memory.object_ids, answer, strict=True))
        encoding = torch.stack([said[i] for i in self._object_ids])  # (K, D, h, w)
        maps = {"encoding": encoding, **seen.view.layers, "boxes": seen.windows.boxes()}
        self._seen = seen._replace(view=seen.view._replace(layers={}))
        return Evidence(maps, self._object_ids)

    def write(self, features: Features, probabilities: torch.Tensor) -> None:
        expected = (1 + len(self._object_ids), *features.size)
        if not self._object_ids or tuple(probabilities.shape) != expected:
            raise InputError(f"probabilities are {tuple(probabilities.shape)}, expected {expected}, K > 0")
        self._advance(features, probabilities[1:])
        self._seen = None

    def forget(self, object_id: int) -> None:
        self.check_followed(object_id)
        self._drop(object_id)

    def state_dict(self) -> dict[str, torch.Tensor]:
        state = {"object_ids": torch.tensor(self._object_ids, dtype=torch.int64)}
        if self.state is not None:
            state |= {f"state.{name}": value.clone() for name, value in self.state._asdict().items()}
        for number, memory in enumerate(self.memories):
            state |= with_prefix(f"memory.{number}.", memory.state_dict())
        return state

    def load_state_dict(self, state: Mapping[str, torch.Tensor]) -> None:
        ids = ids_of(state, "JOINT")
        memories: list[JOINTMemory] = []
        while "object_ids" in (own := part_of(state, f"memory.{len(memories)}.")):
            members = tuple(int(i) for i in own["object_ids"])
            memory = JOINTMemory(self.network, self.options, members, self.options.grid)
            memory.load_state_dict(own)
            memories.append(memory)
        if sorted(i for memory in memories for i in memory.object_ids) != list(ids):
            raise InputError(f"the memories of the state are not those of the objects {list(ids)}")
        self.state = _target_state(state, len(ids))
        self._tasks.cancel(self._object_ids)
        self.memories, self._object_ids, self._seen = memories, ids, None

    def take_tasks(self) -> list[TrainingTask]:
        return self._tasks.hand_out()

    def take_over(self, task: TrainingTask) -> bool:
        ids = self._tasks.finish(task)
        if not ids:
            return False
        learned: JOINTMemory = task.collect()
        use_on_current_stream(learned.tensors())
        number = next(n for n, memory in enumerate(self.memories) if ids[0] in memory.object_ids)
        learned.frames = self.memories[number].frames
        self.memories[number] = learned
        return True

    def _put_off(self, memory: JOINTMemory, work: Callable[[], JOINTMemory]) -> None:
        self._tasks.add(TrainingTask(memory.object_ids, work, memory.filters.device))

    def _begin(
        self, features: Features, masks: torch.Tensor, ids: tuple[int, ...]
    ) -> tuple[list[JOINTMemory], TargetState]:
        """Memories and next state of K objects given on this frame, masks (K, H, W); changes nothing."""
        options = self.options
        state = begin(masks, options.search_factor**2, options.crop_size)
        windows = first_windows(state, features.size, options.crop_size)
        view = self._see(features, windows)
        labels = self._encode(masks, windows, (len(ids), 1))  # sequences x objects
        problem = FewShotProblem(
            view.induction, labels.induction[:, :, None], labels.importance[:, :, None], options.grid
        )
        filters = steepest_descent(
            self.network.no_filters(len(ids), 1, view.induction),
            problem,
            self.network.learner.regularization,
            min(FIRST_STEPS, options.init_iterations) if self.defer else options.init_iterations,
        )
        memories = []
        for k, i in enumerate(ids):
            memory = JOINTMemory(self.network, options, (i,), options.grid)
            own = Labels(*(part[k] for part in labels))
            memory.begin(view.induction[k], view.transduction[k], own, filters[k])
            memories.append(memory)
        return memories, follow(state, masks, options.visible, options.scale_limits)

    def _join(self, ids: tuple[int, ...], memories: list[JOINTMemory], state: TargetState) -> None:
        everyone = (*self._object_ids, *ids)
        order = sorted(range(len(everyone)), key=everyone.__getitem__)
        states = [state] if self.state is None else [self.state, state]
        self.state = TargetState.join(states).pick(order)
        self.memories = [*self.memories, *memories]
        self._object_ids = tuple(everyone[k] for k in order)

    def _advance(self, features: Features, probabilities: torch.Tensor) -> None:
        """Remember this frame where that is due, then move the windows; probabilities (K, H, W)."""
        assert self.state is not None
        seen = self._seen
        if seen is None or seen.features is not features:
            seen = self._look(features)
        for memory in self.memories:
            memory.frames += 1
        due = [memory for memory in self.memories if memory.is_due()]
        if self.defer:
            self._put_remembering_off(seen, due, probabilities)
        elif due:
            ids = [i for memory in due for i in memory.object_ids]
            masks = take(probabilities, [self._object_ids.index(i) for i in ids])
            windows = seen.windows.pick([seen.object_ids.index(i) for i in ids])
            labels = self._encode(masks, windows, (-1,))
            counts = [len(memory.object_ids) for memory in due]
            for memory, *own in zip(due, *(part.split(counts) for part in labels), strict=True):
                row = seen.object_ids.index(memory.object_ids[0])
                memory.remember(seen.view.induction[row], seen.view.transduction[row], Labels(*own))
        self.state = follow(self.state, probabilities, self.options.visible, self.options.scale_limits)

    def _put_remembering_off(self, seen: Seen, due: list[JOINTMemory], probabilities: torch.Tensor) -> None:
        """Tasks for the due memories that have no unfinished task; probabilities (K, H, W) of all objects."""
        for memory in due:
            if any(self._tasks.concern(i) for i in memory.object_ids):
                continue
            row, ids = seen.object_ids.index(memory.object_ids[0]), memory.object_ids
            picture = seen.view.induction[row].clone(), seen.view.transduction[row].clone()
            masks = take(probabilities, [self._object_ids.index(i) for i in ids])
            windows = seen.windows.pick([seen.object_ids.index(i) for i in ids])
            self._put_off(memory, partial(self._remember, memory.draft(), *picture, masks, windows))

    def _remember(
        self,
        draft: JOINTMemory,
        induction: torch.Tensor,
        transduction: torch.Tensor,
        masks: torch.Tensor,
        windows: Windows,
    ) -> JOINTMemory:
        """The work of a task; it uses nothing of this target but the networks."""
        draft.remember(induction, transduction, self._encode(masks, windows, (-1,)))
        return draft

    def _drop(self, object_id: int) -> None:
        assert self.state is not None
        self._tasks.cancel((object_id,))
        self.memories = [memory for memory in self.memories if memory.object_ids != (object_id,)]
        keep = [k for k, i in enumerate(self._object_ids) if i != object_id]
        self.state = self.state.pick(keep) if keep else None
        self._object_ids = tuple(self._object_ids[k] for k in keep)

    def _look(self, features: Features, with_layers: bool = False) -> Seen:
        if self.state is None or not self._object_ids:
            raise InputError("no object to look for yet; annotate a frame first")
        windows = search_windows(self.state, features.size, self.options.crop_size)
        return Seen(features, self._object_ids, self._see(features, windows, with_layers), windows)

    def _see(self, features: Features, windows: Windows, with_layers: bool = False) -> View:
        """A window for every object, `objects_at_once` of them at a time through the networks."""
        frame, parts = features["frame"], []
        for start in range(0, len(windows.corner), self.options.objects_at_once):
            crops = cut_image(frame, windows.pick(slice(start, start + self.options.objects_at_once)))
            *layers, induction, transduction = self._backbone(crops)
            named = dict(zip(self.network.layers, layers, strict=True)) if with_layers else {}
            parts.append(View(named, induction, transduction))
        if len(parts) == 1:
            return parts[0]
        return View(
            {name: torch.cat([part.layers[name] for part in parts]) for name in parts[0].layers},
            torch.cat([part.induction for part in parts]),
            torch.cat([part.transduction for part in parts]),
        )

    def _encode(self, masks: torch.Tensor, windows: Windows, shape: tuple[int, ...]) -> Labels:
        """Masks (K, H, W) in their windows, encoded: each (*shape, D, h, w), K spread over `shape`."""
        crops = cut_masks(masks.to(self.network.dtype), windows)[:, None]  # (K, 1, h, w)
        parts = [self.network.label_encoder(some) for some in crops.split(self.options.objects_at_once)]
        return Labels(*(torch.cat(each).unflatten(0, shape) for each in zip(*parts, strict=True)))


def _target_state(state: Mapping[str, torch.Tensor], count: int) -> TargetState | None:
    """Windows out of a state dict.

    Raises:
        InputError: they are missing, or not those of `count` objects.
    """
    if not count:
        return None
    own, shapes = part_of(state, "state."), {"center": (count, 2), "scale": (count,), "base": (count, 2)}
    check_shapes(own, shapes)
    return TargetState(*(own[name].clone() for name in shapes))
