"""How work is cut into programs, and what else a launch needs.

Shape(side=8, block=64, channels=128)       # products of tiles of 8 x 8 targets with 64 candidates
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import lru_cache

import torch
import triton
from torch import Tensor

_PER_PROCESSOR = 4  # programs per multiprocessor, so that one computes while others wait for memory
_MOST_SHARES = 8  # each costs memory, and work for the program that joins them


@dataclass(frozen=True)
class Shape:
    """How the work is cut. Side, block and channels are powers of two.

    Attributes:
        side: rows and columns of a tile of targets, at least 4.
        block: candidates per product with a tile, at least 16.
        channels: channels per product, at least 16.
        warps: warps of a program.
        stages: blocks of candidates that are loaded at a time.
        shares: number of parts of the candidates; None = as many as keep the device busy.
    """

    side: int = 8
    block: int = 64
    channels: int = 256
    warps: int = 4
    stages: int = 2
    shares: int | None = None

    def constants(self, channels: int) -> dict[str, object]:
        """The compile-time parameters that all kernels have, for features of so many channels."""
        return {
            "BLOCK": self.block,
            "CHANNEL_BLOCKS": triton.cdiv(channels, self.channels),
            "BLOCK_CHANNELS": self.channels,
            "num_warps": self.warps,
            "num_stages": self.stages,
        }


def shape_for(channels: int, dtype: torch.dtype) -> Shape:
    """A shape that compiles without register spills and leaves room for a second program.

    Found by compiling for compute capabilities 8.0 to 10.0 and reading the assembler's report; which of the
    shapes that fit is the fastest has to be measured.
    """
    block = max(triton.next_power_of_2(channels), 16)
    if dtype != torch.bfloat16:  # three products of TensorFloat-32 need several copies of their factors
        return Shape(channels=min(block, 32), stages=3)
    if block <= 256:
        return Shape(channels=block, stages=3 if block <= 128 else 2)
    return Shape(channels=128, stages=2)


def shares_for(programs: int, shape: Shape, device: torch.device) -> int:
    """Number of parts of the candidates when one part would make `programs` programs."""
    if shape.shares is not None:
        return shape.shares
    wanted = _PER_PROCESSOR * _processors(device.type, device.index)
    return min(max(round(wanted / programs), 1), _MOST_SHARES)


def on_device_of(tensor: Tensor) -> AbstractContextManager[object]:
    """A region whose current device, on which Triton launches, is the tensor's."""
    return torch.cuda.device(tensor.device) if tensor.device.type == "cuda" else nullcontext()


@lru_cache
def _processors(device_type: str, index: int | None) -> int:
    if device_type != "cuda":
        return 1
    return int(torch.cuda.get_device_properties(index or 0).multi_processor_count)
