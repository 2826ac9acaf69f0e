"""What an engine was compiled for, and whether tensors are that.

    expected = Signature.of(frames)
    expected.check((other,))            # InputError: input 0 is (2, 3, 480, 854) float32, expected ...

A compiled engine checks nothing: AOTInductor reads a batch of two as a batch of one, and tensors of another
dtype or memory format as if they were of its own, and gives wrong numbers. So everything is checked here
before every call: shape, dtype, strides, alignment, device. Shapes are exact, which settles divisibility too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from streamvos.types import InputError

ALIGNMENT = 16
"""Bytes to which the memory of an input is aligned, as vectorized loads want it."""


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """One tensor as a compiled function sees it.

    Attributes:
        shape, dtype: as torch has them; the dtype without "torch.".
        strides: in elements; 0 where the side is 1, since it is never walked along.
        device: its type.
    """

    shape: tuple[int, ...]
    dtype: str
    strides: tuple[int, ...]
    device: str

    @classmethod
    def of(cls, tensor: torch.Tensor) -> TensorSpec:
        """What this tensor is."""
        shape = tuple(tensor.shape)
        walked = tuple(step if side > 1 else 0 for step, side in zip(tensor.stride(), shape, strict=True))
        return cls(shape, str(tensor.dtype).removeprefix("torch."), walked, tensor.device.type)

    def __str__(self) -> str:
        return f"{self.shape} {self.dtype} with strides {self.strides} on {self.device}"


@dataclass(frozen=True, slots=True)
class Signature:
    """All inputs of a call.

    Attributes:
        tensors: in their order.
    """

    tensors: tuple[TensorSpec, ...]

    @classmethod
    def of(cls, *tensors: torch.Tensor) -> Signature:
        """What these tensors are."""
        return cls(tuple(TensorSpec.of(tensor) for tensor in tensors))

    def zeros(self, device: torch.device) -> tuple[torch.Tensor, ...]:
        """Tensors of this signature.

        Args:
            device: where, of the type of the signature.
        """
        return tuple(
            torch.empty_strided(
                one.shape, one.strides, dtype=getattr(torch, one.dtype), device=device
            ).zero_()
            for one in self.tensors
        )

    def check(self, tensors: Sequence[torch.Tensor]) -> None:
        """Refuse what a compiled function must not be given.

        Raises:
            InputError: another number of tensors, or one that is not as specified, saying which and how.
        """
        if len(tensors) != len(self.tensors):
            raise InputError(f"the engine takes {len(self.tensors)} tensors, got {len(tensors)}")
        for k, (tensor, expected) in enumerate(zip(tensors, self.tensors, strict=True)):
            came = TensorSpec.of(tensor)
            if came != expected:
                raise InputError(f"input {k} of the engine is {came}, expected {expected}")
            if not is_aligned(tensor):
                raise InputError(f"input {k} of the engine does not begin at a multiple of {ALIGNMENT} bytes")

    def as_json(self) -> list[dict[str, Any]]:
        """For a manifest."""
        return [
            {"shape": list(s.shape), "dtype": s.dtype, "strides": list(s.strides), "device": s.device}
            for s in self.tensors
        ]

    @classmethod
    def from_json(cls, value: Sequence[dict[str, Any]]) -> Signature:
        """From `as_json`."""
        return cls(
            tuple(
                TensorSpec(tuple(s["shape"]), str(s["dtype"]), tuple(s["strides"]), str(s["device"]))
                for s in value
            )
        )

    def __str__(self) -> str:
        return " ".join(f"{'x'.join(map(str, s.shape))}" for s in self.tensors)


def is_aligned(tensor: torch.Tensor) -> bool:
    """Whether compiled code may load it as vectors."""
    return tensor.data_ptr() % ALIGNMENT == 0
