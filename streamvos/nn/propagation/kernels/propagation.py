"""Launches the kernels of propagation.

Labels of the target in two launches, whatever the number of references, whose keys and labels are read where
they lie. Beside the answer, memory holds per target and share of the keys one row of labels, or the k best.

    propagate_in_kernels(Propagation(query, keys, labels, sigmas, grid, options))     # (L, h, w) float32
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
from torch import Tensor

from streamvos.nn.kernels.launching import Shape, interpreted, on_device_of, shape_for, shares_for
from streamvos.nn.propagation.kernels.selection import best_parts, join_best
from streamvos.nn.propagation.kernels.softmax import join_parts, softmax_parts
from streamvos.nn.propagation.options import COMPUTE, Propagation, PropagationOptions
from streamvos.nn.tiling import LOG2_E
from streamvos.nn.transfer import send

_STEEPEST = 1e30  # log2(e) / sigma^2, so that zero times it is zero
_JOIN = {"all": 32, "best": 16}  # cells of a program that brings shares together


def propagate_in_kernels(call: Propagation, shape: Shape | None = None) -> Tensor:
    """What `streamvos.nn.propagation.propagate` gives.

    Args:
        call: its arguments.
        shape: how the work is cut; None = chosen.

    Raises:
        Whatever Triton raises where it cannot compile or launch.
    """
    shape = shape or shape_for(call.query.shape[1], COMPUTE[call.options.precision])
    with on_device_of(call.query):
        task = _prepare(call, shape)
        return _selection(task) if call.selects else _softmax(task)


@dataclass(frozen=True)
class _Task:
    """What both kernels are given; see `softmax_parts`."""

    query: Tensor
    keys: list[Tensor]
    labels: list[Tensor]
    offsets: Tensor
    settings: Tensor
    grid: tuple[int, int]
    options: PropagationOptions
    shape: Shape
    aligned: bool

    @property
    def across(self) -> int:
        return triton.cdiv(self.grid[1], self.shape.side)

    @property
    def tiles(self) -> int:
        return triton.cdiv(self.grid[0], self.shape.side) * self.across

    @property
    def block_labels(self) -> int:
        """At least the 16 columns that a product of matrices has, at most what the registers hold."""
        return min(max(triton.next_power_of_2(self.labels[0].shape[1]), 16), 64)

    @property
    def label_blocks(self) -> int:
        return triton.cdiv(self.labels[0].shape[1], self.block_labels)

    def constants(self) -> dict[str, object]:
        """The compile-time parameters that both kernels have."""
        half = self.query.dtype == torch.bfloat16
        return {
            "TILE_ROWS": self.shape.side,
            "TILE_COLUMNS": self.shape.side,
            "BLOCK_KEYS": self.shape.block,
            "CHANNEL_BLOCKS": triton.cdiv(self.query.shape[1], self.shape.channels),
            "BLOCK_CHANNELS": self.shape.channels,
            "ALIGNED": self.aligned,
            "INSIDE": self.options.spatial_prior == "paper",
            # three products of TensorFloat-32 together are as exact as one of float32, and faster
            "PRODUCT": "ieee" if half else "tf32x3",
            "WIDEN": half and interpreted(),
            "num_warps": self.shape.warps,
            "num_stages": self.shape.stages,
        }


def _prepare(call: Propagation, shape: Shape) -> _Task:
    options, grid, query = call.options, call.grid, call.query
    dtype = COMPUTE[options.precision]
    ready = [key.to(dtype).contiguous() for key in call.keys]
    soft = [label.float().contiguous() for label in call.labels]
    rows = [(_offset(ready[0], key), _offset(soft[0], label)) for key, label in zip(ready, soft, strict=True)]
    far = max(grid)
    prior = options.spatial_prior != "none"
    slopes = [min(LOG2_E / sigma**2, _STEEPEST) for sigma in call.sigmas] if prior else [0.0] * len(ready)
    settings = [
        (slope, float(far if reach is None else min(reach, far)))
        for slope, reach in zip(slopes, call.reaches, strict=True)
    ]
    return _Task(
        query.to(dtype).contiguous(),
        ready,
        soft,
        send(rows, torch.int64, query.device),
        send(settings, torch.float32, query.device),
        grid,
        options,
        shape,
        all(to_keys % 16 == 0 for to_keys, _ in rows),
    )


def _offset(first: Tensor, other: Tensor) -> int:
    """From the first element of one tensor to that of another, in elements; they need not share memory."""
    return (other.data_ptr() - first.data_ptr()) // first.element_size()


def _softmax(task: _Task) -> Tensor:
    height, width = task.grid
    cells, label_count = height * width, task.labels[0].shape[1]
    shares = shares_for(task.tiles * task.label_blocks, task.shape, task.query.device)
    largest, total = task.query.new_empty(2, shares, cells, dtype=torch.float32)
    carried = largest.new_empty(shares, cells, label_count)
    softmax_parts[(task.tiles, shares, task.label_blocks)](
        task.query,
        task.keys[0],
        task.labels[0],
        task.offsets,
        task.settings,
        largest,
        total,
        carried,
        height,
        width,
        task.across,
        task.query.shape[1],
        label_count,
        len(task.keys),
        task.options.temperature * LOG2_E,
        SHARES=shares,
        BLOCK_LABELS=task.block_labels,
        OUTSIDE=task.options.spatial_prior == "authors",
        SUM="tf32x3",
        **task.constants(),
    )
    out = largest.new_empty(label_count, height, width)
    join_parts[(triton.cdiv(cells, _JOIN["all"]), task.label_blocks)](
        largest,
        total,
        carried,
        out,
        cells,
        label_count,
        SHARES=shares,
        BLOCK=_JOIN["all"],
        BLOCK_LABELS=task.block_labels,
    )
    return out


def _selection(task: _Task) -> Tensor:
    assert task.options.top_k is not None
    height, width = task.grid
    cells, label_count, best = height * width, task.labels[0].shape[1], task.options.top_k
    shares = shares_for(task.tiles, task.shape, task.query.device)
    values = task.query.new_empty(cells, shares, best, dtype=torch.float32)
    places = torch.empty_like(values, dtype=torch.int32)
    best_parts[(task.tiles, shares)](
        task.query,
        task.keys[0],
        task.offsets,
        task.settings,
        values,
        places,
        height,
        width,
        task.across,
        task.query.shape[1],
        len(task.keys),
        task.options.temperature * LOG2_E,
        SHARES=shares,
        BEST=best,
        BLOCK_BEST=triton.next_power_of_2(best),
        **task.constants(),
    )
    out = values.new_empty(label_count, height, width)
    join_best[(triton.cdiv(cells, _JOIN["best"]), task.label_blocks)](
        values,
        places,
        task.labels[0],
        task.offsets,
        task.settings,
        out,
        width,
        cells,
        label_count,
        CANDIDATES=shares * best,
        BEST=best,
        BLOCK_CANDIDATES=triton.next_power_of_2(shares * best),
        BLOCK=_JOIN["best"],
        BLOCK_LABELS=task.block_labels,
        OUTSIDE=task.options.spatial_prior == "authors",
    )
    return out
