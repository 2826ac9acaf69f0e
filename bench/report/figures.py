"""What a run's rows show: figures, each with its plots and the table of the numbers behind them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..results import GROWTH, QUANTILES, CaseResult
from ..table import FEW
from . import svg
from .grouping import Panel, in_words, panels
from .text import clean, number, whole

MOST_PANELS, MOST_LINES, MOST_CASES, MOST_SAMPLES = 18, 6, 120, 160
MAIN_SCORE = "J&F streaming"
IN_BRACKETS = "In brackets: the maximum, since there were fewer than 100 (p99) or 1,000 (p99.9) frames."


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


def figures(rows: Sequence[CaseResult]) -> list[Figure]:
    """Everything that can be drawn of these rows, the most asked first."""
    colors = _Colors()
    timed = _measured_once([row for row in rows if row.quantiles])
    drawn = list(_accuracy(rows, colors)) if any(row.scores for row in rows) else []
    for unit in dict.fromkeys(row.unit for row in timed):
        drawn += _distributions([row for row in timed if row.unit == unit], unit, colors)
    drawn += _stages(rows)
    drawn += _growth(timed, rows, colors)
    drawn += _ratios(rows, colors)
    drawn += _memory(rows, colors)
    drawn += _operators(rows)
    return drawn


def _measured_once(rows: Sequence[CaseResult]) -> list[CaseResult]:
    """Without rows that repeat another one's times, as those of `bench streaming` for several rates do."""
    found: dict[object, CaseResult] = {}
    for row in rows:
        found.setdefault((row.bench, row.case.method, row.case.height, row.mean, *row.histogram.items()), row)
    return list(found.values())


def parts_of(cases: Sequence[Any], most: int = 12) -> list[Sequence[Any]]:
    """The first `MOST_CASES` in groups of at most `most`, as equal as they can be."""
    cases = cases[:MOST_CASES]
    size = -(-len(cases) // max(-(-len(cases) // most), 1))
    return [cases[k : k + size] for k in range(0, len(cases), size)] if cases else []


class _Colors:
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


def _distributions(rows: Sequence[CaseResult], unit: str, colors: _Colors) -> Iterator[Figure]:
    """Quantiles of every case side by side, and the histogram of each."""
    ranges = [
        svg.Range(name, row.quantiles, f"{number(row.quantiles['p50'])} / {quantile_text(row, 'p99')}",
                  colors.of(row))
        for name, row in zip(short_names(rows), rows, strict=True)
    ]  # fmt: skip
    every = [value for one in ranges for value in one.quantiles.values()]
    plots = [svg.range_plot(part, clean(unit), "quantiles by case", shown=every) for part in parts_of(ranges)]
    columns = ["case", "count", "mean", *QUANTILES, "turns", "frames/s", "first frame, ms"]
    cells = [
        [
            row.name, whole(row.count), number(row.mean), *(quantile_text(row, name) for name in QUANTILES),
            _turns(row), number(row.throughput), number(row.first_frame_ms),
        ]
        for row in rows
    ]  # fmt: skip
    keep = [k for k in range(len(columns)) if k == 0 or any(one[k] for one in cells)]
    table = Table(
        [columns[k] for k in keep],
        [[one[k] for k in keep] for one in cells],
        IN_BRACKETS if any(row.count < FEW["p99.9"] for row in rows) else "",
    )
    yield Figure(
        "times",
        f"Time of a frame, {unit}" if unit == "ms" else f"Values in {unit}",
        "Thin from the least to the greatest value, thick from p50 (the dot) to p99; ticks mark p95, p99 and "
        "p99.9. The scale is logarithmic. At the right: p50 / p99." + shared_words(rows),
        plots,
        table,
    )
    chosen = [row for row in rows if row.histogram]
    if len(chosen) > MOST_PANELS:
        chosen = sorted(chosen, key=lambda row: -row.quantiles["p99"])[:MOST_PANELS]
    if chosen:
        yield Figure(
            "distributions",
            "Distributions",
            "How often each time came. Each scale is logarithmic and its own.",
            [
                svg.histogram_plot(bins_of(row), marks_of(row), clean(unit), name, colors.of(row))
                for name, row in zip(short_names(chosen), chosen, strict=True)
            ],
            notes=[f"The {len(chosen)} slowest of {len(rows)} cases by p99."] * (len(chosen) < len(rows)),
        )  # fmt: skip


def marks_of(row: CaseResult) -> dict[str, float]:
    """The quantiles that a row has enough values for, and else the maximum."""
    known = [name for name in ("p50", "p95", "p99", "p99.9") if row.count >= FEW.get(name, 0)]
    return {name: row.quantiles[name] for name in (known if len(known) == 4 else [*known, "max"])}


def _turns(row: CaseResult) -> str:
    if len(row.repetitions) < 2:
        return ""
    return f"{number(min(row.repetitions))} to {number(max(row.repetitions))}"


def _stages(rows: Sequence[CaseResult]) -> Iterator[Figure]:
    chosen = [row for row in rows if row.stages]
    if not chosen:
        return
    bars = []
    for name, row in zip(short_names(chosen), chosen, strict=True):
        parts = {stage: values.get("p50", 0.0) for stage, values in row.stages.items()}
        bars.append((name, parts, f"{number(sum(parts.values()))} ms"))
    names = list(dict.fromkeys(name for row in chosen for name in row.stages))
    most = max(sum(parts.values()) for _, parts, _ in bars)
    yield Figure(
        "stages",
        "Where the time of a frame goes",
        "The stages that a frame passes, one after the other, by their medians in milliseconds."
        + shared_words(chosen),
        [svg.stack_plot(part, "ms", "stages of a frame", names, most) for part in parts_of(bars)],
        Table(
            ["p50 (p99), ms", *names, "sum of p50"],
            [
                [row.name, *(_stage(row, name) for name in names), number(sum(parts.values()))]
                for row, (_, parts, _) in zip(chosen, bars, strict=True)
            ],
        ),
    )


def _stage(row: CaseResult, name: str) -> str:
    values = row.stages.get(name)
    if values is None:
        return ""
    return number(values.get("p50")) + (f" ({number(values['p99'])})" if "p99" in values else "")


def _growth(timed: Sequence[CaseResult], rows: Sequence[CaseResult], colors: _Colors) -> Iterator[Figure]:
    """Cost against every setting of which there are several numbers."""
    timed = [row for row in timed if row.unit in ("ms", "s", "us")]
    labels = {
        "objects": ("Cost against objects", "objects"),
        "height": ("Cost against resolution", "height of the frame, pixels"),
        "history": ("Cost against the length of the history", "frames before"),
        "streams": ("Latency against streams", "streams"),
        "threads": ("Cost against threads", "threads"),
    }
    for key, (title, label) in labels.items():
        found = panels(timed, key, lambda row: row.quantiles["p50"])
        unit = clean(timed[0].unit) if timed else "ms"
        yield from _lines(found, f"by-{key}", key, title, label, unit, colors, tails=True)
    found = panels(rows, "streams", lambda row: row.throughput)
    yield from _lines(
        found,
        "throughput",
        "streams",
        "Throughput against streams",
        "streams",
        "frames/s",
        colors,
        tails=False,
    )


def _lines(
    found: Sequence[Panel], kind: str, key: str, title: str, x: str, y: str, colors: _Colors, tails: bool
) -> Iterator[Figure]:
    if not found:
        return
    plots, cells = [], []
    xs = sorted({point[0] for panel in found for line in panel.lines for point in line.points})
    for panel in found:
        drawn = [
            svg.Series(
                line.name,
                [point[:2] for point in line.points],
                [(at, row.quantiles["p99"]) for at, _, row in line.points] if tails else (),
                color,
            )
            for line, color in zip(panel.lines, colors.of_lines(panel), strict=True)
        ]
        for k in range(0, len(drawn), MOST_LINES):
            plots.append(
                svg.line_plot(drawn[k : k + MOST_LINES], x, y, panel.title or title, heading=panel.title)
            )
        for line in panel.lines:
            values = {
                at: number(value) + (f" / {quantile_text(row, 'p99')}" if tails else "")
                for at, value, row in line.points
            }
            cells.append(
                [", ".join(filter(None, (line.name, panel.title))), *(values.get(at, "") for at in xs)]
            )
    caption = "Solid: p50. Dashed: p99." if tails else ""
    yield Figure(
        kind,
        title,
        caption,
        plots[:MOST_PANELS],
        Table([f"{'p50 / p99, ' * tails}{y}", *(in_words(key, at) for at in xs)], cells),
    )


def _accuracy(rows: Sequence[CaseResult], colors: _Colors) -> Iterator[Figure]:
    """Scores against the rate at which frames arrive: while time goes on, and of every frame."""
    scored = [row for row in rows if row.scores]
    names = list(dict.fromkeys(name for row in scored for name in row.scores))
    main = MAIN_SCORE if MAIN_SCORE in names else names[0]
    other = main.replace("streaming", "offline")
    found = panels(scored, "fps", lambda row: row.scores.get(main))
    lines = [line for panel in found for line in panel.lines]
    every = [row.scores[name] for line in lines for *_, row in line.points for name in (main, other)
             if name in row.scores]  # fmt: skip
    plots = []
    for panel in found:
        drawn = [
            svg.Series(
                line.name,
                [point[:2] for point in line.points],
                [(at, row.scores[other]) for at, _, row in line.points if other in row.scores]
                if other != main
                else (),
                color,
            )
            for line, color in zip(panel.lines, colors.of_lines(panel), strict=True)
        ]
        plots += [
            svg.line_plot(part, "frames/s of the video", clean(main), panel.title or main, zero=False,
                          log_y=False, heading=panel.title, shown=every)
            for part in parts_of(drawn, MOST_LINES)
        ]  # fmt: skip
    cells = [[row.name, *(number(row.scores.get(name)) for name in names)] for row in scored]
    caption = (
        "Percent. While a video runs, the mask that counts at a frame is the newest one finished by then."
    )
    if other != main and plots:
        caption += " Dashed: the same, had there been time for every frame."
    yield Figure(
        "accuracy",
        "Accuracy",
        caption,
        plots[:MOST_PANELS],
        Table(["case", *names], cells),
    )


def _operators(rows: Sequence[CaseResult]) -> Iterator[Figure]:
    """What `bench latency --explain` found."""
    cells = []
    for row in rows:
        told = row.details.get("explained")
        for one in (
            told["operators"] if isinstance(told, dict) and isinstance(told.get("operators"), list) else ()
        ):
            shares = (one.get(key) for key in ("share", "of_gemm", "of_bandwidth"))
            cells.append(
                [row.name, str(one.get("name")), *(number(one.get(key)) for key in ("calls", "ms")),
                 *("" if share is None else f"{100 * share:.0f} %" for share in shares)]
            )  # fmt: skip
    if cells:
        columns = ["case", "operator", "calls", "ms", "share", "of GEMM's peak", "of the memory's peak"]
        caption = (
            "The most expensive operators of a frame, and how much of the machine's measured peak they reach."
        )
        yield Figure("operators", "Operators", caption, [], Table(columns, cells))


def _ratios(rows: Sequence[CaseResult], colors: _Colors) -> Iterator[Figure]:
    chosen = [row for row in rows if row.ratio and min(row.ratio.low, row.ratio.median, row.ratio.high) > 0]
    if not chosen:
        return
    ranges, cells = [], []
    for row in chosen:
        assert row.ratio
        values = {"low": row.ratio.low, "median": row.ratio.median, "high": row.ratio.high}
        ranges.append(svg.Range(row.name, values, f"{number(row.ratio.median)}x", colors.of(row)))
        cells.append([row.name, row.ratio.to, *(f"{number(value)}x" for value in values.values())])
    every = [value for one in ranges for value in one.quantiles.values()]
    yield Figure(
        "ratios",
        "Ratios within this run",
        "Time over that of another case, turn by turn: median and range. Left of the dotted line is faster.",
        [svg.range_plot(part, "times the other case's", "ratios", 1.0, every) for part in parts_of(ranges)],
        Table(["case", "to", "low", "median", "high"], cells),
    )


def _memory(rows: Sequence[CaseResult], colors: _Colors) -> Iterator[Figure]:
    chosen = [row for row in rows if row.memory_mib]
    if not chosen:
        return
    curves = [row for row in chosen if row.memory_mib and len(row.memory_mib.samples) > 1]
    plots = []
    for k in range(0, min(len(curves), MOST_LINES * 4), MOST_LINES):
        drawn = [
            svg.Series(row.name, thinned(row.memory_mib.samples), color=index)
            for index, row in enumerate(curves[k : k + MOST_LINES])
            if row.memory_mib
        ]
        plots.append(
            svg.line_plot(
                drawn, "seconds", "MiB", "memory over time", marks=False, every_x=False, log_y=False
            )
        )
    cells = []
    for row in chosen:
        assert row.memory_mib
        samples = row.memory_mib.samples
        ends = [number(samples[0][1]), number(samples[-1][1])] if samples else ["", ""]
        cells.append(
            [row.name, number(row.memory_mib.peak), number(row.memory_mib.state), *ends, slope(samples)]
        )
    yield Figure(
        "memory",
        "Memory",
        "Of the process that ran the case, in MiB. The slope is that of the second half of the time.",
        plots,
        Table(["case", "peak", "state of a stream", "first sample", "last sample", "slope, MiB/h"], cells),
    )


def thinned(samples: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """At most `MOST_SAMPLES` samples: of each interval the least and the largest, so that no peak is lost."""
    if len(samples) <= MOST_SAMPLES:
        return list(samples)
    step = -(-len(samples) // (MOST_SAMPLES // 2))
    kept: list[tuple[float, float]] = []
    for k in range(0, len(samples), step):
        part = samples[k : k + step]
        value: Callable[[tuple[float, float]], float] = lambda one: one[1]  # noqa: E731
        kept += sorted({min(part, key=value), max(part, key=value)})
    return kept


def slope(samples: Sequence[tuple[float, float]]) -> str:
    """Least squares over the second half, in MiB per hour; "" for less than ten seconds."""
    half = [one for one in samples if one[0] >= (samples[0][0] + samples[-1][0]) / 2] if samples else []
    if len(half) < 3 or half[-1][0] - half[0][0] < 10:
        return ""
    mean_t, mean_m = (sum(one[k] for one in half) / len(half) for k in (0, 1))
    squares = sum((t - mean_t) ** 2 for t, _ in half)
    return number(3600 * sum((t - mean_t) * (m - mean_m) for t, m in half) / squares) if squares else ""
