"""Segment and score a data set with one method, offline and on a clock: the work of `streamvos eval`.

run = evaluate_method(vos, data, height=None, clock=None, claim=None, out=None, progress=progress)
run.offline.mean["J&F"]
"""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

from rich.progress import Progress, TaskID

from streamvos.cli.latencies import Clock
from streamvos.cli.signals import Stopped
from streamvos.datasets.davis import DavisDataset, DavisSequence
from streamvos.metrics.scores import Scores, summarize
from streamvos.metrics.sequences import Cost, Evaluation, evaluate
from streamvos.segmenter import Segmenter
from streamvos.sinks import LabelMapSink
from streamvos.sinks.claim import Claim
from streamvos.types import Frame, Result


@dataclass(frozen=True, slots=True)
class MethodRun:
    """What became of a method.

    Attributes:
        method: its name.
        heights: rows of the frames that it saw.
        offline: every frame with its own mask.
        in_time: at every frame the newest mask that was finished; as `offline` without a clock.
        evaluations: of `in_time`, by sequence.
        frames_per_second: of `Segmenter.step` offline, after the first frames.
    """

    method: str
    heights: tuple[int, ...]
    offline: Scores
    in_time: Scores
    evaluations: tuple[Evaluation, ...]
    frames_per_second: float


def evaluate_method(
    vos: Segmenter,
    data: DavisDataset,
    height: int | None,
    clock: Clock | None,
    claim: Claim | None,
    out: Path | None,
    progress: Progress,
) -> MethodRun:
    """Segment and score every sequence, with a clock twice.

    Args:
        vos: a segmenter.
        data: sequences with a label map for every frame.
        height: rows to resize frames to.
        clock: what frames cost; None: offline only.
        claim, out: of the label maps that count in the end, a folder per sequence; None writes none.
        progress: shows the work.

    Raises:
        Stopped: says how much was done.
    """
    method = vos.method.loaded_as
    passes = 1 if clock is None else 2
    task = progress.add_task(method, total=passes * sum(len(sequence) for sequence in data), info="")
    offline: list[Evaluation] = []
    in_time: list[Evaluation] = []
    for sequence in data:
        progress.update(task, description=f"{method} {sequence.name}")
        folder = None if out is None else out / sequence.name
        try:
            offline.append(
                _evaluate(vos, sequence, height, None, claim, None if clock else folder, progress, task)
            )
            if clock is not None:
                in_time.append(_evaluate(vos, sequence, height, clock, claim, folder, progress, task))
        except Stopped as error:
            error.note = f"{len(in_time if clock else offline)} of {len(data)} sequences were done"
            error.note += f" with {method}" * (clock is not None)
            raise
        newest = (in_time or offline)[-1].score
        progress.update(task, info=f"J&F {newest.percent()['J&F']:.1f}")
    late = in_time or offline
    seconds = [value for one in offline for value in one.seconds[1:]]
    return MethodRun(
        method,
        tuple(sorted({height or sequence.first_mask().shape[0] for sequence in data})),
        summarize(one.score for one in offline),
        summarize(one.score for one in late),
        tuple(late),
        len(seconds) / max(sum(seconds), 1e-9),
    )


def _evaluate(
    vos: Segmenter,
    sequence: DavisSequence,
    height: int | None,
    clock: Clock | None,
    claim: Claim | None,
    folder: Path | None,
    progress: Progress,
    task: TaskID,
) -> Evaluation:
    stems = [path.stem for path in sequence.frame_paths]
    record = None if claim is None or folder is None else claim.record(folder)
    cost: Cost | None = None if clock is None else clock.cost(vos.method.loaded_as, sequence, height)
    with (
        nullcontext()
        if record is None
        else LabelMapSink(record.folder / record.of, stems=stems.__getitem__, record=record) as sink
    ):

        def show(frame: Frame, result: Result) -> None:
            if sink is not None:
                sink.write(frame, result)
            progress.advance(task)

        fps = {} if clock is None else {"fps": clock.fps}
        return evaluate(vos, sequence, height=height, cost=cost, show=show, **fps)
