"""The command line of the benchmarks: one file per command.

    streamvos bench latency --methods tvos,frtm-fast --size 240
    python -m bench capacity --help

Every command prints a table, writes one JSON line per case where `--json` says (docs/benchmarks.md), says
before it begins how long it will take, and keeps what is done when it is interrupted.
"""

from __future__ import annotations

from importlib import import_module

import typer

from streamvos.cli.options import examples

COMMANDS = {
    "latency": "What a frame costs: p50 to p99.9, stages, memory.",
    "capacity": "How many streams this machine holds, p99 and drops bounded.",
    "peers": "Other projects' own code beside ours.",
    "streaming": "Which method and size is best when time does not stop.",
    "pipeline": "What the pipeline adds to a method.",
    "ros2": "From a camera's stamp to its mask at a ROS 2 subscriber.",
    "console": "What the console costs a pipeline.",
    "engines": "What compiling a network is worth.",
    "gpu": "Methods, engines and kernels on a GPU, within a budget.",
    "soak": "Many streams for a long time while workers are killed.",
    "recovery": "How long a stream is gone when a worker is killed.",
    "fleet": "What a fleet of any size loses to failing machines, simulated.",
    "lost": "Whether it is seen that an object is lost, and back.",
    "selection": "How many clicks an object takes.",
    "compare": "Is it slower than before? Two runs, with intervals.",
    "report": "One HTML page of runs, or the tables of docs/results.md.",
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
    app.command(_name, epilog=_module.EXAMPLES, short_help=_summary)(_module.command)
