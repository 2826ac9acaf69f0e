"""What a run's rows show: figures, each with its plots and the table of the numbers behind them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from ..results import QUANTILES, CaseResult
from ..table import FEW
from .cells import (
    Colors,
    Figure,
    Table,
    bins_of,
    detail_cells,
    detail_names,
    marks_of,
    parts_of,
    quantile_text,
    shared_words,
    short_names,
    slope,
    stage_text,
    thinned,
    turns_text,
)
from .grouping import Panel, in_words, panels
from .plots import Range, Series, histogram_plot, line_plot, range_plot, stack_plot
from .text import clean, number, whole

MOST_PANELS, MOST_LINES = 18, 6
MAIN_SCORE = "J&F streaming"
TITLES = {
    "capacity": "From the frame to its mask",
    "engines": "Time of a call",
    "gpu": "Time of a frame",
    "latency": "Time of a frame",
    "peers": "Time of a frame",
    "recovery": "From the kill to the next mask",
    "soak": "From the frame to its mask",
    "streaming": "Time of a frame",
}
"""Bench -> what its values are."""
IN_BRACKETS = "In brackets: the maximum, since there were fewer than 100 (p99) or 1,000 (p99.9) frames."


def figures(rows: Sequence[CaseResult]) -> list[Figure]:
    """Everything that can be drawn of these rows, the most asked first."""
    colors = Colors()
    timed = _measured_once([row for row in rows if row.quantiles])
    drawn = list(_scores(rows, colors)) if any(row.scores for row in rows) else []
    for bench, unit in dict.fromkeys((row.bench, row.unit) for row in timed):
        drawn += _distributions(
            [row for row in timed if (row.bench, row.unit) == (bench, unit)], unit, colors
        )
    drawn += _other(rows)
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
        times = (row.case.method, row.case.height, row.mean, *row.histogram.items())
        found.setdefault((row.bench, *(times if row.histogram else (row.name,))), row)
    return list(found.values())


def _distributions(rows: Sequence[CaseResult], unit: str, colors: Colors) -> Iterator[Figure]:
    """Quantiles of every case side by side, and the histogram of each."""
    ranges = [
        Range(name, row.quantiles, f"{number(row.quantiles['p50'])} / {quantile_text(row, 'p99')}",
                  colors.of(row))
        for name, row in zip(short_names(rows), rows, strict=True)
    ]  # fmt: skip
    every = [value for one in ranges for value in one.quantiles.values()]
    plots = [range_plot(part, clean(unit), "quantiles by case", shown=every) for part in parts_of(ranges)]
    more = detail_names(rows)
    columns = ["case", "count", "mean", *QUANTILES, "turns", "frames/s", "first frame, ms", *more]
    cells = [
        [
            row.name, whole(row.count), number(row.mean), *(quantile_text(row, name) for name in QUANTILES),
            turns_text(row), number(row.throughput), number(row.first_frame_ms), *detail_cells(row, more),
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
        f"{TITLES.get(rows[0].bench, clean(rows[0].bench))}, {clean(unit)}",
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
                histogram_plot(bins_of(row), marks_of(row), clean(unit), name, colors.of(row))
                for name, row in zip(short_names(chosen), chosen, strict=True)
            ],
            notes=[f"The {len(chosen)} slowest of {len(rows)} cases by p99."] * (len(chosen) < len(rows)),
        )  # fmt: skip


def _other(rows: Sequence[CaseResult]) -> Iterator[Figure]:
    """Rows with neither times nor scores."""
    chosen = [row for row in rows if not row.quantiles and not row.scores and row.failed is None]
    names = detail_names(chosen)
    if names or any(row.throughput for row in chosen):
        cells = [[row.name, number(row.throughput), *detail_cells(row, names)] for row in chosen]
        yield Figure("other", "Other figures", "", [], Table(["case", "frames/s", *names], cells))


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
        [stack_plot(part, "ms", "stages of a frame", names, most) for part in parts_of(bars)],
        Table(
            ["p50 (p99), ms", *names, "sum of p50"],
            [
                [row.name, *(stage_text(row, name) for name in names), number(sum(parts.values()))]
                for row, (_, parts, _) in zip(chosen, bars, strict=True)
            ],
        ),
    )


def _growth(timed: Sequence[CaseResult], rows: Sequence[CaseResult], colors: Colors) -> Iterator[Figure]:
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
    found: Sequence[Panel], kind: str, key: str, title: str, x: str, y: str, colors: Colors, tails: bool
) -> Iterator[Figure]:
    if not found:
        return
    plots, cells = [], []
    xs = sorted({point[0] for panel in found for line in panel.lines for point in line.points})
    for panel in found:
        drawn = [
            Series(
                line.name,
                [point[:2] for point in line.points],
                [(at, row.quantiles["p99"]) for at, _, row in line.points] if tails else (),
                color,
            )
            for line, color in zip(panel.lines, colors.of_lines(panel), strict=True)
        ]
        for k in range(0, len(drawn), MOST_LINES):
            plots.append(
                line_plot(drawn[k : k + MOST_LINES], x, y, panel.title or title, heading=panel.title)
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


def _scores(rows: Sequence[CaseResult], colors: Colors) -> Iterator[Figure]:
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
            Series(
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
            line_plot(part, "frames/s of the video", clean(main), panel.title or main, zero=False,
                          log_y=False, heading=panel.title, shown=every)
            for part in parts_of(drawn, MOST_LINES)
        ]  # fmt: skip
    caption = ""
    if plots:
        caption = (
            "In percent. The mask that counts at a frame of the video is the newest one finished by then."
        )
    if plots and other != main:
        caption += " Dashed: the same, had there been time for every frame."
    if plots:
        yield Figure("scores", "Accuracy", caption, plots[:MOST_PANELS], _by_rate(found, main, other))
        return
    more = detail_names(scored)
    cells = [
        [row.name, *(number(row.scores.get(name)) for name in names), *detail_cells(row, more)]
        for row in scored
    ]
    yield Figure("scores", "Scores", "", [], Table(["case", *names, *more], cells))


def _by_rate(found: Sequence[Panel], main: str, other: str) -> Table:
    """A line for each method and size, a column for each rate."""
    rates = sorted({at for panel in found for line in panel.lines for at, *_ in line.points})
    cells = []
    for panel in found:
        for line in panel.lines:
            row, values = line.points[0][2], {at: number(value) for at, value, _ in line.points}
            cells.append(
                [", ".join(filter(None, (line.name, panel.title))), number(row.mean),
                 number(row.scores.get(other)), *(values.get(at, "") for at in rates)]
            )  # fmt: skip
    return Table([main, "ms a frame", "offline", *(f"{at:g} frames/s" for at in rates)], cells)


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


def _ratios(rows: Sequence[CaseResult], colors: Colors) -> Iterator[Figure]:
    chosen = [row for row in rows if row.ratio and min(row.ratio.low, row.ratio.median, row.ratio.high) > 0]
    if not chosen:
        return
    ranges, cells = [], []
    for row in chosen:
        assert row.ratio
        values = {"low": row.ratio.low, "median": row.ratio.median, "high": row.ratio.high}
        ranges.append(Range(row.name, values, f"{number(row.ratio.median)}x", colors.of(row)))
        cells.append([row.name, row.ratio.to, *(f"{number(value)}x" for value in values.values())])
    every = [value for one in ranges for value in one.quantiles.values()]
    yield Figure(
        "ratios",
        "Ratios within this run",
        "Time over that of another case, turn by turn: median and range. Left of the dotted line is faster.",
        [range_plot(part, "times the other case's", "ratios", 1.0, every) for part in parts_of(ranges)],
        Table(["case", "to", "low", "median", "high"], cells),
    )


def _memory(rows: Sequence[CaseResult], colors: Colors) -> Iterator[Figure]:
    chosen = [row for row in rows if row.memory_mib]
    if not chosen:
        return
    sampled = [row for row in chosen if row.memory_mib and len(row.memory_mib.samples) > 1]
    curves = [
        Series(name, thinned(row.memory_mib.samples), color=k % MOST_LINES)
        for k, (name, row) in enumerate(zip(short_names(sampled), sampled, strict=True))
        if row.memory_mib
    ][: MOST_LINES * 4]
    plots = [
        line_plot(part, "seconds", "MiB", "memory over time", marks=False, every_x=False, log_y=False)
        for part in parts_of(curves, MOST_LINES)
    ]
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
