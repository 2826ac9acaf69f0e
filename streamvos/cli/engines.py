"""`streamvos engines`: build, list, verify, prune and export compiled networks.

streamvos engines build tvos-extractor --size 480x854
streamvos engines list
streamvos engines verify --clip clip.mp4 --mask first.png tvos-extractor
"""

from __future__ import annotations

import re
import time
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from streamvos.cli.options import (
    DeviceName,
    JsonTarget,
    MethodSettings,
    WeightsName,
    examples,
    method_settings,
    weights_argument,
)
from streamvos.cli.output import make_table, remark, show
from streamvos.engines import BACKENDS, CANDIDATES
from streamvos.engines.building import Builder, Progress, chosen_recipes, part_of, plan_jobs, stale
from streamvos.engines.cache import BuiltElsewhereError, EngineCache
from streamvos.engines.eager import choose_device
from streamvos.engines.engines import COMPILED
from streamvos.engines.exporting import export_onnx
from streamvos.engines.gate import CLIP_FRAMES, Clip, synthetic_clip
from streamvos.engines.keys import weight_digest
from streamvos.engines.manifest import Manifest
from streamvos.engines.recipes import Recipe, recipes
from streamvos.masks.labelmap import read_label_map
from streamvos.methods import METHODS, Method
from streamvos.methods.parts import Size
from streamvos.segmenter import follow
from streamvos.types import InputError
from streamvos.weights import BUNDLED, load_method

app = typer.Typer(
    help="Build, list, verify and prune compiled networks.",
    epilog=examples(
        "streamvos engines build",
        "streamvos engines list",
        "streamvos engines verify tvos-extractor --clip clip.mp4 --mask first.png",
        "streamvos engines prune",
        "streamvos engines export tvos-extractor --onnx tvos.onnx",
    ),
)

DAY = 86400

RecipeNames = Annotated[
    list[str] | None,
    typer.Argument(metavar="[RECIPE]...", help="Names (see `list`) or files; else those of bundled weights."),
]
Preset = Annotated[
    str | None,
    typer.Option("--method", metavar="NAME", help="Another name of the recipe's method, such as frtm."),
]
CacheFolder = Annotated[
    Path | None,
    typer.Option("--cache", metavar="FOLDER", help="Of engines; else $STREAMVOS_ENGINES or the default."),
]
ClipFile = Annotated[
    Path | None,
    typer.Option("--clip", metavar="FILE", help="Video to compare on; else a synthetic one of the size."),
]
MaskFile = Annotated[
    Path | None, typer.Option("--mask", metavar="FILE", help="Label map of the clip's first frame.")
]
Frames = Annotated[int, typer.Option("--frames", min=2, metavar="N", help="Length of the clip.")]


@app.command(
    "build",
    epilog=examples(
        "streamvos engines build",
        "streamvos engines build tvos-extractor --size 480x854",
        "streamvos engines build frtm-extractor --weights runs/frtm/frtm.safetensors --backend aoti",
    ),
)
def build(
    names: RecipeNames = None,
    backend: Annotated[
        str,
        typer.Option(
            "--backend", metavar="NAME", help=f"{', '.join(CANDIDATES)}; auto: all that can be built."
        ),
    ] = "auto",
    sizes: Annotated[
        list[str] | None,
        typer.Option("--size", metavar="HxW", help="Of frames, in pixels; else the recipe's. Repeatable."),
    ] = None,
    batches: Annotated[
        list[int] | None,
        typer.Option("--batch", min=1, metavar="N", help="Only this batch; else the recipe's. Repeatable."),
    ] = None,
    preset: Preset = None,
    weights: WeightsName = "default",
    settings: MethodSettings = None,
    device: DeviceName = "auto",
    clip: ClipFile = None,
    mask: MaskFile = None,
    frames: Frames = CLIP_FRAMES,
    force: Annotated[bool, typer.Option("--force", help="Also engines that exist or were refused.")] = False,
    cache: CacheFolder = None,
    json_target: JsonTarget = None,
) -> None:
    """Build engines, and compare each with eager before it is used.

    Takes half a minute to some minutes each. Ctrl-C ends it; engines that are complete stay.
    """
    if backend not in BACKENDS or backend == "eager":
        raise InputError(f"--backend {backend!r} builds nothing; choose one of: {', '.join(BACKENDS[1:])}")
    if mask is not None and clip is None:
        raise InputError("--mask is the label map of the first frame of a --clip; give that too")
    store, place, rows = EngineCache(cache), choose_device(device), []
    backends = [backend]
    if backend == "auto":
        backends = [one for one in CANDIDATES if COMPILED[one].missing(place) is None]
    for job in plan_jobs(names or [], [_parse_size(text) for text in sizes or []], batches or [], weights):
        comparison = (
            synthetic_clip(job.size, frames) if clip is None else _own_clip(clip, mask, frames, job.size)
        )
        method = _method_of(job.recipe, preset, weights, method_settings(settings))
        part, builder = (
            part_of(method, job.recipe.part),
            Builder(method, place, store, follow, _progress(job.title)),
        )
        for inputs, signature in builder.inputs(job, comparison):
            for one in backends:
                row: dict[str, Any] = {"engine": f"{job.recipe.name} {signature} {one}"}
                try:
                    manifest = builder.build(part, one, inputs, signature, comparison, job.recipe, force)
                except BuiltElsewhereError:
                    raise
                except InputError as error:
                    if backend != "auto":
                        raise
                    rows.append({**row, "eager_ms": None, "engine_ms": None, "state": str(error)})
                    continue
                rows.append({**row, **_row(manifest, ""), "engine": row["engine"]})
    show({"folder": str(store.folder), "engines": rows}, json_target, _table_of(store, rows))
    if not any("key" in row for row in rows):
        raise InputError(
            f"nothing could be built: {rows[-1]['state'] if rows else 'no backend is available'}"
        )


@app.command("list", epilog=examples("streamvos engines list", "streamvos engines list --json"))
def list_engines(
    cache: CacheFolder = None, device: DeviceName = "auto", json_target: JsonTarget = None
) -> None:
    """List recipes, and the engines that are built."""
    store, place = _trusted(cache), choose_device(device)
    rows = [_row(manifest, stale(manifest, place)) for manifest in store.manifests()]
    known = [{"recipe": one.name, "method": one.method, "part": one.part} for one in recipes().values()]
    table = make_table("recipes", ["recipe", "method", "part"])
    for recipe in known:
        table.add_row(*recipe.values())
    values = {"folder": str(store.folder), "recipes": known, "engines": rows}
    show(values, json_target, table, _table_of(store, rows))


@app.command(
    "verify",
    epilog=examples(
        "streamvos engines verify",
        "streamvos engines verify tvos-extractor --clip clip.mp4 --mask first.png",
    ),
)
def verify(
    names: RecipeNames = None,
    preset: Preset = None,
    weights: WeightsName = "default",
    settings: MethodSettings = None,
    device: DeviceName = "auto",
    clip: ClipFile = None,
    mask: MaskFile = None,
    frames: Frames = CLIP_FRAMES,
    cache: CacheFolder = None,
    json_target: JsonTarget = None,
) -> None:
    """Compare engines that are built with eager once more, on a clip of yours if you like.

    Checks every file against its manifest; compares those of the given weights. One that does not pass is
    refused from then on. The exit code is 1 if there is one, or a damaged file.
    """
    store, place = _trusted(cache), choose_device(device)
    built = {one.name: one for one in store.manifests() if one.artefact}
    rows = {name: _file_row(store, manifest) for name, manifest in built.items()}
    for recipe in chosen_recipes(names or [], weights):
        method = _method_of(recipe, preset, weights, method_settings(settings))
        part, options = part_of(method, recipe.part), method.options.model_dump(mode="json")
        for name, manifest in built.items():
            plan, row = manifest.plan, rows[name]
            if (plan.method, plan.part, plan.options) != (method.name, part.name, options):
                continue
            if plan.weights != weight_digest(part) or stale(manifest, place) or not row["passed"]:
                continue
            try:
                own = None if clip is None else _own_clip(clip, mask, frames, manifest.frames)
            except InputError as error:
                if mask is None:
                    raise
                row["state"] = f"not compared: {error}"
                continue
            builder = Builder(method, place, store, follow, _progress(manifest.title))
            comparison = own or synthetic_clip(manifest.frames, frames, manifest.objects)
            parity = builder.verify(part, manifest, comparison)
            row |= {"state": str(parity), "passed": parity.passed}
    table = make_table("engines", ["engine", "state"])
    for row in rows.values():
        table.add_row(row["engine"], row["state"])
    failed = sum(not row["passed"] for row in rows.values())
    values = {"folder": str(store.folder), "engines": list(rows.values()), "failed": failed}
    show(values, json_target, table)
    if failed:
        raise typer.Exit(1)


@app.command(
    "prune",
    epilog=examples(
        "streamvos engines prune", "streamvos engines prune --older-than 30", "streamvos engines prune --all"
    ),
)
def prune(
    older: Annotated[
        float | None,
        typer.Option("--older-than", min=0, metavar="DAYS", help="Engines built before, too."),
    ] = None,
    everything: Annotated[
        bool, typer.Option("--all", help="Every engine, and what compilers keep between builds.")
    ] = False,
    cache: CacheFolder = None,
    device: DeviceName = "auto",
    json_target: JsonTarget = None,
) -> None:
    """Delete engines that cannot be used here any more: of other versions, machines or networks, or damaged.

    And what interrupted builds left.
    """
    store, place = _trusted(cache), choose_device(device)
    limit = time.time_ns() - int((older or 0) * DAY * 1e9)
    removed = [
        manifest
        for manifest in store.manifests()
        if everything or stale(manifest, place) or (older is not None and manifest.built_at < limit)
    ]
    count, freed = store.prune(removed, everything)
    values = {"folder": str(store.folder), "deleted": [one.title for one in removed], "bytes": freed}
    line = f"{count} engines deleted, {freed / 2**20:.1f} MiB freed in {store.folder}"
    show(values, json_target, line)


@app.command("export", epilog=examples("streamvos engines export tvos-extractor --onnx tvos.onnx"))
def export(
    name: Annotated[str, typer.Argument(metavar="RECIPE", help="Name (see `list`) or file.")],
    target: Annotated[Path, typer.Option("--onnx", metavar="FILE", help="Where to; a .onnx file.")],
    size: Annotated[str, typer.Option("--size", metavar="HxW", help="Of frames, in pixels.")] = "480x854",
    batch: Annotated[int, typer.Option("--batch", min=1, metavar="N", help="Frames or objects at once.")] = 1,
    preset: Preset = None,
    weights: WeightsName = "default",
    settings: MethodSettings = None,
    force: Annotated[bool, typer.Option("--force", help="Replace FILE if it exists.")] = False,
    json_target: JsonTarget = None,
) -> None:
    """Write a network as ONNX, for other programs."""
    if target.exists() and not force:
        raise InputError(f"{target} is there already; choose another name, or give --force")
    (job,) = plan_jobs([name], [_parse_size(size)], [batch], weights)
    # few programs that read ONNX convolve in bfloat16
    method = _method_of(job.recipe, preset, weights, {"precision": "float32", **method_settings(settings)})
    builder = Builder(method, choose_device("cpu"), EngineCache(), follow)
    inputs = builder.inputs(job, synthetic_clip(job.size, 3))[0][0]
    names = export_onnx(part_of(method, job.recipe.part), inputs, target)
    part, size_of_file = f"{method.name}/{job.recipe.part}", target.stat().st_size
    values = {"file": str(target), "part": part, "bytes": size_of_file, **names}
    show(values, json_target, f"{target}: {part}, {size_of_file / 2**20:.1f} MiB")


def _method_of(recipe: Recipe, preset: str | None, weights: str, options: dict[str, Any]) -> Method:
    """The method of a recipe, as the command line describes it."""
    name = preset or recipe.method
    if name not in METHODS or METHODS[name].method is not METHODS[recipe.method].method:
        raise InputError(f"--method {name!r} is not the method of {recipe.name!r}, {recipe.method!r}")
    if weights == "default" and name not in BUNDLED:
        raise InputError(f"no weights are bundled for {name!r}; give --weights FILE, or none for random ones")
    return load_method(name, weights_argument(weights), options)


def _parse_size(text: str) -> Size:
    found = re.fullmatch(r"(\d+)x(\d+)", text)
    size = (int(found[1]), int(found[2])) if found else (0, 0)
    if min(size) < 16 or max(size) > 8192:
        raise InputError(f"--size {text!r} cannot be used; expected HEIGHTxWIDTH in pixels, such as 480x854")
    return size


def _own_clip(source: Path, mask: Path | None, frames: int, size: Size) -> Clip:
    """The user's clip, which must have the size of an engine's frames."""
    if mask is None:
        raise InputError("--clip needs --mask: the label map of its first frame")
    clip = _read_clip(source, mask, frames)
    if clip.size != size:
        own = f"{clip.size[0]}x{clip.size[1]}"
        raise InputError(
            f"{source} has frames of {own}, the engine is for {size[0]}x{size[1]}: give --size {own}"
        )
    return clip


@lru_cache(maxsize=1)
def _read_clip(source: Path, mask: Path, frames: int) -> Clip:
    # reads videos: engines can be built where nothing that does so is installed
    from streamvos.sources import open_source

    label_map = read_label_map(mask)
    with open_source(source, max_frames=frames) as opened:
        images = [frame.image for frame in opened]
    if not images or images[0].shape[:2] != label_map.shape:
        came = images[0].shape[:2] if images else "no frame"
        raise InputError(f"{mask} is {label_map.shape} pixels (H, W), the frames of {source} are {came}")
    return Clip(str(source), images, label_map)


def _progress(title: str) -> Progress:
    """A line on the standard error for each step of a build."""
    return lambda what, done, of: None if done else remark(f"{title}: {what}")


def _trusted(folder: Path | None) -> EngineCache:
    store = EngineCache(folder)
    problem = store.problem()
    if problem is not None:
        raise InputError(f"the engine cache cannot be used: {problem}")
    return store


def _file_row(store: EngineCache, manifest: Manifest) -> dict[str, Any]:
    row = {"engine": manifest.title, "key": manifest.name, "state": "complete", "passed": True}
    try:
        store.artefact(manifest)
    except InputError as error:
        row |= {"state": str(error), "passed": False}
    return row


def _row(manifest: Manifest, why: str) -> dict[str, Any]:
    return {
        "engine": manifest.title,
        "key": manifest.name,
        "bytes": manifest.size,
        "eager_ms": manifest.milliseconds["eager"],
        "engine_ms": manifest.milliseconds["engine"],
        "seconds": manifest.seconds,
        "usable": manifest.parity.passed and not why,
        "auto": manifest.is_faster and not why,
        "state": f"not usable here: {why}" if why else str(manifest.parity),
    }


def _table_of(store: EngineCache, rows: list[dict[str, Any]]) -> Table:
    """Engines with their times; "auto" marks those that `--backend auto` may take."""
    columns = ["engine", "MiB", "eager ms", "engine ms", "auto", "state"]
    table = make_table(f"engines in {store.folder}", columns)
    for row in rows:
        numbers = (row.get("bytes", 0) / 2**20, row["eager_ms"], row["engine_ms"])
        shown = ["" if value is None else f"{value:.1f}" for value in numbers]
        table.add_row(row["engine"], *shown, "yes" if row.get("auto") else "", row["state"])
    return table
