"""What every stage did when, as a file that Perfetto and chrome://tracing open.

    with TraceWriter("out/trace.json", {"source.front": "source.front", "extractor": "compute"}) as trace:
        trace.frames("front", 1, [[0, captured, {"source": [1, 2, 3], ...}, {}, False]])
        trace.instant("restart", stage="memory.front", reason="signal 9")

The form is the JSON array of Chrome's Trace Event Format: one event a line, times in microseconds of the
monotonic clock. Its closing "]" may be missing, so the file of a process that was killed opens too.

A process row is a worker, a thread row a stage (the extractor has one for each stream). A slice is a stage's
work on a frame; arrows follow the frame; an asynchronous slice goes from glass to mask.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from streamvos.pipeline.telemetry.logs import without_credentials
from streamvos.pipeline.telemetry.statistics import STAGES, FrameReport
from streamvos.sinks.sink import cannot_write

LIMIT = 256 * 2**20
"""Bytes of a trace, at most; about as much as Perfetto's page in a browser opens with ease."""

PIPELINE = 1
"""Number of the process row for what concerns no single worker: frames, and events of the whole."""

Row = tuple[int, int]
"""Numbers of a process row and of a thread row in it."""

_WHOLE: Row = (PIPELINE, 0)
_RESERVE = 4096  # bytes kept for the note that the file is full, and for its end
_LANES = 4  # rows beside each other where a stage works on frames at the same time, as sinks do
_encode = json.JSONEncoder(separators=(",", ":"), allow_nan=False, default=str).encode


class TraceWriter:
    """Writes the trace of one pipeline. After it is open, it never raises.

    Args:
        path: replaced if it exists.
        workers: stage -> its worker; a stage that is not named gets a process row of its own.
        name: of the pipeline.
        limit: bytes; what comes later is counted and left out.
        clock: monotonic nanoseconds.

    Attributes:
        left_out: events for which there was no room, and times that cannot be (of another host's clock).
        failure: why writing ended early; None if it did not.

    Raises:
        SinkError: the file cannot be made.
    """

    def __init__(
        self,
        path: str | Path,
        workers: Mapping[str, str] | None = None,
        name: str = "streamvos",
        limit: int = LIMIT,
        clock: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        self.path, self.left_out = Path(path), 0
        self.failure: str | None = None
        self._limit, self._clock = limit, clock
        self._workers = dict(workers or {})
        self._processes: dict[str, int] = {}
        self._threads: dict[tuple[int, str], int] = {}
        self._ends: dict[tuple[str, str], list[int]] = {}  # (stage, stream) -> end of each lane's last slice
        self._lines: list[bytes] = []  # not written yet
        self._arrows = self._bytes = 0
        self._full = False
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = open(self.path, "wb", buffering=0)  # noqa: SIM115
        except OSError as error:
            raise cannot_write(self.path, error) from None
        self._name("process", _WHOLE, f"pipeline {name}", PIPELINE)
        for worker in dict.fromkeys(self._workers.values()):
            self._process(worker)
        self._write()

    def frames(self, stream: str, incarnation: int, frames: Iterable[Any]) -> None:
        """Draw frames of a stream.

        Args:
            stream: its name.
            incarnation: the number of the stream's incarnation.
            frames: reports as `FrameReport.read` takes them; anything else is counted and left out.
        """
        for raw in frames:
            report = FrameReport.read(raw)
            if report is None or self._full:
                self.left_out += 1
            else:
                self._draw(stream, incarnation, report)
        self._write()

    def instant(
        self,
        name: str,
        stage: str | None = None,
        stream: str | None = None,
        at: int | None = None,
        **more: Any,
    ) -> None:
        """Mark a moment: a restart, an annotation, a new incarnation.

        Args:
            name: what happened.
            stage: on whose row; None = on the pipeline's own.
            stream: of which stream; it is shown among the arguments.
            at: monotonic ns; None = now.
            more: further arguments, shown when the mark is selected.
        """
        row = _WHOLE if stage is None else self._row(stage, stream or "", 0)
        arguments = {"stream": stream, **more} if stream else more
        self._mark(name, self._clock() if at is None else at, row, arguments)
        self._write()

    def close(self) -> None:
        """End the file. Closing twice does no harm."""
        if self._file.closed:
            return
        if self.left_out:
            self._add("i", "left out", self._clock(), _WHOLE, {"left out": self.left_out}, True, s="g")
        self._lines.append(b"\n]\n")
        self._write()
        self._file.close()

    def __enter__(self) -> TraceWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _draw(self, stream: str, incarnation: int, report: FrameReport) -> None:
        captured, written = report.captured, report.times.get("sinks")
        arguments = {"stream": stream, "seq": report.seq, "incarnation": incarnation}
        # a stage on another host has another clock: its work would lie days away from the frame
        spans = [
            (stage, times)
            for stage, times in report.times.items()
            if times[1] >= captured and (written is None or times[2] <= written[2])
        ]
        self.left_out += report.left_out + len(report.times) - len(spans)
        self._arrows += 1
        for number, (stage, (received, started, done)) in enumerate(spans):
            name = stage if stage == "extractor" else f"{stage}.{stream}"
            row = self._row(name, stream, self._lane(name, stream, started, done))
            waited = {"waited ms": (started - received) / 1e6}
            self._add("X", stage, started, row, {**arguments, **waited}, dur=_us(done - started))
            if len(spans) > 1:
                phase = "s" if number == 0 else "f" if number == len(spans) - 1 else "t"
                end: dict[str, Any] = {"bp": "e"} if phase == "f" else {}
                self._add(phase, "frame", started, row, None, cat="flow", id=self._arrows, **end)
        if written is not None and written[0] >= captured:
            life: dict[str, Any] = {
                "cat": f"glass to mask, {stream}",
                "id": f"{stream}/{incarnation}/{report.seq}",
            }
            self._add("b", f"frame {report.seq}", captured, _WHOLE, arguments, **life)
            self._add("e", f"frame {report.seq}", written[0], _WHOLE, None, **life)
        for cause, count in report.dropped.items():
            row = self._row(f"source.{stream}", stream, 0)
            self._mark(f"dropped: {cause}", captured, row, {**arguments, "frames": count})
        if report.recovered:
            self._mark("recovered", captured if written is None else written[0], _WHOLE, arguments)

    def _lane(self, stage: str, stream: str, started: int, done: int) -> int:
        """The row beside others where this slice overlaps none; slices of a row must nest."""
        ends = self._ends.setdefault((stage, stream), [])
        lane = next((lane for lane, end in enumerate(ends) if end <= started), len(ends))
        if lane == _LANES:  # never with stages as they are; drawn over the one that ended first
            lane = ends.index(min(ends))
        ends[lane : lane + 1] = [done]
        return lane

    def _mark(self, name: str, at: int, row: Row, arguments: Mapping[str, Any]) -> None:
        shown = {
            key: value if isinstance(value, (bool, int, type(None))) else without_credentials(str(value))
            for key, value in arguments.items()
        }
        self._add("i", without_credentials(name), at, row, shown, s="g" if row == _WHOLE else "t")

    def _row(self, stage: str, stream: str, lane: int) -> Row:
        """A stage's row, which is named when it is first used."""
        process = self._process(self._workers.get(stage, stage))
        name = f"{stage} {stream}".strip() if stage == "extractor" else stage
        name = f"{name} ({lane + 1})" if lane else name
        if (process, name) not in self._threads:
            thread = self._threads[process, name] = len(self._threads) + 1
            # rows in the order in which a frame passes them, whichever was drawn first
            kind = stage.partition(".")[0]
            self._name(
                "thread", (process, thread), name, STAGES.index(kind) if kind in STAGES else len(STAGES)
            )
        return process, self._threads[process, name]

    def _process(self, worker: str) -> int:
        if worker not in self._processes:
            number = self._processes[worker] = PIPELINE + 1 + len(self._processes)
            self._name("process", (number, 0), worker, number)
        return self._processes[worker]

    def _name(self, kind: str, row: Row, name: str, place: int) -> None:
        self._add("M", f"{kind}_name", 0, row, {"name": name}, reserved=True)
        self._add("M", f"{kind}_sort_index", 0, row, {"sort_index": place}, reserved=True)

    def _add(
        self,
        phase: str,
        name: str,
        at: int,
        row: Row,
        args: Mapping[str, Any] | None,
        reserved: bool = False,
        **more: Any,
    ) -> None:
        """One event, if there is room for it; for a reserved one there is nearly always."""
        event = {"ph": phase, "name": name, "ts": _us(at), "pid": row[0], "tid": row[1], **more}
        line = _encode(event if args is None else {**event, "args": args}).encode()
        room = self._limit - self._bytes - len(line) - 8  # what joins it to the others, and the end
        if room < (0 if reserved else _RESERVE) or (self._full and not reserved):
            self.left_out += 1
            if not self._full and not reserved:
                self._full = True
                note = {"note": f"the trace has its {self._limit} bytes; what comes later is left out"}
                self._add("i", "trace full", self._clock(), _WHOLE, note, True, s="g")
            return
        self._lines.append((b",\n" if self._bytes else b"[\n") + line)
        self._bytes += len(self._lines[-1])

    def _write(self) -> None:
        """Write what has been added; a full disk ends the trace, and nothing else."""
        data, self._lines = b"".join(self._lines), []
        try:
            while data and self.failure is None and not self._file.closed:
                data = data[self._file.write(data) :]
        except OSError as error:
            self.failure = str(cannot_write(self.path, error))


def _us(nanoseconds: int) -> float:
    """Microseconds; a double holds nanoseconds of 100 days exactly enough."""
    return nanoseconds / 1000
