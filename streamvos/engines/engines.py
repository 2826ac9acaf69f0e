"""The engines of one method on one device: found in the cache, loaded, called where they fit.

    engines = Engines(method, torch.device("cpu"), "auto")
    run = engines.switch(part, eager)
    outputs = run(frames)                       # the engine, or eager where there is none
    engines.describe()

What runs for a signature is decided when it first comes, and stays. The engine is loaded and called once at
that time, since what can fail on this machine fails there. Nothing is built here: where an engine is missing,
eager runs, and one line in the log has the command that builds it.
"""

from __future__ import annotations

import json
import logging
import shlex
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from torch.export import ExportedProgram

from streamvos.engines import BACKENDS, CANDIDATES, aoti, cuda_graphs, tensorrt
from streamvos.engines.cache import EngineCache, default_folder
from streamvos.engines.eager import choose_device
from streamvos.engines.exporting import first_line
from streamvos.engines.keys import is_ours, plan_of, weight_digest
from streamvos.engines.manifest import Manifest
from streamvos.engines.recipes import recipe_for
from streamvos.engines.signature import Signature, is_aligned
from streamvos.methods import Method
from streamvos.methods.parts import ExtractorPart, Layout, Part, Run, Size, Tensors
from streamvos.types import InputError

log = logging.getLogger(__name__)


class Compiled(Protocol):
    """The module of a backend.

    `missing` and `cannot_build` say why engines cannot be used, or built, on a device; None if they can.
    `build` compiles an exported part into a file, with the options that a recipe sets; `signature` says which
    inputs it is for. `load` gives the compiled function of a file whose digest was compared, or of the part
    itself (`plain`); it does not check its inputs.
    """

    FILE: str

    def missing(self, device: torch.device) -> str | None: ...
    def cannot_build(self, device: torch.device) -> str | None: ...
    def build(
        self, program: ExportedProgram, path: Path, settings: Mapping[str, Any], signature: Signature
    ) -> None: ...
    def load(self, path: Path, device: torch.device, plain: Run) -> Run: ...


COMPILED: dict[str, Compiled] = {"aoti": aoti, "tensorrt": tensorrt, "cuda-graph": cuda_graphs}
"""Backend -> its module."""


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


class Engine:
    """A compiled function that refuses what it was not compiled for.

    Args:
        run: the compiled function, which checks nothing.
        signature: what it is called with.
        layout: for extractors: name of each feature map, and whether it is the frames themselves.
    """

    def __init__(self, run: Run, signature: Signature, layout: Layout | None = None):
        self._run, self.signature, self.layout = run, signature, layout

    def __call__(self, *tensors: torch.Tensor) -> Tensors:
        """The outputs of the part.

        Raises:
            InputError: the tensors are not of the engine's signature.
        """
        self.signature.check(tensors)
        return self._run(*tensors)


class Switch:
    """A part's callable: its engine where one fits, eager elsewhere.

    Args:
        eager: the reference.
        find: called once for every new signature; its engine, None for eager, and why.

    Attributes:
        calls: signature and reason -> number of calls.
    """

    def __init__(self, eager: Run, find: Callable[[Signature], tuple[Engine | None, str]]):
        self._eager, self._find = eager, find
        self._found: dict[Signature, tuple[Engine | None, str]] = {}
        self.calls: Counter[tuple[str, str]] = Counter()

    def __call__(self, *tensors: torch.Tensor) -> Tensors:
        engine = self.choose(*tensors)
        return self._eager(*tensors) if engine is None else engine(*tensors)

    def choose(self, *tensors: torch.Tensor) -> Engine | None:
        """The engine for these tensors, None for eager; counts as a call."""
        signature = Signature.of(*tensors)
        if signature not in self._found:
            self._found[signature] = self._find(signature)
            log.info("%s: %s", signature, self._found[signature][1])
        engine, why = self._found[signature]
        if engine is not None and not all(is_aligned(tensor) for tensor in tensors):
            engine, why = None, "eager, the input's memory is not aligned"
        self.calls[str(signature), why] += 1
        return engine

    def describe(self) -> list[str]:
        """A line for each signature that came."""
        return [f"{shape}: {why} ({count} calls)" for (shape, why), count in self.calls.items()]


class Engines:
    """See the head of this file.

    Args:
        method: on the device.
        device: where its parts run.
        backend: one of `BACKENDS`.
        cache: None = the default one.

    Raises:
        InputError: there is no such backend, or it cannot be used here.
    """

    def __init__(self, method: Method, device: torch.device, backend: str, cache: EngineCache | None = None):
        check_backend(backend, device)
        self._method, self._device, self.backend = method, device, backend
        self._cache = cache or EngineCache()
        self._switches: dict[str, Switch] = {}
        self._weights: dict[str, str] = {}
        self._loaded: dict[str, Engine] = {}
        self._size: Size | None = None  # of the latest frames
        self._advised: set[tuple[str, str]] = set()

    def switch(self, part: Part, eager: Run) -> Switch:
        """The callable that runs a part from here on.

        Args:
            part: of the method.
            eager: the reference, on the device.
        """
        self._switches[part.name] = Switch(eager, lambda signature: self._find(part, signature))
        return self._switches[part.name]

    def describe(self) -> dict[str, list[str]]:
        """Part -> a line for each signature that came: what ran, why, and how often."""
        return {name: switch.describe() for name, switch in self._switches.items()}

    def _find(self, part: Part, signature: Signature) -> tuple[Engine | None, str]:
        if not is_ours(self._method):
            return None, "eager, engines are for the methods of this package"
        problem = self._cache.problem()
        if problem is not None:
            log.warning("engines are not used: %s", problem)
            return None, f"eager, {problem}"
        if isinstance(part, ExtractorPart):
            height, width = signature.tensors[0].shape[-2:]
            self._size = height, width
        known = self._known(part, signature)
        passed = [one for one in known if one.parity.passed]
        if self.backend == "auto" and passed:
            faster = sorted((one for one in passed if one.is_faster), key=lambda one: one.share)
            if not faster:
                times = ", ".join(f"{one.plan.backend} {one.share:.2f}" for one in passed)
                return None, f"eager, no engine is faster (time over eager's: {times})"
            passed = faster
        if passed:
            return self._load(part, passed[0])
        if known:
            return None, f"eager, the {known[0].plan.backend} engine was {known[0].parity}"
        name, advice = f"{self._method.name}/{part.name}", self._advice(part, signature)
        if (part.name, advice) not in self._advised:  # once for all batches that the same engine would take
            self._advised.add((part.name, advice))
            log.warning("no engine for %s %s, eager runs; %s", name, signature, advice)
        return None, "eager, there is no engine for it"

    def _known(self, part: Part, signature: Signature) -> list[Manifest]:
        """The engine of each backend for these inputs: one of exactly this batch, or one of any."""
        if part.name not in self._weights:
            self._weights[part.name] = weight_digest(part)
        recipe, found = recipe_for(self._method.name, part.name), []
        signatures = [signature]
        if recipe is not None and signature.batch(part) <= recipe.most:
            signatures.append(signature.of_any_batch(part, recipe.most))
        for backend in CANDIDATES if self.backend == "auto" else (self.backend,):
            plans = (
                plan_of(self._method, part, backend, one, self._device, recipe, self._weights[part.name])
                for one in signatures
            )
            manifests = (self._cache.find(plan.digest) for plan in plans)
            found += [one for one in manifests if one is not None][:1]
        return found

    def _load(self, part: Part, manifest: Manifest) -> tuple[Engine | None, str]:
        """Load an engine once; eager where that fails."""
        plan = manifest.plan
        if manifest.name not in self._loaded:
            try:
                path = self._cache.artefact(manifest)
                run = COMPILED[plan.backend].load(path, self._device, part.plain)
                engine = Engine(run, plan.signature, manifest.layout)
                engine(*plan.signature.zeros(self._device))
            except Exception as error:  # whatever a compiler or a driver raises
                reason = str(error) if isinstance(error, InputError) else first_line(error)
                log.warning("%s fails here: %s; eager runs instead", manifest.title, reason)
                return None, f"eager, the {plan.backend} engine fails here: {reason}"
            self._loaded[manifest.name] = engine
        return self._loaded[manifest.name], f"{plan.backend} ({manifest.parity})"

    def _advice(self, part: Part, signature: Signature) -> str:
        """How to build the engine that is missing."""
        recipe, origin = recipe_for(self._method.name, part.name), self._method.origin
        if recipe is None or origin is None or origin.weights is None:
            return "its weights are not from a file, so that no command builds one"
        batch = signature.batch(part)
        size = "HxW" if self._size is None else f"{self._size[0]}x{self._size[1]}"
        given = {
            "--method": "" if origin.name == recipe.method else origin.name,
            "--size": size,
            "--batch": "" if batch <= recipe.most else str(batch),
            "--weights": "" if origin.weights == "default" else origin.weights,
            "--backend": "" if self.backend == "auto" else self.backend,
            "--device": "" if self._device == choose_device("auto") else str(self._device),
            "--cache": "" if self._cache.folder == default_folder() else str(self._cache.folder),
        }
        words = ["streamvos", "engines", "build", recipe.name]
        words += [word for option, value in given.items() if value for word in (option, value)]
        words += [w for n, value in origin.options.items() for w in ("--set", f"{n}={json.dumps(value)}")]
        return f"to build one: {shlex.join(words)}"
