"""`bench streaming`: which method and size is best on this machine when time does not stop.

    streamvos bench streaming DAVIS --height 480,240 --fps 10,15,30 --json streaming.jsonl
    streamvos bench streaming DAVIS --methods frtm-fast --sequences goat

At a frame counts the newest mask that is finished by its arrival (docs/usage.md, Streaming accuracy). A frame
costs what it takes here in the mean when every frame is processed; the methods take turns at the sequences.
Masks of smaller frames are scored at the size of the true ones.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Annotated, Any

import typer

from streamvos.cli.options import SequenceNames, examples, names_in
from streamvos.cli.output import write_output
from streamvos.types import InputError

from . import options
from .results import CaseResult, Settings, measured
from .runner import START_SECONDS, Run
from .worker import JobError, Worker

EXAMPLES = examples(
    "streamvos bench streaming DAVIS",
    "streamvos bench streaming DAVIS --methods frtm-fast,tvos --height 480,240 --fps 30 --sequences goat",
    "streamvos bench streaming DAVIS --fps 10,15,30 --json streaming.jsonl",
)

COLUMNS = (
    "scores.J&F offline",
    "scores.J&F streaming",
    "details.ms",
    "details.processed %",
    "details.behind",
)

SCORING_SECONDS, SECONDS_480P = 0.04, 0.1
"""What a frame takes on two cores: scoring it, and segmenting 480 rows of it; a guess, for what is said."""


def command(
    root: Annotated[
        Path, typer.Argument(metavar="DAVIS_ROOT", help="Folder that holds JPEGImages/ and Annotations/.")
    ],
    methods: options.Methods = None,
    weights: options.Weights = "default",
    backends: options.Backends = "eager",
    height: Annotated[
        str, typer.Option(metavar="N,...", help="Rows that frames are resized to.")
    ] = "480,240",
    fps: Annotated[str, typer.Option(metavar="N,...", help="Rates at which frames arrive.")] = "10,15,30",
    sequences: SequenceNames = None,
    threads: options.Threads = None,
    device: options.Device = "cpu",
    json_target: options.JsonTarget = None,
    html: options.HtmlTarget = None,
) -> None:
    """Which method and size is best here when time does not stop: offline and streaming J&F.

    One row per method, backend, height and rate. At a frame counts the newest mask that is finished by then.
    """
    from streamvos.cli.evaluate import check_can_be_scored
    from streamvos.datasets.davis import DavisDataset

    ways = list(product(options.methods_in(methods, weights), options.backends_in(backends)))
    heights, rates = options.numbers_in(height, "--height", 16, 8192), rates_in(fps)
    device = options.check_device(device)
    data = DavisDataset(root, sequences=names_in(sequences))
    for sequence in data:
        check_can_be_scored(sequence)
    frames = sum(len(sequence) for sequence in data)
    passes = len(ways) * (1 + len(rates))
    a_frame = sum(SCORING_SECONDS + SECONDS_480P * (rows / 480) ** 2 for rows in heights)
    seconds = len(ways) * len(heights) * START_SECONDS + frames * passes * a_frame
    with Run("streaming", json_target, seconds, device, COLUMNS, html=html) as run:
        for rows in heights:
            with ExitStack() as stack:
                group = []
                for method, backend in ways:
                    worker = stack.enter_context(
                        Worker("streaming_work", options.thread_environment(threads))
                    )
                    one = _Measured(method, backend, weights, rows, device, worker)
                    one.ask_begin(root, data.names)
                    group.append(one)
                _measure(run, group, data.names, rates)
    if json_target != "-":
        write_output("".join(f"{line}\n" for line in best_lines(run.rows)))


def rates_in(text: str) -> list[float]:
    """Frames per second, each once."""
    try:
        rates = [float(one) for one in names_in(text) or []]
    except ValueError:
        rates = []
    if not rates or not all(0.1 <= rate <= 1000 for rate in rates):
        raise InputError(f"--fps {text!r} cannot be used; expected numbers from 0.1 to 1000")
    return list(dict.fromkeys(rates))


def best_lines(rows: Sequence[CaseResult]) -> list[str]:
    """For each rate, the row with the highest streaming J&F."""
    lines = []
    done = [row for row in rows if row.failed is None and row.case.fps is not None]
    for rate in dict.fromkeys(row.case.fps for row in done):
        best = max((row for row in done if row.case.fps == rate), key=lambda row: row.scores["J&F streaming"])
        lines.append(
            f"{rate:g} fps: best is {best.case.method} at {best.case.height} rows, J&F "
            f"{best.scores['J&F streaming']:.1f} (offline {best.scores['J&F offline']:.1f}), "
            f"{best.mean:.0f} ms a frame, {best.details['behind']:.1f} frames behind"
        )
    return lines


@dataclass
class _Measured:
    """A method at a height, and what is known of it so far."""

    method: str
    backend: str
    weights: str
    height: int
    device: str
    worker: Worker
    threads: int | None = None
    offline: list[dict[str, Any]] = field(default_factory=list)
    failed: str | None = None

    def ask_begin(self, root: Path, sequences: Sequence[str]) -> None:
        """Load it."""
        told = self.ask(
            "begin",
            method=self.method,
            weights=options.weights_of(self.weights),
            backend=self.backend,
            device=self.device,
            root=str(root),
            sequences=list(sequences),
            height=self.height,
        )
        self.threads = None if told is None else told["threads"]

    def ask(self, job: str, **given: Any) -> Any:
        """An answer of its process; None once it has failed."""
        if self.failed is not None:
            return None
        try:
            return self.worker.ask(job, given)
        except JobError as error:
            self.failed = str(error)
            return None

    def row(self, fps: float) -> CaseResult:
        """A row without scores."""
        kind = "bundled" if options.weights_of(self.weights) else "random"
        settings = Settings(
            method=self.method,
            weights=kind,
            backend=self.backend,
            device=self.device,
            height=self.height,
            threads=self.threads,
            fps=fps,
        )
        name = f"{self.method} {kind} {self.height} {self.backend} at {fps:g} fps"
        return CaseResult(bench="streaming", name=name, case=settings, failed=self.failed)


def _measure(run: Run, group: Sequence[_Measured], sequences: Sequence[str], rates: Sequence[float]) -> None:
    for sequence in sequences:
        for one in group:
            answer = one.ask("offline", sequence=sequence)
            if answer is not None:
                one.offline.append(answer)
    for one, rate in product(group, rates):
        run.add(_row(one, sequences, rate))


def _row(one: _Measured, sequences: Sequence[str], rate: float) -> CaseResult:
    if one.failed is not None:
        return one.row(rate)
    later = [answer["ms"][1:] for answer in one.offline]
    figures = measured(value for values in later for value in values)
    first = statistics.fmean(answer["ms"][0] for answer in one.offline)
    answers = [
        one.ask("streaming", sequence=name, fps=rate, first_ms=first, ms=figures["mean"])
        for name in sequences
    ]
    row = one.row(rate)
    if one.failed is not None:
        return row
    for name, value in figures.items():
        setattr(row, name, value)
    row.repetitions = [statistics.median(values) for values in later]
    row.first_frame_ms, row.throughput = first, 1e3 / figures["mean"]
    for kind, done in (("offline", one.offline), ("streaming", answers)):
        means = {one: statistics.fmean(each["scores"][one] for each in done) for one in ("J", "F", "J&F")}
        row.scores[f"J&F {kind}"] = means["J&F"]
        row.details[kind] = means
    row.details |= {
        "ms": figures["mean"],
        "processed %": 100 * statistics.fmean(each["processed"] for each in answers),
        "behind": statistics.fmean(each["behind"] for each in answers),
        "sequences": {
            name: {"offline": early["scores"]["J&F"], "streaming": late["scores"]["J&F"]}
            for name, early, late in zip(sequences, one.offline, answers, strict=True)
        },
    }
    return row
