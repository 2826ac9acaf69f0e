"""`streamvos eval`: the semi-supervised protocol over a data set, and the same when time does not stop.

streamvos eval DAVIS --dataset davis2016 --method tvos --json results.json
streamvos eval DAVIS --streaming --fps 30 --method tvos,frtm-fast
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from streamvos.cli import options, output
from streamvos.cli.signals import Stopped
from streamvos.sinks.conflicts import Place, refuse_conflicts, tree
from streamvos.types import InputError

if TYPE_CHECKING:
    from rich.table import Table

    from streamvos.datasets.davis import DavisDataset, DavisSequence
    from streamvos.metrics.scores import Scores
    from streamvos.sinks.claim import Claim

YEARS = {"davis2016": "2016", "davis2017": "2017"}

EXAMPLES = options.examples(
    "streamvos eval DAVIS --dataset davis2016 --json results.json",
    "streamvos eval DAVIS --sequences goat,blackswan --out out/davis",
    "streamvos eval DAVIS --dataset davis2017 --split val --set top_k=5",
    "streamvos eval DAVIS --streaming --fps 30 --method tvos,frtm-fast --height 240",
    "streamvos eval DAVIS --streaming --latencies latency.jsonl --method all",
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
    height: Annotated[
        int | None,
        typer.Option(
            min=16,
            max=8192,
            metavar="N",
            help="Resize frames to N rows; masks are scored at the size of the true ones.",
        ),
    ] = None,
    streaming: Annotated[
        bool,
        typer.Option(
            "--streaming",
            help="Score also the masks that are finished in time. --method then takes several, or all.",
        ),
    ] = False,
    fps: Annotated[
        float | None, typer.Option(metavar="RATE", help="--streaming: the video's rate; 30 by default.")
    ] = None,
    latencies: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="--streaming: what a frame costs (docs/usage.md); else what it takes here."
        ),
    ] = None,
    device_speed: Annotated[
        float | None,
        typer.Option(metavar="X", help="--streaming: on a device X times as fast; 1 by default."),
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
    from streamvos.cli.evaluating import MethodRun, evaluate_method
    from streamvos.cli.streaming import make_clock, methods_in, report_streaming
    from streamvos.datasets.davis import DavisDataset

    method_options = options.method_settings(settings)
    if dataset not in YEARS:
        raise InputError(f"unknown data set {dataset!r}; choose one of: {', '.join(YEARS)}")
    clock = make_clock(streaming, fps, latencies, device_speed)
    methods = methods_in(method, out) if streaming else [method]
    if out is not None:
        output.check_writable(out)
    data = DavisDataset(root, year=YEARS[dataset], sequences=options.names_in(sequences), split=split)
    for sequence in data:
        check_can_be_scored(sequence)
    files = options.places_of_files({"--weights": weights, "--latencies": latencies})
    claim = claim_folders(out, data, json_target, files, overwrite)
    loaded = [
        streamvos.load(name, options.weights_argument(weights), device, backend, **method_options)
        for name in methods
    ]
    if clock is not None:
        clock.check(loaded, data, height)
    runs: list[MethodRun] = []
    stopped: Stopped | None = None
    with claim, output.make_progress() as progress:
        try:
            for vos in loaded:
                runs.append(evaluate_method(vos, data, height, clock, claim, out, progress))
        except Stopped as error:
            if not runs:
                raise
            stopped = error
    if clock is None:
        scores, rate = runs[0].offline, runs[0].frames_per_second
        output.show(scores.to_json(), json_target, score_table(scores, f"{dataset}, {runs[0].method}"))
        output.remark(f"{rate:.1f} frames/s, peak memory {output.in_mib(output.peak_memory_mib())}")
    else:
        report_streaming(runs, dataset, clock, json_target)
    if stopped is not None:
        raise stopped


def claim_folders(
    out: Path | None, data: DavisDataset, json_target: str | None, files: list[Place], overwrite: bool
) -> Claim:
    """The folders of the label maps, one per sequence of `data` in `out`; nothing is written yet.

    Raises:
        InputError: a file is in the way, or an output is one of the inputs.
    """
    from streamvos.sinks.claim import Claim

    folders = [] if out is None else [out / sequence.name for sequence in data]
    stems = {path.stem for sequence in data for path in sequence.frame_paths}
    claim = Claim(
        folders=folders,
        homes=[] if out is None else [out],
        may_name=stems.__contains__,
        overwrite=overwrite,
    )
    inputs = [tree(data.root / name, "the data set") for name in ("JPEGImages", "Annotations", "ImageSets")]
    outputs = [Place(one, "--out", is_folder=True) for one in folders]
    refuse_conflicts([*outputs, *options.places_of_files({"--json": json_target})], [*inputs, *files])
    claim.check()
    return claim


def check_can_be_scored(sequence: DavisSequence) -> None:
    """Check before the work that a sequence has label maps and enough frames."""
    if not sequence.annotated:
        raise InputError(
            f"{sequence.name} has no label maps beyond the first, so it cannot be scored; `streamvos run` "
            "segments it"
        )
    if len(sequence) < 3:  # the first and the last frame are not scored
        raise InputError(f"{sequence.name} has {len(sequence)} frames; at least 3 are needed for a score")


def score_table(scores: Scores, title: str) -> Table:
    """A table with one row per sequence, and the mean last."""
    from streamvos.metrics.scores import MEASURES

    table = output.make_table(title, ["sequence", *MEASURES])
    rows = [(name, score.percent()) for name, score in scores.sequences.items()]
    for position, (name, percent) in enumerate([*rows, ("mean", scores.mean)]):
        values = [f"{percent[measure]:.1f}" for measure in MEASURES]
        table.add_row(name, *values, end_section=position == len(rows) - 1)
    return table
