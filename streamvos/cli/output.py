"""What commands print and write: results, progress, remarks, errors.

The standard output is for the result (text and tables, or JSON), the standard error for everything else.
rich, which draws tables and progress, is imported when one is drawn.
"""

from __future__ import annotations

import contextlib
import errno
import io
import json
import logging
import os
import secrets
import signal
import sys
import tempfile
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from streamvos.cli.signals import Stopped
from streamvos.sinks.sink import cannot_write, full_reason
from streamvos.types import InputError, SinkError

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress
    from rich.table import Table

STANDARD_OUTPUT = "-"
"""The value of `--json` without a file."""


def encode_everything() -> None:
    """Let the standard streams take names and signs that their encoding lacks, as escapes."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def remark(text: str) -> None:
    """Print a line on the standard error, if it takes one."""
    with contextlib.suppress(OSError, ValueError):
        print(text, file=sys.stderr, flush=True)


def report_bug(error: BaseException) -> None:
    """Print one line for an error that nobody has foreseen, and store its traceback."""
    text = "".join(traceback.format_exception(error))
    if os.environ.get("STREAMVOS_TRACEBACK"):
        remark(text.rstrip())
        where = "the traceback above"
    else:
        try:
            with tempfile.NamedTemporaryFile(
                "w",
                prefix="streamvos-",
                suffix=".txt",
                delete=False,
                encoding="utf-8",
                errors="backslashreplace",
            ) as file:
                file.write(text)
            where = file.name
        except OSError:
            where = "the traceback, which STREAMVOS_TRACEBACK=1 shows"
    first = (str(error).strip() or "no message").splitlines()[0]
    advice = f"please report it where you got streamvos from, with {where}"
    report_error(f"{type(error).__name__}: {first}; this is a bug: {advice}")


def report_error(error: object, kind: str = "error") -> None:
    """Print an error on the standard error, in one line."""
    remark(f"streamvos: {kind}: {' '.join(str(error).split())}")


@contextmanager
def warnings_shown() -> Iterator[None]:
    """Print the warnings that streamvos logs within the block on the standard error, one line each."""
    logger, handler = logging.getLogger("streamvos"), logging.Handler(logging.WARNING)
    handler.emit = lambda record: report_error(record.getMessage(), "warning")  # type: ignore[method-assign]
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)


def show(values: Mapping[str, Any], target: str | None, *parts: Table | str) -> None:
    """Print a result for people, and write it as JSON where `--json` asks for it.

    Args:
        values: the result for programs.
        target: the value of `--json`; if it is "-", the standard output holds JSON alone.
        parts: tables and lines of text for people.

    Raises:
        SinkError: it cannot be written.
    """
    if target != STANDARD_OUTPUT:
        write_output("".join(f"{one}\n" if isinstance(one, str) else _drawn(one) for one in parts))
    write_json(values, target)


def write_json(value: Mapping[str, Any], target: str | None) -> None:
    """Write `value` as `--json` says: nowhere, to the standard output, or to a file.

    Numbers that are not finite become null, and bytes hexadecimal digits.

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
    """Write a file, whole or not at all, and make its folder; SinkError if it cannot be written.

    What is there and is no file, such as /dev/stdout or a pipe, is written into.
    """
    temporary = path.with_name(f".{secrets.token_hex(8)}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists() and not path.is_file():
            path.write_bytes(content)
            return
        try:
            with open(temporary, "xb") as file:
                file.write(content)
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise cannot_write(path, error) from None


def write_output(text: str) -> None:
    """Write to the standard output, all of it, now.

    Raises:
        SinkError: it cannot be written (full disk).
        Stopped: the reader has closed the pipe, as `| head` does.
    """
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except OSError as error:
        # the rest of the buffer would fail again at exit, with a traceback
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)
        if isinstance(error, BrokenPipeError):
            raise Stopped(getattr(signal, "SIGPIPE", 13)) from None
        if error.errno == errno.EBADF:
            raise SinkError(
                "the standard output is closed; --json FILE writes the result to a file"
            ) from None
        advice = "; free some space" if full_reason(error) else ""
        raise SinkError(f"cannot write the standard output: {error.strerror}{advice}") from None


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(name): _plain(one) for name, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(one) for one in value]
    if isinstance(value, bytes):
        return value.hex()
    return None if isinstance(value, float) and not abs(value) < float("inf") else value


def check_json_target(target: str | None) -> str | None:
    """The value of `--json`, checked before the work; InputError or SinkError if it cannot be written."""
    if target is None or target == STANDARD_OUTPUT:
        return target
    path = Path(target)
    if path.is_dir():
        raise InputError(f"--json {target} is a folder; give a file in it, such as {path / 'results.json'}")
    check_replaceable(path, "--json")
    check_writable(path.absolute().parent)
    return target


def check_replaceable(path: Path, option: str) -> None:
    """Refuse to write JSON over a file that holds something else; InputError."""
    if not path.is_file():
        return
    try:
        with path.open("rb") as file:
            begin = file.read(512).lstrip()
    except OSError as error:
        raise InputError(f"{option}: cannot read {path}, which is there already: {error.strerror}") from None
    if begin and begin[:1] not in (b"{", b"["):
        last = (
            "; put --json last, or give it another file" if option == "--json" else "; give it another file"
        )
        raise InputError(
            f"{option} took {str(path)!r} for its file, which holds something else than JSON{last}"
        )


def check_writable(folder: Path) -> None:
    """Check that files can be made in a folder, which need not exist yet; makes nothing.

    Raises:
        InputError: the folder or one of its parents is a file.
        SinkError: missing permission.
    """
    nearest = folder.absolute()
    while not nearest.exists() and nearest != nearest.parent:
        nearest = nearest.parent
    if not nearest.is_dir():
        raise InputError(f"cannot write into {folder}: {nearest} is a file; give a folder")
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise SinkError(f"cannot write into {folder}: no permission for {nearest}; choose another place")


def error_console() -> Console:
    """rich's console on the standard error, without markup: names of files and streams may hold brackets."""
    from rich.console import Console

    return Console(stderr=True, markup=False, highlight=False, soft_wrap=True)


@contextmanager
def make_progress() -> Iterator[Progress]:
    """A progress bar on the standard error: description, frames, the `info` of a task, time left.

    If that is not a terminal, the final state is printed once; after an error, nothing is.
    """
    from rich import progress as bars

    console = error_console()
    progress = bars.Progress(
        bars.SpinnerColumn(),
        bars.TextColumn("{task.description}", markup=False),
        bars.BarColumn(),
        bars.MofNCompleteColumn(),
        bars.TextColumn("{task.fields[info]}", markup=False),
        bars.TimeRemainingColumn(),
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
    """A table as text, folded into the width of a terminal."""
    from rich.console import Console

    title, table.title = table.title, None  # rich would fold it into the width of the table
    console = Console(markup=False, highlight=False)
    if not console.is_terminal:
        console.width = 200
    with console.capture() as text:
        console.print(table)
    return f"{title}\n{text.get()}"


def peak_memory_mib() -> float | None:
    """Peak resident memory of this process in MiB; None on Windows."""
    try:
        import resource
    except ImportError:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)


def in_mib(value: float | None) -> str:
    """An amount of memory for people."""
    return "unknown" if value is None else f"{value:.0f} MiB"
