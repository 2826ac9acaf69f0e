"""`bench lost`: how well "lost" and the return of an object are recognized.

    streamvos bench lost DATA --seed 0                          # thresholds are chosen on these clips,
    streamvos bench lost DATA --seed 1 --json lost.jsonl        # and judged on others

Photographs swing through the validation sequences of DAVIS 2016 and leave the frame on both sides, so that
the truth is known; `lost_work` says how that is counted.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from streamvos.cli.options import examples
from streamvos.types import InputError

from . import options
from .results import CaseResult, Settings
from .runner import Run

SECONDS = 240.0
"""Of a method on two cores, for the estimate."""

COLUMNS = [f"scores.{name}" for name in ("J&F", "lost precision", "lost recall", "found again")]
COLUMNS += ["scores.uncertain precision", "scores.uncertain recall", "details.best_threshold"]

EXAMPLES = examples("streamvos bench lost DATA --seed 1 --methods tvos --json lost.jsonl")


def command(
    data: Annotated[Path, typer.Argument(metavar="DATA", help="Folder with davis2016-train/ and duts/.")],
    methods: options.Methods = None,
    seed: Annotated[int, typer.Option(metavar="N", help="Of the cut-outs and of how they move.")] = 0,
    json_target: options.JsonTarget = None,
    html: options.HtmlTarget = None,
) -> None:
    """How well it is recognized that an object is lost, and that it is back."""
    names = options.methods_in(methods)
    for folder in ("davis2016-train", "duts"):
        if not (data / folder).is_dir():
            raise InputError(f"{data} has no folder {folder}; expected davis2016-train and duts in it")
    with Run("lost", json_target, SECONDS * len(names), columns=COLUMNS, html=html) as run:
        from .lost_work import measure

        for name in names:
            scores, details = measure(data, name, seed)
            settings = Settings(method=name, weights="bundled", seed=seed)
            row = CaseResult(bench="lost", name=f"{name} seed {seed}", case=settings, unit="%")
            row.scores, row.details = scores, details
            run.add(row)
