"""The command line: one file per sub-command.

    streamvos run clip.mp4 --mask first.png --out out/
    streamvos eval DAVIS --dataset davis2016 --json results.json

Every command has `--help` with an example and `--json FILE` for programs (`-`, or nothing after it, is
the standard output). Bad input ends with one line on the standard error and exit code 2.
"""

from __future__ import annotations

import sys

import typer

from streamvos.cli import demo, doctor, evaluate, run, score, train
from streamvos.cli.common import report_error, with_json_target
from streamvos.types import StreamvosError

app = typer.Typer(
    name="streamvos",
    help="Follow chosen objects through video, online, in real time.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    rich_markup_mode="markdown",
)
app.command("run")(run.run)
app.command("demo")(demo.demo)
app.command("eval")(evaluate.evaluate)
app.command("score")(score.score)
app.command("doctor")(doctor.doctor)
app.add_typer(train.app, name="train")


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and exit: 0 done, 2 bad input, 130 interrupted."""
    given = sys.argv[1:] if arguments is None else arguments
    try:
        app(with_json_target(given), prog_name="streamvos", standalone_mode=True)
    except StreamvosError as error:
        report_error(error)
        sys.exit(2)
    except KeyboardInterrupt:
        report_error("interrupted")
        sys.exit(130)
    except BrokenPipeError:
        sys.exit(141)


__all__ = ["app", "main"]
