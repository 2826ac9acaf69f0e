"""Four plots: lines, histograms, ranges and stacked bars. Every mark has a tooltip with its numbers.

plot = line_plot([Series("tvos", [(1, 147), (5, 160)])], x_label="objects", y_label="ms")
Path("cost.svg").write_text(svg.standalone(plot))
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from .svg import (
    HEIGHT,
    LETTER,
    WIDTH,
    Scale,
    axis_x,
    axis_y,
    color_class,
    legend,
    marker,
    picture,
    scale,
    spread,
    tag,
    tip,
    words,
)
from .text import number, shortened, whole


@dataclass(frozen=True)
class Series:
    """One line of a plot: its points, and perhaps a second value each, drawn dashed (a p99 above a p50)."""

    name: str
    points: Sequence[tuple[float, float]]
    tails: Sequence[tuple[float, float]] = field(default=())
    color: int | None = None


def line_plot(
    series: Sequence[Series],
    x_label: str,
    y_label: str,
    title: str = "",
    log_x: bool = False,
    log_y: bool | None = None,
    zero: bool = True,
    marks: bool = True,
    every_x: bool = True,
    heading: str = "",
    shown: Sequence[float] = (),
) -> str:
    """Lines with their points; `tails` are dashed.

    Args:
        series: at least one point in all.
        log_y: None = if values differ by more than a factor of 20.
        zero: whether a linear y axis begins at 0.
        marks: draw every point.
        every_x: ticks at the points' own x where they are few.
        heading: stands above the plot.
        shown: other values that the y axis has to hold, so that several plots can be compared.
    """
    xs = [x for one in series for x, _ in (*one.points, *one.tails)]
    ys = [y for one in series for _, y in (*one.points, *one.tails)] + [*shown]
    top = 42.0 if heading else 24.0
    bottom, left, right = HEIGHT - 54 + top - 24 + 18, 46.0, WIDTH - 12.0
    y_axis = scale(ys, bottom, top, spread(ys) if log_y is None else log_y, zero)
    x_axis = scale(xs, left + 8, right, log_x, zero=False)
    distinct = sorted(set(xs))
    own = distinct if every_x and _far_apart([x_axis.at(x) for x in distinct]) else None
    parts = [axis_y(y_axis, left, right, y_label), axis_x(x_axis, bottom, top, x_label, own)]
    if heading:
        parts.append(words(4, 14, shortened(heading, int(WIDTH / LETTER))))
    names = []
    for k, one in enumerate(series):
        index = k if one.color is None else one.color
        names.append((one.name, index))
        body = [_path(one.points, x_axis, y_axis, one.name), _path(one.tails, x_axis, y_axis, one.name, True)]
        if marks:
            notes = (
                (x, y, f"{one.name}: {whole(x)} {x_label}, {number(y)} {y_label}") for x, y in one.points
            )
            body += [marker(x_axis.at(x), y_axis.at(y), index, note) for x, y, note in notes]
        parts.append(tag("g", "".join(body), class_=f"series {color_class(index)}"))
    below, end = legend(names, bottom + 36, WIDTH)
    return picture(title or f"{y_label} against {x_label}", WIDTH, end, "".join(parts) + below)


def _far_apart(places: Sequence[float]) -> bool:
    return len(places) <= 8 and all(b - a > 26 for a, b in pairwise(places))


def _path(points: Sequence[tuple[float, float]], x: Scale, y: Scale, name: str, dashed: bool = False) -> str:
    if len(points) < 2:
        return ""
    d = "M" + "L".join(f"{x.at(a):.1f} {y.at(b):.1f}" for a, b in points)
    extra: Mapping[str, object] = {"stroke_dasharray": "4 3", "opacity": 0.8} if dashed else {}
    return tag("path", tip(name), d=d, fill="none", stroke="currentColor", stroke_width=1.8, **extra)


def histogram_plot(
    bins: Sequence[tuple[float, float, int]],
    marks: Mapping[str, float],
    unit: str,
    title: str,
    color: int = 0,
) -> str:
    """Counts per bin on a logarithmic axis, with named values as vertical lines.

    Args:
        bins: (lower edge, upper edge, count); edges are positive.
        marks: such as {"p50": 41.2}; they are labeled from left to right, those that coincide together.
    """
    high = max(b[1] for b in bins)
    low = max(min(b[0] for b in bins), high / 1e4)
    x_axis = scale([low, high], 12.0, WIDTH - 12.0, log=True)
    height, top = 190.0, 58.0
    bottom = height - 36.0
    joined = _three_pixels_wide(bins, x_axis)
    most = max((count / (x1 - x0) for x0, x1, count, *_ in joined), default=1.0)
    parts = [words(12, 14, shortened(title, 54)), axis_x(x_axis, bottom, top, unit)]
    bars = []
    for x0, x1, count, start, stop in joined:
        tall = (bottom - top) * count / (x1 - x0) / most
        note = f"{count:,} in {number(start)} to {number(stop)} {unit}"
        shape = f"M{x0:.1f} {bottom:.1f}V{bottom - max(tall, 1):.1f}H{x1:.1f}V{bottom:.1f}z"
        bars.append(tag("path", tip(note), d=shape, fill="currentColor"))
    parts.append(tag("g", "".join(bars), class_=f"bars {color_class(color)}", opacity=0.75))
    parts.append(_labeled_lines(marks, x_axis, unit, top, bottom))
    return picture(f"distribution of {title}", WIDTH, height, "".join(parts))


def _three_pixels_wide(
    bins: Sequence[tuple[float, float, int]], axis: Scale
) -> list[tuple[float, float, int, float, float]]:
    """Neighbors joined until each is three pixels wide: place, place, count, edge, edge."""
    joined: list[tuple[float, float, int, float, float]] = []
    for low, high, count in sorted(bins):
        x0, x1 = axis.at(low), axis.at(high)
        if joined and x1 - joined[-1][0] <= 3.05:
            before = joined[-1]
            joined[-1] = (before[0], max(x1, before[1]), before[2] + count, before[3], high)
        elif joined and joined[-1][1] - joined[-1][0] < 3 and x0 - joined[-1][1] < 0.1:
            before = joined[-1]
            joined[-1] = (before[0], x1, before[2] + count, before[3], high)
        else:
            joined.append((x0, max(x1, x0 + 1), count, low, high))
    return joined


def _labeled_lines(marks: Mapping[str, float], axis: Scale, unit: str, top: float, bottom: float) -> str:
    """Vertical lines; their labels take turns between two levels, and on each they move apart."""
    ordered, parts = sorted(marks.items(), key=lambda item: item[1]), []
    for level in (0, 1):
        own = [(axis.at(value), f"{name} {number(value)}") for name, value in ordered[level::2]]
        y = top - 26 + 14 * level
        places = _moved_apart([(x, len(label) * LETTER + 6) for x, label in own])
        for (x, label), at in zip(own, places, strict=True):
            line = {"x1": x, "x2": x, "y1": y + 4, "y2": bottom}
            parts.append(tag("line", tip(f"{label} {unit}"), class_="axis", **line))
            parts.append(words(at, y, label, "quiet mark", "middle"))
    return "".join(parts)


def _moved_apart(labels: Sequence[tuple[float, float]]) -> list[float]:
    """Centers of (center, width), ascending, as near as they can be without an overlap, within the plot."""
    centers: list[float] = []
    for k, (center, width) in enumerate(labels):
        centers.append(max(center, width / 2))
        for a in range(k, 0, -1):  # share the overlap with those at the left
            overlap = (labels[a][1] + labels[a - 1][1]) / 2 - (centers[a] - centers[a - 1])
            if overlap > 0:
                centers[a - 1] -= overlap / 2
                centers[a] += overlap / 2
    last = float(WIDTH)
    for k in range(len(centers) - 1, -1, -1):
        centers[k] = min(centers[k], last - labels[k][1] / 2)
        last = centers[k] - labels[k][1] / 2
    first = 0.0
    for k, (_, width) in enumerate(labels):
        centers[k] = max(centers[k], first + width / 2)
        first = centers[k] + width / 2
    return centers


@dataclass(frozen=True)
class Range:
    """One case of a `range_plot`: its quantiles, and what stands at the right of its name."""

    name: str
    quantiles: Mapping[str, float]
    label: str
    color: int = 0


def range_plot(
    ranges: Sequence[Range],
    unit: str,
    title: str,
    reference: float | None = None,
    shown: Sequence[float] = (),
) -> str:
    """A line per case: thin from the least to the largest value, thick from p50 (dot) to p99.

    Ticks are p95, p99 and p99.9.

    Args:
        ranges: values are positive; without p50 and so on, "median", "low" and "high" are drawn.
        reference: a value with a vertical line, such as a ratio of 1.
        shown: other values that the axis has to hold, so that several plots can be compared.
    """
    values = [v for one in ranges for v in one.quantiles.values()] + [
        *shown,
        *([reference] if reference else []),
    ]
    axis = scale(values, 12.0, WIDTH - 12.0, log=True)
    row, top = 31, 8.0
    bottom = top + row * len(ranges) + 4
    parts = [axis_x(axis, bottom, top, unit)]
    if reference:
        x = axis.at(reference)
        parts.append(tag("line", class_="axis", x1=x, x2=x, y1=top, y2=bottom, stroke_dasharray="2 3"))
    for k, one in enumerate(ranges):
        y = top + row * k
        room = int((WIDTH - 30) / LETTER) - len(one.label)
        parts.append(words(12, y + 11, shortened(one.name, room), "halo"))
        parts.append(words(WIDTH - 12, y + 11, one.label, "halo", "end"))
        parts.append(tag("g", _range(one, axis, y + 21), class_=f"range {color_class(one.color)}"))
    return picture(title, WIDTH, bottom + 36, "".join(parts))


def _range(one: Range, axis: Scale, y: float) -> str:
    q = one.quantiles
    note = f"{one.name}: " + ", ".join(f"{name} {number(value)}" for name, value in q.items())
    middle = q.get("p50", q.get("median"))
    ends = [axis.at(value) for value in q.values()]
    parts = [tag("line", x1=min(ends), x2=max(ends), y1=y, y2=y, stroke="currentColor", stroke_width=1)]
    if "p99" in q and middle is not None:
        x0, x1 = axis.at(middle), axis.at(q["p99"])
        parts.append(tag("rect", x=x0, y=y - 3, width=x1 - x0, height=6, fill="currentColor", opacity=0.45))
    for name in ("p95", "p99", "p99.9", "low", "high"):
        if name in q:
            x = axis.at(q[name])
            parts.append(
                tag("line", x1=x, x2=x, y1=y - 5, y2=y + 5, stroke="currentColor", class_=f"q-{name}")
            )
    if middle is not None:
        parts.append(tag("circle", cx=axis.at(middle), cy=float(y), r=4, fill="currentColor", class_="q-p50"))
    return tip(note) + "".join(parts)


def stack_plot(
    rows: Sequence[tuple[str, Mapping[str, float], str]],
    unit: str,
    title: str,
    stages: Sequence[str],
    most: float,
) -> str:
    """A bar per case, whose parts follow each other from left to right.

    Args:
        rows: (name, part -> value, label at the right).
        stages: all parts, in the order of their colors.
        most: the longest bar that the axis has to hold.
    """
    axis, row, top = scale([0, most], 12.0, WIDTH - 12.0), 33, 8.0
    bottom = top + row * len(rows) + 2
    body = [axis_x(axis, bottom, top, unit)]
    for k, (name, parts, label) in enumerate(rows):
        y, begun = top + row * k, 0.0
        body.append(words(12, y + 11, shortened(name, int((WIDTH - 30) / LETTER) - len(label)), "halo"))
        body.append(words(WIDTH - 12, y + 11, label, "halo", "end"))
        for stage, value in parts.items():
            x0, x1 = axis.at(begun), axis.at(begun + value)
            begun += value
            note = tip(f"{name}: {stage} {number(value)} {unit}")
            bar = tag(
                "rect", note, x=x0, y=y + 15, width=x1 - x0, height=13, fill="currentColor", opacity=0.8
            )
            body.append(tag("g", bar, class_=f"stage {color_class(stages.index(stage))}"))
    below, end = legend([(stage, k) for k, stage in enumerate(stages)], bottom + 34, WIDTH)
    return picture(title, WIDTH, end, "".join(body) + below)
