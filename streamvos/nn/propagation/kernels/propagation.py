"""Launches the kernels of propagation.

Two launches per target, whatever the number of references, whose keys and labels are read without a copy.
Intermediate memory is one row of labels, or the k best, per target and share of the keys.

    propagate_in_kernels(Propagation(query, keys, labels, sigmas, grid, options))     # (L, h, w) float32
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
from torch import Tensor

from streamvos.nn.kernels.launching import Shape, on_device_of, shape_for, shares_for
from streamvos.nn.propagation.kernels.parts import best_parts, join_best, join_parts, softmax_parts
from streamvos.nn.propagation.options import Propagation
from streamvos.nn.tiling import LOG2_E
from streamvos.nn.transfer import send

_STEEPEST = 1e30  # limit of log2(e) / sigma^2, so that zero times it is zero
_JOIN = {"all": 32, "best": 16}  # cells of a program that joins shares


def propagate_in_kernels(call: Propagation, shape: Shape | None = None) -> Tensor:
    """The labels that `streamvos.nn.propagation.propagate` returns.

    Args:
        call: the arguments of `propagate`.
        shape: how the work is cut; None = chosen.

    Raises:
        Exception: Triton cannot compile or launch.
    """
    shape = shape or shape_for(call.query.shape[1], call.options.dtype)
    with on_device_of(call.query):
        task = _prepare(call, shape)
        return _selection(task) if call.selects else _softmax(task)


@dataclass(frozen=True)
class _Task:
    """What both kernels work on.

    Attributes:
        keys, labels: of every reference; kernels get the first and the offsets to the others.
        arguments: those that both kernels begin with, see `softmax_parts`.
        constants: the compile-time parameters that both kernels have.
    """

    call: Propagation
    shape: Shape
    keys: list[Tensor]
    labels: list[Tensor]
    arguments: tuple[object, ...]
    constants: dict[str, object]

    @property
    def tiles(self) -> int:
        height, width = self.call.grid
        return int(triton.cdiv(height, self.shape.side) * triton.cdiv(width, self.shape.side))

    @property
    def block_labels(self) -> int:
        """At least 16, the fewest columns of a matrix product; at most 64, which the registers hold."""
        return min(max(triton.next_power_of_2(self.labels[0].shape[1]), 16), 64)

    @property
    def label_blocks(self) -> int:
        return int(triton.cdiv(self.labels[0].shape[1], self.block_labels))


def _prepare(call: Propagation, shape: Shape) -> _Task:
    options, query = call.options, call.query

    def ready(features: Tensor) -> Tensor:
        rounded = features.to(options.dtype).contiguous()
        # the interpreter's products of bfloat16 are wrong
        return rounded.float() if triton.knobs.runtime.interpret else rounded

    keys = [ready(key) for key in call.keys]
    labels = [label.float().contiguous() for label in call.labels]
    to_keys = [_offset(keys[0], key) for key in keys]
    to_labels = [_offset(labels[0], label) for label in labels]
    far = max(call.grid)
    prior = options.spatial_prior != "none"
    slopes = [min(LOG2_E / sigma**2, _STEEPEST) for sigma in call.sigmas] if prior else [0.0] * len(keys)
    settings = [
        (slope, float(far if reach is None else min(reach, far)))
        for slope, reach in zip(slopes, call.reaches, strict=True)
    ]
    arguments = (
        ready(query),
        keys[0],
        send(list(zip(to_keys, to_labels, strict=True)), torch.int64, query.device),
        send(settings, torch.float32, query.device),
        *call.grid,
        query.shape[1],
        len(keys),
        options.temperature * LOG2_E,
    )
    constants: dict[str, object] = {
        "SIDE": shape.side,
        "ALIGNED": all(offset % 16 == 0 for offset in to_keys),
        "INSIDE": options.spatial_prior == "paper",
        **shape.constants(query.shape[1]),
    }
    return _Task(call, shape, keys, labels, arguments, constants)


def _offset(first: Tensor, other: Tensor) -> int:
    """Elements from the start of one tensor to that of another, which need not share memory."""
    return (other.data_ptr() - first.data_ptr()) // first.element_size()


def _softmax(task: _Task) -> Tensor:
    labels = task.labels[0]
    cells, label_count = labels.shape
    shares = shares_for(task.tiles * task.label_blocks, task.shape, labels.device)
    largest, total = labels.new_empty(2, shares, cells)
    carried = labels.new_empty(shares, cells, label_count)
    softmax_parts[(task.tiles, shares, task.label_blocks)](
        *task.arguments,
        labels,
        label_count,
        largest,
        total,
        carried,
        SHARES=shares,
        BLOCK_LABELS=task.block_labels,
        OUTSIDE=task.call.options.spatial_prior == "authors",
        **task.constants,
    )
    out = labels.new_empty(label_count, *task.call.grid)
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
    best, labels = task.call.options.top_k, task.labels[0]
    assert best is not None
    cells, label_count = labels.shape
    shares = shares_for(task.tiles, task.shape, labels.device)
    values = labels.new_empty(cells, shares, best)
    places = torch.empty_like(values, dtype=torch.int32)
    best_parts[(task.tiles, shares)](
        *task.arguments,
        values,
        places,
        SHARES=shares,
        BEST=best,
        BLOCK_BEST=triton.next_power_of_2(best),
        **task.constants,
    )
    out = labels.new_empty(label_count, *task.call.grid)
    _query, _keys, offsets, settings, _height, width, *_ = task.arguments
    join_best[(triton.cdiv(cells, _JOIN["best"]), task.label_blocks)](
        values,
        places,
        labels,
        offsets,
        settings,
        out,
        width,
        cells,
        label_count,
        CANDIDATES=shares * best,
        BEST=best,
        BLOCK_CANDIDATES=triton.next_power_of_2(shares * best),
        BLOCK=_JOIN["best"],
        BLOCK_LABELS=task.block_labels,
        OUTSIDE=task.call.options.spatial_prior == "authors",
    )
    return out
