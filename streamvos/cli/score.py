"""`streamvos score`: score label maps that exist already, whoever made them.

streamvos score DAVIS/Annotations/480p out/davis --json scores.json
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from streamvos.cli.common import JsonTarget, without_nan, write_json
from streamvos.cli.evaluate import print_scores
from streamvos.metrics import score_folders


def score(
    truth: Annotated[
        Path, typer.Argument(metavar="GT_DIR", help="True label maps: one sequence, or several.")
    ],
    predicted: Annotated[Path, typer.Argument(metavar="PRED_DIR", help="Predicted label maps, likewise.")],
    dataset: Annotated[
        str, typer.Option(help="davis2016 merges all objects; davis2017 does not.")
    ] = "davis2016",
    sequences: Annotated[str | None, typer.Option(help="Only these, separated by commas.")] = None,
    json_target: JsonTarget = None,
) -> None:
    """Score predicted label maps against true ones: J, F, recall, decay.

    Example:

        streamvos score DAVIS/Annotations/480p out/davis --json scores.json
    """
    names = None if sequences is None else [name for name in sequences.split(",") if name]
    scores = score_folders(truth, predicted, dataset, names)
    print_scores(scores, f"{dataset}, {predicted}", json_target)
    write_json(without_nan(scores.to_json()), json_target)
