"""What the sub-commands share: options, progress, tables, JSON, and how an error is said.

The standard output belongs to the result (a table, or JSON); progress, remarks and errors go to the
standard error.
"""

from __future__ import annotations

import io
import json
import logging
import os
import signal
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

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

from streamvos.cli.signals import Stopped
from streamvos.types import InputError, SinkError

# Names of files and streams may hold brackets, which are no markup.
console = Console(stderr=True, markup=False, highlight=False, soft_wrap=True)
"""Progress and remarks; the standard output is for tables and JSON."""

if TYPE_CHECKING:
    import torch

METHOD_NAMES = ("tvos", "frtm-fast", "frtm", "rgmp", "joint", "feelvos")
"""As in `streamvos.methods`, whose import takes seconds."""

BUNDLED_NAMES = ("tvos", "frtm-fast")
"""Those with bundled weights, as in `streamvos.weights`."""

BACKEND_NAMES = ("eager", "inductor", "aoti", "tensorrt", "cuda-graph", "auto")
"""As in `streamvos.engines`, whose import takes seconds."""

STANDARD_OUTPUT = "-"

WIDE = 200
"""Columns where the standard output is no terminal; a table takes no more than it needs."""

JsonTarget = Annotated[
    str | None,
    typer.Option(
        "--json",
        metavar="[FILE]",
        help="Write the result as JSON to FILE; --json alone, at the end, prints it.",
    ),
]
MethodName = Annotated[
    str,
    typer.Option("--method", "-m", metavar="NAME", help=f"Which method segments: {', '.join(METHOD_NAMES)}."),
]
WeightsName = Annotated[
    str,
    typer.Option(
        "--weights", "-w", metavar="FILE", help="'default' (bundled), 'none' (random), or a weight file."
    ),
]
DeviceName = Annotated[str, typer.Option("--device", metavar="NAME", help="auto, cpu, cuda, cuda:1, ...")]
BackendName = Annotated[
    str,
    typer.Option(
        "--backend",
        metavar="NAME",
        help=f"How the networks run: {', '.join(BACKEND_NAMES)}.",
    ),
]
MethodSettings = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="NAME=VALUE",
        help="An option of the method, such as top_k=5 (docs/methods.md). Repeatable.",
    ),
]


def examples(*commands: str) -> str:
    """The end of a command's help: one example a line."""
    # A paragraph that begins with \b is not wrapped anew.
    return "\b\nExamples:\n" + "\n".join(f"  {command}" for command in commands)


def with_json_target(arguments: list[str]) -> list[str]:
    """`--json` without a file, at the end or before another option, means the standard output."""
    result = []
    for position, argument in enumerate(arguments):
        result.append(argument)
        following = arguments[position + 1 : position + 2]
        is_option = bool(following) and following[0].startswith("-") and following[0] != STANDARD_OUTPUT
        if argument == "--json" and (not following or is_option):
            result.append(STANDARD_OUTPUT)
    return result


def report_error(error: object, kind: str = "error") -> None:
    """One line on the standard error."""
    if sys.stderr is not None:
        console.print(f"streamvos: {kind}: {' '.join(str(error).split())}")


class _WarningLine(logging.Handler):
    """What the rooms warn of, as one line each."""

    def emit(self, record: logging.LogRecord) -> None:
        report_error(record.getMessage(), "warning")


@contextmanager
def warnings_shown() -> Iterator[None]:
    """Show what streamvos logs as warnings on the standard error within the block."""
    logger, handler = logging.getLogger("streamvos"), _WarningLine(logging.WARNING)
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)


def weights_argument(weights: str) -> str | None:
    """ "none" on the command line is None in Python."""
    return None if weights.lower() == "none" else weights


def parse_settings(settings: list[str] | None) -> dict[str, Any]:
    """NAME=VALUE pairs as keyword arguments; a value is JSON where it can be, else a text.

    Raises:
        InputError: no "=" in it, a name given twice, or a value that is not finite.
    """
    values: dict[str, Any] = {}
    for setting in settings or ():
        name, equals, text = setting.partition("=")
        if not equals or not name.strip() or name in values:
            raise InputError(f"--set {setting!r} cannot be used; expected NAME=VALUE, each name once")
        values[name] = _parse_value(text)
        if isinstance(values[name], float) and not abs(values[name]) < float("inf"):
            raise InputError(f"--set {setting!r} cannot be used; expected a finite number")
    return values


def method_settings(settings: list[str] | None) -> dict[str, Any]:
    """As `parse_settings`, for the options of a method.

    Raises:
        InputError: as there, or a name that has an option of its own on the command line.
    """
    values = parse_settings(settings)
    for name in ("method", "weights", "device", "backend"):
        if name in values:
            raise InputError(f"--set {name}=... cannot be used; give --{name} instead")
    return values


def _parse_value(text: str) -> Any:
    words = {"None": None, "True": True, "False": False}
    if text in words:
        return words[text]
    try:
        return json.loads(text)
    except ValueError:
        return text


def names_in(text: str | None) -> list[str] | None:
    """The names in a list with commas; None for no list."""
    return None if text is None else [name.strip() for name in text.split(",") if name.strip()]


def check_json_target(target: str | None) -> None:
    """Find out before the work, rather than after it, that `--json` cannot be written.

    Raises:
        InputError: it is a folder.
        SinkError: its folder cannot be made or written to.
    """
    if target is None or target == STANDARD_OUTPUT:
        return
    path = Path(target)
    if path.is_dir():
        raise InputError(f"--json {target} is a folder; give a file in it, such as {path / 'results.json'}")
    check_writable(path.absolute().parent)


def check_writable(folder: Path) -> None:
    """Find out whether files can be made in a folder, itself made if need be; makes nothing.

    Raises:
        InputError: it, or something above it, is a file.
        SinkError: missing permission.
    """
    nearest = folder.absolute()
    while not nearest.exists() and nearest != nearest.parent:
        nearest = nearest.parent
    if not nearest.is_dir():
        raise InputError(f"cannot write into {folder}: {nearest} is a file; give a folder")
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise SinkError(f"cannot write into {folder}: no permission for {nearest}; choose another place")


def write_json(value: Mapping[str, Any], target: str | None) -> None:
    """Write `value` where `--json` says: nowhere, the standard output, or a file that is renamed when whole.

    Raises:
        SinkError: it cannot be written.
    """
    if target is None:
        return
    text = json.dumps(value, indent=2, allow_nan=False, default=str) + "\n"
    if target == STANDARD_OUTPUT:
        write_output(text)
        return
    path = Path(target)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            temporary.write_text(text, encoding="utf-8")
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise SinkError(
            f"cannot write {path}: {error.strerror}; free some space or choose another place"
        ) from None


def write_output(text: str) -> None:
    """Write to the standard output, all of it, now.

    Raises:
        SinkError: it cannot be written (full disk).
        Stopped: nobody reads it any more, as under `| head`.
    """
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except OSError as error:
        # What is still buffered would fail again when the interpreter ends, this time with a traceback.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if isinstance(error, BrokenPipeError):
            raise Stopped(getattr(signal, "SIGPIPE", 13)) from None
        raise SinkError(f"cannot write the standard output: {error.strerror}; free some space") from None


def without_nan(value: Any) -> Any:
    """The same structure with null for NaN, which JSON does not have."""
    if isinstance(value, Mapping):
        return {name: without_nan(one) for name, one in value.items()}
    return None if isinstance(value, float) and value != value else value


@contextmanager
def make_progress() -> Iterator[Progress]:
    """A progress bar on the standard error that shows frames, rate and what else a task tells.

    Where that is no terminal, its final state is printed once; after an error, nothing.
    """
    progress = Progress(
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[info]}", markup=False),
        TimeRemainingColumn(),
        console=console,
        disable=not console.is_terminal,
    )
    with progress:
        yield progress
    if not console.is_terminal:
        console.print(progress.get_renderable())


def make_table(title: str, columns: list[str]) -> Table:
    """A table whose first column is text and whose others are numbers."""
    table = Table(title=title)
    for position, column in enumerate(columns):
        table.add_column(column, justify="right" if position else "left", overflow="fold")
    return table


def print_table(table: Table, target: str | None, *lines: str) -> None:
    """Print for people, unless the standard output belongs to JSON.

    Args:
        table: folded into the width of a terminal; elsewhere it is as wide as need be.
        target: of `--json`.
        lines: to be printed below.
    """
    if target == STANDARD_OUTPUT:
        return
    title, table.title = table.title, None  # as a title it would be folded into the width of the table
    terminal, text = Console(), io.StringIO()
    width = terminal.width if terminal.is_terminal else WIDE
    Console(file=text, force_terminal=terminal.is_terminal, width=width, markup=False, highlight=False).print(
        table
    )
    write_output(f"{title}\n{text.getvalue()}" + "".join(f"{line}\n" for line in lines))


def peak_memory_mib() -> float | None:
    """The most memory this process has had resident, in MiB; None where the system does not tell."""
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)


def peak_gpu_memory_mib(device: torch.device) -> float | None:
    """The most memory that tensors have taken on a GPU, in MiB; None on another device."""
    import torch

    return torch.cuda.max_memory_allocated(device) / 2**20 if device.type == "cuda" else None


def in_mib(value: float | None) -> str:
    """An amount of memory for people."""
    return "unknown" if value is None else f"{value:.0f} MiB"
