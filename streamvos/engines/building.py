"""Building engines: export, compile, compare, measure, store. Takes minutes; never where a stream runs.

    builder = Builder(method, device, cache, follow)
    for job in plan_jobs(["tvos-extractor"], sizes=[(480, 854)]):
        for inputs, signature in builder.inputs(job, clip):
            manifest = builder.build(part, "aoti", inputs, signature, clip)

It can be interrupted at any time: nothing appears in the cache before it is whole.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from streamvos.engines.cache import EngineCache, digest_of
from streamvos.engines.eager import prepare
from streamvos.engines.engines import COMPILED, Engine
from streamvos.engines.exporting import export, first_line
from streamvos.engines.gate import Clip, Follow, compare, inputs_in, resized
from streamvos.engines.keys import FORMAT, Plan, facts, plan_of, source_digest
from streamvos.engines.manifest import Manifest, Parity
from streamvos.engines.recipes import Recipe, recipe_named, recipes
from streamvos.engines.signature import Signature
from streamvos.methods import Method
from streamvos.methods.parts import ExtractorPart, Part, Size, Tensors
from streamvos.types import InputError
from streamvos.weights import BUNDLED

Progress = Callable[[str, int, int], None]
"""Called with what is being done, how much of it is done, and of how much."""

ROUNDS = 7
"""Calls of eager and engine, in turns; the median counts."""


@dataclass(frozen=True)
class Job:
    """Engines to be built for one size.

    Attributes:
        recipe: its part, options and largest batch.
        size: (H, W) of the frames.
        batch: 0 = every batch from 1 to the recipe's largest.
    """

    recipe: Recipe
    size: Size
    batch: int

    @property
    def title(self) -> str:
        """The name of the recipe, the batch and the size."""
        return f"{self.recipe.name} {self.batch or f'1..{self.recipe.most}'}x{self.size[0]}x{self.size[1]}"


def plan_jobs(
    names: Sequence[str], sizes: Sequence[Size] = (), batches: Sequence[int] = (), weights: str = "default"
) -> list[Job]:
    """Which engines are to be built; what is not given is as in the recipe. See `chosen_recipes`."""
    return [
        Job(recipe, size, batch)
        for recipe in chosen_recipes(names, weights)
        for size in sorted(sizes or recipe.sizes)
        for batch in sorted(batches or [0])
    ]


def chosen_recipes(names: Sequence[str], weights: str = "default") -> list[Recipe]:
    """The recipes of these names or files; without any, those of methods that have bundled weights.

    Raises:
        InputError: there is no such recipe, or weights are given without a recipe.
    """
    if names:
        return [recipe_named(name) for name in names]
    if weights != "default":
        raise InputError(f"--weights is for one method; name its recipes: {', '.join(recipes())}")
    return [one for one in recipes().values() if one.method in BUNDLED]


def part_of(method: Method, name: str) -> Part:
    """A part by its name.

    Raises:
        InputError: the method has no such part.
    """
    parts = method.parts()
    if name not in parts:
        raise InputError(f"{method.name} has no part {name!r} with these options; it has: {', '.join(parts)}")
    return parts[name]


def stale(manifest: Manifest, device: torch.device) -> str:
    """Why an engine cannot be used here any more; empty if it can."""
    theirs, ours = manifest.plan.facts, facts(device)
    if theirs.get("device") != device.type:
        return f"for {theirs.get('device')}"
    changed = [name for name in sorted({*theirs, *ours}) if theirs.get(name) != ours.get(name)]
    if changed:
        return f"{changed[0]} is now {ours.get(changed[0])}, was {theirs.get(changed[0])}"
    if manifest.plan.format != FORMAT or manifest.plan.source != source_digest():
        return "the networks' code has changed since"
    return ""


class Builder:
    """Builds engines of one method.

    Args:
        method: with its weights.
        device: where the engines will run.
        cache: where they are stored.
        follow: follows a clip, see `streamvos.engines.gate.Follow`.
        progress: see `Progress`.
    """

    def __init__(
        self,
        method: Method,
        device: torch.device,
        cache: EngineCache,
        follow: Follow,
        progress: Progress = lambda what, done, of: None,
    ):
        self.method, self.device, self.cache = method.eval().to(device), device, cache
        self._follow, self._progress = follow, progress
        prepare(method.extractor, device)

    def inputs(self, job: Job, clip: Clip) -> list[tuple[Tensors, Signature]]:
        """Example inputs, on the device, for each engine of a job; a part may need several, one per scale.

        Args:
            job: what is to be built.
            clip: followed to find what an inner part is called with.

        Raises:
            InputError: with these options the method does not have or use the part.
        """
        part = part_of(self.method, job.recipe.part)
        batch = job.batch or 2  # which no compiler takes for a constant
        if isinstance(part, ExtractorPart):
            every = [tuple(tensor.to(self.device) for tensor in part.example(job.size, batch))]
        else:
            every = inputs_in(self.method, part, clip, self.device, self._follow)
            every = [resized(part, tensors, batch) for tensors in every]
        if not every:
            raise InputError(f"{self.method.name} does not use its part {part.name!r} with these options")
        found: dict[Signature, Tensors] = {}
        for tensors in every:
            exact = Signature.of(*tensors)
            signature = exact if job.batch else exact.of_any_batch(part, job.recipe.most)
            found.setdefault(signature, tensors)
        return [(tensors, signature) for signature, tensors in found.items()]

    def build(
        self,
        part: Part,
        backend: str,
        inputs: Tensors,
        signature: Signature,
        clip: Clip,
        recipe: Recipe | None = None,
        force: bool = False,
    ) -> Manifest:
        """Build one engine, unless there is one.

        Args:
            part: of the method.
            backend: one of `COMPILED`.
            inputs: examples, on the device.
            signature: which inputs the engine is for.
            clip: real frames to compare on.
            recipe: None = the recipe in the package for this part.
            force: build it even if there is one, or one was refused before.

        Returns:
            The manifest; `parity.passed` says whether the engine will be used.

        Raises:
            InputError: the backend cannot build here, the part cannot be exported or compiled, or another
                process is building the same engine.
        """
        plan = plan_of(self.method, part, backend, signature, self.device, recipe)
        reason = COMPILED[backend].cannot_build(self.device)
        if reason is not None:
            raise InputError(f"backend {backend!r} cannot build here: {reason}")
        with self.cache.building(plan.digest) as folder:
            found = None if force else self.cache.find(plan.digest)
            return found or self._build(part, plan, inputs, clip, folder)

    def verify(self, part: Part, manifest: Manifest, clip: Clip) -> Parity:
        """Compare an engine once more; one that does not pass is refused from then on.

        Args:
            part: of the method.
            manifest: of an engine of the part.
            clip: frames of its size.

        Raises:
            InputError: its file is damaged, missing, or cannot be loaded.
        """
        plan, path = manifest.plan, self.cache.artefact(manifest)
        run = COMPILED[plan.backend].load(path, self.device, part.plain)
        parity = self._compare(part, Engine(run, plan.signature), clip)
        if not parity.passed:
            with self.cache.building(manifest.name) as folder:
                refused = manifest.model_copy(update={"parity": parity, "artefact": None})
                self.cache.store(refused, folder)
        return parity

    def _build(self, part: Part, plan: Plan, inputs: Tensors, clip: Clip, folder: Path) -> Manifest:
        seconds: dict[str, float] = {}
        backend = COMPILED[plan.backend]
        path = folder / backend.FILE
        with self._step("export", seconds):
            program = export(part, inputs, plan.signature)
        with self._step("compile", seconds):
            try:
                backend.build(program, path, plan.settings, plan.signature)
                run = backend.load(path, self.device, part.plain)
                with torch.inference_mode():
                    run(*inputs)
            except InputError:
                raise
            except Exception as error:  # whatever a compiler raises
                raise InputError(f"{plan.backend} cannot compile {part.name}: {first_line(error)}") from error
        engine = Engine(run, plan.signature)
        with self._step("compare", seconds):
            parity = self._compare(part, engine, clip)
        with self._step("measure", seconds):
            one = resized(part, inputs, 1) if plan.signature.most else inputs
            milliseconds = measure(part, engine, one, self.device)
        with torch.inference_mode():
            layout = part.layout(inputs[0]) if isinstance(part, ExtractorPart) else None
        manifest = Manifest(
            name=plan.digest,
            plan=plan,
            frames=clip.size,
            objects=clip.objects,
            artefact=path.name if parity.passed else None,
            sha256=digest_of(path),
            size=path.stat().st_size,
            parity=parity,
            layout=layout,
            built_at=time.time_ns(),
            seconds=seconds,
            milliseconds=milliseconds,
        )
        self.cache.store(manifest, folder)
        return manifest

    def _compare(self, part: Part, engine: Engine, clip: Clip) -> Parity:
        progress = partial(self._progress, "compare")
        return compare(self.method, part, engine, clip, self.device, self._follow, progress)

    @contextmanager
    def _step(self, what: str, seconds: dict[str, float]) -> Iterator[None]:
        self._progress(what, 0, 1)
        started = time.perf_counter()
        yield
        seconds[what] = round(time.perf_counter() - started, 3)


def measure(part: Part, engine: Engine, inputs: Tensors, device: torch.device) -> dict[str, float]:
    """Milliseconds per call, median of several, taken in turns so that both meet the same disturbances.

    Returns:
        "eager" and "engine".
    """
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
