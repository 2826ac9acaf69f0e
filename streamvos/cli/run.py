"""`streamvos run`: segment one source and write what comes out.

streamvos run clip.mp4 --mask first.png --out out/
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

import streamvos
from streamvos.cli.common import (
    BackendName,
    DeviceName,
    JsonTarget,
    MethodName,
    MethodSettings,
    WeightsName,
    make_progress,
    make_table,
    parse_settings,
    peak_memory_mib,
    print_table,
    weights_argument,
    without_nan,
    write_json,
)
from streamvos.data.labelmap import read_label_map
from streamvos.metrics import Latencies, evaluate_sequence
from streamvos.sinks import open_sinks
from streamvos.sources import GeneratedSource, Source, open_source
from streamvos.types import VOID, InputError

EXAMPLE = """
Examples:

    streamvos run clip.mp4 --mask first.png --out out/

    streamvos run DAVIS/JPEGImages/480p/goat --mask DAVIS/Annotations/480p/goat/00000.png --out out/

    streamvos run camera:0 --mask first.png --out out/ --max-frames 300

    streamvos run synthetic:seed=3,objects=2 --out out/
"""


@dataclass(frozen=True)
class Summary:
    """What a run amounts to.

    Attributes:
        frames: how many were segmented.
        seconds: from the first frame to the last, everything included.
        latencies: of `Segmenter.step`, seconds; the first frame, which is given, is left out.
        paths: name of each sink -> where it wrote.
        scores: J, F, J&F, ... in percent, where the truth is known.
    """

    frames: int
    seconds: float
    latencies: Latencies
    paths: dict[str, Path]
    scores: dict[str, float] | None

    def to_json(self) -> dict[str, Any]:
        milliseconds = {name: self.latencies.percentile(q) / 1e6 for name, q in QUANTILES.items()}
        return {
            "frames": self.frames,
            "fps": self.frames / self.seconds if self.seconds else None,
            "step_ms": milliseconds if self.latencies.count else None,
            "peak_memory_mib": peak_memory_mib(),
            "scores": self.scores,
            "paths": {name: str(path) for name, path in self.paths.items()},
        }


QUANTILES = {"p50": 50, "p95": 95, "p99": 99}


def run(
    source: Annotated[
        str,
        typer.Argument(help="Video file, folder or glob of pictures, camera:N, rtsp://..., synthetic:..."),
    ],
    mask: Annotated[
        Path | None, typer.Option("--mask", help="Label map (PNG) of the first frame; ids are its values.")
    ] = None,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for what is written.")] = Path("out"),
    method: MethodName = "tvos",
    weights: WeightsName = "default",
    device: DeviceName = "auto",
    backend: BackendName = "eager",
    settings: MethodSettings = None,
    height: Annotated[int | None, typer.Option(help="Resize frames to this many rows.")] = None,
    stride: Annotated[int, typer.Option(help="Take every n-th frame.")] = 1,
    max_frames: Annotated[int | None, typer.Option(help="End after so many frames.")] = None,
    labels: Annotated[bool, typer.Option(help="Write label-map PNGs.")] = True,
    overlay: Annotated[bool, typer.Option(help="Write an overlay video.")] = True,
    results: Annotated[bool, typer.Option(help="Write a JSON-lines file.")] = True,
    json_target: JsonTarget = None,
) -> None:
    """Segment one source, frame by frame, as it comes."""
    options = parse_settings(settings)
    with ExitStack() as stack:
        opened = stack.enter_context(open_source(source, height=height, stride=stride, max_frames=max_frames))
        first_mask = first_label_map(opened, mask)
        vos = streamvos.load(method, weights_argument(weights), device, backend, **options)
        summary = segment(
            opened, first_mask, vos, out, {"labels": labels, "overlay": overlay, "results": results}
        )
    report(summary, opened.name, json_target)


run.__doc__ = f"{run.__doc__}\n{EXAMPLE}"


def first_label_map(source: Source, path: Path | None) -> np.ndarray:
    """The label map of the first frame: from a file, or the truth of a synthetic source.

    Raises:
        InputError: there is neither, or it has another size than the frames.
    """
    if path is None:
        if isinstance(source, GeneratedSource):
            return source.label_map(0)
        raise InputError(f"{source.name} needs --mask, the label map (PNG) of its first frame")
    label_map = read_label_map(path)
    if label_map.shape != source.size:
        raise InputError(
            f"the mask {path} is {label_map.shape[0]} x {label_map.shape[1]} (H x W), the frames are "
            f"{source.size[0]} x {source.size[1]}; both must agree"
        )
    return label_map


def segment(
    source: Source,
    first_mask: np.ndarray,
    vos: streamvos.Segmenter,
    out: Path,
    sinks: dict[str, bool],
) -> Summary:
    """Run a source through a segmenter into the sinks, scoring as it goes where the truth is known."""
    latencies = Latencies()
    frames = 0
    with open_sinks(out, stems=source.stem, fps=source.fps, **sinks) as writer, make_progress() as progress:
        task = progress.add_task(source.name, total=source.length, info="")
        started = time.perf_counter()

        def masks() -> Iterator[np.ndarray]:
            nonlocal frames
            for frame in source:
                before = time.perf_counter()
                result = vos.step(frame.image, None if frame.index else first_mask)
                now = time.perf_counter()
                if frame.index:
                    latencies.add_seconds(now - before)
                writer.write(frame, result)
                frames += 1
                progress.update(task, advance=1, info=f"{frames / (now - started):.1f} frames/s")
                yield result.mask

        scores = None
        if isinstance(source, GeneratedSource) and source.length is not None and source.length >= 3:
            truths = map(source.label_map, range(source.length))
            ids = [int(i) for i in np.unique(first_mask) if 0 < i < VOID]
            scores = evaluate_sequence(truths, masks(), ids, name=source.name).percent()
        else:
            for _ in masks():
                pass
        seconds = time.perf_counter() - started
        if not frames:
            raise InputError(f"{source.name} gave no frame")
    return Summary(frames, seconds, latencies, writer.paths, scores)


def report(summary: Summary, name: str, json_target: str | None) -> None:
    """The table for people, the JSON for programs."""
    values = summary.to_json()
    scores = summary.scores or {}
    table = make_table(name, ["", "value"])
    for measure in ("J", "F", "J&F"):
        table.add_row(measure, f"{scores[measure]:.1f}" if measure in scores else "no ground truth")
    table.add_row("frames", str(summary.frames))
    table.add_row("fps", f"{values['fps']:.1f}")
    for quantile, milliseconds in (values["step_ms"] or {}).items():
        table.add_row(f"step {quantile}", f"{milliseconds:.0f} ms")
    table.add_row("peak memory", f"{values['peak_memory_mib']:.0f} MiB")
    for sink, path in summary.paths.items():
        table.add_row(sink, str(path))
    print_table(table, json_target)
    write_json(without_nan(values), json_target)
