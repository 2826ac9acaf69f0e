"""The engines of one method on one device: found in the cache, loaded, or asked for.

    engines = Engines(method, torch.device("cpu"), "auto")
    run = engines.switch(part, eager)

Loading happens when tensors of a signature first come, which takes some milliseconds; building never
happens here.
"""

from __future__ import annotations

import logging
from typing import Any, Protocol

import torch
from torch import nn

from streamvos.backends import aoti, inductor, tensorrt
from streamvos.backends.beside import request_build
from streamvos.backends.cache import EngineCache
from streamvos.backends.exporting import PartModule
from streamvos.backends.keys import Plan, is_ours, plan_of, weight_digest
from streamvos.backends.recipes import recipe_for
from streamvos.backends.signature import Signature
from streamvos.backends.switch import Engine, Found, Switch
from streamvos.methods import Method
from streamvos.methods.parts import Part, Run
from streamvos.types import InputError

log = logging.getLogger(__name__)


class Compiled(Protocol):
    """What the module of a backend offers; see `streamvos.backends.aoti`."""

    FILE: str

    def missing(self, device: torch.device) -> str | None: ...

    def cannot_build(self, device: torch.device) -> str | None: ...

    def build(self, program: torch.export.ExportedProgram, path: Any, settings: Any) -> None: ...

    def load(self, path: Any, device: torch.device, module: nn.Module) -> Run: ...


COMPILED: dict[str, Compiled] = {"inductor": inductor, "aoti": aoti, "tensorrt": tensorrt}
"""Backend -> its module."""

CANDIDATES = ("tensorrt", "aoti")
"""Of which `auto` takes the fastest; inductor compiles anew in every process and is left out."""

BACKENDS = ("eager", *COMPILED, "auto")


def check_backend(backend: str) -> None:
    """Refuse a name that is none.

    Raises:
        InputError: naming those that there are.
    """
    if backend not in BACKENDS:
        raise InputError(f"unknown backend {backend!r}; choose one of: {', '.join(BACKENDS)}")


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
        check_backend(backend)
        missing = why_missing(backend, device)
        if missing is not None:
            raise InputError(f"backend {backend!r} cannot be used here: {missing}; try 'auto' or 'eager'")
        self._method, self._device, self.backend = method, device, backend
        self._cache = cache or EngineCache()
        self._switches: dict[str, Switch] = {}
        self._weights: dict[str, str] = {}

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
        problem = self._cache.problem()
        if self.backend == "eager":
            return Found(None, "eager")
        if not is_ours(self._method):
            return Found(None, "eager, engines are for the methods of this package")
        if problem is not None:
            log.warning("engines are not used: %s", problem)
            return Found(None, f"eager, {problem}")
        if part.name not in self._weights:
            self._weights[part.name] = weight_digest(part)
        backend, because = self.backend, ""
        plan = plan_for(self._method, part, backend, signature, self._device, self._weights[part.name])
        if backend == "auto":
            choice = self._cache.choice(plan.question)
            if choice is None:
                return self._later(
                    part, signature, plan.question, "which backend is fastest is not known yet"
                )
            if choice.backend == "eager":
                return Found(None, str(choice))
            backend, because = choice.backend, f", {choice}"
            plan = plan_for(self._method, part, backend, signature, self._device, self._weights[part.name])
        return self._load(part, signature, plan, because)

    def _load(self, part: Part, signature: Signature, plan: Plan, because: str) -> Found:
        manifest = self._cache.find(plan.digest)
        if manifest is None:
            return self._later(part, signature, plan.digest, f"there is no {plan.backend} engine for it yet")
        if not manifest.parity.passed:
            return Found(None, f"eager, the {plan.backend} engine was {manifest.parity}")
        try:
            path = self._cache.artefact(manifest)
            module = PartModule(part, plan.precision)
            run = COMPILED[plan.backend].load(path, self._device, module)
        except InputError as error:
            log.warning("%s; eager runs instead", error)
            return self._later(part, signature, plan.digest, str(error))
        return Found(Engine(run, signature, manifest), f"{plan.backend} ({manifest.parity}){because}")

    def _later(self, part: Part, signature: Signature, name: str, why: str) -> Found:
        """Eager for now."""
        asked = request_build(self._cache, name, self._method, part, self.backend, signature, self._device)
        log.warning(
            "%s: %s/%s runs eager for now, %s; %s", signature, self._method.name, part.name, why, asked
        )
        return Found(None, f"eager, {why}; {asked}")
