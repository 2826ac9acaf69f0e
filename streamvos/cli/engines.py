"""`streamvos engines`: compiled networks, built, listed, compared, cleared away, exported.

streamvos engines build tvos-extractor --size 480x854 --batch 1
streamvos engines list
streamvos engines verify --clip clip.mp4 --mask first.png tvos-extractor
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, Any

import typer

from streamvos.cli.engine_work import (
    build_one,
    chosen_recipes,
    clip_for,
    engines_of,
    inputs_of,
    method_of,
    own_clip,
    part_of,
    plan_work,
    serve_requests,
    stale,
    synthetic_clip,
    told,
)
from streamvos.cli.options import (
    DeviceName,
    JsonTarget,
    MethodSettings,
    WeightsName,
    examples,
    method_settings,
    weights_argument,
)
from streamvos.cli.output import (
    STANDARD_OUTPUT,
    check_json_target,
    make_table,
    print_table,
    write_json,
    write_output,
)
from streamvos.engines import BACKENDS, EngineCache, choose_device
from streamvos.engines.beside import forget_failures
from streamvos.engines.manifest import Choice, Manifest
from streamvos.engines.onnx import export_onnx
from streamvos.engines.parity import CLIP_FRAMES
from streamvos.engines.recipes import recipes
from streamvos.engines.signature import Signature
from streamvos.segmenter.building import Builder
from streamvos.types import InputError

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
Sizes = Annotated[
    list[str] | None,
    typer.Option("--size", metavar="HxW", help="Of frames, in pixels; else the recipe's. Repeatable."),
]
Batches = Annotated[
    list[int] | None,
    typer.Option("--batch", min=1, metavar="N", help="Frames at once; else the recipe's. Repeatable."),
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
Frames = Annotated[int, typer.Option("--frames", min=2, metavar="N", help="Of the clip.")]


@app.command(
    "build",
    epilog=examples(
        "streamvos engines build",
        "streamvos engines build tvos-extractor --size 480x854 --batch 1",
        "streamvos engines build frtm-extractor --weights runs/frtm/frtm.safetensors --backend aoti",
    ),
)
def build(
    names: RecipeNames = None,
    backend: Annotated[
        str,
        typer.Option(
            "--backend", metavar="NAME", help="inductor, aoti, tensorrt, cuda-graph; auto: the fastest."
        ),
    ] = "auto",
    sizes: Sizes = None,
    batches: Batches = None,
    weights: WeightsName = "default",
    settings: MethodSettings = None,
    device: DeviceName = "auto",
    clip: ClipFile = None,
    mask: MaskFile = None,
    frames: Frames = CLIP_FRAMES,
    force: Annotated[bool, typer.Option("--force", help="Also what is there, or was refused.")] = False,
    cache: CacheFolder = None,
    requested: Annotated[
        bool, typer.Option("--requested", help="Build what streams have asked for, and nothing else.")
    ] = False,
    json_target: JsonTarget = None,
) -> None:
    """Build engines, and compare each with eager before it is used.

    Takes half a minute to some minutes each. Ctrl-C ends it; what is built by then stays.
    """
    check_json_target(json_target)
    store = EngineCache(cache)
    if requested:
        serve_requests(store, frames)
        return
    if backend not in BACKENDS or backend == "eager":
        raise InputError(f"--backend {backend!r} builds nothing; choose one of: {', '.join(BACKENDS[1:])}")
    options, place = method_settings(settings), choose_device(device)
    rows: list[dict[str, Any]] = []
    with told() as progress:
        for wanted in plan_work(names or [], sizes, batches, weights):
            comparison = clip_for(wanted, clip, mask, frames)
            progress.begin(wanted.title)
            method = method_of(wanted.recipe, weights_argument(weights), options)
            builder, part = Builder(method, place, store, progress), part_of(method, wanted.recipe.part)
            for inputs in inputs_of(method, part, wanted, comparison, place):
                outcome = build_one(builder, part, backend, inputs, comparison, wanted.recipe, force)
                rows.append({"engine": f"{wanted.recipe.name} {Signature.of(*inputs)}", **_outcome(outcome)})
            progress.end(rows[-1]["outcome"])
    table = make_table("engines", ["engine", "eager ms", "engine ms", "outcome"])
    for row in rows:
        table.add_row(row["engine"], _number(row["eager_ms"]), _number(row["engine_ms"]), row["outcome"])
    print_table(table, json_target, *(f"{row['engine']}: {row['why']}" for row in rows), str(store.folder))
    write_json({"folder": str(store.folder), "engines": rows}, json_target)


def _outcome(outcome: Manifest | Choice) -> dict[str, Any]:
    if isinstance(outcome, Choice):
        times = outcome.milliseconds
        engine = times.get(outcome.backend) if outcome.backend != "eager" else None
        row = {"eager_ms": times.get("eager"), "engine_ms": engine, "outcome": outcome.backend}
        return {**row, "why": str(outcome)}
    times = outcome.milliseconds
    return {
        "eager_ms": times["eager"],
        "engine_ms": times["engine"],
        "outcome": outcome.backend if outcome.parity.passed else "refused",
        "why": str(outcome.parity),
        "key": outcome.key,
    }


@app.command("list", epilog=examples("streamvos engines list", "streamvos engines list --json"))
def list_engines(
    cache: CacheFolder = None, device: DeviceName = "auto", json_target: JsonTarget = None
) -> None:
    """List recipes, and the engines that are built."""
    check_json_target(json_target)
    store, place = EngineCache(cache), choose_device(device)
    _refuse_untrusted(store)
    rows = [_row(manifest, stale(manifest, place)) for manifest in store.manifests()]
    known = [
        {"recipe": one.name, "method": one.method, "part": one.part, "engines": len(one.shapes())}
        for one in recipes().values()
    ]
    table = make_table("recipes", ["recipe", "method", "part", "engines"])
    for recipe in known:
        table.add_row(*(str(value) for value in recipe.values()))
    print_table(table, json_target)
    built = make_table(f"engines in {store.folder}", ["engine", "MiB", "eager ms", "engine ms", "state"])
    for row in rows:
        size = f"{row['bytes'] / 2**20:.1f}"
        built.add_row(row["engine"], size, _number(row["eager_ms"]), _number(row["engine_ms"]), row["state"])
    print_table(built, json_target)
    write_json({"folder": str(store.folder), "recipes": known, "engines": rows}, json_target)


@app.command(
    "verify",
    epilog=examples(
        "streamvos engines verify",
        "streamvos engines verify tvos-extractor --clip clip.mp4 --mask first.png",
    ),
)
def verify(
    names: RecipeNames = None,
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
    refused from then on. Exit code 1 if there is such a one, or a damaged file.
    """
    check_json_target(json_target)
    store, place = EngineCache(cache), choose_device(device)
    _refuse_untrusted(store)
    own = None if clip is None else own_clip(clip, mask, frames)
    rows = {manifest.key: _file_row(store, manifest) for manifest in store.manifests() if manifest.artefact}
    options = method_settings(settings)
    with told() as progress:
        for recipe in chosen_recipes(names or [], weights):
            method = method_of(recipe, weights_argument(weights), options)
            builder, part = Builder(method, place, store, progress), part_of(method, recipe.part)
            for manifest in engines_of(store, method, part, place):
                size = manifest.frames
                row = rows[manifest.key]
                if own is not None and own.size != size:
                    row["state"] = f"not compared: the clip is {own.size[0]}x{own.size[1]}"
                    continue
                progress.begin(manifest.title)
                parity = builder.verify(part, manifest, own or synthetic_clip(size, frames, manifest.objects))
                row |= {"state": str(parity), "passed": parity.passed}
                progress.end("equal" if parity.passed else "REFUSED")
    table = make_table("engines", ["engine", "state"])
    for row in rows.values():
        table.add_row(row["engine"], row["state"])
    print_table(table, json_target)
    failed = sum(not row["passed"] for row in rows.values())
    write_json({"folder": str(store.folder), "engines": list(rows.values()), "failed": failed}, json_target)
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
    everything: Annotated[bool, typer.Option("--all", help="Every engine.")] = False,
    cache: CacheFolder = None,
    device: DeviceName = "auto",
    json_target: JsonTarget = None,
) -> None:
    """Delete engines that cannot be used here any more: of other versions, machines or networks.

    And what is in quarantine, what interrupted builds left, what compilers keep, and the notes of builds
    that failed.
    """
    check_json_target(json_target)
    store, place = EngineCache(cache), choose_device(device)
    _refuse_untrusted(store)
    limit = time.time_ns() - int((older or 0) * DAY * 1e9)
    removed = [
        manifest
        for manifest in store.manifests()
        if everything or stale(manifest, place) or (older is not None and manifest.built_at < limit)
    ]
    for manifest in removed:
        store.remove(manifest.key)
    forget_failures(store)
    freed = store.clean() + sum(manifest.size for manifest in removed)
    if json_target != STANDARD_OUTPUT:
        write_output(f"{len(removed)} engines deleted, {freed / 2**20:.1f} MiB freed in {store.folder}\n")
    titles = [manifest.title for manifest in removed]
    write_json({"folder": str(store.folder), "deleted": titles, "bytes": freed}, json_target)


@app.command("export", epilog=examples("streamvos engines export tvos-extractor --onnx tvos.onnx"))
def export(
    name: Annotated[str, typer.Argument(metavar="RECIPE", help="Name (see `list`) or file.")],
    target: Annotated[Path, typer.Option("--onnx", metavar="FILE", help="Where to; a .onnx file.")],
    size: Annotated[str, typer.Option("--size", metavar="HxW", help="Of frames, in pixels.")] = "480x854",
    batch: Annotated[int, typer.Option("--batch", min=1, metavar="N", help="Frames at once.")] = 1,
    weights: WeightsName = "default",
    settings: MethodSettings = None,
    force: Annotated[bool, typer.Option("--force", help="Replace FILE if it is there.")] = False,
    json_target: JsonTarget = None,
) -> None:
    """Write a network as ONNX, for other programs."""
    check_json_target(json_target)
    if target.exists() and not force:
        raise InputError(f"{target} is there already; choose another name, or give --force")
    (wanted,) = plan_work([name], [size], [batch], weights)
    place = choose_device("cpu")
    # few programs that read ONNX convolve in bfloat16
    options = {"precision": "float32", **method_settings(settings)}
    method = method_of(wanted.recipe, weights_argument(weights), options).eval()
    part = part_of(method, wanted.recipe.part)
    clip = synthetic_clip(wanted.size, 3, wanted.batch)
    names = export_onnx(part, inputs_of(method, part, wanted, clip, place)[0], target)
    report: dict[str, Any] = {
        "file": str(target),
        "part": f"{method.name}/{part.name}",
        "bytes": target.stat().st_size,
        **names,
    }
    if json_target != STANDARD_OUTPUT:
        write_output(f"{target}: {report['part']}, {report['bytes'] / 2**20:.1f} MiB\n")
    write_json(report, json_target)


def _refuse_untrusted(store: EngineCache) -> None:
    problem = store.problem()
    if problem is not None:
        raise InputError(f"the engine cache cannot be used: {problem}")


def _file_row(store: EngineCache, manifest: Manifest) -> dict[str, Any]:
    try:
        store.artefact(manifest)
    except InputError as error:
        return {"engine": manifest.title, "key": manifest.key, "state": str(error), "passed": False}
    return {"engine": manifest.title, "key": manifest.key, "state": "whole", "passed": True}


def _row(manifest: Manifest, why: str) -> dict[str, Any]:
    times = manifest.milliseconds
    return {
        "engine": manifest.title,
        "key": manifest.key,
        "bytes": manifest.size,
        "eager_ms": times.get("eager"),
        "engine_ms": times.get("engine"),
        "seconds": manifest.seconds,
        "usable": manifest.parity.passed and not why,
        "state": f"not usable here: {why}" if why else str(manifest.parity),
    }


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.1f}"
