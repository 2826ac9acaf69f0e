"""What commands print and write: results, progress, remarks, errors.

The standard output belongs to the result (text and tables, or JSON); progress, remarks and errors go to the
standard error. rich, which draws tables and progress, is imported when one is drawn.
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
from typing import TYPE_CHECKING, Any

from streamvos.cli.signals import Stopped
from streamvos.types import InputError, SinkError

if TYPE_CHECKING:
    import torch
    from rich.console import Console
    from rich.progress import Progress
    from rich.table import Table

STANDARD_OUTPUT = "-"
"""What `--json` holds when no file was given."""

WIDE = 200
"""Columns where the standard output is no terminal; a table takes no more than it needs."""


# ---- errors and remarks


def remark(text: str) -> None:
    """Print a line on the standard error."""
    if sys.stderr is not None:
        print(text, file=sys.stderr, flush=True)


def report_error(error: object, kind: str = "error") -> None:
    """Print an error on the standard error, in one line."""
    remark(f"streamvos: {kind}: {' '.join(str(error).split())}")


@contextmanager
def warnings_shown() -> Iterator[None]:
    """Show what streamvos logs as warnings on the standard error within the block, one line each."""
    logger, handler = logging.getLogger("streamvos"), logging.Handler(logging.WARNING)
    handler.emit = lambda record: report_error(record.getMessage(), "warning")  # type: ignore[method-assign]
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)


# ---- results


def show(values: Mapping[str, Any], target: str | None, *parts: Table | str) -> None:
    """Print a result for people, and write it as JSON where `--json` asks for it.

    Args:
        values: the result for programs.
        target: the value of `--json`; the standard output then holds JSON alone.
        parts: tables, and lines of text, for people.

    Raises:
        SinkError: it cannot be written.
    """
    if target != STANDARD_OUTPUT:
        write_output("".join(f"{one}\n" if isinstance(one, str) else _drawn(one) for one in parts))
    write_json(values, target)


def write_json(value: Mapping[str, Any], target: str | None) -> None:
    """Write `value` where `--json` says: nowhere, the standard output, or a file that is renamed when whole.

    Numbers that are not finite become null, bytes hexadecimal digits, since JSON has neither.

    Raises:
        SinkError: it cannot be written.
    """
    if target is None:
        return
    text = json.dumps(_plain(value), indent=2, allow_nan=False, default=str) + "\n"
    if target == STANDARD_OUTPUT:
        write_output(text)
    else:
        write_file(Path(target), text.encode())


def write_file(path: Path, content: bytes) -> None:
    """Write a file, whole or not at all; its folder is made if missing.

    Raises:
        SinkError: it cannot be written.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            temporary.write_bytes(content)
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        reason = error.strerror or error
        raise SinkError(f"cannot write {path}: {reason}; free some space or choose another place") from None


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


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(name): _plain(one) for name, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(one) for one in value]
    if isinstance(value, bytes):
        return value.hex()
    return None if isinstance(value, float) and not abs(value) < float("inf") else value


# ---- what can be found out before the work


def check_json_target(target: str | None) -> str | None:
    """The value of `--json`, found to be writable before the work rather than after it.

    Raises:
        InputError: it is a folder.
        SinkError: its folder cannot be made or written to.
    """
    if target is None or target == STANDARD_OUTPUT:
        return target
    path = Path(target)
    if path.is_dir():
        raise InputError(f"--json {target} is a folder; give a file in it, such as {path / 'results.json'}")
    check_writable(path.absolute().parent)
    return target


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


# ---- tables and progress


def error_console() -> Console:
    """rich's console on the standard error. Names of files and streams may hold brackets: no markup."""
    from rich.console import Console

    return Console(stderr=True, markup=False, highlight=False, soft_wrap=True)


@contextmanager
def make_progress() -> Iterator[Progress]:
    """A progress bar on the standard error with frames, rate and the `info` of a task.

    Where that is no terminal, its final state is printed once; after an error, nothing.
    """
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        SpinnerColumn,
        TextColumn,
        TimeRemainingColumn,
    )

    console = error_console()
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
    from rich.table import Table

    table = Table(title=title)
    for position, column in enumerate(columns):
        table.add_column(column, justify="right" if position else "left", overflow="fold")
    return table


def _drawn(table: Table) -> str:
    """A table as text, folded into the width of a terminal; elsewhere it is as wide as need be."""
    from rich.console import Console

    title, table.title = table.title, None  # as a title it would be folded into the width of the table
    terminal, text = Console(), io.StringIO()
    width = terminal.width if terminal.is_terminal else WIDE
    drawing = Console(
        file=text, force_terminal=terminal.is_terminal, width=width, markup=False, highlight=False
    )
    drawing.print(table)
    return f"{title}\n{text.getvalue()}"


# ---- memory


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
