"""`bench soak`: many streams for a long time, lossless, at the pace of their clocks, while workers die.

    streamvos bench soak --seconds 1800 --json soak.jsonl
    streamvos bench soak --seconds 120 --kill-every 20

The method costs nothing, and its masks tell at which frame they are (`stub_method`). Again and again a
random worker is killed (SIGKILL). At the end every line of every stream has to be there once, in order, with
the mask that it would have without any death. Told besides: latencies as the supervisor counts them, and for
every kind of process its memory over time, its slope (least squares) after the first `--settle` seconds,
descriptors.
"""

from __future__ import annotations

from typing import Annotated

import typer

from streamvos.cli.options import examples
from streamvos.types import InputError

from . import options
from .runner import Run

COLUMNS = ["p50", "p99", "max", "details.lost", "details.twice", "details.wrong_masks", "peak MiB"]
COLUMNS += ["details.mib_per_hour", "details.lives", "details.descriptors"]

EXAMPLES = examples(
    "streamvos bench soak --seconds 1800 --json soak.jsonl",
    "streamvos bench soak --seconds 120 --kill-every 20",
)


def command(
    seconds: Annotated[float, typer.Option(min=10.0, metavar="N", help="Length of every stream.")] = 1800.0,
    streams: Annotated[int, typer.Option(min=1, max=64, metavar="N", help="Streams at once.")] = 4,
    fps: options.Fps = 30.0,
    size: options.Sizes = "180",
    kill_every: Annotated[
        float, typer.Option(min=1.0, metavar="SECONDS", help="From one kill to the next.")
    ] = 60.0,
    settle: Annotated[
        float, typer.Option(min=0.0, metavar="SECONDS", help="Of a process's life that do not count.")
    ] = 60.0,
    placement: options.Placement = "fused",
    seed: Annotated[int, typer.Option(metavar="N", help="Of the workers that are killed.")] = 1,
    json_target: options.JsonTarget = None,
    html: options.HtmlTarget = None,
) -> None:
    """Many streams for a long time while workers are killed: frames, masks and memory.

    Exit code 1 if a frame was lost, came twice or had a wrong mask.
    """
    (one_size, *others), placed = options.sizes_in(size), options.placement_of(placement)
    if others or one_size[0] % 2 or one_size[1] % 2:
        raise InputError("bench soak takes one --size, of even height and width")
    with Run("soak", json_target, seconds * 1.1 + 20, columns=COLUMNS, html=html) as run:
        from .soak_work import soak

        well = soak(run, seconds, streams, fps, one_size, kill_every, settle, placed, seed)
    if not well:
        raise typer.Exit(1)
