"""Which tensors an engine accepts.

    signature = Signature.of(frames).of_any_batch(part, 8)      # batches of 1 to 8
    signature.check((other,))           # InputError: input 0 of the engine is (2, 3, 480, 854) float32 ...

A compiled function checks nothing: AOTInductor reads a batch of two as a batch of one, and tensors of another
dtype or memory format as if they had its own, and computes wrong numbers. So shape, dtype, strides, alignment
and device are checked before every call.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from streamvos.methods.parts import Part
from streamvos.types import InputError

ALIGNMENT = 16
"""Bytes to which the memory of an input is aligned, as vectorized loads need it."""


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """One tensor as a compiled function sees it.

    Attributes:
        shape: -1 as the first side = any batch.
        dtype: without "torch.".
        strides: in elements; 0 where the side is 1 or any, since the others fix it or it is never used.
        device: its type.
    """

    shape: tuple[int, ...]
    dtype: str
    strides: tuple[int, ...]
    device: str

    @classmethod
    def of(cls, tensor: torch.Tensor) -> TensorSpec:
        shape = tuple(tensor.shape)
        strides = tuple(step if side > 1 else 0 for step, side in zip(tensor.stride(), shape, strict=True))
        return cls(shape, str(tensor.dtype).removeprefix("torch."), strides, tensor.device.type)

    @property
    def is_any(self) -> bool:
        """Whether it stands for any batch."""
        return self.shape[:1] == (-1,)

    def of_any_batch(self) -> TensorSpec:
        """The same for any batch; unchanged where the rows of the batch have gaps between them."""
        if self.shape[0] > 1 and self.strides[0] != math.prod(self.shape[1:]):
            return self
        return replace(self, shape=(-1, *self.shape[1:]), strides=(0, *self.strides[1:]))

    def __str__(self) -> str:
        return f"{self.shape} {self.dtype} with strides {self.strides} on {self.device}"


@dataclass(frozen=True, slots=True)
class Signature:
    """All inputs of a call.

    Attributes:
        tensors: their specifications, in order.
        most: the first side of every tensor that has -1 there is the same number from 1 to this; 0 = no -1.
    """

    tensors: tuple[TensorSpec, ...]
    most: int = 0

    @classmethod
    def of(cls, *tensors: torch.Tensor) -> Signature:
        """The signature of a call with these tensors."""
        return cls(tuple(TensorSpec.of(tensor) for tensor in tensors))

    def of_any_batch(self, part: Part, most: int) -> Signature:
        """The same for batches of 1 to `most` frames or objects."""
        specs = [spec.of_any_batch() if part.is_batched(k) else spec for k, spec in enumerate(self.tensors)]
        return Signature(tuple(specs), most)

    def batch(self, part: Part) -> int:
        """Number of frames or objects in a call of a part."""
        return next(spec.shape[0] for k, spec in enumerate(self.tensors) if part.is_batched(k))

    def check(self, tensors: Sequence[torch.Tensor]) -> None:
        """Raise InputError if the number of tensors, or one of them, differs from what was compiled."""
        if len(tensors) != len(self.tensors):
            raise InputError(f"the engine takes {len(self.tensors)} tensors, got {len(tensors)}")
        batches = set()
        for k, (tensor, expected) in enumerate(zip(tensors, self.tensors, strict=True)):
            spec = TensorSpec.of(tensor)
            is_any = expected.is_any and 1 <= tensor.shape[0] <= self.most
            if (spec.of_any_batch() if is_any else spec) != expected:
                raise InputError(f"input {k} of the engine is {spec}, expected {expected}")
            if not is_aligned(tensor):
                raise InputError(f"input {k} of the engine does not begin at a multiple of {ALIGNMENT} bytes")
            batches |= {tensor.shape[0]} if is_any else set()
        if len(batches) > 1:
            raise InputError(f"the inputs of the engine have different batches: {sorted(batches)}")

    def __str__(self) -> str:
        return " ".join(
            "x".join(f"1..{self.most}" if side < 0 else str(side) for side in spec.shape)
            for spec in self.tensors
        )


def is_aligned(tensor: torch.Tensor) -> bool:
    """Whether compiled code may load the tensor as vectors."""
    return tensor.data_ptr() % ALIGNMENT == 0
