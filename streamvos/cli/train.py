"""`streamvos train`: train a method; the first is TVOS.

streamvos train tvos --stills STILLS --out runs/tvos
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from pydantic import BaseModel, ValidationError

from streamvos.cli.common import JsonTarget, console, make_progress, parse_settings, write_json
from streamvos.data.davis import DavisDataset
from streamvos.data.youtube import YouTubeVosDataset
from streamvos.training.loop import TrainingOptions
from streamvos.training.synthetic_clips import ClipOptions
from streamvos.training.tvos import (
    AuthorsClips,
    AuthorsClipOptions,
    authors_recipe,
    authors_training,
    synthetic_recipe,
    train_tvos,
)
from streamvos.types import InputError

app = typer.Typer(help="Train a method.", no_args_is_help=True, rich_markup_mode="markdown")


@app.callback()
def methods() -> None:
    """Train a method. Example: streamvos train tvos --stills STILLS --out runs/tvos"""


@app.command("tvos")
def tvos(
    out: Annotated[
        Path, typer.Option("--out", "-o", help="Folder of the run; a run that stopped is resumed.")
    ],
    recipe: Annotated[
        str, typer.Option(help="synthetic (from scratch), or authors (DAVIS, YouTube-VOS).")
    ] = "synthetic",
    stills: Annotated[
        Path | None,
        typer.Option(help="synthetic: folder with images/ and regions/; without, textures are drawn."),
    ] = None,
    data: Annotated[Path | None, typer.Option(help="authors: folder of DAVIS 2017 or YouTube-VOS.")] = None,
    split: Annotated[
        str | None, typer.Option(help="authors: name of a list in ImageSets, such as train.")
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="NAME=VALUE", help="A training option, such as steps=4000. Repeatable."
        ),
    ] = None,
    clip_settings: Annotated[
        list[str] | None,
        typer.Option(
            "--clip", metavar="NAME=VALUE", help="An option of the clips, such as size=256. Repeatable."
        ),
    ] = None,
    json_target: JsonTarget = None,
) -> None:
    """Train TVOS; resumable, the same for the same seed.

    Examples:

        streamvos train tvos --stills BSDS500 --out runs/tvos --set steps=4800 --set batch=6

        streamvos train tvos --recipe authors --data DAVIS --split train --out runs/authors --set device=cuda
    """
    training, clips = parse_settings(settings), parse_settings(clip_settings)
    if recipe == "synthetic":
        chosen = synthetic_recipe(
            _options(TrainingOptions, training), _options(ClipOptions, {"stills": stills, **clips})
        )
    elif recipe == "authors":
        if data is None:
            raise InputError("the authors' recipe needs --data, a folder of DAVIS 2017 or YouTube-VOS")
        folders = _open_dataset(data, split)
        options = _options(AuthorsClipOptions, clips)
        batch = int(training.get("batch", 16))
        defaults = authors_training(AuthorsClips(folders, options).steps_per_epoch(batch))
        chosen = authors_recipe(
            folders, _options(TrainingOptions, {**defaults.model_dump(), **training}), options
        )
    else:
        raise InputError(f"unknown recipe {recipe!r}; choose synthetic or authors")

    with make_progress() as progress:
        task = progress.add_task("training", total=chosen.training.steps, info="")

        def report(step: int, losses: dict[str, float], seconds: float) -> None:
            shown = ", ".join(f"{name} {value:.3f}" for name, value in losses.items())
            progress.update(task, completed=step + 1, info=f"{shown}, {1 / seconds:.2f} steps/s")

        path = train_tvos(chosen, out, report)
    console.print(f"weights: {path}\ncurves:  {out / 'losses.png'}")
    write_json({"weights": str(path), "curves": str(out / "losses.png")}, json_target)


def _open_dataset(root: Path, split: str | None) -> DavisDataset | YouTubeVosDataset:
    """YouTube-VOS where there is a meta.json or no 480p folder, else DAVIS 2017."""
    if (root / "JPEGImages" / "480p").is_dir():
        return DavisDataset(root, year="2017", split=split)
    return YouTubeVosDataset(root) if split is None else YouTubeVosDataset(root, split=split)


def _options(kind: type[BaseModel], values: dict) -> BaseModel:
    """Options from the command line.

    Raises:
        InputError: an unknown name or a value out of range.
    """
    try:
        return kind(**values)
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(str(part) for part in first["loc"])
        known = ", ".join(kind.model_fields)
        raise InputError(f"{name}: {first['msg']} (got {first['input']!r}); options are: {known}") from None
