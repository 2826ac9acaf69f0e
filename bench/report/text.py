"""Numbers and names as a reader sees them: one function each, so that a table and a picture agree.

>>> number(0.12345), number(41.16), number(2111.5)
('0.123', '41.2', '2,112')
"""

from __future__ import annotations

import html
import math
import re

_CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")
_DIRECTION = re.compile("[\u200e\u200f\u202a-\u202e\u2066-\u2069]")


def number(value: float | None) -> str:
    """Three significant digits, from 100 on whole numbers; "" for None, "nan" and "inf" as they are."""
    if value is None:
        return ""
    if not math.isfinite(value):
        return str(float(value))
    if value == 0:
        return "0"
    if abs(value) >= 1e7:
        return f"{value:.2e}"
    if abs(value) >= 99.95:
        return f"{value:,.0f}"
    if abs(value) < 1e-3:
        return f"{value:.1e}"
    digits = 2 - math.floor(math.log10(abs(value)))
    text = f"{round(value, digits):.{digits}f}"
    return f"{value:.{digits - 1}f}" if len(text.lstrip("-0.").replace(".", "")) > 3 else text


def whole(value: float) -> str:
    """A count or another whole number as such, everything else as `number`."""
    return (
        f"{value:,.0f}"
        if math.isfinite(value) and value == int(value) and abs(value) < 1e12
        else number(value)
    )


def clean(value: object) -> str:
    """A text on one line: no control characters, nothing that turns the direction of writing."""
    return " ".join(_DIRECTION.sub("", _CONTROL.sub("\ufffd", str(value))).split())


def escaped(value: object) -> str:
    """A text that came with a row, safe in HTML, in SVG and inside their attributes."""
    return html.escape(clean(value), quote=True)


def in_markdown(value: object) -> str:
    """A text that came with a row, in a line or a cell of Markdown: it opens no tag, no cell and no code."""
    return clean(value).replace("<", "&lt;").replace("|", "\\|").replace("`", "'")


def shortened(value: object, letters: int) -> str:
    """The text, or its beginning and an ellipsis, in at most so many letters; not escaped."""
    text = clean(value)
    return text if len(text) <= letters else text[: letters - 1].rstrip() + "…"
