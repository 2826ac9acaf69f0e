"""`bench selection`: how many clicks an object takes, and how good a mask from a box is.

    streamvos bench selection DATA --dev DAVIS-DEV --json selection.jsonl

GrabCut gets the same boxes in the same run; `selection_work` says how clicks are made.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from streamvos.cli.options import examples
from streamvos.types import InputError

from . import options
from .results import CaseResult, Settings
from .runner import Run

SECONDS = 0.6
"""Of an object on two cores, for the estimate."""

SHOWN = (
    "IoU after 1",
    "IoU after 3",
    "NoC@85",
    "NoC@90",
    "box",
    "box, GrabCut",
    "first click s",
    "next click s",
)

EXAMPLES = examples("streamvos bench selection DATA --dev DAVIS --limit 50 --json selection.jsonl")


def command(
    data: Annotated[Path, typer.Argument(metavar="DATA", help="Folder with photographs: duts/, voc/.")],
    dev: Annotated[
        Path | None,
        typer.Option(metavar="DAVIS_ROOT", help="DAVIS 2016 sequences, of which frames are taken."),
    ] = None,
    limit: Annotated[int, typer.Option(min=1, metavar="N", help="Photographs of each set.")] = 200,
    json_target: options.JsonTarget = None,
    html: options.HtmlTarget = None,
) -> None:
    """How many clicks an object takes, and how good a mask from a box is, beside GrabCut."""
    if not data.is_dir():
        raise InputError(f"there is no folder {data}; expected one with photographs")
    columns = ["details.objects", *(f"scores.{name}" for name in SHOWN)]
    with Run("selection", json_target, SECONDS * limit * 2, columns=columns, html=html) as run:
        from streamvos.selection.selector import Selector

        from .selection_work import judge, samples, table

        selector = Selector("default", "cpu")
        found: dict[str, list[dict[str, Any]]] = {}
        try:
            for number, (kind, image, labels) in enumerate(samples(data, dev, limit)):
                found.setdefault(kind, []).append(judge(selector, image, labels, number))
        finally:
            for kind, results in found.items():
                scores = table(results)
                row = CaseResult(bench="selection", name=kind, case=Settings(limit=limit), unit="%")
                row.details = {"objects": scores.pop("objects")}
                row.scores = {name: value for name, value in scores.items() if value == value}
                run.add(row)
    if not found:
        raise InputError(
            f"{data} holds no photographs that were kept apart from training; expected duts/ or voc/"
        )
