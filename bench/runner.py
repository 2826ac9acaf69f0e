"""How every command measures: cases in turns, rows that are kept whatever ends the run, one table.

    with Run("latency", json_target, seconds=40) as run:
        take_turns(run, [Case("tvos", settings, "latency_work", begin)], turns=5, seconds=10)

A run says first how long it will take, and at its end prints the table of the rows that are done, also after
Ctrl-C, and a warning where the machine was busy.
"""

from __future__ import annotations

import statistics
import sys
import threading
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from types import TracebackType
from typing import Any

from streamvos.cli.output import STANDARD_OUTPUT, remark, report_error, write_output
from streamvos.cli.signals import Stopped

from . import machine
from .report import write_page
from .results import CaseResult, Histogram, Memory, Ratio, Settings, Writer, measured
from .table import print_table
from .worker import OUT_OF_TIME, JobError, Worker

START_SECONDS = 8.0
"""What a case takes besides its measured seconds on two cores: a process with torch, weights, warm-up."""

LONGEST_START = 300.0
"""Seconds after which a case that has not begun hangs."""


LONGEST_TURN = 120.0
"""Seconds beyond its own after which a turn hangs; it ends with the frame during which its time is over."""


class Run:
    """One run of one command: its rows, in the file and in the table.

    Args:
        bench: the command's name.
        json_target: the value of --json: None, a file for JSON lines, or "-" for the standard output, which
            then holds nothing else.
        seconds: how long all of it will take, which is said before it begins; None says nothing.
        device: of the networks.
        columns: of the table; None = those of latencies.
        html: the value of --html: where the page of the run is written at its end.
    """

    def __init__(
        self,
        bench: str,
        json_target: str | None,
        seconds: float | None = None,
        device: str = "cpu",
        columns: Sequence[str] | None = None,
        html: Path | None = None,
    ) -> None:
        self.bench, self.device, self._columns = bench, device, columns
        self.rows: list[CaseResult] = []
        self._print_lines = json_target == STANDARD_OUTPUT
        self._writer = Writer(None if self._print_lines else json_target)
        self._seconds, self._html = seconds, html
        self._lock = threading.Lock()

    def __enter__(self) -> Run:
        if self._seconds is not None:
            remark(f"bench {self.bench}: about {for_people(self._seconds)}; Ctrl-C keeps what is done")
        self.load = machine.Load()
        return self

    def add(self, row: CaseResult) -> None:
        """Record a row, now; it gets the machine, the versions, the time and the command. From any thread.

        Raises:
            SinkError: it cannot be written.
        """
        row.machine = machine.describe(self.device) | self.load.told() | row.machine
        row.versions = machine.versions() | row.versions
        row.time = row.time or datetime.now(timezone.utc).isoformat(timespec="seconds")
        row.command = row.command or " ".join(["streamvos", "bench", *_arguments()])
        with self._lock:
            self.rows.append(row)
            self._writer.write(row)
            if self._print_lines:
                write_output(row.to_json() + "\n")

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._writer.close()
        if isinstance(error, Stopped):
            error.note = f"{len(self.rows)} rows are done"
        warning = self.load.warning()
        readable = not isinstance(error, Stopped) or error.exit_code != 141  # somebody still reads
        if self.rows and not self._print_lines and readable:
            print_table(self.rows, self._columns)
        if self.rows and self._html is not None:
            write_page(self._html, self.rows)
        if self.rows and warning is not None:
            report_error(warning, "warning")


@dataclass
class Case:
    """A case that a process of its own measures in turns.

    Attributes:
        name: unique within the run.
        settings: what is measured.
        module: whose `JOBS` are "begin", "turn" and "end".
        begin: arguments of "begin", which answers with {"first_frame_ms", "threads", ...} or anything else
            that belongs into the row's details.
        environment: variables of the process.
    """

    name: str
    settings: Settings
    module: str
    begin: dict[str, Any]
    environment: Mapping[str, str] = field(default_factory=dict)


@dataclass
class _Progress:
    """What is known of a case so far."""

    case: Case
    worker: Worker
    began: dict[str, Any] = field(default_factory=dict)
    ended: dict[str, Any] = field(default_factory=dict)
    turns: list[list[float]] = field(default_factory=list)
    stages: dict[str, Histogram] = field(default_factory=lambda: defaultdict(Histogram))
    samples: list[tuple[float, float]] = field(default_factory=list)
    failed: str | None = None


def take_turns(run: Run, bench: str, cases: Sequence[Case], turns: int, seconds: float) -> None:
    """Measure cases of one group in turns (A B C A B C ...), and add a row for each.

    Drift of the machine meets all of them alike. Ratios are to the first case that has figures, turn by turn.
    A case that fails or hangs costs only itself. When this is interrupted, what was measured so far counts.

    Args:
        run: gets the rows.
        bench: the name for the rows.
        cases: all of them are alive at the same time; each in a process of its own.
        turns: how often each is measured.
        seconds: for which each is measured, in all turns together.
    """
    group = [_Progress(case, Worker(case.module, case.environment)) for case in cases]
    limit = 3 * seconds / turns + LONGEST_TURN
    try:
        for one in group:
            one.began = _ask(one, "begin", one.case.begin, LONGEST_START) or {}
        for _ in range(turns):
            for one in group:
                if one.failed is None:
                    _add_turn(one, _ask(one, "turn", {"seconds": seconds / turns}, limit))
        for one in group:
            if one.failed is None:
                one.ended = _ask(one, "end", {}, LONGEST_START) or {}
    finally:
        for one in group:
            one.worker.close()
        first = next((one for one in group if one.turns), None)
        for one in group:
            if one.turns or one.failed:
                run.add(_row(bench, one, first))


def _ask(one: _Progress, job: str, given: Mapping[str, Any], seconds: float) -> Any:
    try:
        return one.worker.ask(job, given, seconds)
    except JobError as error:
        hung = str(error) == OUT_OF_TIME
        one.failed = f"it took more than {seconds:.0f} seconds ({job})" if hung else str(error)
        return None


def _add_turn(one: _Progress, answer: Mapping[str, Any] | None) -> None:
    """{"values": [ms of every frame], "stages": {name: [ms]}, "samples": [[seconds, MiB]]}."""
    if answer is None or not answer["values"]:
        return
    one.turns.append(answer["values"])
    for name, values in answer.get("stages", {}).items():
        for value in values:
            one.stages[name].add(value)
    one.samples += [(round(at, 2), round(mib, 1)) for at, mib in answer.get("samples", [])]


def _row(bench: str, one: _Progress, first: _Progress | None) -> CaseResult:
    case, told = one.case, {**one.began, **one.ended}
    threads, first_frame = told.pop("threads", None), told.pop("first_frame_ms", None)
    peak, state = told.pop("peak_mib", None), told.pop("state_mib", None)
    settings = case.settings.model_copy(update={"threads": threads} if threads else {})
    row = CaseResult(bench=bench, name=case.name, case=settings, failed=one.failed, details=told)
    if not one.turns:
        return row
    figures = measured(value for values in one.turns for value in values)
    for name, value in figures.items():
        setattr(row, name, value)
    row.repetitions = [statistics.median(values) for values in one.turns]
    row.throughput = 1e3 / row.mean if row.mean else None
    row.first_frame_ms = first_frame
    row.stages = {
        name: {"p50": values.quantile(0.5), "p99": values.quantile(0.99)}
        for name, values in one.stages.items()
    }
    if peak is not None:
        row.memory_mib = Memory(peak=peak, state=state, samples=thinned(one.samples))
    if first is not None and first is not one:
        others = [statistics.median(values) for values in first.turns]
        row.ratio = ratio_of(first.case.name, row.repetitions, others)
    return row


def ratio_of(name: str, own: Sequence[float], others: Sequence[float]) -> Ratio | None:
    """How many times another case's figures ours are, compared turn by turn."""
    ratios = [a / b for a, b in zip(own, others, strict=False) if b > 0]
    if not ratios:
        return None
    return Ratio(to=name, median=statistics.median(ratios), low=min(ratios), high=max(ratios))


def thinned(samples: Sequence[Any], most: int = 60) -> list[Any]:
    """At most so many of them, evenly, the last one included."""
    if len(samples) <= most:
        return list(samples)
    return [samples[round(k * (len(samples) - 1) / (most - 1))] for k in range(most)]


def for_people(seconds: float) -> str:
    """A duration: "40 seconds", "6 minutes"."""
    return f"{seconds:.0f} seconds" if seconds < 100 else f"{seconds / 60:.0f} minutes"


def _arguments() -> list[str]:
    """Of the command as it was given, without what stands before `bench`."""
    given = sys.argv[1:]
    return given[given.index("bench") + 1 :] if "bench" in given else given
