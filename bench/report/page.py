"""A run as one HTML file: no script, nothing from the network, light and dark, on a phone and on paper.

Path("report.html").write_text(html_of(read("latency.jsonl")), encoding="utf-8")
"""

from __future__ import annotations

import base64
from collections.abc import Iterable, Sequence

from ..results import CaseResult
from . import svg
from .cells import Figure, Table
from .figures import figures
from .summary import sentences, sizing_lines, was_busy
from .text import clean, escaped, whole

ROWS_INSIDE = 100_000
"""Bytes of JSON lines up to which a page carries its own rows."""

STYLE = f"""
:root {{ color-scheme: light dark; --paper:#fff; --box:#f5f7f9; --warn:#fff4d6; {svg.LIGHT_STYLE} }}
@media (prefers-color-scheme: dark) {{
  :root {{ --paper:#14181d; --box:#1d232a; --warn:#3d3216; {svg.DARK_STYLE} }} }}
* {{ box-sizing: border-box; }}
body {{ margin: 0; background: var(--paper); color: var(--ink);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; }}
main {{ max-width: 1120px; margin: 0 auto; padding: 20px 16px 48px; }}
h1 {{ font-size: 1.5rem; line-height: 1.25; margin: 0 0 4px; }}
h2 {{ font-size: 1.1rem; margin: 36px 0 2px; }}
h1, p {{ overflow-wrap: anywhere; }}
p {{ margin: 4px 0 10px; max-width: 75ch; }}
.quiet {{ color: var(--quiet); }}
.lead {{ font-size: 1.05rem; }}
.warn {{ background: var(--warn); border-radius: 6px; padding: 8px 12px; max-width: none; }}
dl {{ display: grid; grid-template-columns: max-content 1fr; gap: 2px 14px; margin: 14px 0;
  padding: 10px 12px; background: var(--box); border-radius: 6px; font-size: 13px; }}
dt {{ color: var(--quiet); }}
dd {{ margin: 0; overflow-wrap: anywhere; }}
code {{ font: 12px/1.5 ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; }}
.plots {{ display: grid; grid-template-columns: repeat(auto-fill, minmax(min(320px, 100%), 1fr));
  gap: 18px 20px; align-items: start; margin: 10px 0; }}
.plots svg {{ width: 100%; height: auto; max-width: 420px; display: block; }}
.scroll {{ overflow-x: auto; margin: 10px 0 4px; }}
table {{ border-collapse: collapse; font-size: 13px; font-variant-numeric: tabular-nums; }}
th, td {{ text-align: right; padding: 3px 9px; border-bottom: 1px solid var(--grid); white-space: nowrap; }}
th {{ color: var(--quiet); font-weight: 600; vertical-align: bottom; }}
th:first-child, td:first-child, .words td, .words th {{
  text-align: left; white-space: normal; min-width: 11em; }}
td:first-child {{ overflow-wrap: anywhere; }}
a {{ color: var(--s0); }}
{svg.RULES}
@media print {{
  :root {{ color-scheme: light; --paper:#fff; --box:#fff; --warn:#fff; {svg.LIGHT_STYLE} }}
  body {{ font-size: 11px; }} main {{ max-width: none; padding: 0; }}
  .warn, dl {{ border: 1px solid var(--grid); }}
  .plots {{ grid-template-columns: repeat(2, 1fr); }} .scroll {{ overflow: visible; }}
  table {{ font-size: 9px; }} th, td {{ padding: 1px 5px; }}
  .plots svg, tr {{ break-inside: avoid; }} h2 {{ break-after: avoid; }}
}}
"""


def html_of(rows: Sequence[CaseResult]) -> str:
    """The page of one run, or of several.

    Args:
        rows: at least one; cases of the same name may come from different runs.
    """
    benches = ", ".join(dict.fromkeys(escaped(row.bench) for row in rows))
    times = sorted(row.time for row in rows if row.time)
    when = escaped(times[-1][:16].replace("T", " ")) + " UTC" if times else ""
    count = f"{len(rows)} case{'s' * (len(rows) != 1)}"
    lines = [
        f"<h1>streamvos bench: {benches}</h1>",
        f'<p class="quiet">{", ".join(filter(None, (when, count)))}</p>',
        *(f'<p class="warn">{escaped(line)}</p>' for line in warnings(rows)),
        *(
            f'<p class="lead">{escaped(line)}</p>'
            for line in (*sizing_lines(rows), " ".join(sentences(rows)))
        ),
        _facts(rows),
        *map(_figure, figures(rows)),
        _failures(rows),
        _footer(rows),
    ]
    policy = "default-src 'none'; style-src 'unsafe-inline'"
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        f"<title>streamvos bench: {benches}</title>\n<style>{STYLE}</style></head>\n<body><main>\n"
        + "\n".join(filter(None, lines))
        + "\n</main></body></html>\n"
    )


def warnings(rows: Sequence[CaseResult]) -> list[str]:
    """What makes the figures doubtful: a busy machine, a case that broke off, several machines."""
    lines = []
    busy = [row for row in rows if was_busy(row)]
    if busy:
        most = max(float(row.machine["other_cores"]) for row in busy)
        lines.append(
            f"The machine was busy: other programs used up to {most:.1f} of its cores during "
            f"{len(busy)} of {len(rows)} cases, so that times are too long and vary."
        )
    if len({_machine(row) for row in rows}) > 1:
        lines.append("These rows come from several machines; compare only what was measured on the same one.")
    return lines


def _machine(row: CaseResult) -> str:
    """The parts of a machine that do not change while it runs, as a line."""
    told = row.machine
    parts = [clean(told[key]) for key in ("cpu", "gpu") if told.get(key)]
    for key, what in (("cores", "cores"), ("memory_mib", "MiB of memory"), ("governor", "governor")):
        if told.get(key):
            text = whole(told[key]) if isinstance(told[key], (int, float)) else clean(told[key])
            parts.append(f"governor {text}" if key == "governor" else f"{text} {what}")
    rest = [key for key in ("driver", "power_limit_w", "system") if told.get(key)]
    return ", ".join(
        [*parts, *(f"{key.removesuffix('_w').replace('_', ' ')} {clean(told[key])}" for key in rest)]
    )


def _facts(rows: Sequence[CaseResult]) -> str:
    """Machine, load, versions and commands, each once."""
    loads = [
        f"{clean(row.machine['load_before'])} before, {clean(row.machine.get('load_after'))} after"
        for row in rows
        if row.machine.get("load_before") is not None
    ]
    pairs = [("machine", one) for one in dict.fromkeys(_machine(row) for row in rows) if one]
    if loads:
        pairs.append(
            (
                "load average",
                loads[0] if len(set(loads)) == 1 else f"{loads[0]} (first case); {loads[-1]} (last)",
            )
        )
    pairs += [("versions", one) for one in dict.fromkeys(_versions(row) for row in rows) if one]
    given = "".join(f"<dt>{name}</dt><dd>{escaped(text)}</dd>" for name, text in pairs)
    commands = dict.fromkeys(row.command for row in rows if row.command)
    given += "".join(f"<dt>command</dt><dd><code>{escaped(one)}</code></dd>" for one in commands)
    return f"<dl>{given}</dl>" if given else ""


def _versions(row: CaseResult) -> str:
    return ", ".join(f"{clean(name)} {clean(text)}" for name, text in row.versions.items() if text)


def _figure(figure: Figure) -> str:
    plots = f'<div class="plots">{"".join(figure.plots)}</div>' if figure.plots else ""
    notes = "".join(f'<p class="quiet">{escaped(note)}</p>' for note in figure.notes)
    caption = f'<p class="quiet">{escaped(figure.caption)}</p>' if figure.caption else ""
    table = table_html(figure.table) if figure.table else ""
    return f"<section><h2>{escaped(figure.title)}</h2>{caption}{plots}{notes}{table}</section>"


def table_html(table: Table, kind: str = "") -> str:
    """A table; its cells are escaped here."""
    head = _cells(table.columns, "th")
    body = "".join(f"<tr>{_cells(row, 'td')}</tr>" for row in table.rows)
    note = f'<p class="quiet">{escaped(table.note)}</p>' if table.note else ""
    attribute = f' class="{kind}"' if kind else ""
    return (
        f'<div class="scroll" tabindex="0"><table{attribute}><thead><tr>{head}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>{note}"
    )


def _cells(texts: Iterable[str], tag: str) -> str:
    return "".join(f"<{tag}>{escaped(text)}</{tag}>" for text in texts)


def _failures(rows: Sequence[CaseResult]) -> str:
    failed = [[row.name, row.failed] for row in rows if row.failed is not None]
    if not failed:
        return ""
    table = table_html(Table(["case", "why"], failed), "words")
    return f"<section><h2>Failed or broken off</h2>{table}</section>"


def _footer(rows: Sequence[CaseResult]) -> str:
    """The rows themselves, for `bench compare` and for other programs."""
    text = "".join(row.to_json() + "\n" for row in rows).encode("utf-8", "replace")
    if len(text) > ROWS_INSIDE:
        return ""
    link = "data:application/jsonl;base64," + base64.b64encode(text).decode()
    return (
        '<p class="quiet">The figures of this page as JSON lines, which <code>streamvos bench compare</code> '
        f'reads: <a download="bench.jsonl" href="{link}">bench.jsonl</a></p>'
    )
