"""What people read: a run as one HTML file, and the tables of docs/results.md.

    streamvos bench report latency.jsonl capacity.jsonl --html report.html
    python -m bench report                    # in a checkout: rebuilds what docs/results.md shows

`figures` decides what a run's rows show, `plots` draws it, `page` arranges it; `docs` keeps docs/results.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from streamvos.cli.options import examples
from streamvos.cli.output import check_writable, write_file, write_output
from streamvos.types import InputError

from ..results import CaseResult, read

EXAMPLES = examples(
    "streamvos bench report latency.jsonl capacity.jsonl --html report.html",
    "python -m bench report      # docs/results.md anew, from docs/results/",
)


def command(
    runs: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="[RUN...]", help="JSON lines of runs; none = rebuild docs/results.md.", show_default=False
        ),
    ] = None,
    html: Annotated[
        Path | None,
        typer.Option(
            "--html", metavar="FILE", help="The page; by default beside the first run.", show_default=False
        ),
    ] = None,
) -> None:
    """Make one HTML page of runs; without runs, rebuild the tables and pictures of docs/results.md."""
    if not runs:
        if html is not None:
            raise InputError(f"--html {html} needs runs: streamvos bench report RUN.jsonl --html {html}")
        from .docs import rebuild

        changed = rebuild()
        write_output("".join(f"{path}\n" for path in changed) or "docs/results.md is as its files say\n")
        return
    path = html or runs[0].with_suffix(".html")
    if path.resolve() in {run.resolve() for run in runs}:
        raise InputError(f"--html {path} would replace a run that is read; give it another file")
    check_page(path)
    write_page(path, [row for run in runs for row in read(run)])
    write_output(f"{path}\n")


def check_page(path: Path | None) -> Path | None:
    """The value of `--html`, checked before the work.

    Raises:
        InputError: it is a folder, or a file that is no HTML.
        SinkError: missing permission.
    """
    if path is None:
        return None
    if path.is_dir():
        raise InputError(f"--html {path} is a folder; give a file in it, such as {path / 'report.html'}")
    if path.is_file():
        with path.open("rb") as file:
            begin = file.read(64).lstrip()
        if begin and not begin.lower().startswith((b"<!doctype", b"<html")):
            raise InputError(f"--html took {str(path)!r} for its file, which holds something else than HTML")
    check_writable(path.absolute().parent)
    return path


def write_page(path: Path, rows: Sequence[CaseResult]) -> None:
    """Write the page of these rows, at least one; SinkError if it cannot be written."""
    from .page import html_of

    write_file(path, html_of(rows).encode("utf-8", "replace"))
