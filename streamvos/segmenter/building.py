"""Building an engine: export, compile, compare, measure, store. Takes minutes; never where a stream runs.

    builder = Builder(method, device, cache)
    manifest = builder.build("extractor", "aoti", inputs, clip)
    choice = builder.choose("extractor", inputs, clip)         # builds what is missing, takes the fastest

It can be interrupted at any time: nothing appears in the cache before it is whole.
"""

from __future__ import annotations

import logging
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from streamvos.engines import CANDIDATES, COMPILED, Engine, EngineCache
from streamvos.engines.cache import digest_of
from streamvos.engines.eager import prepare
from streamvos.engines.engines import plan_for
from streamvos.engines.exporting import PartModule, export, first_line
from streamvos.engines.keys import FORMAT, Plan, engine_key, plan_of, weight_digest
from streamvos.engines.manifest import Choice, Manifest, Parity
from streamvos.engines.recipes import Recipe
from streamvos.engines.signature import Signature
from streamvos.methods import Method
from streamvos.methods.parts import ExtractorPart, Layout, Part, Tensors
from streamvos.segmenter.gate import Clip, compare
from streamvos.types import InputError

log = logging.getLogger(__name__)

Progress = Callable[[str, int, int], None]
"""What is being done, how much of it is done, of how much."""

WORTHWHILE = 0.95
"""An engine has to take less than this share of eager's time to be chosen; what is between is noise."""

NOT_YET = Parity(
    passed=False, feature_error=0, mask_overlap=0, worst_overlap=0, frames=0, clip="", reason="not compared"
)

ROUNDS = 7
"""Calls of each, in turns; the median counts."""


class BuiltElsewhereError(InputError):
    """Another process is building this very engine."""


class Builder:
    """Builds engines of one method.

    Args:
        method: with its weights.
        device: to build for.
        cache: to store in.
        progress: told what goes on.
    """

    def __init__(
        self, method: Method, device: torch.device, cache: EngineCache, progress: Progress | None = None
    ):
        self.method, self.device, self.cache = method.eval().to(device), device, cache
        self._progress = progress or (lambda what, done, of: None)
        prepare(method.extractor, device)
        self._weights: dict[str, str] = {}

    def plan(self, part: Part, backend: str, inputs: Tensors, recipe: Recipe | None = None) -> Plan:
        """What is to be built.

        Args:
            part: of the method.
            backend: one of `COMPILED`, or "auto" for the question which is best.
            inputs: example.
            recipe: None = the package's own for this part.
        """
        if part.name not in self._weights:
            self._weights[part.name] = weight_digest(part)
        signature, weights = Signature.of(*inputs), self._weights[part.name]
        if recipe is None:
            return plan_for(self.method, part, backend, signature, self.device, weights)
        settings = recipe.settings(backend)
        return plan_of(
            self.method, part, backend, settings, recipe.precision, signature, self.device, weights
        )

    def build(
        self,
        part: Part,
        backend: str,
        inputs: Tensors,
        clip: Clip,
        recipe: Recipe | None = None,
        force: bool = False,
    ) -> Manifest:
        """Build one engine, unless it is there.

        Args:
            part: of the method.
            backend: one of `COMPILED`.
            inputs: example, on the device.
            clip: real frames to compare on.
            recipe: None = the package's own for this part.
            force: build it even if it is there, or was refused before.

        Returns:
            What is known of it; `parity.passed` says whether it will be used.

        Raises:
            InputError: the backend cannot build here, the part cannot be exported or compiled, or somebody
                else is building the same engine.
        """
        plan = self.plan(part, backend, inputs, recipe)
        reason = COMPILED[backend].cannot_build(self.device)
        if reason is not None:
            raise InputError(f"backend {backend!r} cannot build here: {reason}")
        with self.cache.building(plan.digest) as free:
            if not free:
                raise BuiltElsewhereError(
                    f"another process is building this engine ({plan.digest[:12]}); wait for it"
                )
            found = None if force else self.cache.find(plan.digest)
            if found is not None:
                return found
            return self._build(part, plan, inputs, clip)

    def choose(
        self, part: Part, inputs: Tensors, clip: Clip, recipe: Recipe | None = None, force: bool = False
    ) -> Choice:
        """Find out what is fastest here, and remember it for `backend="auto"`.

        Args:
            part, inputs, clip, recipe, force: as for `build`.

        Raises:
            InputError: none could be built, for a reason that may not last; nothing is decided then.
        """
        failure: InputError | None = None
        milliseconds: dict[str, float] = {}
        left_out: dict[str, str] = {"inductor": "compiles anew in every process"}
        shares = {"eager": WORTHWHILE}
        for backend in CANDIDATES:
            reason = COMPILED[backend].missing(self.device)
            if reason is not None:
                left_out[backend] = reason
                continue
            try:
                manifest = self.build(part, backend, inputs, clip, recipe, force)
            except BuiltElsewhereError:
                raise
            except InputError as error:
                failure, left_out[backend] = error, str(error)
                continue
            if not manifest.parity.passed:
                left_out[backend] = str(manifest.parity)
                continue
            milliseconds |= {
                "eager": manifest.milliseconds["eager"],
                backend: manifest.milliseconds["engine"],
            }
            shares[backend] = manifest.milliseconds["engine"] / manifest.milliseconds["eager"]
        if failure is not None and not milliseconds:
            raise failure
        choice = Choice(
            question=self.plan(part, "auto", inputs).question,
            backend=min(shares, key=lambda name: shares[name]),
            milliseconds=milliseconds,
            left_out=left_out,
            decided_at=time.time_ns(),
        )
        self.cache.decide(choice)
        return choice

    def verify(self, part: Part, manifest: Manifest, clip: Clip) -> Parity:
        """Compare an engine once more; one that does not pass is refused from here on.

        Args:
            part: of the method.
            manifest: of an engine of that part.
            clip: frames of its size.

        Raises:
            InputError: its file is damaged, gone, or cannot be loaded.
        """
        backend, signature = COMPILED[manifest.backend], Signature.from_json(manifest.about["inputs"])
        module = PartModule(part, manifest.about["precision"])
        run = backend.load(self.cache.artefact(manifest), self.device, module)
        parity = compare(self.method, part, Engine(run, signature, manifest), clip, self.device, self._frames)
        if not parity.passed:
            refused = manifest.model_copy(update={"parity": parity, "artefact": None})
            self.cache.store(refused, None)
        return parity

    def _build(self, part: Part, plan: Plan, inputs: Tensors, clip: Clip) -> Manifest:
        seconds: dict[str, float] = {}
        backend, module = COMPILED[plan.backend], PartModule(part, plan.precision)
        layout, expected = _reference(part, inputs)
        with self.cache.workshop() as folder:
            with self._step("export", seconds):
                program = export(module, inputs)
            path = folder / backend.FILE
            with self._step("compile", seconds):
                try:
                    backend.build(program, path, plan.settings)
                    run = backend.load(path, self.device, module)
                    with torch.inference_mode():
                        run(*inputs)
                except InputError:
                    raise
                except Exception as error:  # whatever a compiler raises
                    raise InputError(
                        f"{plan.backend} cannot compile {part.name}: {first_line(error)}"
                    ) from error
            manifest = Manifest(
                format=FORMAT,
                key=engine_key(plan, program),
                plan=plan.digest,
                about=asdict(plan),
                frames=clip.size,
                objects=clip.objects,
                artefact=path.name,
                sha256="",
                size=0,
                parity=NOT_YET,
                layout=layout,
                outputs=Signature.of(*expected).as_json(),
                built_at=time.time_ns(),
                seconds={},
                milliseconds={},
            )
            engine = Engine(run, Signature.of(*inputs), manifest)
            with self._step("compare", seconds):
                parity = compare(self.method, part, engine, clip, self.device, self._frames)
            with self._step("measure", seconds):
                milliseconds = measure(part, engine, inputs, self.device)
            return self._store(manifest, parity, path, seconds, milliseconds)

    def _store(
        self,
        manifest: Manifest,
        parity: Parity,
        path: Path,
        seconds: dict[str, float],
        milliseconds: dict[str, float],
    ) -> Manifest:
        known: dict[str, Any] = {"parity": parity, "seconds": seconds, "milliseconds": milliseconds}
        if parity.passed:
            known |= {"sha256": digest_of(path), "size": path.stat().st_size}
        else:
            known |= {"artefact": None}
        manifest = manifest.model_copy(update={**known, "built_at": time.time_ns()})
        self.cache.store(manifest, path if parity.passed else None)
        return manifest

    @contextmanager
    def _step(self, what: str, seconds: dict[str, float]) -> Iterator[None]:
        self._progress(what, 0, 1)
        started = time.perf_counter()
        yield
        seconds[what] = round(time.perf_counter() - started, 3)

    def _frames(self, done: int, every: int) -> None:
        self._progress("compare", done, every)


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


@torch.inference_mode()
def _reference(part: Part, inputs: Tensors) -> tuple[Layout | None, Tensors]:
    """What features look like, if it is an extractor, and what eager gives."""
    layout = part.layout(inputs[0]) if isinstance(part, ExtractorPart) else None
    return layout, part.plain(*inputs)
