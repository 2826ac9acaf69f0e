"""`streamvos train`: train what a method adds to the shared backbone.

streamvos train features --data DATA --out features
streamvos train frtm-fast --features features --out runs/frtm-fast
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer
from pydantic import BaseModel, ValidationError

from streamvos.cli.options import JsonTarget, examples, parse_settings
from streamvos.cli.output import make_progress, remark, write_json
from streamvos.cli.signals import Stopped
from streamvos.types import InputError

if TYPE_CHECKING:
    from streamvos.datasets.davis import DavisDataset
    from streamvos.datasets.youtube import YouTubeVosDataset
    from streamvos.training.loop import Report, Say
    from streamvos.training.tvos_authors import Recipe

app = typer.Typer(
    epilog=examples(
        "streamvos train features --data DATA --out features",
        "streamvos train frtm-fast --features features --out runs/frtm-fast",
        "streamvos train selector --data DATA --features crops --out runs/selector",
    )
)

HEADS = ("tvos", "rgmp", "frtm-fast", "joint", "feelvos")
"""Methods that have a recipe on features of the shared backbone."""

Options = TypeVar("Options", bound=BaseModel)

OutFolder = Annotated[
    Path, typer.Option("--out", "-o", help="Folder of the run; an interrupted run is resumed.")
]
Features = Annotated[
    Path | None, typer.Option(metavar="FOLDER", help="What `streamvos train features` wrote.")
]
Settings = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="NAME=VALUE", help="A training option, such as steps=4000. Repeatable."),
]
ClipSettings = Annotated[
    list[str] | None,
    typer.Option(
        "--clip", metavar="NAME=VALUE", help="An option of the clips, such as frames=3. Repeatable."
    ),
]


Initial = Annotated[
    str | None,
    typer.Option(metavar="WEIGHTS", help="What to begin with: default (the bundled weights), or a file."),
]


@app.command("features", epilog=examples("streamvos train features --data DATA --out features"))
def features(
    data: Annotated[
        Path,
        typer.Option(
            metavar="FOLDER",
            help="Holds davis2016-train (DAVIS's layout), and duts, voc, stills (images/ and regions/ each).",
        ),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of the features; work is resumed.")],
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="NAME=VALUE", help="An option, such as still_clips=500. Repeatable."),
    ] = None,
) -> None:
    """Compute the shared backbone's features of all training data, once for all methods (about 20 GB)."""
    from streamvos.training.features import FeatureOptions, make_features

    make_features(data, out, _options(FeatureOptions, parse_settings(settings)), remark)
    remark(f"features: {out}")


@app.command(
    "tvos",
    epilog=examples(
        "streamvos train tvos --features features --out runs/tvos",
        "streamvos train tvos --recipe authors --data DAVIS --split train --initial resnet50.pth "
        "--out runs/authors --set device=cuda",
    ),
)
def tvos(
    out: OutFolder,
    features: Features = None,
    recipe: Annotated[
        str, typer.Option(help="features (the bundled network), or authors (DAVIS, YouTube-VOS).")
    ] = "features",
    data: Annotated[Path | None, typer.Option(help="authors: folder of DAVIS 2017 or YouTube-VOS.")] = None,
    split: Annotated[
        str | None, typer.Option(help="authors: name of a list in ImageSets, such as train.")
    ] = None,
    initial: Annotated[
        str | None,
        typer.Option(
            metavar="WEIGHTS",
            help="What to begin with: default (the bundled weights), or a file. authors: a file, as far as "
            "it fits: torchvision's ImageNet weights, a published TVOS checkpoint, or a streamvos file.",
        ),
    ] = None,
    settings: Settings = None,
    clip_settings: ClipSettings = None,
    json_target: JsonTarget = None,
) -> None:
    """Train TVOS; resumable, and reproducible from the seed."""
    if recipe == "features":
        if data is not None or split is not None:
            raise InputError("--data and --split are for --recipe authors")
        _train_head("tvos", features, out, initial, settings, clip_settings, json_target)
        return
    if recipe != "authors":
        raise InputError(f"unknown recipe {recipe!r}; choose features or authors")
    if features is not None:
        raise InputError("--features is for --recipe features; the authors' recipe takes --data")
    if data is None:
        raise InputError("the authors' recipe needs --data, a folder of DAVIS 2017 or YouTube-VOS")
    from streamvos.training.tvos_authors import train_tvos
    from streamvos.weights import read_checkpoint

    chosen = _authors(_open_dataset(data, split), parse_settings(settings), parse_settings(clip_settings))
    weights = None if initial is None else read_checkpoint(initial).tensors

    def run(report: Report, say: Say) -> Path:
        return train_tvos(chosen, out, report, weights, say)

    _train(run, chosen.training.steps, out, json_target)


def _add_head(method: str) -> None:
    """Add the command `train METHOD`."""

    def command(
        out: OutFolder,
        features: Features = None,
        initial: Initial = None,
        settings: Settings = None,
        clip_settings: ClipSettings = None,
        json_target: JsonTarget = None,
    ) -> None:
        _train_head(method, features, out, initial, settings, clip_settings, json_target)

    command.__doc__ = (
        f"Train what {method} adds to the shared backbone; resumable, reproducible from the seed."
    )
    example = f"streamvos train {method} --features features --out runs/{method}"
    app.command(method, epilog=examples(example))(command)


for _method in HEADS[1:]:
    _add_head(_method)


@app.command(
    "selector", epilog=examples("streamvos train selector --data DATA --features crops --out runs/selector")
)
def selector(
    out: OutFolder,
    data: Annotated[Path, typer.Option(metavar="FOLDER", help="As for `streamvos train features`.")],
    features: Annotated[
        Path,
        typer.Option(
            metavar="FOLDER",
            help="Receives features of windows around objects (about 9 GB); work is resumed.",
        ),
    ],
    settings: Settings = None,
    json_target: JsonTarget = None,
) -> None:
    """Train what makes masks of clicks and boxes; resumable, reproducible from the seed."""
    from streamvos.training.loop import TrainingOptions
    from streamvos.training.selection import TRAINING, make_crops, train_selector

    training = _options(TrainingOptions, {**TRAINING, **parse_settings(settings)})
    make_crops(data, features, remark)

    def run(report: Report, say: Say) -> Path:
        return train_selector(features, training, out, report, say)

    _train(run, training.steps, out, json_target)


def _train_head(
    method: str,
    features: Path | None,
    out: Path,
    initial: str | None,
    settings: list[str] | None,
    clip_settings: list[str] | None,
    json_target: str | None,
) -> None:
    from streamvos.training.features import FeatureClipOptions
    from streamvos.training.heads import DEFAULTS, train_head
    from streamvos.training.loop import TrainingOptions
    from streamvos.training.recipes import RECIPES

    if features is None:
        raise InputError("--features is missing: the folder that `streamvos train features` wrote")
    recipe = RECIPES[method]
    training = _options(TrainingOptions, {**DEFAULTS, **recipe.training, **parse_settings(settings)})
    clips = _options(FeatureClipOptions, {**recipe.clips, **parse_settings(clip_settings)})

    def run(report: Report, say: Say) -> Path:
        return train_head(recipe, features, training, clips, out, report, say, initial)

    _train(run, training.steps, out, json_target)


def _train(run: Callable[[Report, Say], Path], steps: int, out: Path, json_target: str | None) -> None:
    """Run with a progress bar, and print where the results are."""
    with make_progress() as progress:
        task = progress.add_task("training", total=steps, info="")

        def report(step: int, losses: dict[str, float], seconds: float) -> None:
            shown = ", ".join(f"{name} {value:.3f}" for name, value in losses.items())
            rate = 1 / max(seconds, 1e-6)
            progress.update(task, completed=step + 1, info=f"{shown}, {rate:.2f} steps/s")

        try:
            path = run(report, progress.console.print)
        except Stopped as error:
            error.note = f"the same command resumes the run at the last checkpoint in {out}"
            raise
        progress.update(task, completed=steps)
    curves = out / "losses.png" if (out / "losses.png").exists() else None
    remark(f"weights: {path}")
    if curves is not None:
        remark(f"curves:  {curves}")
    write_json({"weights": path, "curves": curves}, json_target)


def _authors(
    dataset: DavisDataset | YouTubeVosDataset, training: Mapping[str, Any], clips: Mapping[str, Any]
) -> Recipe:
    """The authors' settings for this data set, except where `training` and `clips` differ."""
    from streamvos.training.davis_clips import AuthorsClipOptions, AuthorsClips
    from streamvos.training.loop import TrainingOptions
    from streamvos.training.tvos_authors import AUTHORS_BATCH, authors_recipe, authors_training

    options = _options(AuthorsClipOptions, clips)
    batch = _options(TrainingOptions, {"batch": AUTHORS_BATCH, **training}).batch
    defaults = authors_training(AuthorsClips(dataset, options).steps_per_epoch(batch), batch=batch)
    return authors_recipe(dataset, _options(TrainingOptions, {**defaults.model_dump(), **training}), options)


def _open_dataset(root: Path, split: str | None) -> DavisDataset | YouTubeVosDataset:
    """DAVIS 2017 if there is a 480p folder, else YouTube-VOS."""
    from streamvos.datasets.davis import DavisDataset
    from streamvos.datasets.youtube import YouTubeVosDataset

    if (root / "JPEGImages" / "480p").is_dir():
        return DavisDataset(root, year="2017", split=split)
    return YouTubeVosDataset(root) if split is None else YouTubeVosDataset(root, split=split)


def _options(kind: type[Options], values: Mapping[str, Any]) -> Options:
    """Options from the command line; InputError for an unknown name or an invalid value."""
    try:
        return kind(**values)
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(str(part) for part in first["loc"]) or "options"
        known = ", ".join(kind.model_fields)
        got = "" if name == "options" else f" (got {first['input']!r})"
        raise InputError(f"{name}: {first['msg']}{got}; options are: {known}") from None
