"""Rows as a table in the terminal.

print_table(rows)                                       # latencies
print_table(rows, ["throughput", "details.cpu_ms"])     # what else a bench has to say
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from streamvos.cli.output import make_table, show

from .report.text import number
from .results import CaseResult

LATENCY = ("p50", "p95", "p99", "p99.9", "max", "turns", "fps", "first", "peak MiB", "ratio")

FEW = {"p99": 100, "p99.9": 1000}
"""Quantile -> number of frames below which it is the maximum, and is shown in brackets."""


def print_table(rows: Sequence[CaseResult], columns: Sequence[str] | None = None) -> None:
    """Print rows.

    Args:
        rows: of one run.
        columns: names of `LATENCY`, "count", names of quantiles, "scores.NAME" or "details.NAME"; None =
            those of `LATENCY` that any row has.
    """
    shown = list(columns) if columns is not None else [c for c in LATENCY if any(_cell(r, c) for r in rows)]
    units = {row.unit for row in rows}
    title = f"bench {rows[0].bench}" + (f", {units.pop()}" if len(units) == 1 else "")
    table = make_table(
        title, ["case", "count", *(one.rpartition(".")[2] if one not in LATENCY else one for one in shown)]
    )
    done = [row for row in rows if row.failed is None or row.count]
    for row in done:
        table.add_row(row.name, str(row.count or ""), *(_cell(row, column) for column in shown))
    lines = []
    if any(column in FEW and _cell(row, column).startswith("(") for row in done for column in shown):
        lines.append("In brackets: the maximum, of fewer than 100 frames (p99) or 1,000 (p99.9).")
    if "ratio" in shown:
        lines.append("Ratio: to the first case of the same frames, median and range over the turns.")
    for row in rows:
        if row.failed is not None:
            lines.append(f"{row.name}: {'broke off' if row.count else 'no figures'}: {row.failed}")
    show({}, None, *([table] if done else [title]), *lines)


def _cell(row: CaseResult, column: str) -> str:
    if column in row.quantiles:
        text = number(row.quantiles[column])
        return f"({text})" if 0 < row.count < FEW.get(column, 0) else text
    if column.startswith("scores."):
        return number(row.scores.get(column.removeprefix("scores.")))
    if column.startswith("details."):
        value: Any = row.details.get(column.removeprefix("details."))
        return number(value) if isinstance(value, (int, float)) else str("" if value is None else value)
    match column:
        case "turns" if len(row.repetitions) > 1:
            return f"{number(min(row.repetitions))}-{number(max(row.repetitions))}"
        case "fps":
            return number(row.throughput)
        case "first":
            return number(row.first_frame_ms)
        case "peak MiB":
            return number(row.memory_mib.peak) if row.memory_mib else ""
        case "ratio" if row.ratio is not None:
            return f"{row.ratio.median:.2f} ({row.ratio.low:.2f}-{row.ratio.high:.2f})"
    return ""
