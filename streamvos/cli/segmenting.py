"""Follow the objects of one source, frame by frame, and write the results: `streamvos run` and `demo`.

with open_source("clip.mp4") as source:
    frame = next_frame(source)
    values, stopped = segment(source, frame, label_map, vos, OutputFolder(Path("out"), source))
report(values, json_target=None)
"""

from __future__ import annotations

import io
import os
import time
from collections.abc import Mapping
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from streamvos.cli import output
from streamvos.cli.output_folder import OutputFolder
from streamvos.cli.signals import Stopped
from streamvos.masks.checks import describe_areas, label_areas, object_ids
from streamvos.masks.labelmap import read_label_map
from streamvos.metrics.evaluation import SequenceScorer
from streamvos.metrics.latency import Latencies
from streamvos.segmenter import Segmenter
from streamvos.sources import GeneratedSource, LiveSource, Source
from streamvos.types import Frame, InputError, SourceError, TruncatedError


def segment(
    source: Source, first: Frame, label_map: np.ndarray, vos: Segmenter, folder: OutputFolder
) -> tuple[dict[str, Any], Stopped | TruncatedError | None]:
    """Segment a source into a folder, and score the result if the ground truth is known.

    Args:
        source: an open source whose first frame has been taken.
        first: that frame.
        label_map: (H, W) uint8, the objects in the first frame.
        vos: a fresh segmenter.
        folder: where label maps, overlay and results go.

    Returns:
        The result as `report` takes it, and what ended the source early: a signal (live), or damage.

    Raises:
        StreamvosError, Stopped: says where unfinished files are, if there are any.
    """
    latencies, scorer = Latencies(), _scorer(source, label_map)
    live = source if isinstance(source, LiveSource) else None
    stopped: Stopped | TruncatedError | None = None
    started, dropped_before = time.perf_counter(), live.dropped if live else 0
    result = vos.step(first.image, label_map)  # refuses a bad mask before anything is written
    with folder, output.make_progress() as progress:
        if progress.console.is_terminal:  # elsewhere the report says it
            progress.console.print(f"following {describe_areas(label_areas(label_map))}")
        task = progress.add_task(source.name, total=source.length, info="")
        try:
            for frame in chain([first], source):
                if frame is not first:
                    before = time.perf_counter_ns()
                    result = vos.step(frame.image)
                    latencies.add(time.perf_counter_ns() - before)
                if scorer is not None and isinstance(source, GeneratedSource):
                    scorer.add(source.label_map(frame.index), result.mask)
                folder.write(frame, result)
                rate = f"{folder.written / max(time.perf_counter() - started, 1e-9):.1f} frames/s"
                info = f"{rate}, {live.dropped} dropped" if live else rate
                progress.update(task, completed=folder.written, info=info)
        except TruncatedError as error:  # what came before it is whole
            stopped = error
        except Stopped as error:
            if not live or not folder.written:
                raise
            stopped = error
        seconds = time.perf_counter() - started
    on_gpu = vos.device.type == "cuda"
    values = {
        "source": source.name,
        "size": list(source.size),
        "labels": label_areas(label_map),
        "method": vos.method.loaded_as,
        "device": str(vos.device),
        "frames": folder.written,
        "dropped": live.dropped - dropped_before if live else None,
        "fps": folder.written / max(seconds, 1e-9),
        "step_ms": {f"p{q}": latencies.percentile(q) / 1e6 for q in (50, 95, 99)},
        "peak_memory_mib": output.peak_memory_mib(),
        "peak_gpu_memory_mib": torch.cuda.max_memory_allocated(vos.device) / 2**20 if on_gpu else None,
        "scores": None if scorer is None else scorer.result().percent(),
        "engines": vos.extraction.engines.describe(),
        "paths": {name: str(path) for name, path in folder.paths.items()},
    }
    return values, stopped


def report(values: Mapping[str, Any], json_target: str | None) -> None:
    """Show the result of `segment`."""
    height, width = values["size"]
    title = f"{values['source']}, {width} x {height}, {values['method']} on {values['device']}"
    table = output.make_table(title, ["", "value"])
    if values["scores"] is None:
        table.add_row("J, F, J&F", "no ground truth")
    for measure in ("J", "F", "J&F") if values["scores"] else ():
        table.add_row(measure, f"{values['scores'][measure]:.1f}")
    table.add_row("frames", str(values["frames"]))
    if values["dropped"] is not None:
        table.add_row("dropped", str(values["dropped"]))
    table.add_row("fps", f"{values['fps']:.1f}")
    for quantile, milliseconds in values["step_ms"].items():
        if milliseconds == milliseconds:  # nan where there was one frame
            table.add_row(f"step {quantile}", f"{milliseconds:.1f} ms")
    table.add_row("peak memory", output.in_mib(values["peak_memory_mib"]))
    if values["peak_gpu_memory_mib"] is not None:
        table.add_row("peak GPU memory", output.in_mib(values["peak_gpu_memory_mib"]))
    lines = [f"objects  {describe_areas(values['labels'])}"]
    lines += [f"{kind:8} {path}" for kind, path in values["paths"].items()]
    lines += [f"{part:8} {line}" for part, of_part in values["engines"].items() for line in of_part]
    output.show(values, json_target, table, *lines)


def warm_up(vos: Segmenter, size: tuple[int, int]) -> None:
    """Take the first steps, which are slow, before a live stream starts."""
    image, mask = np.zeros((*size, 3), np.uint8), np.ones(size, np.uint8)
    for given in (mask, None):
        vos.step(image, given)
    vos.reset()


def next_frame(source: Source) -> Frame:
    """The first frame of a source; SourceError if it has none."""
    frame = next(source, None)
    if frame is None:
        raise SourceError(f"{source.name} ended before its first frame")
    return frame


def masks_of(
    source: Source, mask: Path | None, wanted: str | None
) -> tuple[tuple[int, int] | None, np.ndarray | None]:
    """The size of the masks that are written.

    Args:
        source: an open source.
        mask: file of the first label map.
        wanted: the value of --mask-size.

    Returns:
        (H, W), or None where it is that of the frames; and the first label map, if it has this size.
    """
    if source.size == source.native_size or wanted == "frames":
        return None, None
    if wanted is None and source.pixel_aspect != 1:  # a mask of the stored size is stretched like the frames
        return None, None
    given = None if mask is None else read_label_map(mask)
    if given is None or given.shape != source.native_size:
        return (source.native_size if wanted == "source" else None), None
    return source.native_size, given


def check_save_first(path: Path, overwrite: bool) -> None:
    """Check before the work that the first frame can be stored; InputError or SinkError if not."""
    if os.path.lexists(path) and not overwrite:  # somebody may have painted on it
        raise InputError(f"--save-first: {path} is there already; give another name, or --overwrite")
    if path.suffix.lower() != ".png":  # lossy formats would blur what is painted on the frame
        raise InputError(f"--save-first {path}: the frame is stored as PNG; give a name that ends in .png")
    output.check_writable(path.absolute().parent)


def save_frame(frame: Frame, path: Path) -> None:
    """Store a frame as PNG; SinkError if it cannot be written."""
    content = io.BytesIO()
    Image.fromarray(frame.image).save(content, format="PNG")
    output.write_file(path, content.getvalue())


def report_first_frame(source: Source, path: Path, json_target: str | None) -> None:
    """Show where the first frame was stored, and what to do with it."""
    height, width = source.size
    values = {"source": source.name, "size": [height, width], "first_frame": str(path)}
    stored = f"first frame of {source.name}, {width} x {height}: {path}"
    advice = "paint each object with its id (1..254) on black, save it as PNG, and give it as --mask"
    output.show(values, json_target, stored, advice)


def _scorer(source: Source, label_map: np.ndarray) -> SequenceScorer | None:
    """A scorer, if the source knows the ground truth of the objects."""
    if not isinstance(source, GeneratedSource) or source.length is None or source.length < 3:
        return None
    ids = object_ids(label_map)
    known = set(ids) <= set(object_ids(source.label_map(0)))
    return SequenceScorer(source.name, ids) if known else None
