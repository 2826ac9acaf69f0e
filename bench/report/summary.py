"""What one would say of a run: two sentences, and the lines with which a machine is sized."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..machine import BUSY
from ..results import CaseResult
from .text import clean, number, whole


def sentences(rows: Sequence[CaseResult]) -> list[str]:
    """Two sentences: the figures, and how far they can be relied upon."""
    timed = [row for row in rows if row.quantiles and row.unit == "ms" and not row.scores]
    running = [row for row in rows if row.case.fps is not None and "J&F streaming" in row.scores]
    first = _times(timed) if timed else _streaming(running) if running else _others(rows)
    return [first, _reliability(rows)]


def sizing_lines(rows: Sequence[CaseResult]) -> list[str]:
    """What `bench capacity` found, in its own words."""
    return [clean(row.details["sizing"]) for row in rows if isinstance(row.details.get("sizing"), str)]


def place(row: CaseResult) -> str:
    """The machine in a few words."""
    told: dict[str, Any] = row.machine
    cores = f"{clean(told['cores'])} cores" if told.get("cores") else ""
    torch = f"torch {clean(row.versions['torch'])}" if row.versions.get("torch") else ""
    inside = ", ".join(filter(None, (cores if not told.get("gpu") else "", torch)))
    name = clean(told.get("gpu") or told.get("cpu") or "this machine")
    return name + (f" ({inside})" if inside else "")


def was_busy(row: CaseResult) -> bool:
    """Whether other programs took a part of the machine that makes figures doubtful."""
    others, cores = row.machine.get("other_cores"), row.machine.get("cores")
    known = isinstance(others, (int, float)) and isinstance(cores, (int, float))
    return known and others > BUSY * cores  # type: ignore[operator]


def _times(rows: Sequence[CaseResult]) -> str:
    def value(row: CaseResult) -> float:
        return row.quantiles["p50"]

    fast, slow = min(rows, key=value), max(rows, key=value)
    text = f"On {place(fast)}, {clean(fast.name)} takes {_tail(fast)}"
    if fast is slow:
        return text + f" ({whole(fast.count)} frames)."
    return text + f", and {clean(slow.name)}, the slowest of {len(rows)} cases, {_tail(slow)}."


def _tail(row: CaseResult) -> str:
    """Median and p99, or the maximum where there are too few frames for that."""
    q = row.quantiles
    if row.count < 100:
        return f"{number(q['p50'])} ms in the median and {number(q['max'])} ms at most"
    return f"{number(q['p50'])} ms in the median and {number(q['p99'])} ms at p99"


def _streaming(rows: Sequence[CaseResult]) -> str:
    """The best case at each rate."""
    parts = []
    for rate in sorted({row.case.fps or 0.0 for row in rows}):
        best = max((row for row in rows if row.case.fps == rate), key=lambda row: row.scores["J&F streaming"])
        parts.append(
            f"{number(best.scores['J&F streaming'])} at {whole(rate)} frames/s ({clean(best.case.method)}, "
            f"{whole(best.case.height or 0)} rows)"
        )
    return f"On {place(rows[0])}, the best J&F while time goes on is {', '.join(parts)}."


def _others(rows: Sequence[CaseResult]) -> str:
    """Runs without times: scores, throughput, or nothing."""
    scored = [row for row in rows if row.scores]
    if scored:
        name = next(iter(scored[0].scores))
        best = max(scored, key=lambda row: row.scores.get(name, float("-inf")))
        score = number(best.scores.get(name))
        return f"On {place(best)}, {clean(best.name)} has the best {clean(name)}: {score}."
    fast = [row for row in rows if row.throughput]
    if fast:
        best = max(fast, key=lambda row: row.throughput or 0)
        return f"On {place(best)}, {clean(best.name)} reaches {number(best.throughput)} frames/s."
    return f"No case has figures on {place(rows[0])}."


def _reliability(rows: Sequence[CaseResult]) -> str:
    ranges = [
        max(row.repetitions) / min(row.repetitions) - 1
        for row in rows
        if len(row.repetitions) > 1 and min(row.repetitions) > 0 and not row.scores
    ]
    parts = []
    if ranges and max(ranges) > 0.5:
        parts.append(f"medians of a case's turns differ by up to a factor of {number(1 + max(ranges))}")
    elif ranges:
        parts.append(
            f"medians of interleaved turns lie within {100 * max(ranges):.0f} % of each other in every case"
        )
    peaks = [row.memory_mib.peak for row in rows if row.memory_mib]
    if peaks:
        low, high = number(min(peaks)), number(max(peaks))
        parts.append(f"memory peaks at {low} MiB" if low == high else f"memory peaks at {low} to {high} MiB")
    failed = sum(row.failed is not None for row in rows)
    if failed or not parts:
        parts.append(f"{failed} of {len(rows)} cases failed" if failed else "every case was measured once")
    text = "; ".join(parts)
    return text[0].upper() + text[1:] + "."
