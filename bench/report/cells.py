"""What of a row is shown: its name, its color, and its numbers as cells of a table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from operator import itemgetter
from typing import Any

from ..results import GROWTH, CaseResult
from ..table import FEW
from . import svg
from .grouping import Panel
from .text import clean, number, whole

MOST_CASES, MOST_SAMPLES = 120, 160
MOST_DETAILS, LONGEST_DETAIL = 8, 24


@dataclass(frozen=True)
class Table:
    """Columns and cells as texts, not escaped; the first column names the row, the others are numbers."""

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""


@dataclass(frozen=True)
class Figure:
    """A title, a sentence, plots (SVG), and the table with their numbers."""

    kind: str  # its name in docs/results.md
    title: str
    caption: str
    plots: Sequence[str]
    table: Table | None = None
    notes: list[str] = field(default_factory=list)


def parts_of(cases: Sequence[Any], most: int = 12) -> list[Sequence[Any]]:
    """The first `MOST_CASES` in groups of at most `most`, as equal as they can be."""
    cases = cases[:MOST_CASES]
    size = -(-len(cases) // max(-(-len(cases) // most), 1))
    return [cases[k : k + size] for k in range(0, len(cases), size)] if cases else []


class Colors:
    """One color per method on the whole page."""

    def __init__(self) -> None:
        self._given: dict[str, int] = {}

    def of(self, row: CaseResult) -> int:
        return self._given.setdefault(row.case.method or row.name, len(self._given))

    def of_lines(self, panel: Panel) -> list[int]:
        """The methods' colors, or others where a method has several lines."""
        wanted = [self.of(line.points[0][2]) % svg.COLORS for line in panel.lines]
        return wanted if len(set(wanted)) == len(wanted) else list(range(len(wanted)))


def short_names(rows: Sequence[CaseResult]) -> list[str]:
    """Names without the words that all of them share, for plots; what they share is said once."""
    split = [clean(row.name).split() for row in rows]
    shared = set(split[0]).intersection(*split[1:]) if len(split) > 1 else set()
    shorter = [" ".join(word for word in words if word not in shared) for words in split]
    return (
        shorter if all(shorter) and len(set(shorter)) == len(rows) else [" ".join(words) for words in split]
    )


def shared_words(rows: Sequence[CaseResult]) -> str:
    """What `short_names` leaves out, as a sentence, or ""."""
    short = short_names(rows)[0].split()
    left = [word for word in clean(rows[0].name).split() if word not in short]
    return f" All of them: {' '.join(left)}." if left else ""


def quantile_text(row: CaseResult, name: str) -> str:
    """A quantile; in brackets where it is only the maximum."""
    if name not in row.quantiles:
        return ""
    text = number(row.quantiles[name])
    return f"({text})" if row.count < FEW.get(name, 0) else text


def bins_of(row: CaseResult) -> list[tuple[float, float, int]]:
    """(lower edge, upper edge, count) of a row's histogram, ascending."""
    return [(GROWTH ** (bucket - 1), GROWTH**bucket, n) for bucket, n in sorted(row.histogram.items())]


def detail_names(rows: Sequence[CaseResult]) -> list[str]:
    """Details that fit into a cell: numbers and short words."""
    names = dict.fromkeys(name for row in rows for name in row.details)
    fitting = [
        name
        for name in names
        if all(isinstance(row.details.get(name), (int, float, str, type(None))) for row in rows)
        and all(len(str(row.details.get(name))) <= LONGEST_DETAIL for row in rows)
    ]
    return fitting[:MOST_DETAILS]


def detail_cells(row: CaseResult, names: Sequence[str]) -> list[str]:
    """These details of a row as cells."""
    values = [row.details.get(name) for name in names]
    return [
        whole(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else str(value or "")
        for value in values
    ]


def marks_of(row: CaseResult) -> dict[str, float]:
    """The quantiles that a row has enough values for, and else the maximum."""
    known = [name for name in ("p50", "p95", "p99", "p99.9") if row.count >= FEW.get(name, 0)]
    return {name: row.quantiles[name] for name in (known if len(known) == 4 else [*known, "max"])}


def turns_text(row: CaseResult) -> str:
    if len(row.repetitions) < 2:
        return ""
    return f"{number(min(row.repetitions))} to {number(max(row.repetitions))}"


def stage_text(row: CaseResult, name: str) -> str:
    values = row.stages.get(name)
    if values is None:
        return ""
    return number(values.get("p50")) + (f" ({number(values['p99'])})" if "p99" in values else "")


def thinned(samples: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """At most `MOST_SAMPLES` samples: of each interval the least and the largest, so that no peak is lost."""
    if len(samples) <= MOST_SAMPLES:
        return list(samples)
    step = -(-len(samples) // (MOST_SAMPLES // 2))
    kept: list[tuple[float, float]] = []
    for k in range(0, len(samples), step):
        part = samples[k : k + step]
        kept += sorted({min(part, key=itemgetter(1)), max(part, key=itemgetter(1))})
    return kept


def slope(samples: Sequence[tuple[float, float]]) -> str:
    """Least squares over the second half, in MiB per hour; "" if that is less than two minutes."""
    half = [one for one in samples if one[0] >= (samples[0][0] + samples[-1][0]) / 2] if samples else []
    if len(half) < 3 or half[-1][0] - half[0][0] < 120:
        return ""
    mean_t, mean_m = (sum(one[k] for one in half) / len(half) for k in (0, 1))
    squares = sum((t - mean_t) ** 2 for t, _ in half)
    return number(3600 * sum((t - mean_t) * (m - mean_m) for t, m in half) / squares) if squares else ""
