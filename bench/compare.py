"""Is it slower than before? Rows of two runs, paired by name, with an interval for each ratio.

    streamvos bench compare old.jsonl new.jsonl        # exit code 1 if something got slower

A change counts where the whole interval (`bootstrap`) lies beyond the tolerance: two runs of one program on
one machine differ by a few percent however often each repeats itself.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import typer

from streamvos.cli.options import JsonTarget, examples
from streamvos.cli.output import report_error, show
from streamvos.types import InputError

from .report.summary import was_busy
from .report.text import clean, number
from .results import CaseResult, read

EXAMPLES = examples(
    "streamvos bench compare old.jsonl new.jsonl",
    "streamvos bench compare old.jsonl new.jsonl --tolerance 0.1 --json changes.json",
)

TOLERANCE = 0.05
TURNS = 3
"""With fewer turns a run does not know its own noise."""

FRAMES = 100
"""A p99 of fewer frames is their maximum, which is not compared."""

MORE_IS_BETTER = ("frames/s", "fps", "streams", "percent", "%", "GB/s", "GFLOP/s", "TFLOP/s")
"""Units whose larger values are better; for all others, smaller ones are."""

VOLATILE = ("load", "other_cores", "clock", "commit", "streamvos")
"""Facts with these words in their names differ from run to run, or their change is what is asked about."""


@dataclass(frozen=True)
class Change:
    """What happened to one figure of one case.

    Args:
        name: the case.
        verdict: "slower", "faster", "same", "unclear" (beyond the tolerance, but not its interval),
            "fails now", "works now", "fails", "missing", "new", or
            "not judged".
        quantity: "p50" or "p99"; "" for verdicts about a whole case.
        ratio: new over old; below 1 is an improvement unless the unit is one of `MORE_IS_BETTER`.
        low, high: the interval that holds the ratio (`bootstrap.CONFIDENCE`).
        note: why, where there is no ratio.
    """

    name: str
    verdict: str
    quantity: str = ""
    unit: str = ""
    old: float | None = None
    new: float | None = None
    ratio: float | None = None
    low: float | None = None
    high: float | None = None
    note: str = ""

    @property
    def is_regression(self) -> bool:
        return self.verdict in ("slower", "fails now")


def compare(
    old: Sequence[CaseResult], new: Sequence[CaseResult], tolerance: float = TOLERANCE, seed: int = 0
) -> list[Change]:
    """All changes, in the order of the new rows; cases that are missing come last.

    Args:
        tolerance: a ratio within 1 / (1 + tolerance) and 1 + tolerance is no change.
        seed: of the bootstrap; a case's draws do not depend on the other cases.

    Raises:
        InputError: two rows of a run have the same name, or no name is in both runs.
    """
    before, after = _by_name(old, "old"), _by_name(new, "new")
    if not before.keys() & after.keys():
        raise InputError(
            f"the runs have no case in common: the first of the old is {clean(old[0].name)!r}, of the new "
            f"{clean(new[0].name)!r}; expected two runs of the same command"
        )
    changes: list[Change] = []
    for name, row in after.items():
        changes += _case(before[name], row, tolerance, seed) if name in before else [Change(name, "new")]
    return changes + [Change(name, "missing") for name in before if name not in after]


def _by_name(rows: Sequence[CaseResult], which: str) -> dict[str, CaseResult]:
    named: dict[str, CaseResult] = {}
    for row in rows:
        if row.name in named:
            raise InputError(f"two rows of the {which} run are named {clean(row.name)!r}; expected one run")
        named[row.name] = row
    return named


def _case(old: CaseResult, new: CaseResult, tolerance: float, seed: int) -> Iterator[Change]:
    if new.failed is not None or old.failed is not None:
        verdict = "fails now" if old.failed is None else "works now" if new.failed is None else "fails"
        yield Change(new.name, verdict, note=clean(new.failed or old.failed))
        return
    if old.unit != new.unit:
        yield Change(new.name, "not judged", note=f"the unit was {clean(old.unit)}, is {clean(new.unit)}")
        return
    fewest = min(len(old.repetitions), len(new.repetitions))
    if fewest < TURNS:
        yield Change(new.name, "not judged", note=f"{fewest} turns; expected at least {TURNS} in both runs")
        return
    if not min(*old.repetitions, *new.repetitions) > 0:
        yield Change(new.name, "not judged", note="a median is 0")
        return
    from .bootstrap import ratio_intervals  # NumPy

    intervals = ratio_intervals(old, new, seed)
    values = [statistics.median(row.repetitions) for row in (old, new)]
    yield _judged(new, "p50", values, intervals["p50"], tolerance)
    tails = [row.quantiles["p99"] for row in (old, new)]
    if min(old.count, new.count) >= FRAMES and min(tails) > 0:
        yield _judged(new, "p99", tails, intervals["p99"], tolerance)


def _judged(
    row: CaseResult, quantity: str, values: Sequence[float], interval: tuple[float, float], tolerance: float
) -> Change:
    more, less = interval[0] > 1 + tolerance, interval[1] < 1 / (1 + tolerance)
    if row.unit in MORE_IS_BETTER:
        more, less = less, more
    old, new = values
    within = 1 / (1 + tolerance) <= new / old <= 1 + tolerance
    verdict = "slower" if more else "faster" if less else "same" if within else "unclear"
    return Change(row.name, verdict, quantity, row.unit, old, new, new / old, *interval)


def differences(old: CaseResult, new: CaseResult) -> list[str]:
    """What else changed between two runs, a line each: machine, versions, settings of a case."""
    lines = []
    for what, one, other in (
        ("machine", old.machine, new.machine),
        ("versions", old.versions, new.versions),
        ("case", old.case.model_dump(exclude_none=True), new.case.model_dump(exclude_none=True)),
    ):
        if not one or not other or (what == "case" and (old.failed or new.failed)):
            continue
        parts = [
            f"{clean(key)} {clean(one.get(key))} -> {clean(other.get(key))}"
            for key in dict.fromkeys((*one, *other))
            if one.get(key) != other.get(key) and not any(word in key for word in VOLATILE)
        ]
        if parts:
            lines.append(f"{what}: " + ", ".join(parts))
    return lines


def warnings(old: Sequence[CaseResult], new: Sequence[CaseResult], changes: Sequence[Change]) -> list[str]:
    """What a reader has to know before believing the verdicts."""
    lines: dict[str, None] = {}
    earlier = {row.name: row for row in old}
    for row in new:
        if row.name in earlier:
            for line in differences(earlier[row.name], row):
                of = f" of {clean(row.name)}" if line.startswith("case") else ""
                lines[f"different {line}{of}"] = None
    for which, rows in (("old", old), ("new", new)):
        busy = sum(map(was_busy, rows))
        if busy:
            lines[f"the machine was busy during {busy} of {len(rows)} cases of the {which} run"] = None
    ratios = [one.ratio for one in changes if one.quantity == "p50" and one.ratio]
    shift = statistics.median(ratios) if ratios else 1.0
    if len(ratios) >= 4 and not 1 / (1 + TOLERANCE) <= shift <= 1 + TOLERANCE:
        alike = sum(abs(one / shift - 1) <= TOLERANCE for one in ratios)
        if alike >= 0.8 * len(ratios):
            lines[
                f"{alike} of {len(ratios)} cases changed alike, by {shift:.2f}x: the machine may have "
                "changed rather than the program; measure both again, in turns"
            ] = None
    return list(lines)


ORDER = (
    "slower",
    "fails now",
    "faster",
    "works now",
    "not judged",
    "fails",
    "missing",
    "new",
    "unclear",
    "same",
)


def table(changes: Sequence[Change]) -> str:
    """What a terminal shows: the worst first."""
    head = ("case", "", "old", "new", "", "new / old", "interval", "")
    rows = [head]
    for one in sorted(changes, key=lambda change: ORDER.index(change.verdict)):
        mark = "  <--" if one.is_regression else ""
        interval = "" if one.low is None else f"{one.low:.3f} to {one.high:.3f}"
        ratio = "" if one.ratio is None else f"{one.ratio:.3f}x"
        values = (number(one.old), number(one.new), clean(one.unit))
        verdict = one.verdict + (f": {one.note}" if one.note else "") + mark
        rows.append((clean(one.name), one.quantity, *values, ratio, interval, verdict))
    wide = [max(len(row[k]) for row in rows) for k in range(len(head))]
    right: Mapping[int, Callable[[str, int], str]] = dict.fromkeys((2, 3, 5, 6), str.rjust)
    return "\n".join(
        "  ".join(right.get(k, str.ljust)(cell, wide[k]) for k, cell in enumerate(row)).rstrip()
        for row in rows
    )


def command(
    old: Annotated[Path, typer.Argument(metavar="OLD", help="JSON lines of the earlier run.")],
    new: Annotated[Path, typer.Argument(metavar="NEW", help="JSON lines of the later run.")],
    tolerance: Annotated[
        float, typer.Option(metavar="X", help="Ratios up to 1 + X are no regression.")
    ] = TOLERANCE,
    seed: Annotated[int, typer.Option(min=0, metavar="N", help="Of the intervals' random draws.")] = 0,
    json_target: JsonTarget = None,
) -> None:
    """Is it slower than before? Exit code 1 if a case is slower beyond noise, or fails now.

    Cases are paired by name. The interval of each ratio, new over old, comes from the turns (p50) and the
    histograms (p99) of both runs. A ratio counts where its whole interval is beyond the tolerance.
    """
    if not 0 <= tolerance < math.inf:
        raise InputError(f"the tolerance is {tolerance}; expected 0 or more, such as 0.05 for five percent")
    before, after = read(old), read(new)
    changes = compare(before, after, tolerance, seed)
    for line in warnings(before, after, changes):
        report_error(line, "warning")
    worse = len({one.name for one in changes if one.is_regression})
    better = len({one.name for one in changes if one.verdict in ("faster", "works now")})
    judged = len({one.name for one in changes if one.verdict not in ("missing", "new", "not judged")})
    last = f"{judged} cases compared: {worse} worse, {better} better, beyond noise and {tolerance:.0%}"
    runs = {"old": about(before), "new": about(after)}
    values = {**runs, "changes": [asdict(one) for one in changes]}
    lines = [f"{which}: {text}" for which, text in runs.items()]
    show(values, json_target, *lines, "", table(changes), "", last)
    if all(one.verdict in ("not judged", "missing", "new", "fails") for one in changes):
        reason = next((one.note for one in changes if one.note), "none is in both runs")
        raise InputError(f"no case can be judged: {reason}; measure again with more turns")
    if worse:
        raise typer.Exit(1)


def about(rows: Sequence[CaseResult]) -> str:
    """When and of which commit a run is, as far as its rows tell."""
    last = rows[-1]
    commit = last.versions.get("commit")
    parts = [last.time, f"commit {commit}" if commit else "", f"{len(rows)} cases", last.command]
    return ", ".join(clean(one) for one in parts if one)
