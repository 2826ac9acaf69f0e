"""`bench console`: what the console costs a pipeline.

    streamvos bench console                                     # off, on without a viewer, with one viewer
    streamvos bench console --method frtm-fast --size 240 --turns 9 --json console.jsonl

Three pipelines of one synthetic stream take turns; while one runs, the others are paused. A figure is the
time that all processes of the pipeline computed, per frame, over a second, without the console's own process.
details.console_percent is that process, in percent of the pipeline's; details.look_us is what the source does
for a frame while nobody watches, in microseconds.
"""

from __future__ import annotations

from typing import Annotated

import typer

from streamvos.cli.options import examples
from streamvos.types import InputError

from . import options
from .results import Settings
from .runner import Case, Run, take_turns

START_SECONDS = 20.0
"""Of a pipeline and a console, on two cores."""

CASES = {"off": None, "no viewer": 0, "one viewer": 1}

EXAMPLES = examples(
    "streamvos bench console",
    "streamvos bench console --method frtm-fast --size 240 --turns 9 --json console.jsonl",
)


def command(
    method: Annotated[str, typer.Option("--method", "-m", metavar="NAME", help="Of the pipelines.")] = "tvos",
    size: options.Sizes = "240",
    fps: options.Fps = 4.0,
    seconds: options.Seconds = 30.0,
    turns: options.Turns = 5,
    threads: options.Threads = None,
    json_target: options.JsonTarget = None,
    html: options.HtmlTarget = None,
) -> None:
    """What the console costs a frame: off, on without a viewer, with one.

    Choose `--fps` so low that the machine keeps up, else what is saved is spent on more frames.
    """
    (name,), sizes = options.methods_in(method), options.sizes_in(size)
    if len(sizes) != 1:
        raise InputError(f"--size {size!r} cannot be used: expected one size")
    height, width = sizes[0]
    cases = []
    for label, viewers in CASES.items():
        settings = Settings(method=name, height=height, width=width, fps=fps, streams=1, console=label)
        begin = {"method": name, "size": [height, width], "fps": fps, "viewers": viewers, "threads": threads}
        cases.append(Case(f"{name} {height}x{width} console {label}", settings, "console_work", begin))
    total = len(cases) * (seconds + START_SECONDS)
    columns = ["p50", "mean", "turns", "ratio", "details.console_percent", "details.look_us"]
    with Run("console", json_target, total, columns=columns, html=html) as run:
        take_turns(run, "console", cases, turns, seconds)
