"""The engines of one method on one device: found in the cache, loaded, called where they fit.

    engines = Engines(method, torch.device("cpu"), "auto")
    run = engines.switch(part, eager)
    outputs = run(frames)                       # the engine, or eager where there is none
    engines.describe()

What runs for a signature is decided at its first call, and stays. The engine is loaded and called once at
that time, so that a failure shows there. Nothing is built here: where an engine is missing, eager runs, and
one line in the log has the command that builds it.
"""

from __future__ import annotations

import json
import logging
import shlex
from collections import Counter
from collections.abc import Callable
from functools import partial
from types import ModuleType

import torch

from streamvos.engines import BACKENDS, CANDIDATES, aoti, cuda_graphs, tensorrt
from streamvos.engines.cache import EngineCache
from streamvos.engines.eager import choose_device
from streamvos.engines.exporting import copied, first_line
from streamvos.engines.manifest import Manifest, is_ours, plan_of, weight_digest
from streamvos.engines.recipes import Recipe, recipe_for
from streamvos.engines.signature import Signature, is_aligned
from streamvos.methods import Method
from streamvos.methods.parts import ExtractorPart, Part, Run, Size, Tensors
from streamvos.types import InputError

log = logging.getLogger(__name__)

COMPILED: dict[str, ModuleType] = {"aoti": aoti, "tensorrt": tensorrt, "cuda-graph": cuda_graphs}
"""Backend -> its module.

`missing(device)` and `cannot_build(device)` say why engines cannot be used, or built; None if they can.
`build(program, path, signature, freezing)` compiles an exported part into a file.
`load(path, device, plain)` returns the compiled function of a file, or of the part itself (`plain`).
"""


def check_backend(backend: str, device: torch.device) -> None:
    """Raise InputError if there is no such backend, or it cannot be used on this device."""
    if backend not in BACKENDS:
        raise InputError(f"unknown backend {backend!r}; choose one of: {', '.join(BACKENDS)}")
    missing = COMPILED[backend].missing(device) if backend in COMPILED else None
    if missing is not None:
        raise InputError(f"backend {backend!r} cannot be used here: {missing}; try 'auto' or 'eager'")


class Engine:
    """A compiled function, which checks nothing, made to refuse inputs that it was not compiled for."""

    def __init__(self, run: Run, signature: Signature):
        self._run, self.signature = run, signature

    def __call__(self, *tensors: torch.Tensor) -> Tensors:
        """The outputs of the part; InputError if the tensors do not fit the signature."""
        self.signature.check(tensors)
        return self._run(*tensors)


Found = tuple[Engine | None, str]
"""An engine, None for eager, and why."""


class Switch:
    """A part's callable: its engine where one fits, eager elsewhere.

    Args:
        eager: the reference.
        find: called once for every new signature, with it and the tensors.

    Attributes:
        calls: signature and reason -> number of calls.
    """

    def __init__(self, eager: Run, find: Callable[..., Found]):
        self._eager, self._find = eager, find
        self._found: dict[Signature, Found] = {}
        self.calls: Counter[tuple[str, str]] = Counter()

    def __call__(self, *tensors: torch.Tensor) -> Tensors:
        engine = self.choose(*tensors)
        return self._eager(*tensors) if engine is None else engine(*tensors)

    def choose(self, *tensors: torch.Tensor) -> Engine | None:
        """The engine for these tensors, None for eager; counts as a call."""
        signature = Signature.of(*tensors)
        if signature not in self._found:
            self._found[signature] = self._find(signature, tensors)
            log.info("%s: %s", signature, self._found[signature][1])
        engine, why = self._found[signature]
        if engine is not None and not all(is_aligned(tensor) for tensor in tensors):
            engine, why = None, "eager, the input's memory is not aligned"
        self.calls[str(signature), why] += 1
        return engine

    def describe(self) -> list[str]:
        """A line for each signature so far."""
        return [f"{shape}: {why} ({count} calls)" for (shape, why), count in self.calls.items()]


class Engines:
    """The engines of a method on its device.

    Args:
        cache: None = the default one.

    Raises:
        InputError: there is no such backend, or it cannot be used here.
    """

    def __init__(self, method: Method, device: torch.device, backend: str, cache: EngineCache | None = None):
        check_backend(backend, device)
        self._method, self._device, self._cache = method, device, cache or EngineCache()
        self._is_auto = backend == "auto"
        self._backends = CANDIDATES if self._is_auto else (backend,)
        self._switches: dict[str, Switch] = {}
        self._weights: dict[str, str] = {}
        self._loaded: dict[str, Engine] = {}
        self._size: Size | None = None  # of the latest frames
        self._advised: set[tuple[str, str]] = set()

    def switch(self, part: Part, eager: Run) -> Switch:
        """The callable that runs a part from here on; `eager` is its reference, on the device."""
        self._switches[part.name] = Switch(eager, partial(self._find, part))
        return self._switches[part.name]

    def describe(self) -> dict[str, list[str]]:
        """Part -> a line for each signature so far: what ran, why, and how often."""
        return {name: switch.describe() for name, switch in self._switches.items()}

    def _find(self, part: Part, signature: Signature, tensors: Tensors) -> Found:
        if not is_ours(self._method):
            return None, "eager, engines are for the methods of this package"
        problem = self._cache.problem()
        if problem is not None:
            log.warning("engines are not used: %s", problem)
            return None, f"eager, {problem}"
        if isinstance(part, ExtractorPart):
            height, width = signature.tensors[0].shape[-2:]
            self._size = height, width
        recipe, title = recipe_for(self._method.name, part.name), f"{self._method.name}/{part.name}"
        if recipe is None or signature.batch(part) > recipe.most:
            return None, "eager, its recipe is for fewer rows" if recipe else "eager, it has no recipe"
        known = self._known(part, signature.of_any_batch(part, recipe.most))
        passed = [one for one in known if one.parity.passed]
        if self._is_auto and passed:
            faster = [one for one in passed if one.is_faster]
            if not faster:
                times = ", ".join(f"{one.plan.backend} {one.share:.2f}" for one in passed)
                return None, f"eager, no engine is faster (time over eager's: {times})"
            passed = [min(faster, key=lambda one: one.share)]
        if passed:
            return self._load(part, passed[0], tensors)
        if known:
            return None, f"eager, the {known[0].plan.backend} engine was {known[0].parity}"
        advice = self._advice(recipe)
        if (part.name, advice) not in self._advised:  # once for all batches of the same engine
            self._advised.add((part.name, advice))
            log.warning("no engine for %s %s, eager runs; %s", title, signature, advice)
        return None, "eager, there is no engine for it"

    def _known(self, part: Part, signature: Signature) -> list[Manifest]:
        if part.name not in self._weights:
            self._weights[part.name] = weight_digest(part)
        weights, found = self._weights[part.name], []
        for backend in self._backends:
            plan = plan_of(self._method, part, backend, signature, self._device, weights=weights)
            found.append(self._cache.find(plan.digest))
        return [manifest for manifest in found if manifest is not None]

    def _load(self, part: Part, manifest: Manifest, tensors: Tensors) -> Found:
        plan = manifest.plan
        if manifest.name not in self._loaded:
            try:
                path = self._cache.file(manifest)
                run = COMPILED[plan.backend].load(path, self._device, part.plain)
                engine = Engine(run, plan.signature)
                engine(*(copied(tensor) for tensor in tensors))
            except Exception as error:  # whatever a compiler or a driver raises
                reason = str(error) if isinstance(error, InputError) else first_line(error)
                log.warning("%s fails here: %s; eager runs instead", manifest.title, reason)
                return None, f"eager, the {plan.backend} engine fails here: {reason}"
            self._loaded[manifest.name] = engine
        return self._loaded[manifest.name], f"{plan.backend} ({manifest.parity})"

    def _advice(self, recipe: Recipe) -> str:
        origin = self._method.origin
        if origin is None or origin.weights is None:
            return "its weights are not from a file, so that no command builds one"
        given = {
            "--method": "" if origin.name == recipe.method else origin.name,
            "--size": "HxW" if self._size is None else f"{self._size[0]}x{self._size[1]}",
            "--weights": "" if origin.weights == "default" else origin.weights,
            "--backend": "" if self._is_auto else self._backends[0],
            "--device": "" if self._device == choose_device("auto") else str(self._device),
        }
        words = ["streamvos", "engines", "build", recipe.name]
        words += [word for option, value in given.items() if value for word in (option, value)]
        words += [w for n, value in origin.options.items() for w in ("--set", f"{n}={json.dumps(value)}")]
        return f"to build one: {shlex.join(words)}"
