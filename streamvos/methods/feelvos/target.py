"""FEELVOS's target in the authors' form: matching, and the head within `read`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial

import torch
from torch import nn

from streamvos.methods.base import Target
from streamvos.methods.feelvos.memory import Memory, load_memory
from streamvos.methods.feelvos.networks import sample_nearest
from streamvos.methods.feelvos.options import FEELVOSOptions
from streamvos.methods.parts import Part, Tensors
from streamvos.nn.matching.distances import (
    Reference,
    channel_table,
    global_distances,
    local_distances,
    sort_reference,
)
from streamvos.nn.precision import in_precision
from streamvos.types import Evidence, Features, InputError


def head_part(head: nn.Module, options: FEELVOSOptions) -> Part:
    """The head as a part: shared (1, C, h, w) and cues (1 + K, 3, h, w) to logits (1 + K, h, w)."""

    return Part("head", partial(_segment, head, options), (head,), batched=(1,))


def _segment(head: nn.Module, options: FEELVOSOptions, shared: torch.Tensor, cues: torch.Tensor) -> Tensors:
    with in_precision(options.precision, cues.device):
        return (head(shared, cues).to(cues.dtype),)


class FEELVOSTarget(Target):
    """References and the previous frame of one stream.

    Args:
        options: the method's options.
        head: the dynamic head, which holds the weights.
        part: runs the head; None = the head itself.
    """

    def __init__(self, options: FEELVOSOptions, head: nn.Module, part: Part | None = None):
        self.options, self.head = options, head
        self._part = part
        self._memory: Memory | None = None
        self._reference: Reference | None = None
        self._ids = torch.zeros(1, dtype=torch.int64)  # channel -> id, and id -> channel, on the device
        self._table = torch.zeros(0, dtype=torch.int64)
        self._read: torch.Tensor | None = None  # probabilities of the cells between read and write

    @property
    def object_ids(self) -> tuple[int, ...]:
        return () if self._memory is None else self._memory.object_ids

    def annotate(
        self,
        features: Features,
        label_map: torch.Tensor,
        object_ids: tuple[int, ...],
        named: tuple[int, ...] | None = None,
        probabilities: torch.Tensor | None = None,
    ) -> None:
        grid = (features["embedding"].shape[-2], features["embedding"].shape[-1])
        if tuple(label_map.shape) != tuple(features.size):
            raise InputError(f"the label map is {tuple(label_map.shape)}, the frame {tuple(features.size)}")
        labels = self._label_cells(label_map, tuple(object_ids), grid).flatten()  # (h*w,)
        present = set(torch.unique(labels).tolist())
        given = tuple(i for i in (object_ids if named is None else named) if i in present)
        embedding = _cells(features).clone()  # the caller may use the memory of its features again
        older, older_labels = embedding.new_zeros(0, embedding.shape[1]), labels.new_zeros(0)
        if self._memory is not None:
            older, older_labels = self._memory.references(set(object_ids) - set(given))
        memory = Memory(
            object_ids=tuple(object_ids),
            grid=grid,
            annotated=embedding,
            annotated_labels=labels,
            first=self._memory is None,
            given=given,
            older=older,
            older_labels=older_labels,
            previous=embedding.clone(),  # tensors of a state dict must not share memory
            previous_labels=labels.clone(),
            previous_probabilities=embedding.new_zeros(0, 0),
            recent=embedding.new_zeros(0, *embedding.shape),
            recent_labels=labels.new_zeros(0, *labels.shape),
            age=0,
        )
        if self.options.previous == "soft":
            if probabilities is None:
                ids = torch.tensor(memory.channels, device=labels.device)
                probabilities = (label_map == ids[:, None, None]).to(embedding.dtype)
            memory = replace(memory, previous_probabilities=self._sample(probabilities, memory))
        self._take(memory)

    @staticmethod
    def _label_cells(
        label_map: torch.Tensor, object_ids: tuple[int, ...], grid: tuple[int, int]
    ) -> torch.Tensor:
        """(h, w) int64: the label of each cell of a label map (H, W)."""
        return sample_nearest(label_map, grid)

    @staticmethod
    def _reduce(probabilities: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
        """The probabilities of cells: (1 + K, H, W) -> (1 + K, h, w)."""
        return sample_nearest(probabilities, grid)

    def _sample(self, probabilities: torch.Tensor, memory: Memory) -> torch.Tensor:
        """(1 + K, H, W) -> (1 + K, h*w)."""
        if len(probabilities) != len(memory.channels):
            raise InputError(
                f"{len(memory.object_ids)} objects and the background need {len(memory.channels)} "
                f"probabilities, got {len(probabilities)}"
            )
        return self._reduce(probabilities, memory.grid).flatten(1).to(memory.annotated.dtype)

    def _match(self, features: Features) -> tuple[Memory, torch.Tensor, torch.Tensor, torch.Tensor]:
        """The memory, and for each channel and cell (1 + K, h*w): global distance, before, local distance."""
        memory, reference = self._memory, self._reference
        if memory is None or reference is None:
            raise InputError("no reference to match with yet; annotate a frame first")
        query = self._cells_of(features, memory)  # (h*w, C)
        before = memory.previous_probabilities
        if self.options.previous == "hard":
            before = (memory.previous_labels == self._ids[:, None]).to(query.dtype)
        near = self._local(query, memory.previous, memory.previous_labels, self.options.window)
        return memory, global_distances(query, reference), before, near

    def _local(
        self, query: torch.Tensor, cells: torch.Tensor, labels: torch.Tensor, window: int
    ) -> torch.Tensor:
        """(1 + K, h*w): distances to an earlier frame's cells (h*w, C) with labels (h*w,)."""
        assert self._memory is not None
        channels, grid = self._table[labels], self._memory.grid
        return local_distances(query, cells, channels, len(self._memory.channels), grid, window)

    def read(self, features: Features) -> Evidence:
        memory, *maps = self._match(features)
        cues = torch.stack(maps, 1).unflatten(2, memory.grid)
        run = self._part or head_part(self.head, self.options)
        (logits,) = run(features["shared"], cues)  # (1 + K, h, w)
        self._read = logits.softmax(0).flatten(1) if self.options.previous == "soft" else None
        return Evidence({"logits": logits}, memory.object_ids)

    def write(self, features: Features, probabilities: torch.Tensor) -> None:
        memory = self._memory
        if memory is None:
            raise InputError("no object is followed yet; annotate a frame first")
        embedding, sampled = self._cells_of(features, memory), self._sample(probabilities, memory)
        # the probabilities of the cells are those that were read; decoding only enlarged their logits
        soft = memory.previous_probabilities
        if self.options.previous == "soft":
            soft = sampled if self._read is None else self._read
        self._memory = replace(
            memory,
            previous=embedding.clone(),
            previous_labels=self._ids[sampled.argmax(0)],
            previous_probabilities=soft,
        )
        self._read = None

    def _cells_of(self, features: Features, memory: Memory) -> torch.Tensor:
        """(h*w, C) embedding of a frame, which must match the memory."""
        grid, count = features["embedding"].shape[-2:], features["embedding"].shape[1]
        if tuple(grid) != memory.grid or count != memory.annotated.shape[1]:
            raise InputError(
                f"the memory holds {memory.annotated.shape[1]} channels on a grid of {memory.grid}, "
                f"this frame has {count} on {tuple(grid)}"
            )
        return _cells(features)

    def forget(self, object_id: int) -> None:
        self.check_followed(object_id)
        assert self._memory is not None
        self._take(self._memory.without(object_id))

    def _take(self, memory: Memory) -> None:
        """Replace the memory, and prepare it for matching."""
        reference = sort_reference(*self._candidates(memory), memory.channels)
        device = memory.annotated.device
        self._ids = torch.tensor(memory.channels, device=device)
        self._table = channel_table(memory.channels, device)
        self._memory, self._reference, self._read = memory, reference, None

    def _candidates(self, memory: Memory) -> tuple[torch.Tensor, torch.Tensor]:
        """(N, C) and (N,): the cells that global matching compares with, and their labels."""
        return memory.candidates()

    def state_dict(self) -> dict[str, torch.Tensor]:
        if self._memory is None:
            return {"object_ids": torch.zeros(0, dtype=torch.int64)}
        return self._memory.state_dict()

    def load_state_dict(self, state: Mapping[str, torch.Tensor]) -> None:
        if set(state) == {"object_ids"} and not state["object_ids"].numel():
            self._memory = self._reference = self._read = None
            return
        parameter = next(self.head.parameters(), None)
        dtype = torch.float32 if parameter is None else parameter.dtype
        self._take(load_memory(state, self.options.previous == "soft", dtype))


def _cells(features: Features) -> torch.Tensor:
    """(h*w, C) embedding of one frame, row by row."""
    return features["embedding"][0].flatten(1).t().contiguous()
