"""Which rows belong together: cases that differ in one setting alone are a line of a plot.

for panel in panels(rows, "objects", lambda row: row.quantiles.get("p50")):
    print(panel.title, [(line.name, line.points) for line in panel.lines])
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..results import CaseResult
from .text import clean, whole

SAME_FRAMES = ("height", "width")
MAKERS = ("method", "weights", "backend", "precision")
"""Settings that tell lines of one panel apart; other settings divide panels."""


@dataclass
class Line:
    """The rows of one method, in the order of the setting that varies: (setting, value, row)."""

    name: str
    points: list[tuple[float, float, CaseResult]] = field(default_factory=list)


@dataclass
class Panel:
    """Lines that may be compared: only the method and how it runs differ."""

    title: str
    lines: list[Line]


def settings_of(row: CaseResult) -> dict[str, Any]:
    """What was measured, as far as it is said, in the order of the format."""
    return {key: value for key, value in row.case.model_dump().items() if value is not None}


def in_words(key: str, value: Any) -> str:
    """A setting as a reader says it: "480p", "3 objects", "bundled weights"."""
    text = whole(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else clean(value)
    match key:
        case "method" | "backend" | "placement" | "device" | "precision":
            return text
        case "height":
            return f"{text}p"
        case "objects" | "streams" | "threads":
            return f"{text} {key if value != 1 else key.removesuffix('s')}"
        case "fps":
            return f"{text} frames/s"
        case "weights":
            return f"{text} weights"
        case _:
            return f"{clean(key)} {text}"


def panels(
    rows: Sequence[CaseResult], varied: str, value: Callable[[CaseResult], float | None]
) -> list[Panel]:
    """Panels in which at least one line has two points or more, in the order of the rows.

    Args:
        varied: the setting along the x axis: "objects", "height", "streams", "fps", or one of a bench's own.
        value: what is drawn; rows without it are left out.
    """
    ignored = {varied, *(SAME_FRAMES if varied == "height" else ())}
    found: dict[Hashable, dict[Hashable, list[tuple[float, float, CaseResult]]]] = {}
    names: dict[Hashable, dict[str, Any]] = {}
    for row in rows:
        own, y = settings_of(row), value(row)
        x = own.get(varied)
        if y is None or isinstance(x, bool) or not isinstance(x, (int, float)):
            continue
        kept = {key: one for key, one in own.items() if key not in ignored}
        line = {key: one for key, one in kept.items() if key in MAKERS}
        panel = {key: one for key, one in kept.items() if key not in MAKERS}
        keys = (row.bench, *_hashable(panel)), _hashable(line)
        names[keys[0]], names[keys[1]] = panel, line
        found.setdefault(keys[0], {}).setdefault(keys[1], []).append((float(x), y, row))
    kept_panels = {
        key: lines
        for key, lines in found.items()
        if any(len({p[0] for p in own}) > 1 for own in lines.values())
    }
    titles = _told_apart([names[key] for key in kept_panels])
    answer = []
    for title, lines in zip(titles, kept_panels.values(), strict=True):
        labels = _told_apart([names[key] for key in lines])
        drawn = [
            Line(label or "all", sorted(points, key=lambda point: point[:2]))
            for label, points in zip(labels, lines.values(), strict=True)
        ]
        answer.append(Panel(title, drawn))
    return answer


def _hashable(settings: dict[str, Any]) -> tuple[tuple[str, str], ...]:
    return tuple((key, repr(value)) for key, value in settings.items())


def _told_apart(several: Sequence[dict[str, Any]]) -> list[str]:
    """A label for each: the settings in which they differ, and always the method."""
    differ = [
        key
        for key in dict.fromkeys(key for one in several for key in one)
        if key == "method" or len({repr(one.get(key)) for one in several}) > 1
    ]
    if "height" in differ and "width" in differ:
        differ.remove("width")
    return [", ".join(in_words(key, one[key]) for key in differ if key in one) for one in several]
