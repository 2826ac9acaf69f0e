"""What the sub-commands share: options, progress, tables, JSON, and how an error is said."""

from __future__ import annotations

import json
import os
import resource
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Table

from streamvos.types import InputError, SinkError, StreamvosError

console = Console(stderr=True)
"""Progress and messages; the standard output is for tables and JSON."""

STANDARD_OUTPUT = "-"

JsonTarget = Annotated[
    str | None,
    typer.Option(
        "--json", metavar="[FILE]", help="Write the result as JSON to FILE; no FILE or - prints it."
    ),
]
MethodName = Annotated[str, typer.Option("--method", "-m", help="Which method segments.")]
WeightsName = Annotated[
    str, typer.Option("--weights", "-w", help="'default' (bundled), 'none' (random), or a weight file.")
]
DeviceName = Annotated[str, typer.Option("--device", help="auto, cpu, cuda, cuda:1, ...")]
BackendName = Annotated[str, typer.Option("--backend", help="How the networks run: eager.")]
MethodSettings = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="NAME=VALUE", help="An option of the method, such as top_k=5. Repeatable."),
]


def with_json_target(arguments: list[str]) -> list[str]:
    """`--json` without a file, at the end or before another option, means the standard output."""
    result = []
    for position, argument in enumerate(arguments):
        result.append(argument)
        following = arguments[position + 1 : position + 2]
        if argument == "--json" and (not following or following[0].startswith("--")):
            result.append(STANDARD_OUTPUT)
    return result


def report_error(error: StreamvosError | str) -> None:
    """One line on the standard error."""
    text = " ".join(str(error).split())
    print(f"streamvos: error: {text}", file=sys.stderr)


def weights_argument(weights: str) -> str | None:
    """ "none" on the command line is None in Python."""
    return None if weights.lower() == "none" else weights


def parse_settings(settings: list[str] | None) -> dict[str, Any]:
    """NAME=VALUE pairs as keyword arguments; a value is JSON where it can be, else a text.

    Raises:
        InputError: no "=" in it, or a name given twice.
    """
    values: dict[str, Any] = {}
    for setting in settings or ():
        name, equals, text = setting.partition("=")
        if not equals or not name or name in values:
            raise InputError(f"--set {setting!r} cannot be used; expected NAME=VALUE, each name once")
        try:
            values[name] = json.loads(text.replace("None", "null") if text == "None" else text)
        except ValueError:
            values[name] = text
    return values


def write_json(value: Mapping[str, Any], target: str | None) -> None:
    """Write `value` where `--json` says: nowhere, the standard output, or a file that is renamed when whole.

    Raises:
        SinkError: the file cannot be written.
    """
    if target is None:
        return
    text = json.dumps(value, indent=2, allow_nan=False, default=str) + "\n"
    if target == STANDARD_OUTPUT:
        sys.stdout.write(text)
        return
    path = Path(target)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(text, encoding="utf-8")
        os.replace(temporary, path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise SinkError(
            f"cannot write {path}: {error.strerror}; free some space or choose another place"
        ) from None


def without_nan(value: Any) -> Any:
    """The same structure with null for NaN, which JSON does not have."""
    if isinstance(value, Mapping):
        return {name: without_nan(one) for name, one in value.items()}
    return None if isinstance(value, float) and value != value else value


def make_progress() -> Progress:
    """A progress bar on the standard error that shows frames, rate and what else a task tells."""
    return Progress(
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[info]}"),
        TimeRemainingColumn(),
        console=console,
    )


def make_table(title: str, columns: list[str]) -> Table:
    """A table whose first column is text and whose others are numbers."""
    table = Table(title=title, title_justify="left")
    for position, column in enumerate(columns):
        table.add_column(column, justify="right" if position else "left", no_wrap=True)
    return table


def print_table(table: Table, target: str | None) -> None:
    """Print for people, unless the standard output belongs to JSON."""
    if target != STANDARD_OUTPUT:
        Console().print(table)


def peak_memory_mib() -> float:
    """The most memory this process has had resident, in MiB."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)
