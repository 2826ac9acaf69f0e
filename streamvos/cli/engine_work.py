"""What the `engines` commands do: which engines, on which clip, with what progress.

    work = plan_work(names, sizes=["480x854"], batches=[1])
    for one in work: ...

`streamvos.cli.engines` has the commands.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import lru_cache
from itertools import product
from pathlib import Path
from typing import Any

import torch
from rich.progress import Progress, TaskID

from streamvos.cli.output import make_progress, remark
from streamvos.engines import EngineCache
from streamvos.engines.batches import batch_of
from streamvos.engines.beside import Request, give_up, is_asked, requests
from streamvos.engines.environment import facts, source_digest
from streamvos.engines.keys import FORMAT, weight_digest
from streamvos.engines.manifest import Choice, Manifest
from streamvos.engines.parity import CLIP_FRAMES
from streamvos.engines.recipes import Recipe, recipe_named, recipes
from streamvos.engines.signature import Signature
from streamvos.masks.labelmap import read_label_map
from streamvos.methods import Method
from streamvos.methods.parts import ExtractorPart, Part, Size, Tensors
from streamvos.segmenter.building import Builder, BuiltElsewhereError
from streamvos.segmenter.gate import Clip, inputs_in
from streamvos.synthetic.synthetic import SyntheticOptions, SyntheticVideo
from streamvos.types import InputError
from streamvos.weights import BUNDLED, load_method

SEED = 7
"""Of the synthetic clip."""

OBJECTS = 2
"""In the clip on which extractors are compared; inner parts have as many as their recipe's batch says."""


@dataclass(frozen=True)
class Wanted:
    """One engine to be built or looked at.

    Attributes:
        recipe: by which.
        batch, size: of the frames.
    """

    recipe: Recipe
    batch: int
    size: Size

    @property
    def title(self) -> str:
        """For people."""
        return f"{self.recipe.name} {self.batch}x{self.size[0]}x{self.size[1]}"


def plan_work(
    names: Sequence[str], sizes: Sequence[str] | None, batches: Sequence[int] | None, weights: str
) -> list[Wanted]:
    """Which engines are meant.

    Args:
        names: of recipes, or files; none = those of methods that have weights.
        sizes: "HxW" each; None = those of the recipe.
        batches: None = those of the recipe.
        weights: as on the command line.

    Raises:
        InputError: no such recipe, or a size that is none.
    """
    asked = None if sizes is None else [_parse_size(text) for text in sizes]
    work = []
    for recipe in chosen_recipes(names, weights):
        changes: dict[str, Any] = {"sizes": asked or recipe.sizes, "batches": batches or recipe.batches}
        changed = recipe.model_copy(update=changes)
        work += [Wanted(changed, batch, size) for batch, size in changed.shapes()]
    return work


def chosen_recipes(names: Sequence[str], weights: str) -> list[Recipe]:
    """Those named; without names, those of methods that have bundled weights.

    Raises:
        InputError: no such recipe, or weights without a name.
    """
    if names:
        return [recipe_named(name) for name in names]
    if weights != "default":
        raise InputError(f"--weights is for one method; name its recipes: {', '.join(recipes())}")
    return [one for one in recipes().values() if one.method in BUNDLED]


def engines_of(cache: EngineCache, method: Method, part: Part, device: torch.device) -> list[Manifest]:
    """Engines in the cache that are of these very weights and options, and usable here."""
    wanted = {
        "method": method.name,
        "part": part.name,
        "weights": weight_digest(part),
        "options": method.options.model_dump(mode="json"),
    }
    return [
        one
        for one in cache.manifests()
        if one.artefact is not None
        and not stale(one, device)
        and all(one.about[name] == value for name, value in wanted.items())
    ]


def stale(manifest: Manifest, device: torch.device) -> str:
    """Why an engine cannot be used here any more; empty if it can."""
    theirs, ours = manifest.about["facts"], facts(device)
    if theirs.get("device") != device.type:
        return f"for {theirs.get('device')}"
    changed = [name for name in sorted({*theirs, *ours}) if theirs.get(name) != ours.get(name)]
    if changed:
        return f"{changed[0]} is now {ours.get(changed[0])}, was {theirs.get(changed[0])}"
    if manifest.format != FORMAT or manifest.about["source"] != source_digest():
        return "the networks' code has changed since"
    return ""


def _parse_size(text: str) -> Size:
    found = re.fullmatch(r"(\d+)x(\d+)", text)
    size = (int(found[1]), int(found[2])) if found else (0, 0)
    if min(size) < 16 or max(size) > 8192:
        raise InputError(f"--size {text!r} cannot be used; expected HEIGHTxWIDTH in pixels, such as 480x854")
    return size


def method_of(recipe: Recipe, weights: str | None, options: dict[str, Any]) -> Method:
    """The method of a recipe.

    Raises:
        InputError: there are no bundled weights and none were given.
    """
    if weights == "default" and recipe.method not in BUNDLED:
        raise InputError(
            f"no weights are bundled for {recipe.method!r}; give --weights FILE, or none for random ones"
        )
    return load_method(recipe.method, weights, options)


def part_of(method: Method, name: str) -> Part:
    """A part by its name.

    Raises:
        InputError: the method has no such part.
    """
    parts = method.parts()
    if name not in parts:
        raise InputError(f"{method.name} has no part {name!r} with these options; it has: {', '.join(parts)}")
    return parts[name]


def inputs_of(method: Method, part: Part, wanted: Wanted, clip: Clip, device: torch.device) -> list[Tensors]:
    """Example inputs on a device, one for each engine that the part needs.

    Raises:
        InputError: with these options the method does not use the part.
    """
    if isinstance(part, ExtractorPart):
        return [tuple(tensor.to(device) for tensor in part.example(wanted.size, wanted.batch))]
    inputs = inputs_in(method, part, clip, device)
    if not inputs:
        raise InputError(f"{method.name} does not use its part {part.name!r} with these options")
    return inputs


@lru_cache(maxsize=2)
def synthetic_clip(size: Size, frames: int, objects: int = OBJECTS) -> Clip:
    """A video of ours with its true first label map."""
    options = SyntheticOptions(size=size, length=frames, objects=objects)
    video = SyntheticVideo(SEED, options)
    name = f"synthetic:seed={SEED},size={size[0]}x{size[1]},length={frames},objects={objects}"
    return Clip(name, [frame.image for frame in video], video[0].label_map)


@lru_cache(maxsize=1)
def own_clip(source: Path, mask: Path | None, frames: int) -> Clip:
    """The user's own.

    Raises:
        InputError: it cannot be read, there is no mask, or the mask is of another size.
    """
    # reads videos: engines can be built where nothing that does so is installed
    from streamvos.sources import open_source

    if mask is None:
        raise InputError("--clip needs --mask: the label map of its first frame")
    label_map = read_label_map(mask)
    with open_source(source, max_frames=frames) as opened:
        images = [frame.image for frame in opened]
    if not images or images[0].shape[:2] != label_map.shape:
        came = images[0].shape[:2] if images else "no frame"
        raise InputError(f"{mask} is {label_map.shape} pixels (H, W), the frames of {source} are {came}")
    return Clip(str(source), images, label_map)


def clip_for(wanted: Wanted, clip: Path | None, mask: Path | None, frames: int) -> Clip:
    """What an engine is compared on.

    Raises:
        InputError: a clip without a mask, or of another size.
    """
    if clip is None:
        if mask is not None:
            raise InputError("--mask is the label map of the first frame of a --clip; give that too")
        extractor = wanted.recipe.part == "extractor"
        return synthetic_clip(wanted.size, frames, OBJECTS if extractor else wanted.batch)
    size = wanted.size
    own = own_clip(clip, mask, frames)
    if own.size != size:
        raise InputError(
            f"{clip} has frames of {own.size[0]}x{own.size[1]}, the engine is for {size[0]}x{size[1]}: "
            f"give --size {own.size[0]}x{own.size[1]}"
        )
    return own


class Told:
    """Progress of one engine after another, as the builder tells it."""

    def __init__(self, progress: Progress):
        self._progress = progress
        self._task: TaskID | None = None
        self._title = ""

    def begin(self, title: str) -> None:
        """The next engine."""
        self.end("")
        self._title = title
        self._task = self._progress.add_task(title, total=1, info="")

    def __call__(self, what: str, done: int, of: int) -> None:
        if self._task is not None:
            self._progress.update(self._task, completed=done, total=of, info=what)

    def end(self, info: str) -> None:
        """It is done."""
        if self._task is not None and info:
            self._progress.update(self._task, completed=1, total=1, info=info)
        self._task = None


@contextmanager
def told() -> Iterator[Told]:
    """Progress on the standard error."""
    with make_progress() as progress:
        yield Told(progress)


def serve_requests(cache: EngineCache, frames: int = CLIP_FRAMES) -> int:
    """Build what streams have asked for, one by one.

    Returns:
        How many requests there were.
    """
    done = 0
    while True:
        with cache.building("builder") as free:
            if free:
                for request in requests(cache):
                    remark(f"{time.strftime('%F %T')} {_answer(cache, request, frames)}")
                    done += 1
        if not free:
            time.sleep(1)  # another builder is at work; what it leaves is ours
        elif not is_asked(cache):  # nor while the lock was held, when nobody else could begin
            return done


def _answer(cache: EngineCache, request: Request, frames: int) -> str:
    """Build it, and say what came of it; an error concerns this request only, and is remembered."""
    title = f"{request.method.name}/{request.part.name} {request.signature} for {request.backend}"
    try:
        builder = Builder(request.method, request.device, cache)
        inputs, clip = _called_so(request, frames)
        outcome = build_one(builder, request.part, request.backend, inputs, clip)
    except BuiltElsewhereError as error:
        return f"{title}: {error}"
    except Exception as error:  # out of memory, a full disk: the other requests still get their turn
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        with suppress(OSError):
            give_up(cache, request.name, reason)
        return f"{title}: {reason}"
    return f"{title}: {outcome if isinstance(outcome, Choice) else outcome.parity}"


def _called_so(request: Request, frames: int) -> tuple[Tensors, Clip]:
    """Example inputs of the request's signature, and a clip in which the part is called with such.

    Raises:
        InputError: no clip of ours calls an inner part so.
    """
    method, part, device = request.method, request.part, request.device
    shape = request.signature.tensors[0].shape
    if isinstance(part, ExtractorPart):
        size = (shape[2], shape[3])
        inputs = tuple(tensor.to(device) for tensor in part.example(size, shape[0]))
        return inputs, synthetic_clip(size, frames)
    count = batch_of(part, request.signature)
    # the background may be one more, or a run of all objects together
    for size, objects in product(request.sizes, (count, count - 1)):
        if objects > 0:
            clip = synthetic_clip(size, frames, objects)
            for inputs in inputs_in(method, part, clip, device):
                if Signature.of(*inputs) == request.signature:
                    return inputs, clip
    raise InputError(f"no clip of {count} objects calls {part.name!r} so")


def build_one(
    builder: Builder,
    part: Part,
    backend: str,
    inputs: Tensors,
    clip: Clip,
    recipe: Recipe | None = None,
    force: bool = False,
) -> Manifest | Choice:
    """One engine; or, for "auto", those that can be had here and a choice."""
    if backend == "auto":
        return builder.choose(part, inputs, clip, recipe, force)
    return builder.build(part, backend, inputs, clip, recipe, force)
