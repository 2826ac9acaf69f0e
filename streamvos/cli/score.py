"""`streamvos score`: score existing label maps, from any program.

streamvos score DAVIS/Annotations/480p out/davis --json scores.json
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from streamvos.cli.options import (
    DatasetName,
    JsonTarget,
    SequenceNames,
    examples,
    names_in,
    refuse_over_inputs,
)
from streamvos.cli.output import make_progress, show

EXAMPLES = examples(
    "streamvos score DAVIS/Annotations/480p out/davis --json scores.json",
    "streamvos score DAVIS/Annotations/480p/goat out/labels",
)


def score(
    truth: Annotated[
        Path, typer.Argument(metavar="GT_DIR", help="True label maps: a sequence, or a folder per sequence.")
    ],
    predicted: Annotated[Path, typer.Argument(metavar="PRED_DIR", help="Predicted label maps, likewise.")],
    dataset: DatasetName = "davis2016",
    sequences: SequenceNames = None,
    json_target: JsonTarget = None,
) -> None:
    """Score existing label maps against true ones.

    J, F, their recall and decay are in percent. The first and the last frame of a sequence are not scored, as
    in DAVIS.
    """
    from streamvos.cli.evaluate import score_table
    from streamvos.metrics.folders import score_folders
    from streamvos.metrics.scores import SequenceScore

    refuse_over_inputs(json_target, {}, {"GT_DIR": truth, "PRED_DIR": predicted})
    with make_progress() as progress:
        task = progress.add_task("scoring", total=None, info="")

        def tick(one: SequenceScore) -> None:
            progress.update(task, advance=1, info=f"{one.name}: J&F {one.percent()['J&F']:.1f}")

        scores = score_folders(truth, predicted, dataset, names_in(sequences), on_sequence=tick)
        progress.update(task, total=len(scores.sequences))
    show(scores.to_json(), json_target, score_table(scores, f"{dataset}, {predicted}"))
