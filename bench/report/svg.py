"""What plots are drawn with: scales, axes, marks, words and colors, as small SVG texts without a library.

Colors are classes (s0 .. s7), which a page or `standalone` defines for light and dark; series also differ by
the shape of their marks, so that a print in gray can be read.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from .text import escaped, shortened, whole

WIDTH, HEIGHT = 340, 230
COLORS = 8
LETTER = 6.0
"""Width of a letter of 11 pixels in a common sans-serif, for what has to fit."""

LIGHT = ("#1f6fb4", "#c94f0c", "#17805a", "#a3459b", "#9a7400", "#5b5fc7", "#626b78", "#c2334d")
DARK = ("#6bb1f0", "#ff9a5c", "#5fd3a2", "#e08bd6", "#e6c04a", "#a5a8ff", "#a8b0bd", "#ff8096")


def style(ink: str, quiet: str, grid: str, colors: Sequence[str]) -> str:
    """The variables that plots are drawn with."""
    named = "".join(f"--s{k}:{color};" for k, color in enumerate(colors))
    return f"--ink:{ink};--quiet:{quiet};--grid:{grid};{named}"


LIGHT_STYLE = style("#1b1f24", "#5a6472", "#e3e7ec", LIGHT)
DARK_STYLE = style("#e8ebef", "#a3adba", "#333b45", DARK)
RULES = (
    "svg.plot{font:11px system-ui,-apple-system,'Segoe UI',Roboto,sans-serif}"
    ".plot text{fill:var(--ink)}.plot .quiet{fill:var(--quiet)}"
    ".plot .halo{paint-order:stroke;stroke-width:3px;stroke:var(--paper,transparent)}"
    ".plot .grid{stroke:var(--grid)}.plot .axis{stroke:var(--quiet)}"
    + "".join(f".plot .s{k}{{color:var(--s{k})}}" for k in range(COLORS))
)


def standalone(plot: str) -> str:
    """A plot as a file of its own, light or dark as its reader likes."""
    rules = f":root{{{LIGHT_STYLE}}}@media(prefers-color-scheme:dark){{:root{{{DARK_STYLE}}}}}{RULES}"
    head, _, rest = plot.partition(">")
    return f'{head} xmlns="http://www.w3.org/2000/svg"><style>{rules}</style>{rest}\n'


def side_by_side(plots: Sequence[str], title: str, columns: int = 2) -> str:
    """Several plots in one picture, in lines of so many."""
    sizes = [tuple(map(float, re.findall(r'viewBox="0 0 (\S+) (\S+)"', plot)[0])) for plot in plots]
    parts, y = [], 0.0
    for k in range(0, len(plots), columns):
        for column, plot in enumerate(plots[k : k + columns]):
            parts.append(plot.replace("<svg ", f'<svg x="{column * (WIDTH + 16):g}" y="{y:g}" ', 1))
        y += max(height for _, height in sizes[k : k + columns]) + 14
    return picture(title, WIDTH + (WIDTH + 16) * (min(columns, len(plots)) - 1), y, "".join(parts))


@dataclass(frozen=True)
class Scale:
    """From values to pixels, linear or logarithmic.

    Args:
        low, high: the smallest and the largest value; a logarithmic scale needs low > 0.
        start, stop: their places in pixels.
    """

    low: float
    high: float
    start: float
    stop: float
    log: bool = False

    def at(self, value: float) -> float:
        """The place of a value, clipped to the axis."""
        value = min(max(value, self.low), self.high)
        low, high = (math.log(self.low), math.log(self.high)) if self.log else (self.low, self.high)
        part = ((math.log(value) if self.log else value) - low) / (high - low)
        return self.start + part * (self.stop - self.start)

    def ticks(self, most: int = 6) -> list[float]:
        """Round values between low and high."""
        if self.log:
            powers = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
            for steps in ((1, 2, 5), (1, 3), (1,)):
                marks = [step * 10.0**power for power in powers for step in steps]
                marks = [mark for mark in marks if self.low <= mark <= self.high]
                if len(marks) <= most + 1:
                    break
            if len(marks) > 2:
                return marks[:: math.ceil(len(marks) / (most + 1))]
        raw = (self.high - self.low) / most
        power = 10.0 ** math.floor(math.log10(raw))
        step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= raw * 0.999)
        first = math.ceil(self.low / step - 1e-9)
        return [k * step for k in range(first, math.floor(self.high / step + 1e-9) + 1)]


def scale(values: Sequence[float], start: float, stop: float, log: bool = False, zero: bool = True) -> Scale:
    """A scale that holds all values with some room; a linear one begins at 0 if `zero`."""
    low, high = min(values), max(values)
    if log and low > 1e-300:  # below, quotients lose their digits
        low, high = low / 1.08, high * 1.08
        while high / low < 2:
            low, high = low / 1.2, high * 1.2
        return Scale(low, high, start, stop, True)
    if zero:
        low, high = min(low, 0.0), max(high, 0.0)
    room = (high - low) * 0.06 or max(abs(high), 1.0) * 0.5
    return Scale(low if zero and low == 0 else low - room, high + room, start, stop)


def spread(values: Sequence[float], factor: float = 20) -> bool:
    """Whether values differ so much that only a logarithmic scale shows all of them."""
    return bool(values) and min(values) > 0 and max(values) > factor * min(values)


def tag(name: str, content: str = "", **attributes: object) -> str:
    """One element; attributes are escaped, content is SVG already. `class_` is class, _ becomes -."""
    given = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{_short(value)}"' for key, value in attributes.items()
    )
    return f"<{name}{given}>{content}</{name}>" if content else f"<{name}{given}/>"


def _short(value: object) -> str:
    return f"{value:.1f}".removesuffix(".0") if isinstance(value, float) else escaped(value)


def words(x: float, y: float, text: object, kind: str = "", anchor: str = "start") -> str:
    """A text at a place; it is escaped here."""
    extra = {"class_": kind} if kind else {}
    return tag("text", escaped(text), x=float(x), y=float(y), text_anchor=anchor, **extra)


def tip(text: str) -> str:
    """A tooltip, for the content of a mark."""
    return f"<title>{escaped(text)}</title>"


def picture(title: str, width: float, height: float, body: str) -> str:
    """The outer element, with a name for those who cannot see it."""
    return tag(
        "svg", body, class_="plot", viewBox=f"0 0 {width:g} {height:g}", width=f"{width:g}",
        height=f"{height:g}", role="img", aria_label=title,
    )  # fmt: skip


def marker(x: float, y: float, index: int, note: str) -> str:
    """A circle, a square, a diamond or a triangle: the index decides."""
    shapes: list[Callable[[], str]] = [
        lambda: tag("circle", tip(note), cx=x, cy=y, r=3.2, fill="currentColor"),
        lambda: tag("path", tip(note), d=f"M{x - 3:.1f} {y - 3:.1f}h6v6h-6z", fill="currentColor"),
        lambda: tag("path", tip(note), d=f"M{x:.1f} {y - 4:.1f}l4 4-4 4-4-4z", fill="currentColor"),
        lambda: tag("path", tip(note), d=f"M{x:.1f} {y - 4:.1f}l4 7h-8z", fill="currentColor"),
    ]
    return shapes[index % len(shapes)]()


def color_class(index: int) -> str:
    """The class of the index-th series."""
    return f"s{index % COLORS}"


def legend(names: Sequence[tuple[str, int]], top: float, width: float, left: float = 8) -> tuple[str, float]:
    """Names with their marks, in as many lines as needed; returns the SVG and where it ends."""
    x, y, parts = left, top + 12, []
    for name, index in names:
        text = shortened(name, int((width - left - 16) / LETTER))
        long = 14 + len(text) * LETTER + 10
        if x > left and x + long > width:
            x, y = left, y + 16
        mark = marker(x + 5, y - 4, index, name)
        parts.append(tag("g", mark + words(x + 13, y, text), class_=color_class(index)))
        x += long
    return "".join(parts), y + 6 if names else top


def axis_x(axis: Scale, y: float, top: float, label: str, values: Sequence[float] | None = None) -> str:
    """Ticks, their lines up to `top`, and what the axis shows; `values` are ticks instead of round ones."""
    parts = []
    for tick in values if values is not None else axis.ticks(5):
        x = axis.at(tick)
        parts.append(tag("line", class_="grid", x1=x, x2=x, y1=float(top), y2=float(y)))
        parts.append(words(x, y + 14, whole(tick), "quiet tick-x", "middle"))
    parts.append(tag("line", class_="axis", x1=axis.start, x2=axis.stop, y1=float(y), y2=float(y)))
    return "".join(parts) + words((axis.start + axis.stop) / 2, y + 29, label, "quiet", "middle")


def axis_y(axis: Scale, x: float, right: float, label: str) -> str:
    """As `axis_x`; the label lies above the axis, where it can be read without turning the head."""
    parts = []
    for tick in axis.ticks(5):
        y = axis.at(tick)
        parts.append(tag("line", class_="grid", x1=float(x), x2=float(right), y1=y, y2=y))
        parts.append(words(x - 5, y + 4, whole(tick), "quiet tick-y", "end"))
    return "".join(parts) + words(4, axis.stop - 9, label, "quiet")
