"""The command line: one file per sub-command.

    streamvos run clip.mp4 --mask first.png --out out/
    streamvos eval DAVIS --dataset davis2016 --json results.json

Every command has `--help` with examples, and all but `stage` have `--json [FILE]` for programs; without FILE,
the standard output holds JSON alone. Exit codes: 0 success; 1 `doctor` misses something, `serve` gave up a
stream, `ctl remove` removed one that had failed, an engine failed `engines build --check`, or a video broke
off (what came before is written); 2 bad input, or a source or disk failed (one line on the standard error);
130 and 143 ended by Ctrl-C and SIGTERM, 141 by a closed pipe. `serve` ends in order on the first of these
signals, with 0.
"""

from __future__ import annotations

import sys
from importlib import import_module
from typing import Annotated, Any

import typer

import streamvos
from streamvos.cli.options import examples, with_json_target
from streamvos.cli.output import encode_everything, report_bug, report_error, warnings_shown, write_output
from streamvos.cli.signals import Stopped, signals_caught
from streamvos.cli.standard_streams import open_standard_streams
from streamvos.types import StreamvosError, TruncatedError, is_out_of_memory

# UsageError of click, which Typer bundles since 0.26
_USAGE_ERROR: type[Exception] = typer.BadParameter.__mro__[2]

COMMANDS = {
    "run": "Segment one source, frame by frame, as it comes.",
    "serve": "Run many streams in processes that supervise each other.",
    "watch": "Show what a pipeline publishes, until it ends or Ctrl-C.",
    "console": "Show a running pipeline in the browser, to select objects.",
    "ros2": "Follow objects in the pictures of a ROS 2 topic.",
    "pick": "Select objects in one frame in the browser, for --mask.",
    "demo": "Segment a video end to end, with the bundled weights.",
    "eval": "Segment the sequences of a data set and score them.",
    "score": "Score existing label maps against true ones.",
    "stage": "Run one stage that the pipeline's file lists under [remote].",
    "doctor": "Show what this machine has, what is missing, and how to get it.",
    "ctl": "Show and control a running pipeline.",
    "fleet": "Run streams on many machines, and say what runs where.",
    "train": "Train a method.",
    "weights": "List, inspect and convert weights.",
    "engines": "Build, list, prune and export compiled networks.",
    "keys": "Make and show keys for pipelines that other hosts reach.",
    "export": "Write results in the formats of other tools.",
    "bench": "Measure latency, capacity and accuracy on this machine.",
}
"""Command -> its line in `streamvos --help`, which is shown without importing any command."""

_GROUPS = ("ctl", "fleet", "train", "weights", "engines", "keys", "export", "bench")


def make_app(wanted: str | None = None) -> typer.Typer:
    """The command line.

    Args:
        wanted: the command that will be called, and the only one that is imported. Without it, the commands
            are placeholders, which is enough for `streamvos --help`.
    """
    app = typer.Typer(
        name="streamvos",
        help="Follow chosen objects through video, online, in real time.",
        epilog=examples(
            "streamvos demo",
            "streamvos run camera:0 --box 1:200,120,420,460",
            "streamvos serve --source camera:0 --mask first.png",
            "streamvos run --help",
        ),
        pretty_exceptions_enable=False,
        add_completion=False,
        rich_markup_mode=None,
        context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    )
    app.callback()(_options)
    if wanted not in COMMANDS:
        for name, summary in COMMANDS.items():
            app.command(name, help=summary)(_nothing)
        return app
    function = "evaluate" if wanted == "eval" else wanted
    module: Any = import_module(f"streamvos.cli.{function}")
    if wanted in _GROUPS:
        app.add_typer(module.app, name=wanted, help=COMMANDS[wanted])
    else:
        app.command(wanted, epilog=module.EXAMPLES)(getattr(module, function))
    return app


def _nothing() -> None:
    """Stands for a command that will not be called."""


def _print_version(wanted: bool) -> None:
    if wanted:
        write_output(f"streamvos {streamvos.__version__}\n")
        raise typer.Exit


def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


def main(arguments: list[str] | None = None) -> int:
    """Run the command line.

    Args:
        arguments: without the program's name; None takes those of the process.

    Returns:
        The exit code, see the head of this module.
    """
    open_standard_streams()
    encode_everything()
    given = list(sys.argv[1:] if arguments is None else arguments)
    if not given or (len(given) == 1 and given[0] in _GROUPS):
        given.append("--help")
    with signals_caught(), warnings_shown():
        try:
            app = make_app(given[0])
            code = app(with_json_target(given), prog_name="streamvos", standalone_mode=False)
            return code if isinstance(code, int) else 0
        except _USAGE_ERROR as error:
            report_error(_usage(error, given))
        except TruncatedError as error:
            report_error(error)
            return 1
        except StreamvosError as error:
            report_error(error)
        except Stopped as stopped:
            if stopped.exit_code != 141:
                report_error(stopped, "stopped")
            return stopped.exit_code
        except Exception as error:
            if is_out_of_memory(error):
                report_error(
                    f"out of memory ({_first_line(error)}); try a smaller --height, or another --device"
                )
            elif isinstance(error, OSError):
                report_error(f"{error.filename}: {error.strerror}" if error.filename else _first_line(error))
            else:
                report_bug(error)
                return 1
    return 2


def _usage(error: Exception, given: list[str]) -> str:
    """What is wrong with the arguments, in the form of our own errors, and which help to read."""
    text = error.format_message() if hasattr(error, "format_message") else str(error)
    text = text.strip().rstrip(".")
    text = text[:1].lower() + text[1:]
    context = getattr(error, "ctx", None)
    command = context.command_path if context else "streamvos"
    if "extra argument" in text and command.endswith(" run"):
        text += "; a glob such as 'shots/*.png' needs quotes"
    if "issing argument" in text and "--json" in given[:-1]:
        taken = given[given.index("--json") + 1]
        text += f"; --json took {taken!r} for its file: put --json last, or give it a file"
    return f"{text}; see {command} --help"


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


__all__ = ["main", "make_app"]
