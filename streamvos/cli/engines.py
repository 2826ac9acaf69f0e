"""`streamvos engines`: build, list, prune and export compiled networks.

streamvos engines build tvos-extractor --size 480x854
streamvos engines build tvos-extractor --check --clip clip.mp4 --mask first.png
streamvos engines list
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from streamvos.cli import options
from streamvos.cli.options import examples
from streamvos.cli.output import make_table, remark, show
from streamvos.engines import BACKENDS, CANDIDATES
from streamvos.engines.building import Builder
from streamvos.engines.cache import EngineCache
from streamvos.engines.eager import choose_device
from streamvos.engines.engines import COMPILED
from streamvos.engines.exporting import export_onnx
from streamvos.engines.gate import Clip, synthetic_clip
from streamvos.engines.manifest import Manifest
from streamvos.engines.recipes import Recipe, recipe_named, recipes
from streamvos.masks.labelmap import read_label_map
from streamvos.methods import METHODS, Method
from streamvos.methods.parts import Size
from streamvos.segmenter import follow
from streamvos.types import InputError
from streamvos.weights import BUNDLED, load_method

app = typer.Typer(epilog=examples("streamvos engines build tvos-extractor", "streamvos engines list"))

Preset = Annotated[
    str | None,
    typer.Option("--method", metavar="NAME", help="Another name of the recipe's method, such as frtm."),
]


@app.command(
    "build",
    epilog=examples(
        "streamvos engines build tvos-extractor --size 480x854",
        "streamvos engines build frtm-extractor --weights runs/frtm/frtm.safetensors --backend aoti",
        "streamvos engines build tvos-extractor --check --clip clip.mp4 --mask first.png",
    ),
)
def build(
    names: Annotated[
        list[str] | None,
        typer.Argument(metavar="[RECIPE]...", help="Names (see `list`) or files; else the bundled methods'."),
    ] = None,
    backend: Annotated[
        str, typer.Option(metavar="NAME", help=f"{', '.join(CANDIDATES)}; auto: all available ones.")
    ] = "auto",
    sizes: Annotated[
        list[str] | None, typer.Option("--size", metavar="HxW", help="Frame size; else the recipe's.")
    ] = None,
    preset: Preset = None,
    weights: options.WeightsName = "default",
    settings: options.MethodSettings = None,
    device: options.DeviceName = "auto",
    clip: Annotated[Path | None, typer.Option(metavar="FILE", help="Video to compare on.")] = None,
    mask: Annotated[Path | None, typer.Option(metavar="FILE", help="Label map of its first frame.")] = None,
    frames: Annotated[int, typer.Option("--frames", min=2, metavar="N", help="Length of the clip.")] = 50,
    force: Annotated[bool, typer.Option("--force", help="Also engines that exist or were refused.")] = False,
    check: Annotated[bool, typer.Option("--check", help="Compare again; exit 1 if one fails.")] = False,
    json_target: options.JsonTarget = None,
) -> None:
    """Build engines, and compare each with eager before it is used.

    Takes half a minute to some minutes each. Ctrl-C ends it; engines that are complete stay.
    """
    if backend not in BACKENDS or backend == "eager":
        raise InputError(f"--backend {backend!r} builds nothing; choose one of: {', '.join(BACKENDS[1:])}")
    if (mask is None) != (clip is None):
        raise InputError("--clip and --mask, the label map of its first frame, must be given together")
    if not names and weights != "default":
        raise InputError(f"--weights is for one method; name its recipes: {', '.join(recipes())}")
    cache, place, rows = EngineCache(), choose_device(device), []
    bundled = [one for one in recipes().values() if one.method in BUNDLED]
    usable = [one for one in CANDIDATES if COMPILED[one].missing(place) is None]
    own = None if clip is None or mask is None else _read_clip(clip, mask, frames)
    given = [_parse_size(text) for text in sizes or []]
    if own and given:
        raise InputError("--size cannot be given with --clip: engines are for the size of its frames")
    for recipe in map(recipe_named, names) if names else bundled:
        method = _method_of(recipe, preset, weights, options.method_settings(settings))
        if recipe.part not in method.parts():
            if names:
                parts = ", ".join(method.parts())
                raise InputError(f"{recipe.name}: these weights have no part {recipe.part!r}, only {parts}")
            continue  # of another form of the method than the bundled one
        for size in [own.size] if own else sorted(given or recipe.sizes):
            comparison = own or synthetic_clip(size, frames)
            builder = Builder(method, recipe, place, cache, follow, comparison, remark)
            for inputs in builder.inputs():
                for one in usable if backend == "auto" else [backend]:
                    try:
                        rows.append(_row(builder.build(one, inputs, force, check)))
                    except InputError as error:
                        if backend != "auto":
                            raise
                        title = f"{recipe.name} {builder.signature(inputs)} {one}"
                        rows.append({"engine": title, "usable": False, "state": str(error)})
    _show(cache, rows, json_target)
    if not any("key" in row for row in rows):
        reason = rows[-1]["state"] if rows else "no backend is available"
        raise InputError(f"nothing could be built: {reason}")
    if check and not all(row["usable"] for row in rows):
        raise typer.Exit(1)


@app.command("list", epilog=examples("streamvos engines list", "streamvos engines list --json"))
def list_engines(json_target: options.JsonTarget = None) -> None:
    """List recipes and engines."""
    cache = EngineCache()
    cache.check()
    _show(cache, [_row(manifest) for manifest in cache.manifests()], json_target, list(recipes()))


@app.command("prune", epilog=examples("streamvos engines prune", "streamvos engines prune --all"))
def prune(
    everything: Annotated[bool, typer.Option("--all", help="Every engine.")] = False,
    json_target: options.JsonTarget = None,
) -> None:
    """Delete engines of other versions, machines or networks, damaged ones, and remains of builds."""
    cache = EngineCache()
    cache.check()
    removed = [manifest for manifest in cache.manifests() if everything or manifest.stale]
    count = cache.prune(removed)
    values = {"folder": str(cache.folder), "deleted": [one.title for one in removed]}
    show(values, json_target, f"{count} engines deleted in {cache.folder}")


@app.command("export", epilog=examples("streamvos engines export tvos-extractor --onnx tvos.onnx"))
def export(
    name: Annotated[str, typer.Argument(metavar="RECIPE", help="Name (see `list`) or file.")],
    target: Annotated[Path, typer.Option("--onnx", metavar="FILE", help="Where to; a .onnx file.")],
    size: Annotated[str, typer.Option("--size", metavar="HxW", help="Of frames, in pixels.")] = "480x854",
    batch: Annotated[int, typer.Option("--batch", min=1, metavar="N", help="Frames or objects at once.")] = 1,
    preset: Preset = None,
    weights: options.WeightsName = "default",
    settings: options.MethodSettings = None,
    json_target: options.JsonTarget = None,
) -> None:
    """Write a network as ONNX, for other programs."""
    recipe, clip = recipe_named(name), synthetic_clip(_parse_size(size), 3)
    # few programs that read ONNX convolve in bfloat16
    method = _method_of(
        recipe, preset, weights, {"precision": "float32", **options.method_settings(settings)}
    )
    if recipe.part not in method.parts():
        raise InputError(f"{recipe.name}: these weights have no part {recipe.part!r}")
    builder = Builder(method, recipe, choose_device("cpu"), EngineCache(), follow, clip)
    export_onnx(builder.part, builder.inputs(batch)[0], target)
    values = {"file": str(target), "part": recipe.part, "bytes": target.stat().st_size}
    show(values, json_target, f"{target}: {values['part']}, {target.stat().st_size / 2**20:.1f} MiB")


def _method_of(recipe: Recipe, preset: str | None, weights: str, settings: dict[str, Any]) -> Method:
    name = preset or recipe.method
    if name not in METHODS or METHODS[name].method is not METHODS[recipe.method].method:
        raise InputError(f"--method {name!r} is not the method of {recipe.name!r}, {recipe.method!r}")
    if weights == "default" and name not in BUNDLED:
        raise InputError(f"no weights are bundled for {name!r}; give --weights FILE, or none for random ones")
    return load_method(name, options.weights_argument(weights), settings)


def _parse_size(text: str) -> Size:
    found = re.fullmatch(r"(\d+)x(\d+)", text)
    size = (int(found[1]), int(found[2])) if found else (0, 0)
    if min(size) < 16 or max(size) > 8192:
        raise InputError(f"--size {text!r} cannot be used; expected HEIGHTxWIDTH in pixels, such as 480x854")
    return size


def _read_clip(source: Path, mask: Path, frames: int) -> Clip:
    # reads videos: engines can be built where nothing that does so is installed
    from streamvos.sources import open_source

    label_map = read_label_map(mask)
    with open_source(source, max_frames=frames) as opened:
        images = [frame.image for frame in opened]
    if not images or images[0].shape[:2] != label_map.shape:
        shape = images[0].shape[:2] if images else "no frame"
        raise InputError(f"{mask} is {label_map.shape} pixels (H, W), the frames of {source} are {shape}")
    return Clip(images, label_map)


def _row(manifest: Manifest) -> dict[str, Any]:
    stale = manifest.stale
    return {
        "engine": manifest.title,
        "key": manifest.name,
        "eager_ms": manifest.milliseconds["eager"],
        "engine_ms": manifest.milliseconds["engine"],
        "usable": manifest.parity.passed and not stale,
        "auto": manifest.is_faster and not stale,
        "state": f"not usable here: {stale}" if stale else str(manifest.parity),
    }


def _show(
    cache: EngineCache, rows: list[dict[str, Any]], json_target: str | None, known: Sequence[str] = ()
) -> None:
    """Show engines with their times, and the known recipes; "auto" marks what `--backend auto` may take."""
    table = make_table(f"engines in {cache.folder}", ["engine", "eager ms", "engine ms", "auto", "state"])
    for row in rows:
        times = [f"{row[name]:.1f}" if name in row else "" for name in ("eager_ms", "engine_ms")]
        table.add_row(row["engine"], *times, "yes" if row.get("auto") else "", row["state"])
    values, lines = {"folder": str(cache.folder), "engines": rows}, []
    if known:
        values["recipes"], lines = known, [f"recipes: {', '.join(known)}"]
    show(values, json_target, *lines, table)
