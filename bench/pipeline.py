"""`bench pipeline`: what the pipeline adds to a method.

    streamvos bench pipeline                                    # all parts
    streamvos bench pipeline --parts loop --size 240 --threads 1
    streamvos bench pipeline --parts placements --methods tvos --json placements.jsonl

loop: one stream of the first method, `fused`, against a loop of `Segmenter.step` over the same file, in
    turns, each in processes of its own. Milliseconds a frame, one value for each turn.
stub: a method that sleeps a millisecond a frame through all stages, 720p, lossless; likewise.
overhead: a method that does nothing, at the pace of a clock. Added to a frame is the time from the moment
    when the source has it until the sinks have its mask, less the work of extractor, memory and decoder;
    copies, messages, waiting and waking are in it.
placements: how long evidence takes from the memory to the decoder in another process, through shared memory
    (split) and as messages to a remote stage on this machine (tcp), and how much it is.
"""

from __future__ import annotations

from typing import Annotated

import typer

from streamvos.cli.options import examples, names_in
from streamvos.types import InputError

from . import options
from .runner import Run

PARTS = ("loop", "stub", "overhead", "placements")
START_SECONDS = 12.0
"""Of a pipeline and its clip, on two cores."""

EXAMPLES = examples(
    "streamvos bench pipeline",
    "streamvos bench pipeline --parts loop --size 240 --threads 1",
    "streamvos bench pipeline --parts placements --methods tvos --json placements.jsonl",
)


def command(
    parts: Annotated[str, typer.Option(metavar="A,B,...", help=f"Of {', '.join(PARTS)}.")] = ",".join(PARTS),
    methods: options.Methods = "tvos,frtm-fast,rgmp",
    size: options.Sizes = "240,720",
    fps: options.Fps = 60.0,
    seconds: options.Seconds = 10.0,
    turns: options.Turns = 3,
    threads: options.Threads = None,
    json_target: options.JsonTarget = None,
    html: options.HtmlTarget = None,
) -> None:
    """What the pipeline adds to a method: rate, added latency, transfer between processes.

    `--size` is for loop (its first), overhead (all) and placements (its first); stub runs at 720p. `--fps` is
    for overhead.
    """
    chosen = names_in(parts) or []
    if not chosen or set(chosen) - set(PARTS):
        raise InputError(f"--parts {parts!r} cannot be used; choose of: {', '.join(PARTS)}")
    names, sizes = options.methods_in(methods), options.sizes_in(size)
    threads = options.threads_of(threads)
    for height, width in sizes:
        if height % 2 or width % 2:
            raise InputError(f"--size {height}x{width} cannot be used: videos need even heights and widths")
    pipelines = {
        "loop": 2 * turns,
        "stub": turns,
        "overhead": len(sizes),
        "placements": 2 * turns * len(names),
    }
    total = sum(pipelines[part] * (seconds + START_SECONDS) for part in chosen)
    columns = ["p50", "p95", "p99", "max", "turns", "fps", "ratio", "details.cpu_ms", "details.evidence_mb"]
    with Run("pipeline", json_target, total, columns=columns, html=html) as run:
        from . import pipeline_parts as measure

        if "loop" in chosen:
            measure.loop(run, names[0], sizes[0], seconds, turns, threads)
        if "stub" in chosen:
            measure.stub(run, seconds, turns)
        for one in sizes if "overhead" in chosen else []:
            measure.overhead(run, one, fps, seconds)
        for name in names if "placements" in chosen else []:
            measure.placements(run, name, sizes[0], seconds, turns, threads or 1)
