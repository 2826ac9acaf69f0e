"""The command line of the benchmarks: one file per command.

    streamvos bench latency --methods tvos,frtm-fast --height 240
    python -m bench capacity --help

Every command prints a table, writes one JSON line per case where `--json` says (docs/benchmarks.md), says
before it begins how long it will take, and keeps what is done when it is interrupted.
"""

from __future__ import annotations

from importlib import import_module

import typer

from streamvos.cli.options import examples

COMMANDS = {
    "latency": "What a frame costs, from the picture to its mask: p50 to p99.9, stages, memory.",
    "streaming": "Which method and size is best here when time does not stop: offline and streaming J&F.",
    "compare": "Is it slower than before? Two runs, with an interval for every ratio.",
    "report": "A run as one HTML page; in a checkout, the tables of docs/results.md.",
    "pipeline": "What the pipeline adds to a method: rate, added latency, transfer between processes.",
    "engines": "What compiling a network is worth: eager and engines in turns, in the same process.",
    "gpu": "How fast every method is on a GPU, and what engines and kernels are worth; every row survives.",
    "recovery": "How long a live stream is gone when a part of its pipeline is killed.",
    "soak": "Many streams for a long time while workers are killed: frames, masks and memory.",
    "lost": "How well it is recognized that an object is lost, and that it is back.",
    "selection": "How many clicks an object takes, and how good a mask from a box is, beside GrabCut.",
}
"""Command -> its line in the help; `bench/COMMAND.py` has a function `command`, and its `EXAMPLES`.

These files import neither torch nor OpenCV nor PyAV at their top, so that the help is quick.
"""

app = typer.Typer(
    epilog=examples(
        "streamvos bench latency --methods tvos,frtm-fast",
        "streamvos bench latency --help",
    ),
    no_args_is_help=True,
)

for _name, _summary in COMMANDS.items():
    _module = import_module(f".{_name}", __package__)
    app.command(_name, epilog=_module.EXAMPLES)(_module.command)
