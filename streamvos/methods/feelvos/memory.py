"""What a FEELVOS target remembers: references of all objects, and the previous frame.

    memory = Memory(object_ids=(1, 4), grid=(120, 214), ...)
    cells, labels = memory.candidates()                 # of global matching
    memory = memory.without(4)

It is a value: a target replaces it as a whole, so that a call that fails leaves the old one in place.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch

from streamvos.methods.state_dicts import check_shapes, ids_of
from streamvos.types import VOID, InputError

_TENSORS = (
    "annotated",
    "annotated_labels",
    "older",
    "older_labels",
    "previous",
    "previous_labels",
    "previous_probabilities",
    "recent",
    "recent_labels",
)


@dataclass(frozen=True)
class Memory:
    """The references and the previous frame.

    The references of an object are its cells in the frame in which it was last given; those of the
    background are the background's cells in the last annotated frame, since a new object was background
    before. Labels that other objects have there by prediction are stored too.

    Attributes:
        object_ids: ascending.
        grid: (h, w).
        annotated: (h*w, C), embedding of the frame annotated last.
        annotated_labels: (h*w,) int64, ids, 0 or void.
        first: whether that frame was the first to be annotated.
        given: the ids whose reference lies in that frame.
        older, older_labels: (N, C) and (N,) int64, the references from frames before it.
        previous: (h*w, C), embedding of the previous frame.
        previous_labels: (h*w,) int64, ids, 0 or void.
        previous_probabilities: (1 + K, h*w); (0, 0) where `previous` is "hard".
        recent, recent_labels: (R, h*w, C) and (R, h*w) int64, predicted frames since then, the oldest first;
            none in the authors' form.
        age: frames since the last annotation.
    """

    object_ids: tuple[int, ...]
    grid: tuple[int, int]
    annotated: torch.Tensor
    annotated_labels: torch.Tensor
    first: bool
    given: tuple[int, ...]
    older: torch.Tensor
    older_labels: torch.Tensor
    previous: torch.Tensor
    previous_labels: torch.Tensor
    previous_probabilities: torch.Tensor
    recent: torch.Tensor
    recent_labels: torch.Tensor
    age: int

    @property
    def channels(self) -> tuple[int, ...]:
        """The ids with the background."""
        return (0, *self.object_ids)

    def candidates(self) -> tuple[torch.Tensor, torch.Tensor]:
        """(N, C) and (N,): the cells of all references and their ids; void for cells of none."""
        known = torch.tensor((0, *self.given), device=self.annotated_labels.device)
        labels = self.annotated_labels.where(torch.isin(self.annotated_labels, known), VOID)
        return torch.cat([self.annotated, self.older]), torch.cat([labels, self.older_labels])

    def references(self, ids: set[int]) -> tuple[torch.Tensor, torch.Tensor]:
        """(N, C) and (N,): the candidates of these objects only."""
        cells, labels = self.candidates()
        wanted = torch.isin(labels, torch.tensor(sorted(ids), dtype=torch.int64, device=labels.device))
        return cells[wanted], labels[wanted]

    def without(self, object_id: int) -> Memory:
        """The memory without one of `object_ids`.

        It is as if the object had never been followed and its cells were background, unless the object was
        given after the first annotation: its cells may have been another object's before, and become void.
        """
        channel, others = self.channels.index(object_id), self.older_labels != object_id
        left = VOID if object_id in self.given and not self.first else 0
        soft = self.previous_probabilities
        if len(soft):
            soft = torch.cat([soft[:1] + soft[channel], soft[1:channel], soft[channel + 1 :]])
        return replace(
            self,
            object_ids=tuple(i for i in self.object_ids if i != object_id),
            given=tuple(i for i in self.given if i != object_id),
            annotated_labels=self.annotated_labels.masked_fill(self.annotated_labels == object_id, left),
            older=self.older[others],
            older_labels=self.older_labels[others],
            previous_labels=self.previous_labels.masked_fill(self.previous_labels == object_id, 0),
            recent_labels=self.recent_labels.masked_fill(self.recent_labels == object_id, 0),
            previous_probabilities=soft,
        )

    def state_dict(self) -> dict[str, torch.Tensor]:
        """Everything as tensors, for `load_memory`."""
        lists = {
            "object_ids": self.object_ids,
            "grid": self.grid,
            "given": self.given,
            "first": (self.first,),
            "age": (self.age,),
        }
        state = {name: torch.tensor(value, dtype=torch.int64) for name, value in lists.items()}
        return state | {name: getattr(self, name) for name in _TENSORS}


def load_memory(state: Mapping[str, torch.Tensor], soft: bool, dtype: torch.dtype) -> Memory:
    """The memory of a `Memory.state_dict`.

    Args:
        state: the state dict.
        soft: whether the target remembers probabilities.
        dtype: the dtype of the networks.

    Raises:
        InputError: something is missing or does not fit together.
    """
    ids = ids_of(state, "FEELVOS")
    missing = {*_TENSORS, "grid", "given", "first", "age"} - set(state)
    if missing:
        raise InputError(f"this is no state of a FEELVOS target: {sorted(missing)} missing")
    grid, given = (tuple(state[name].flatten().tolist()) for name in ("grid", "given"))
    if set(given) - set(ids):
        raise InputError(f"the state has references of objects {given}, but follows {ids} only")
    if len(grid) != 2 or min(grid) < 1:
        raise InputError(f"the state's grid is (h, w), both at least 1, got {grid}")
    cells, channels = grid[0] * grid[1], int(state["annotated"].shape[-1]) if state["annotated"].ndim else 0
    expected = {
        "annotated": (cells, channels),
        "annotated_labels": (cells,),
        "older": (*state["older"].shape[:1], channels),
        "older_labels": (*state["older"].shape[:1],),
        "previous": (cells, channels),
        "previous_labels": (cells,),
        "previous_probabilities": (1 + len(ids), cells) if soft else (0, 0),
        "recent": (*state["recent"].shape[:1], cells, channels),
        "recent_labels": (*state["recent"].shape[:1], cells),
    }
    check_shapes(state, expected)
    for name in expected:
        value = state[name]
        if name.endswith("labels"):
            strange = set(torch.unique(value).tolist()) - {0, VOID, *ids}
            if value.dtype != torch.int64 or strange:
                raise InputError(f"the state's {name} holds labels of no object: {sorted(strange)[:8]}")
        elif value.dtype != dtype:
            raise InputError(f"the state's {name} is {value.dtype}, the networks are {dtype}")
    first = state["first"].flatten().tolist() == [1]
    tensors = {name: state[name] for name in _TENSORS}
    if state["age"].numel() != 1:
        raise InputError(f"the state's age is one number, got {state['age'].numel()}")
    age = int(state["age"])
    return Memory(object_ids=ids, grid=(grid[0], grid[1]), first=first, given=given, age=age, **tensors)
