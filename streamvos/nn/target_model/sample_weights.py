"""How much each remembered sample counts when a target model learns, and which one is replaced.

    >>> import torch
    >>> weights = SampleWeights(3, 0.1, torch.tensor([1.0]))
    >>> weights.insert(), weights.insert(), weights.insert()
    (1, 2, 1)

Recent samples count more: a new one weighs 1 / (1 - learning rate) times the one before it. A full memory
replaces its lightest sample. FRTM and JOINT share the rule; JOINT never replaces its first sample, whose
weight has a minimum. The weights always live on the CPU, so choosing a slot never waits for a GPU.

Source: FRTM and JOINT authors' code; the idea is ATOM's (Danelljan et al., CVPR 2019).
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

from streamvos.types import InputError


class SampleWeights:
    """Weights of the slots of a memory.

    Args:
        capacity: number of slots.
        learning_rate: share of the first inserted sample, 0..1.
        initial: (n,) weights of the first frame's samples, in slots 0..n-1.
        first_kept: slot 0 is never replaced.
        floor: minimum weight of slot 0; 0 = none.

    Attributes:
        values: (capacity,) on the CPU, in the dtype of `initial`; 0 = an empty slot.
    """

    def __init__(
        self,
        capacity: int,
        learning_rate: float,
        initial: torch.Tensor,
        first_kept: bool = False,
        floor: float = 0.0,
    ):
        if not 0 < len(initial) <= capacity or capacity < 1 + int(first_kept):
            raise InputError(f"{len(initial)} first samples do not fit a memory of {capacity}")
        self.learning_rate, self.first_kept, self.floor = learning_rate, first_kept, floor
        self.values = torch.zeros(capacity, dtype=initial.dtype)
        self.values[: len(initial)] = initial.cpu()
        self._newest: int | None = None

    def __len__(self) -> int:
        """Number of filled slots."""
        return int((self.values > 0).sum())

    def copy(self) -> SampleWeights:
        """A deep copy, which shares nothing with this one."""
        other = SampleWeights(len(self.values), self.learning_rate, self.values, self.first_kept, self.floor)
        other._newest = self._newest
        return other

    def __deepcopy__(self, memo: object) -> SampleWeights:
        return self.copy()  # the weights stay on the CPU, wherever the rest of a memory is copied to

    def insert(self) -> int:
        """Choose the slot of a new sample, set its weight, and return the slot."""
        start = int(self.first_kept)
        slot = start + int(self.values[start:].argmin())
        if self._newest is None:
            self.values /= 1 - self.learning_rate
            self.values[slot] = self.learning_rate
        else:
            self.values[slot] = self.values[self._newest] / (1 - self.learning_rate)
        filled = self.values > 0
        self.values /= self.values.sum()
        if self.values[0] < self.floor:
            # as in the authors' code: the sum is slightly above one afterwards
            self.values /= self.floor + self.values[1:].sum()
            self.values[0] = self.floor
        # a high learning rate over many slots would round a weight to zero, which means an empty slot
        self.values[filled] = self.values[filled].clamp_min(torch.finfo(self.values.dtype).tiny)
        self._newest = slot
        return slot

    def state_dict(self) -> dict[str, torch.Tensor]:
        """Copies of the tensors, for `load_state_dict`."""
        newest = -1 if self._newest is None else self._newest
        return {"values": self.values.clone(), "newest": torch.tensor(newest)}

    def load_state_dict(self, state: Mapping[str, torch.Tensor]) -> None:
        """Restore a `state_dict`.

        Raises:
            InputError: it has another capacity, or is no state of sample weights; nothing is changed.
        """
        values, newest = state.get("values"), state.get("newest")
        capacity = len(self.values)
        if (
            values is None
            or newest is None
            or values.shape != (capacity,)
            or newest.numel() != 1
            or not -1 <= int(newest) < capacity
        ):
            raise InputError(f"this is no state of sample weights with {capacity} slots")
        self.values = values.detach().to("cpu", self.values.dtype).clone()
        self._newest = None if int(newest) < 0 else int(newest)
