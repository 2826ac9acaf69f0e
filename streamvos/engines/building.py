"""Building engines: export, compile, compare, measure, store. Takes minutes; never where a stream runs.

    builder = Builder(method, recipe, device, cache, follow, clip)
    for inputs in builder.inputs():
        manifest = builder.build("aoti", inputs)

A build can be interrupted at any time: an engine appears in the cache when it is complete.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch

from streamvos.engines.cache import FILE, EngineCache, digest_of
from streamvos.engines.eager import prepare
from streamvos.engines.engines import COMPILED, Engine
from streamvos.engines.exporting import export, first_line
from streamvos.engines.gate import Clip, Follow, compare, inputs_in, resized
from streamvos.engines.manifest import Manifest, Parity, Plan, plan_of
from streamvos.engines.recipes import Recipe
from streamvos.engines.signature import Signature
from streamvos.methods import Method
from streamvos.methods.parts import ExtractorPart, Part, Tensors
from streamvos.types import InputError

ROUNDS = 7
"""Calls of eager and engine, in turns; the median counts."""


class Builder:
    """Builds the engines of one part for one size.

    Args:
        method, recipe, device, cache: what is built, for which device, and where it is stored.
        follow: follows a clip, see `streamvos.engines.gate.Follow`.
        clip: frames to compare on; their size is the engines'.
        progress: called with a line of text for each step.

    Raises:
        InputError: the method has no such part.
    """

    def __init__(
        self,
        method: Method,
        recipe: Recipe,
        device: torch.device,
        cache: EngineCache,
        follow: Follow,
        clip: Clip,
        progress: Callable[[str], None] = lambda step: None,
    ):
        parts = method.parts()
        if recipe.part not in parts:
            raise InputError(
                f"{method.name} has no part {recipe.part!r} with these options; it has: {', '.join(parts)}"
            )
        self.part: Part = parts[recipe.part]
        self._method, self._recipe, self._device = method.eval().to(device), recipe, device
        self._cache, self._follow, self._clip, self._progress = cache, follow, clip, progress
        prepare(method.extractor, device)

    def inputs(self, batch: int = 2) -> list[Tensors]:
        """Example inputs, on the device, for each engine: a part may need several, one per scale.

        Args:
            batch: number of frames or objects; at least 2 for a free one, since torch takes 1 for a constant.

        Raises:
            InputError: with these options the method does not use the part.
        """
        part = self.part
        if isinstance(part, ExtractorPart):
            return [tuple(tensor.to(self._device) for tensor in part.example(self._clip.size, batch))]
        found: dict[Signature, Tensors] = {}
        for tensors in inputs_in(self._method, part, self._clip, self._device, self._follow):
            rows = resized(part, tensors, batch)
            found.setdefault(self.signature(rows), rows)
        if not found:
            raise InputError(f"{self._method.name} does not use its part {part.name!r} with these options")
        return list(found.values())

    def signature(self, inputs: Tensors) -> Signature:
        """What the engine of these example inputs accepts."""
        return Signature.of(*inputs).of_any_batch(self.part, self._recipe.most)

    def build(self, backend: str, inputs: Tensors, force: bool = False, check: bool = False) -> Manifest:
        """Build one engine, unless there is one.

        Args:
            backend: one of `COMPILED`.
            inputs: an item of `inputs()`.
            force: build it even if there is one, or one was refused before.
            check: compare an engine that exists once more; if it fails it is refused from then on.

        Returns:
            The manifest; `parity.passed` says whether the engine will be used.

        Raises:
            InputError: the backend cannot build here, the part cannot be exported or compiled, another
                process is building the same engine, or the file to be checked is damaged.
        """
        signature = self.signature(inputs)
        plan = plan_of(self._method, self.part, backend, signature, self._device, self._recipe)
        with self._cache.building(plan.digest) as folder:
            manifest = None if force else self._cache.find(plan.digest)
            if manifest is None:
                return self._build(plan, inputs, folder)
            if check and manifest.parity.passed:
                engine = self._load(plan, self._cache.file(manifest))
                manifest = manifest.model_copy(update={"parity": self._compare(engine)})
                if not manifest.parity.passed:
                    self._cache.store(manifest, folder)
            return manifest

    def _build(self, plan: Plan, inputs: Tensors, folder: Path) -> Manifest:
        backend, path = COMPILED[plan.backend], folder / FILE
        reason = backend.cannot_build(self._device)
        if reason is not None:
            raise InputError(f"backend {plan.backend!r} cannot build here: {reason}")
        self._step("export")
        program = export(self.part, inputs, plan.signature)
        self._step("compile")
        try:
            backend.build(program, path, plan.signature, plan.freezing)
            engine = self._load(plan, path)
            with torch.inference_mode():
                engine(*inputs)
        except InputError:
            raise
        except Exception as error:  # whatever a compiler raises
            raise InputError(
                f"{plan.backend} cannot compile {self.part.name}: {first_line(error)}"
            ) from error
        manifest = Manifest(
            name=plan.digest,
            plan=plan,
            frames=self._clip.size,
            sha256=digest_of(path),
            parity=self._compare(engine),
            built_at=time.time_ns(),
            milliseconds=measure(self.part, engine, resized(self.part, inputs, 1), self._device),
        )
        self._cache.store(manifest, folder)
        return manifest

    def _load(self, plan: Plan, path: Path) -> Engine:
        return Engine(COMPILED[plan.backend].load(path, self._device, self.part.plain), plan.signature)

    def _compare(self, engine: Engine) -> Parity:
        self._step("compare")
        return compare(self._method, self.part, engine, self._clip, self._device, self._follow)

    def _step(self, step: str) -> None:
        height, width = self._clip.size
        self._progress(f"{self._recipe.name} {height}x{width}: {step}")


def measure(part: Part, engine: Engine, inputs: Tensors, device: torch.device) -> dict[str, float]:
    """Milliseconds per call of "eager" and "engine", medians; in turns, so that disturbances meet both."""
    runs: dict[str, Callable[..., Tensors]] = {"eager": part.plain, "engine": engine}
    taken: dict[str, list[float]] = {name: [] for name in runs}
    with torch.inference_mode():
        for turn in range(ROUNDS + 1):
            for name, run in runs.items():
                started = _clock(device)
                run(*inputs)
                if turn:  # the first one warms up
                    taken[name].append(1e3 * (_clock(device) - started))
    return {name: round(statistics.median(values), 3) for name, values in taken.items()}


def _clock(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
