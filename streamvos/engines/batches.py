"""Engines of some batches put together for another: seven objects by engines of four, two and one.

    cover(7, {1: 1.0, 2: 1.8, 4: 3.1})          # (4, 2, 1)
    cover(3, {1: 1.0, 4: 1.2})                  # (4,): one place stays empty
    run = together(part, 7, [of_four, of_two, of_one])

An engine is for one batch, and objects come and go. What a part computes for a frame or an object does not
depend on the others in the batch (`streamvos.methods.parts.Part.batched`), so a batch may be cut, and an
empty place be filled with anything.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch

from streamvos.engines.signature import Signature, is_aligned
from streamvos.engines.switch import Engine
from streamvos.methods.parts import Part, Run, Tensors

MOST = 16
"""The largest batch of an engine that is looked for."""

_CALLS = {"cpu": 0.05, "cuda": 10.0}
"""What a call costs beside its frames or objects, in frames: a GPU has room for some at once."""


def guess(batch: int, device: str) -> float:
    """What a call costs, before anything was measured; in frames or objects.

    Args:
        batch: how many there are.
        device: its type.
    """
    return batch + _CALLS.get(device, _CALLS["cpu"])


def batch_of(part: Part, signature: Signature) -> int:
    """How many frames or objects these inputs are."""
    return next(spec.shape[0] for k, spec in enumerate(signature.tensors) if part.is_batched(k))


def of_batch(part: Part, signature: Signature, batch: int) -> Signature:
    """The same inputs for another number of frames or objects.

    Args:
        part: whose inputs they are.
        signature: of a batch of two or more; how far apart one lies from the next is known from it.
        batch: the other number.
    """
    specs = list(signature.tensors)
    for k, spec in enumerate(specs):
        if part.is_batched(k):
            step = spec.strides[0] if batch > 1 else 0
            specs[k] = replace(spec, shape=(batch, *spec.shape[1:]), strides=(step, *spec.strides[1:]))
    return Signature(tuple(specs))


def cover(count: int, costs: Mapping[int, float]) -> tuple[int, ...]:
    """The cheapest batches that together have room for so many.

    Args:
        count: of frames or objects, at least 1.
        costs: batch -> what one call costs, above 0.

    Returns:
        Largest first; only the last one may have empty places. Of equally cheap ones, the fewest. Empty where
        there are no batches.
    """
    if not costs:
        return ()
    best: list[tuple[float, int, tuple[int, ...]]] = [(0.0, 0, ())]
    for room in range(1, count + 1):
        candidates = []
        for batch, cost in costs.items():
            before, calls, batches = best[max(room - batch, 0)]
            candidates.append((before + cost, calls + 1, (*batches, batch)))
        best.append(min(candidates))
    return tuple(sorted(best[count][2], reverse=True))


def together(part: Part, count: int, engines: Sequence[Engine]) -> Run:
    """Engines, one after the other, as one callable.

    Args:
        part: of which they are.
        count: of frames or objects that come.
        engines: whose batches cover them, the largest first.
    """

    def run(*tensors: torch.Tensor) -> Tensors:
        answers, first = [], 0
        for engine in engines:
            batch = batch_of(part, engine.signature)
            some = (
                _rows(tensor, first, batch) if part.is_batched(k) else tensor
                for k, tensor in enumerate(tensors)
            )
            answers.append(tuple(value[: count - first] for value in engine(*some)))
            first += batch
        if len(answers) == 1:
            return answers[0]
        return tuple(torch.cat(values) for values in zip(*answers, strict=True))

    return run


def _rows(tensor: torch.Tensor, first: int, batch: int) -> torch.Tensor:
    """So many from `first` on; the last one again where there are no more. Aligned, as engines want it."""
    rows = tensor[first : first + batch]
    if len(rows) == batch and is_aligned(rows):
        return rows
    filled = torch.empty_strided(
        (batch, *tensor.shape[1:]), tensor.stride(), dtype=tensor.dtype, device=tensor.device
    )
    filled[: len(rows)] = rows
    filled[len(rows) :] = rows[-1]
    return filled
