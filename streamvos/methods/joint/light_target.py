"""The state of a stream in JOINT on EfficientNet-Lite0: remembered frames, their encoded masks, and filters.

Objects that were given on the same frame share a memory. It holds their first frame, the most recent ones of
every few frames, and the last frame. A remembered frame never changes, so copies of a memory share it; with
`defer`, a task learns filters from such a copy and nothing else is put off.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F

from streamvos.methods.background import TrainingTask, TrainingTasks, use_on_current_stream
from streamvos.methods.base import Target
from streamvos.methods.joint.few_shot import FewShotProblem, convolve, steepest_descent
from streamvos.methods.joint.light import LEVELS, LightHead, with_places
from streamvos.methods.joint.network import Labels
from streamvos.methods.joint.options import JOINTOptions
from streamvos.methods.joint.transformer import attention_sums
from streamvos.methods.state_dicts import check_shapes, ids_of, part_of, with_prefix
from streamvos.nn.precision import in_precision
from streamvos.nn.target_model.sample_weights import SampleWeights
from streamvos.nn.transfer import take
from streamvos.types import Evidence, Features, InputError

FIRST_STEPS = 5
"""Steps of the learner on an object's first frame if the others are deferred."""


class Picture(NamedTuple):
    """A remembered frame.

    Attributes:
        tokens: (h*w, C) features of the learner.
        keys: (h*w, E) of unit length.
        induction, importance, carried: (K, D, h, w) `Labels`.
    """

    tokens: torch.Tensor
    keys: torch.Tensor
    induction: torch.Tensor
    importance: torch.Tensor
    carried: torch.Tensor

    def pick(self, rows: list[int]) -> Picture:
        """With some of the objects."""
        return Picture(self.tokens, self.keys, *(take(part, rows) for part in self[2:]))


class LightMemory:
    """What is remembered of K objects that were given on the same frame.

    Args:
        head, options: the method's.
        object_ids: the K ids.
        first: the frame on which they were given.

    Attributes:
        filters: (K, D, C, 3, 3).
        pictures: by slot, the first frame in slot 0.
        last: the last frame.
        frames: how many frames the objects have been followed, the first included.
    """

    filters: torch.Tensor

    def __init__(self, head: LightHead, options: JOINTOptions, object_ids: tuple[int, ...], first: Picture):
        self.head, self.options, self.object_ids = head, options, object_ids
        self.pictures, self.last, self.frames = [first], first, 1
        self.weights = SampleWeights(
            options.memory_size, options.learning_rate, torch.ones(1), True, options.first_weight_floor
        )
        self.filters = first.tokens.new_zeros(*first.induction.shape[:2], first.tokens.shape[1], 3, 3)

    @property
    def grid(self) -> tuple[int, int]:
        """(h, w)."""
        return self.last.carried.shape[-2], self.last.carried.shape[-1]

    def copy(self) -> LightMemory:
        """An independent memory with the same pictures."""
        other = LightMemory(self.head, self.options, self.object_ids, self.last)
        other.pictures, other.filters, other.frames = list(self.pictures), self.filters, self.frames
        other.weights = self.weights.copy()
        return other

    def read(self, tokens: torch.Tensor, keys: torch.Tensor) -> torch.Tensor:
        """The encoding (K, D, h, w) of a frame's masks; tokens (h*w, C), keys (h*w, E)."""
        grid, last = self.grid, self.last
        induced = convolve(tokens[None], self.filters[None], grid)[0, :, 0]  # (K, D, h, w)
        far = [attention_sums(keys, p.keys, _values(p)) for p in (*self.pictures, last)]
        numerator, denominator = (torch.stack(sums).sum(0) for sums in zip(*far, strict=True))
        near = attention_sums(
            with_places(keys, grid, True), with_places(last.keys, grid, False), _values(last)
        )
        carried = (numerator / denominator).t().reshape_as(induced)
        return self.head.join(induced, carried, (near[0] / near[1]).t().reshape_as(induced))

    def write(self, picture: Picture) -> bool:
        """The masks of a frame are known; returns whether there is something to learn."""
        due = self.frames > 1 and self.frames % self.options.update_interval == 0
        if due:  # the last frame is kept
            slot = self.weights.insert()
            self.pictures[slot : slot + 1] = [self.last]
        self.last, self.frames = picture, self.frames + 1
        return due

    def learn(self, steps: int) -> LightMemory:
        """Improve the filters on all pictures that are kept; returns itself."""
        parts = [torch.stack(part) for part in zip(*self.pictures, strict=True)]  # (N, ...)
        gamma = self.weights.values[: len(self.pictures)].to(self.filters, non_blocking=True).sqrt()
        problem = FewShotProblem(
            parts[0].flatten(0, 1)[None],
            parts[2].transpose(0, 1)[None],
            (parts[3] * gamma[:, None, None, None, None]).transpose(0, 1)[None],
            self.grid,
        )
        regularization = self.head.learner.regularization
        self.filters = steepest_descent(self.filters[None], problem, regularization, steps)[0]
        return self

    def begin(self, steps: int) -> LightMemory:
        """Fit the filters to the pictures anew; returns itself."""
        self.filters = torch.zeros_like(self.filters)
        return self.learn(steps)

    def keep(self, object_ids: tuple[int, ...]) -> None:
        """Forget the other objects."""
        if object_ids == self.object_ids:
            return
        rows = [self.object_ids.index(i) for i in object_ids]
        self.object_ids, self.filters = object_ids, take(self.filters, rows)
        self.pictures, self.last = [p.pick(rows) for p in self.pictures], self.last.pick(rows)

    def state_dict(self) -> dict[str, torch.Tensor]:
        """Tensors only."""
        pictures = (torch.stack(part) for part in zip(*self.pictures, self.last, strict=True))
        return {
            **dict(zip(Picture._fields, pictures, strict=True)),
            **with_prefix("weights.", self.weights.state_dict()),
            "filters": self.filters.clone(),
            "frames": torch.tensor(self.frames),
            "object_ids": torch.tensor(self.object_ids),
        }

    @staticmethod
    def from_state_dict(
        head: LightHead, options: JOINTOptions, state: Mapping[str, torch.Tensor]
    ) -> LightMemory:
        """Continue from a `state_dict`.

        Raises:
            InputError: something is missing or does not fit.
        """
        ids, most = tuple(int(i) for i in state["object_ids"]), options.memory_size + 1
        carried = state.get("carried", torch.empty(0, 0, 0))
        count, grid = len(carried), carried.shape[-2:]
        if not 2 <= count <= most:
            raise InputError(f"the state has {count} pictures, the memory holds 2 to {most}")
        cells, channels = grid.numel(), head.learner.adjust.out_channels
        shapes = {
            "tokens": (count, cells, channels),
            "keys": (count, cells, head.keys.out_channels),
            **dict.fromkeys(Picture._fields[2:], (count, len(ids), head.labels, *grid)),
            "filters": (len(ids), head.labels, channels, 3, 3),
            "frames": (),
        }
        check_shapes(state, shapes)
        parts = (state[name].clone() for name in Picture._fields)
        *pictures, last = (Picture(*each) for each in zip(*parts, strict=True))
        memory = LightMemory(head, options, ids, last)
        memory.weights.load_state_dict(part_of(state, "weights."))
        if len(memory.weights) != len(pictures):
            raise InputError(f"the state has {len(memory.weights)} weights for {len(pictures)} pictures")
        memory.pictures, memory.filters = pictures, state["filters"].clone()
        memory.frames = int(state["frames"])
        return memory


def _values(picture: Picture) -> torch.Tensor:
    """(h*w, K*D): what attention carries from a picture."""
    return picture.carried.flatten(2).flatten(0, 1).t()


class LightTarget(Target):
    """Memories of the objects of one stream.

    Args:
        head, options: the method's.
    """

    def __init__(self, head: LightHead, options: JOINTOptions):
        self.head, self.options = head, options
        self.memories: list[LightMemory] = []
        self._tasks = TrainingTasks()

    @property
    def object_ids(self) -> tuple[int, ...]:
        return tuple(sorted(i for memory in self.memories for i in memory.object_ids))

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
        self._keep(kept)
        self._advance(features, soft, tuple(object_ids))
        if given:
            first = self._picture(features, masks[[object_ids.index(i) for i in given]])
            memory, steps = LightMemory(self.head, self.options, given, first), self.options.init_iterations
            memory.learn(min(FIRST_STEPS, steps) if self.defer else steps)
            self.memories.append(memory)
            if self.defer and steps > FIRST_STEPS:
                copy = memory.copy()
                self._put_off(copy, partial(copy.begin, steps))

    def read(self, features: Features) -> Evidence:
        if not self.memories:
            raise InputError("no object to look for yet; annotate a frame first")
        tokens, keys = _tokens(features)
        said: dict[int, torch.Tensor] = {}
        for memory in self.memories:
            said |= dict(zip(memory.object_ids, memory.read(tokens, keys), strict=True))
        ids = self.object_ids
        levels = {name: features[name] for name in LEVELS}
        return Evidence({"encoding": torch.stack([said[i] for i in ids]), **levels}, ids)

    def write(self, features: Features, probabilities: torch.Tensor) -> None:
        ids = self.object_ids
        expected = (1 + len(ids), *features.size)
        if not ids or tuple(probabilities.shape) != expected:
            raise InputError(f"probabilities are {tuple(probabilities.shape)}, expected {expected}, K > 0")
        self._advance(features, probabilities[1:], ids)

    def forget(self, object_id: int) -> None:
        self.check_followed(object_id)
        self._keep(tuple(i for i in self.object_ids if i != object_id))

    def state_dict(self) -> dict[str, torch.Tensor]:
        state = {"object_ids": torch.tensor(self.object_ids, dtype=torch.int64)}
        for number, memory in enumerate(self.memories):
            state |= with_prefix(f"memory.{number}.", memory.state_dict())
        return state

    def load_state_dict(self, state: Mapping[str, torch.Tensor]) -> None:
        ids, memories = ids_of(state, "JOINT"), list[LightMemory]()
        while "object_ids" in (own := part_of(state, f"memory.{len(memories)}.")):
            memories.append(LightMemory.from_state_dict(self.head, self.options, own))
        if sorted(i for memory in memories for i in memory.object_ids) != list(ids):
            raise InputError(f"the memories of the state are not those of the objects {list(ids)}")
        self._tasks.cancel(self.object_ids)
        self.memories = memories

    def take_tasks(self) -> list[TrainingTask]:
        return self._tasks.hand_out()

    def take_over(self, task: TrainingTask) -> bool:
        ids = self._tasks.finish(task)
        if not ids:
            return False
        learned: LightMemory = task.collect()
        memory = next(memory for memory in self.memories if ids[0] in memory.object_ids)
        use_on_current_stream([learned.filters])
        memory.filters = take(learned.filters, [learned.object_ids.index(i) for i in memory.object_ids])
        return True

    def _put_off(self, copy: LightMemory, learning: Callable[[], LightMemory]) -> None:
        """A task in which a copy of a memory learns."""
        self._tasks.add(TrainingTask(copy.object_ids, learning, copy.filters.device))

    def _keep(self, object_ids: tuple[int, ...]) -> None:
        """Forget the other objects."""
        self._tasks.cancel(set(self.object_ids) - set(object_ids))
        for memory in self.memories:
            memory.keep(tuple(i for i in memory.object_ids if i in object_ids))
        self.memories = [memory for memory in self.memories if memory.object_ids]

    def _advance(self, features: Features, probabilities: torch.Tensor, object_ids: tuple[int, ...]) -> None:
        """The probabilities (K, H, W) of a frame are known."""
        if not self.memories:
            return
        seen = self._picture(features, probabilities)
        for memory in self.memories:
            rows = [object_ids.index(i) for i in memory.object_ids]
            due = memory.write(seen if len(rows) == len(object_ids) else seen.pick(rows))
            if due and not self.defer:
                memory.learn(self.options.update_iterations)
            elif due and not any(self._tasks.concern(i) for i in memory.object_ids):
                copy = memory.copy()
                self._put_off(copy, partial(copy.learn, self.options.update_iterations))

    def _picture(self, features: Features, masks: torch.Tensor) -> Picture:
        """What is remembered of a frame and masks (K, H, W)."""
        finest = features[LEVELS[-1]]
        quarter = F.adaptive_avg_pool2d(masks[:, None], (finest.shape[-2], finest.shape[-1]))
        with in_precision(self.options.precision, masks.device):
            labels = self.head.label_encoder(quarter)
        own = Labels(*(part.to(finest.dtype) for part in labels))
        return Picture(*_tokens(features), own.induction, own.importance, own.transduction)


def _tokens(features: Features) -> tuple[torch.Tensor, torch.Tensor]:
    """(h*w, C) features of the learner and (h*w, E) keys of a frame."""
    tokens, keys = (features[name][0].flatten(1).t().contiguous() for name in ("induction", "keys"))
    return tokens, keys
