"""The engines of one method on one device: found in the cache, loaded, or asked for.

    engines = Engines(method, torch.device("cpu"), "auto")
    run = engines.switch(part, eager)

Loading happens when tensors of a signature first come, and a first call with it, since what can fail on this
machine fails there: some milliseconds. Building never happens here. Where there is no engine for a batch,
those of other batches are put together (`streamvos.engines.batches`).
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import nn

from streamvos.engines import aoti, cuda_graphs, inductor, tensorrt
from streamvos.engines.batches import MOST, batch_of, cover, guess, of_batch, together
from streamvos.engines.beside import Request, request_build
from streamvos.engines.cache import EngineCache
from streamvos.engines.exporting import PartModule, first_line
from streamvos.engines.keys import Plan, is_ours, plan_of, weight_digest
from streamvos.engines.manifest import Manifest
from streamvos.engines.recipes import recipe_for
from streamvos.engines.signature import Signature
from streamvos.engines.switch import Engine, Found, Switch
from streamvos.methods import Method
from streamvos.methods.parts import ExtractorPart, Part, Run
from streamvos.types import InputError

log = logging.getLogger(__name__)


class Compiled(Protocol):
    """What the module of a backend offers; see `streamvos.engines.aoti`."""

    FILE: str

    def missing(self, device: torch.device) -> str | None: ...

    def cannot_build(self, device: torch.device) -> str | None: ...

    def build(self, program: torch.export.ExportedProgram, path: Any, settings: Any) -> None: ...

    def load(self, path: Any, device: torch.device, module: nn.Module) -> Run: ...


COMPILED: dict[str, Compiled] = {
    "inductor": inductor,
    "aoti": aoti,
    "tensorrt": tensorrt,
    "cuda-graph": cuda_graphs,
}
"""Backend -> its module."""

CANDIDATES = ("tensorrt", "aoti", "cuda-graph")
"""Of which `auto` takes the fastest; inductor compiles anew in every process and is left out."""

BACKENDS = ("eager", *COMPILED, "auto")


BETTER = 0.8
"""Where engines are put together, others are asked for that might take less than this share of their time."""


def check_backend(backend: str, device: torch.device) -> None:
    """Refuse a backend that cannot be used.

    Raises:
        InputError: there is no such backend, or it cannot be used on this device.
    """
    if backend not in BACKENDS:
        raise InputError(f"unknown backend {backend!r}; choose one of: {', '.join(BACKENDS)}")
    missing = why_missing(backend, device)
    if missing is not None:
        raise InputError(f"backend {backend!r} cannot be used here: {missing}; try 'auto' or 'eager'")


def why_missing(backend: str, device: torch.device) -> str | None:
    """Why a backend cannot be used on this device; None if it can."""
    return COMPILED[backend].missing(device) if backend in COMPILED else None


def plan_for(
    method: Method, part: Part, backend: str, signature: Signature, device: torch.device, weights: str
) -> Plan:
    """The plan by which a stream looks for its engine: with the options of the part's recipe."""
    recipe = recipe_for(method.name, part.name)
    settings = {} if recipe is None else recipe.settings(backend)
    precision = "method" if recipe is None else recipe.precision
    return plan_of(method, part, backend, settings, precision, signature, device, weights)


@dataclass(frozen=True)
class _Looked:
    """What is known about one signature.

    Attributes:
        why: for people.
        manifest: of a good engine.
        precision: of its plan.
        engine: loaded.
        missing: under which name it is to be asked for; None where there is nothing to be asked for.
    """

    why: str
    manifest: Manifest | None = None
    precision: str = "method"
    engine: Engine | None = None
    missing: str | None = None


class Engines:
    """See the head of this file.

    Args:
        method: whose parts run; on the device.
        device: where.
        backend: one of `BACKENDS`.
        cache: None = the default one.

    Raises:
        InputError: no such backend, or it cannot be used here.
    """

    def __init__(self, method: Method, device: torch.device, backend: str, cache: EngineCache | None = None):
        check_backend(backend, device)
        self._method, self._device, self.backend = method, device, backend
        self._cache = cache or EngineCache()
        self._switches: dict[str, Switch] = {}
        self._weights: dict[str, str] = {}
        self._loaded: dict[str, Engine] = {}
        self._sizes: dict[tuple[int, int], None] = {}  # of frames that came, in their order

    def switch(self, part: Part, eager: Run) -> Switch:
        """What runs a part from here on.

        Args:
            part: of the method.
            eager: the reference, on the device.
        """
        self._switches[part.name] = Switch(eager, lambda signature: self._find(part, signature))
        return self._switches[part.name]

    def describe(self) -> dict[str, list[str]]:
        """Part -> a line for each signature that came: what ran it, why, how often."""
        return {name: switch.describe() for name, switch in self._switches.items()}

    def _find(self, part: Part, signature: Signature) -> Found:
        if self.backend == "eager":
            return Found(None, "eager")
        if not is_ours(self._method):
            return Found(None, "eager, engines are for the methods of this package")
        problem = self._cache.problem()
        if problem is not None:
            log.warning("engines are not used: %s", problem)
            return Found(None, f"eager, {problem}")
        if isinstance(part, ExtractorPart):
            height, width = signature.tensors[0].shape[-2:]
            self._sizes[height, width] = None
        known = self._cache.by_plan()
        looked = self._look(part, signature, known)
        if looked.manifest is not None:
            looked = self._load(part, signature, looked)
        if looked.missing is None:
            return Found(looked.engine, looked.why)
        wanted = self._wanted(part, signature)
        batches = self._put_together(part, signature, known)
        guessed = sum(guess(batch, self._device.type) for batch in batches)
        best = sum(guess(batch, self._device.type) for batch in wanted)
        asked = "" if batches and best > BETTER * guessed else self._ask(part, signature, looked, wanted)
        found = self._together(part, signature, batches, known) if batches else None
        if found is not None:
            return found
        log.warning(
            "%s: %s/%s runs eager for now, %s; %s", signature, self._method.name, part.name, looked.why, asked
        )
        return Found(None, f"eager, {looked.why}; {asked}")

    def _look(self, part: Part, signature: Signature, known: Mapping[str, Manifest]) -> _Looked:
        """What the cache says of exactly these inputs."""
        plan, because = self._plan(part, self.backend, signature), ""
        if self.backend == "auto":
            choice = self._cache.choice(plan.question)
            if choice is None:
                return _Looked("which backend is fastest is not known yet", missing=plan.question)
            if choice.backend == "eager":
                return _Looked(str(choice))
            plan, because = self._plan(part, choice.backend, signature), f", {choice}"
        manifest = known.get(plan.digest)
        if manifest is None:
            return _Looked(f"there is no {plan.backend} engine for it yet", missing=plan.digest)
        if not manifest.parity.passed:
            return _Looked(f"eager, the {plan.backend} engine was {manifest.parity}")
        return _Looked(f"{plan.backend} ({manifest.parity}){because}", manifest, plan.precision)

    def _load(self, part: Part, signature: Signature, looked: _Looked) -> _Looked:
        """The engine of a manifest; each is loaded once."""
        manifest = looked.manifest
        assert manifest is not None
        if manifest.key not in self._loaded:
            try:
                path = self._cache.artefact(manifest)
                module = PartModule(part, looked.precision)
                run = COMPILED[manifest.backend].load(path, self._device, module)
                engine = Engine(run, signature, manifest)
                engine(*signature.zeros(self._device))
            except InputError as error:
                log.warning("%s; eager runs instead", error)
                return _Looked(str(error), missing=manifest.plan)
            except Exception as error:  # whatever a compiler or a driver raises
                reason = first_line(error)
                log.warning("%s fails here: %s; eager runs instead", manifest.title, reason)
                return _Looked(f"eager, the {manifest.backend} engine fails here: {reason}")
            self._loaded[manifest.key] = engine
        return replace(looked, engine=self._loaded[manifest.key])

    def _put_together(
        self, part: Part, signature: Signature, known: Mapping[str, Manifest]
    ) -> tuple[int, ...]:
        """Batches whose engines do together, the largest first; none where there are none or eager is faster.

        Which backend is the fastest for such a batch is not known; what eager would take follows from what it
        took for others.
        """
        count, device = batch_of(part, signature), self._device.type
        if count < 2:
            return ()
        looks = (
            (batch, self._look(part, of_batch(part, signature, batch), known).manifest)
            for batch in range(1, min(2 * count, MOST + 1))
        )
        times = {batch: manifest.milliseconds for batch, manifest in looks if manifest is not None}
        batches = cover(count, {batch: one["engine"] for batch, one in times.items()})
        if batches and self.backend == "auto":
            eager = min(
                one["eager"] * guess(count, device) / guess(batch, device) for batch, one in times.items()
            )
            if sum(times[batch]["engine"] for batch in batches) > eager:
                return ()
        return batches

    def _together(
        self, part: Part, signature: Signature, batches: tuple[int, ...], known: Mapping[str, Manifest]
    ) -> Found | None:
        """Their engines as one; None where one cannot be loaded."""
        engines, why = [], ""
        for batch in batches:
            one = of_batch(part, signature, batch)
            looked = self._load(part, one, self._look(part, one, known))
            if looked.engine is None:
                return None
            engines.append(looked.engine)
            why = looked.why
        run = together(part, batch_of(part, signature), engines)
        batched = " + ".join(str(batch) for batch in batches)
        return Found(Engine(run, signature, engines[0].manifest), f"engines of {batched}: {why}")

    def _wanted(self, part: Part, signature: Signature) -> tuple[int, ...]:
        """Batches of which there should be engines: of frames the recipe's that do, of objects their own."""
        recipe, count = recipe_for(self._method.name, part.name), batch_of(part, signature)
        if recipe is None or not isinstance(part, ExtractorPart) or count in recipe.batches:
            return (count,)
        return cover(count, {batch: guess(batch, self._device.type) for batch in recipe.batches})

    def _ask(self, part: Part, signature: Signature, looked: _Looked, wanted: tuple[int, ...]) -> str:
        """Ask for those that are missing; what happens now, for people."""
        answer, count = self._cannot_build(), batch_of(part, signature)
        if answer:
            return answer
        known = self._cache.by_plan()
        for batch in sorted(set(wanted)):
            one = signature if batch == count else of_batch(part, signature, batch)
            missing = (looked if batch == count else self._look(part, one, known)).missing
            if missing is not None:
                request = Request(
                    missing, self._method, part, self.backend, one, self._device, tuple(self._sizes)
                )
                answer = request_build(self._cache, request)
        return answer or f"engines of {' + '.join(map(str, wanted))} were refused or are no faster"

    def _cannot_build(self) -> str:
        """Why nothing of this backend can be built here; empty where something can."""
        backends = CANDIDATES if self.backend == "auto" else (self.backend,)
        reasons = [COMPILED[backend].cannot_build(self._device) for backend in backends]
        return "" if None in reasons else "; ".join(str(reason) for reason in reasons)

    def _plan(self, part: Part, backend: str, signature: Signature) -> Plan:
        if part.name not in self._weights:
            self._weights[part.name] = weight_digest(part)
        weights = self._weights[part.name]
        return plan_for(self._method, part, backend, signature, self._device, weights)
