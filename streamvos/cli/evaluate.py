"""`streamvos eval`: the semi-supervised protocol over a data set.

streamvos eval DAVIS --dataset davis2016 --method tvos --json results.json
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from streamvos.cli import options, output
from streamvos.cli.signals import Stopped
from streamvos.sinks.conflicts import Place, refuse_conflicts, tree
from streamvos.types import Frame, InputError

if TYPE_CHECKING:
    from rich.table import Table

    from streamvos.datasets.davis import DavisSequence
    from streamvos.metrics.scores import Scores, SequenceScore
    from streamvos.segmenter import Segmenter
    from streamvos.sinks.record import OutputRecord

YEARS = {"davis2016": "2016", "davis2017": "2017"}

EXAMPLES = options.examples(
    "streamvos eval DAVIS --dataset davis2016 --json results.json",
    "streamvos eval DAVIS --sequences goat,blackswan --out out/davis",
    "streamvos eval DAVIS --dataset davis2017 --split val --set top_k=5",
)


def evaluate(
    root: Annotated[
        Path, typer.Argument(metavar="DAVIS_ROOT", help="Folder that holds JPEGImages/ and Annotations/.")
    ],
    dataset: options.DatasetName = "davis2016",
    method: options.MethodName = None,
    weights: options.WeightsName = "default",
    device: options.DeviceName = "auto",
    backend: options.BackendName = "eager",
    settings: options.MethodSettings = None,
    sequences: options.SequenceNames = None,
    split: Annotated[
        str | None, typer.Option(metavar="NAME", help="A list in ImageSets; val if there is one, else all.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", metavar="FOLDER", help="Write the label maps here.")
    ] = None,
    overwrite: options.Overwrite = False,
    json_target: options.JsonTarget = None,
) -> None:
    """Segment the sequences of a data set and score them.

    A sequence starts with its first true mask. J, F, their recall and decay are in percent. The first and the
    last frame of a sequence are not scored, as in DAVIS.
    """
    import streamvos
    from streamvos.datasets.davis import DavisDataset
    from streamvos.metrics.scores import summarize
    from streamvos.sinks.claim import Claim

    method_options = options.method_settings(settings)
    if dataset not in YEARS:
        raise InputError(f"unknown data set {dataset!r}; choose one of: {', '.join(YEARS)}")
    if out is not None:
        output.check_writable(out)
    data = DavisDataset(root, year=YEARS[dataset], sequences=options.names_in(sequences), split=split)
    for sequence in data:
        check_can_be_scored(sequence)
    folders = [] if out is None else [out / sequence.name for sequence in data]
    stems = {path.stem for sequence in data for path in sequence.frame_paths}
    homes = [] if out is None else [out]
    claim = Claim(folders=folders, homes=homes, may_name=stems.__contains__, overwrite=overwrite)
    refuse_conflicts(
        [
            *(Place(one, "--out", is_folder=True) for one in folders),
            *options.places_of_files({"--json": json_target}),
        ],
        [
            *(tree(root / name, "the data set") for name in ("JPEGImages", "Annotations", "ImageSets")),
            *options.places_of_files({"--weights": weights}),
        ],
    )
    claim.check()
    vos = streamvos.load(method, options.weights_argument(weights), device, backend, **method_options)
    scores: list[SequenceScore] = []
    frames, seconds = 0, 0.0
    with claim, output.make_progress() as progress:
        task = progress.add_task("", total=sum(len(sequence) for sequence in data), info="")
        for sequence in data:
            progress.update(task, description=sequence.name)
            record = None if out is None else claim.record(out / sequence.name)
            try:
                score, spent = evaluate_one(vos, sequence, record, lambda: progress.advance(task))
            except Stopped as error:
                error.note = f"{len(scores)} of {len(data)} sequences were done"
                raise
            scores.append(score)
            frames, seconds = frames + len(sequence) - 1, seconds + spent
            progress.update(task, info=f"J&F {score.percent()['J&F']:.1f}")
    summary = summarize(scores)
    output.show(summary.to_json(), json_target, score_table(summary, f"{dataset}, {vos.method.loaded_as}"))
    output.remark(
        f"{frames / max(seconds, 1e-9):.1f} frames/s, peak memory {output.in_mib(output.peak_memory_mib())}"
    )


def check_can_be_scored(sequence: DavisSequence) -> None:
    """Check before the work that a sequence has label maps and enough frames."""
    if not sequence.annotated:
        raise InputError(
            f"{sequence.name} has no label maps beyond the first, so it cannot be scored; `streamvos run` "
            "segments it"
        )
    if len(sequence) < 3:  # the first and the last frame are not scored
        raise InputError(f"{sequence.name} has {len(sequence)} frames; at least 3 are needed for a score")


def evaluate_one(
    vos: Segmenter, sequence: DavisSequence, record: OutputRecord | None, tick: Callable[[], object]
) -> tuple[SequenceScore, float]:
    """Segment and score one sequence.

    Args:
        vos: a segmenter, which is reset first.
        sequence: a sequence with a label map for every frame.
        record: of the folder for the predicted label maps; None to write none.
        tick: called after every frame.

    Returns:
        The score, and the seconds spent in `Segmenter.step` after the first frame.
    """
    from streamvos.metrics.evaluation import SequenceScorer
    from streamvos.sinks import LabelMapSink
    from streamvos.sources.source import NOMINAL_FPS

    scorer, spent = SequenceScorer(sequence.name, sequence.object_ids), 0.0
    vos.reset()
    stems = [path.stem for path in sequence.frame_paths]
    folder = None if record is None else record.folder / record.of
    with (
        nullcontext()
        if folder is None
        else LabelMapSink(folder, stems=stems.__getitem__, record=record) as sink
    ):
        for index in range(len(sequence)):
            image, given = sequence.image(index), sequence.first_mask() if index == 0 else None
            before = time.perf_counter()
            result = vos.step(image, given)
            spent += time.perf_counter() - before if index else 0.0
            scorer.add(sequence.mask(index), result.mask)
            if sink is not None:
                sink.write(Frame(image, index, 0, index / NOMINAL_FPS, sequence.name), result)
            tick()
    return scorer.result(), spent


def score_table(scores: Scores, title: str) -> Table:
    """A table with one row per sequence, and the mean last."""
    from streamvos.metrics.scores import MEASURES

    table = output.make_table(title, ["sequence", *MEASURES])
    rows = [(name, score.percent()) for name, score in scores.sequences.items()]
    for position, (name, percent) in enumerate([*rows, ("mean", scores.mean)]):
        values = [f"{percent[measure]:.1f}" for measure in MEASURES]
        table.add_row(name, *values, end_section=position == len(rows) - 1)
    return table
