"""The main job: a source through a segmenter into the output folder. `run` and `demo` are faces of it.

    job = Job(source="clip.mp4", mask=Path("first.png"), out=Path("out"))
    summary = job.run()

Whatever can be found wrong is found before anything is written: arguments, folders, the source, the mask,
the weights, and the first frame, in this order, the cheap before the dear.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

import streamvos
from streamvos.cli.common import (
    check_json_target,
    check_writable,
    in_mib,
    make_progress,
    make_table,
    method_settings,
    peak_gpu_memory_mib,
    peak_memory_mib,
    print_table,
    weights_argument,
    without_nan,
    write_json,
)
from streamvos.cli.first_frame import (
    check_picture_name,
    first_label_map,
    given_label_map,
    next_frame,
    parse_boxes,
    save_frame,
)
from streamvos.cli.output_folder import Kinds, OutputFolder, check_out
from streamvos.cli.signals import Stopped, signals_held
from streamvos.metrics.evaluation import evaluate_sequence
from streamvos.metrics.latency import Latencies
from streamvos.sources import GeneratedSource, LiveSource, Source, open_source
from streamvos.types import VOID, Frame, Result, StreamvosError

QUANTILES = {"p50": 50, "p95": 95, "p99": 99}


@dataclass(frozen=True)
class Summary:
    """What a run amounts to.

    Attributes:
        name: of the source.
        size: (H, W) of the frames.
        method: its name.
        device: on which it ran.
        frames: how many were segmented.
        seconds: from the first frame to the last, everything included.
        latencies: of `Segmenter.step`; the first frame, which is given, is left out.
        dropped: frames of a live source that came and were passed over, after the first; None for others.
        paths: name of each kind of output -> where it is.
        scores: J, F, J&F, ... in percent, where the truth is known.
        gpu_memory_mib: the most that tensors took on a GPU; None on another device.
        engines: part -> what ran it, why and how often; empty with `eager`.
    """

    name: str
    size: tuple[int, int]
    method: str
    device: str
    frames: int
    seconds: float
    latencies: Latencies
    dropped: int | None
    paths: Mapping[str, Path]
    scores: Mapping[str, float] | None
    gpu_memory_mib: float | None
    engines: Mapping[str, list[str]] = field(default_factory=dict)

    @property
    def fps(self) -> float:
        """Frames per second, sinks and source included."""
        return self.frames / max(self.seconds, 1e-9)

    def to_json(self) -> dict[str, Any]:
        """For programs; what is not known is null."""
        milliseconds = {name: self.latencies.percentile(q) / 1e6 for name, q in QUANTILES.items()}
        return without_nan(
            {
                "source": self.name,
                "size": list(self.size),
                "method": self.method,
                "device": self.device,
                "frames": self.frames,
                "dropped": self.dropped,
                "fps": self.fps,
                "step_ms": milliseconds,
                "peak_memory_mib": peak_memory_mib(),
                "peak_gpu_memory_mib": self.gpu_memory_mib,
                "scores": self.scores,
                "engines": self.engines,
                "paths": {name: str(path) for name, path in self.paths.items()},
            }
        )


@dataclass(frozen=True)
class Job:
    """What the options of `run` and `demo` say.

    Attributes:
        source: as `open_source` takes it.
        selection: further arguments of `open_source`.
        mask: label map of the first frame.
        boxes: "ID:LEFT,TOP,RIGHT,BOTTOM" each.
        save_first: where to store the first frame.
        out: folder for what is written.
        kinds: what is written.
        method, weights, device, backend, settings: as on the command line.
        json_target: of `--json`.
    """

    source: str
    out: Path
    mask: Path | None = None
    boxes: list[str] | None = None
    save_first: Path | None = None
    selection: Mapping[str, Any] = field(default_factory=dict)
    kinds: Kinds = field(default_factory=Kinds)
    method: str = "tvos"
    weights: str = "default"
    device: str = "auto"
    backend: str = "eager"
    settings: list[str] | None = None
    json_target: str | None = None

    def run(self) -> None:
        """Do it, and say what came of it.

        Raises:
            StreamvosError: bad input, or a source or sink that fails.
            Stopped: by a signal; what was whole by then is kept.
        """
        boxes, options = parse_boxes(self.boxes), method_settings(self.settings)
        check_json_target(self.json_target)
        if self.save_first is not None:
            check_picture_name(self.save_first)
            check_writable(self.save_first.absolute().parent)
        check_out(self.out, self.source)
        with open_source(self.source, **self.selection) as source:
            if self.save_first is not None and self.mask is None and not boxes:
                self._save_first_alone(source, self.save_first)
                return
            given = given_label_map(source, self.mask, boxes)
            vos = streamvos.load(
                self.method, weights_argument(self.weights), self.device, self.backend, **options
            )
            if isinstance(source, LiveSource):
                warm_up(vos, source.size)
            frame = next_frame(source)
            if self.save_first is not None:
                save_frame(frame, self.save_first)
            label_map = first_label_map(frame, given, boxes)
            summary, stopped = segment(source, frame, label_map, vos, self.out, self.kinds)
        report(summary, self.json_target)
        if stopped is not None:
            raise stopped

    def _save_first_alone(self, source: Source, path: Path) -> None:
        save_frame(next_frame(source), path)
        values = {"source": source.name, "size": list(source.size), "first_frame": str(path)}
        table = make_table(source.name, ["", ""])
        table.add_row("first frame", f"{source.size[1]} x {source.size[0]}")
        following = "paint each object with its id (1..254) on black, save it as PNG, and give it as --mask"
        print_table(table, self.json_target, f"first frame  {path}", following)
        write_json(values, self.json_target)


def warm_up(vos: streamvos.Segmenter, size: tuple[int, int]) -> None:
    """Let the first steps, which are slow, happen before a live stream waits for them."""
    nothing, mask = np.zeros((*size, 3), np.uint8), np.ones(size, np.uint8)
    for given in (mask, None):
        vos.step(nothing, given)
    vos.reset()


def segment(
    source: Source, first: Frame, label_map: np.ndarray, vos: streamvos.Segmenter, out: Path, kinds: Kinds
) -> tuple[Summary, Stopped | None]:
    """Run a source through a segmenter into the output folder, scoring as it goes where the truth is known.

    Args:
        source: its first frame has been taken.
        first: that frame.
        label_map: of the first frame.
        vos: fresh.
        out: folder of the output.
        kinds: what is written.

    Returns:
        The summary; and the signal that ended a live stream, which has no other end, in order.

    Raises:
        StreamvosError, Stopped: with a note on where unfinished files are, if there are any.
    """
    latencies, started = Latencies(), time.perf_counter()
    dropped_before = source.dropped if isinstance(source, LiveSource) else 0
    result = vos.step(first.image, label_map)  # refuses what is wrong before anything is written
    folder = OutputFolder(out, kinds, source)
    written = 0

    def results() -> Iterator[tuple[Frame, Result]]:
        yield first, result
        for frame in source:
            before = time.perf_counter()
            later = vos.step(frame.image)
            latencies.add_seconds(time.perf_counter() - before)
            yield frame, later

    def masks() -> Iterator[np.ndarray]:
        nonlocal written
        for frame, one in results():
            with signals_held():  # a frame is in every sink or in none
                folder.write(frame, one)
                written += 1
            progress.update(task, completed=written, info=_rate(source, written, started))
            yield one.mask

    scores: Mapping[str, float] | None = None
    stopped: Stopped | None = None
    try:
        with folder, make_progress() as progress:
            task = progress.add_task(source.name, total=source.length, info="")
            try:
                scores = _consume(masks(), source, label_map)
            except Stopped as error:
                if not isinstance(source, LiveSource) or not written:
                    raise
                stopped = error
            seconds = time.perf_counter() - started
    except Stopped as error:
        error.note = _where(folder, written)
        raise
    except StreamvosError as error:
        note = _where(folder, written)
        raise type(error)(f"{error}; {note}" if note else str(error)) from error
    dropped = source.dropped - dropped_before if isinstance(source, LiveSource) else None
    summary = Summary(
        name=source.name,
        size=source.size,
        method=vos.method.name,
        device=str(vos.device),
        frames=written,
        seconds=seconds,
        latencies=latencies,
        dropped=dropped,
        paths=folder.paths,
        scores=scores,
        gpu_memory_mib=peak_gpu_memory_mib(vos.device),
        engines=vos.extraction.engines.describe(),
    )
    return summary, stopped


def _consume(
    masks: Iterator[np.ndarray], source: Source, label_map: np.ndarray
) -> Mapping[str, float] | None:
    """Draw every mask; score them if the source knows the truth about the objects that are followed."""
    ids = {int(one) for one in np.unique(label_map)} - {0, VOID}
    if isinstance(source, GeneratedSource) and source.length is not None and source.length >= 3:
        known = {int(one) for one in np.unique(source.label_map(0))}
        if ids <= known:
            truths = map(source.label_map, range(source.length))
            return evaluate_sequence(truths, masks, ids, name=source.name).percent()
    for _ in masks:
        pass
    return None


def _where(folder: OutputFolder, written: int) -> str:
    """Where the frames of a run that did not end in order are."""
    if not written or not (paths := folder.unfinished()):
        return ""
    frames = "1 frame is" if written == 1 else f"{written} frames are"
    return f"the first {frames} in {', '.join(map(str, paths))}"


def _rate(source: Source, frames: int, started: float) -> str:
    text = f"{frames / max(time.perf_counter() - started, 1e-9):.1f} frames/s"
    return f"{text}, {source.dropped} dropped" if isinstance(source, LiveSource) else text


def report(summary: Summary, json_target: str | None) -> None:
    """The table and the paths for people, the JSON for programs."""
    values = summary.to_json()
    height, width = summary.size
    title = f"{summary.name}, {width} x {height}, {summary.method} on {summary.device}"
    table = make_table(title, ["", "value"])
    if summary.scores is None:
        table.add_row("J, F, J&F", "no ground truth")
    else:
        for measure in ("J", "F", "J&F"):
            table.add_row(measure, f"{summary.scores[measure]:.1f}")
    table.add_row("frames", str(summary.frames))
    if summary.dropped is not None:
        table.add_row("dropped", str(summary.dropped))
    table.add_row("fps", f"{summary.fps:.1f}")
    for quantile, milliseconds in values["step_ms"].items():
        if milliseconds is not None:
            table.add_row(f"step {quantile}", f"{milliseconds:.1f} ms")
    table.add_row("peak memory", in_mib(values["peak_memory_mib"]))
    if summary.gpu_memory_mib is not None:
        table.add_row("peak GPU memory", in_mib(summary.gpu_memory_mib))
    lines = [f"{kind:8} {path}" for kind, path in summary.paths.items()]
    lines += [f"{part:8} {line}" for part, told in summary.engines.items() for line in told]
    print_table(table, json_target, *lines)
    write_json(values, json_target)
