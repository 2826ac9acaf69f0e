"""docs/results.md: its tables and pictures come from the files in docs/results/, its words from people.

A place for one is marked in the page, and everything up to the end mark is written by `rebuild`:

    <!-- report: times results/latency.jsonl -->
    ...
    <!-- end -->

The first word is the kind: of a figure (`figures`: times, stages, scores, by-objects, ...), or "sizing" for
the lines of `bench capacity`, or one of `json_tables.TABLES` for files that are no JSON lines. Where there is
no such file, the page says that it was not measured yet.
"""

from __future__ import annotations

import re
from pathlib import Path

from streamvos.files import read_text
from streamvos.types import InputError

from ..results import CaseResult, read
from . import json_tables, svg
from .figures import figures
from .summary import place, sizing_lines
from .text import in_markdown

ROOT = Path(__file__).resolve().parents[2]
_PLACE = re.compile(r"(<!-- report: ([^\n]*?) -->\n).*?(<!-- end -->)", re.DOTALL)


def rebuild(folder: Path | None = None) -> list[Path]:
    """Write results.md and its pictures anew; returns what has changed.

    Args:
        folder: that of results.md; None = docs/ of this checkout.

    Raises:
        InputError: there is no such page, or a place or a file in it makes no sense.
    """
    folder = folder or ROOT / "docs"
    if not (folder / "results.md").is_file():
        raise InputError(f"no {folder / 'results.md'}: `bench report` without runs works in a checkout only")
    changed = []
    for path, content in built(folder).items():
        if not path.is_file() or path.read_bytes() != content.encode():
            path.write_text(content, encoding="utf-8")
            changed.append(path)
    return changed


def built(folder: Path) -> dict[Path, str]:
    """results.md and its pictures as they should be."""
    page = folder / "results.md"
    files: dict[Path, str] = {}
    told: set[str] = set()

    def content(found: re.Match[str]) -> str:
        text, pictures = _place(found[2].split(), folder, told)
        files.update(pictures)
        return f"{found[1]}\n{text}\n\n{found[3]}"

    text = read_text(page, "the page of results")
    if len(re.findall("<!-- report:", text)) != len(_PLACE.findall(text)):
        raise InputError(f"{page}: a mark is broken; expected <!-- report: KIND FILE --> ... <!-- end -->")
    files[page] = _PLACE.sub(content, text)
    return files


def _place(words: list[str], folder: Path, told: set[str]) -> tuple[str, dict[Path, str]]:
    """What stands in a place, and the pictures that it shows; `told` are the page's explanations so far."""
    kind, *names = words
    paths = [folder / name for name in names]
    if not all(path.is_file() or "METHOD" in path.name for path in paths):
        return f"*Not measured yet: there is no {', '.join(names)}.*", {}
    if kind in json_tables.TABLES:
        return json_tables.TABLES[kind](paths).strip(), {}
    rows = [row for path in paths for row in read(path)]
    if kind == "sizing":
        return "\n".join(
            [*(f"- {in_markdown(line)}" for line in sizing_lines(rows)), "", provenance(rows)]
        ), {}
    found = [figure for figure in figures(rows) if figure.kind == kind]
    if not found:
        kinds = ", ".join(sorted({figure.kind for figure in figures(rows)} | {*json_tables.TABLES, "sizing"}))
        raise InputError(f"docs/results.md: {', '.join(names)} has no {kind}; choose of: {kinds}")
    parts, pictures = [], {}
    for k, figure in enumerate(found):
        path = paths[0].with_name(f"{paths[0].stem}-{kind}{f'-{k + 1}' * (k > 0)}.svg")
        parts.append(in_markdown(_untold(figure.caption, told)))
        if figure.plots:
            pictures[path] = svg.standalone(svg.side_by_side(figure.plots, figure.title))
            parts.append(f"![{in_markdown(figure.title)}]({path.relative_to(folder).as_posix()})")
        if figure.table:
            parts += [
                json_tables.grid(figure.table.columns, figure.table.rows),
                _untold(figure.table.note, told),
            ]
    return "\n\n".join(filter(None, [*parts, provenance(rows)])), pictures


def _untold(text: str, told: set[str]) -> str:
    """The sentences that the page does not have yet."""
    sentences = [one for one in re.split(r"(?<=\.) ", text) if one not in told]
    told.update(sentences)
    return " ".join(sentences)


def provenance(rows: list[CaseResult]) -> str:
    """The commands that made these rows, when, and where."""
    commands = ", ".join(f"`{in_markdown(one)}`" for one in dict.fromkeys(row.command for row in rows) if one)
    days = sorted({row.time[:10] for row in rows if row.time})
    when = " to ".join(dict.fromkeys((days[0], days[-1]))) if days else ""
    return f"{commands} ({', '.join(filter(None, (when, in_markdown(place(rows[0])))))})"
