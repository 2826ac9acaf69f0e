"""Which callable runs a part: an engine where one fits, eager elsewhere, and how often each did.

    switch = Switch(eager, find)
    outputs = switch(*tensors)
    switch.describe()               # ['1x3x480x854: aoti (feature error 0.0068, ...) (50 calls)']

What runs for a signature is decided when it first comes, and stays: a stream never changes its engine.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import torch

from streamvos.engines.manifest import Manifest
from streamvos.engines.signature import Signature, is_aligned
from streamvos.methods.parts import Run, Tensors

log = logging.getLogger(__name__)


class Engine:
    """A compiled function that refuses what it was not compiled for.

    Args:
        run: compiled, checks nothing.
        signature: of its inputs.
        manifest: what is known of it; None while it is being built.
    """

    def __init__(self, run: Run, signature: Signature, manifest: Manifest | None = None):
        self._run, self.signature, self.manifest = run, signature, manifest

    def __call__(self, *tensors: torch.Tensor) -> Tensors:
        """What the part gives for these tensors.

        Raises:
            InputError: they are not of the engine's signature.
        """
        self.signature.check(tensors)
        return self._run(*tensors)


@dataclass(frozen=True)
class Found:
    """What is to run for a signature.

    Attributes:
        engine: None = eager.
        why: for people.
    """

    engine: Engine | None
    why: str


Find = Callable[[Signature], Found]


class Switch:
    """A part's callable.

    Args:
        eager: the reference.
        find: called once for every new signature.

    Attributes:
        calls: why -> how many calls; see `Found.why`.
    """

    def __init__(self, eager: Run, find: Find):
        self._eager, self._find = eager, find
        self._found: dict[Signature, Found] = {}
        self.calls: Counter[tuple[str, str]] = Counter()

    def __call__(self, *tensors: torch.Tensor) -> Tensors:
        engine = self.choose(*tensors)
        return self._eager(*tensors) if engine is None else engine(*tensors)

    def choose(self, *tensors: torch.Tensor) -> Engine | None:
        """The engine for these tensors, None for eager; counts as a call."""
        signature = Signature.of(*tensors)
        found = self._found.get(signature)
        if found is None:
            found = self._found[signature] = self._find(signature)
            log.info("%s: %s", signature, found.why)
        engine, why = found.engine, found.why
        if engine is not None and not all(is_aligned(tensor) for tensor in tensors):
            engine, why = None, "eager, the input's memory is not aligned"
        self.calls[str(signature), why] += 1
        return engine

    def describe(self) -> list[str]:
        """A line for each signature that came."""
        return [f"{shape}: {why} ({count} calls)" for (shape, why), count in self.calls.items()]
