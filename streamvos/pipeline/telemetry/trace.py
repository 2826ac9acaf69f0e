"""What every stage did when, as a file that Perfetto and chrome://tracing open.

    with TraceWriter("out/trace.json", {"source.front": "source.front", "extractor": "compute"}) as trace:
        trace.frames("front", 1, [[0, captured, {"source": [1, 2, 3], ...}, {}, False]])
        trace.instant("died", worker="compute", reason="signal 9")

The format is the JSON array of Chrome's Trace Event Format: one event per line, times in microseconds of the
monotonic clock. The closing "]" may be missing, so the file of a killed process opens too.

A process row is a worker, a thread row a stage (the extractor has one for each stream). A slice is a stage's
work on a frame, arrows connect the slices of a frame, and an asynchronous slice spans glass to mask.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from streamvos.pipeline.telemetry.logs import without_credentials
from streamvos.pipeline.telemetry.statistics import STAGES, FrameReport
from streamvos.sinks.sink import cannot_write

LIMIT = 256 * 2**20
"""Maximum size of a trace in bytes; about as much as Perfetto opens with ease in a browser."""

PIPELINE = 1
"""Number of the process row for everything that belongs to no single worker: frames, deaths, incarnations."""

Row = tuple[int, int]
"""Numbers of a process row and of a thread row in it."""

_WHOLE: Row = (PIPELINE, 0)
_RESERVE = 4096  # bytes for the note that the file is full, and for its end
_encode = json.JSONEncoder(separators=(",", ":"), allow_nan=False, default=str).encode
_logger = logging.getLogger(__name__)


class TraceWriter:
    """Writes the trace of one pipeline. Once it is open, it never raises; a full disk ends the trace.

    Args:
        path: the file, which is replaced if it exists.
        workers: stage -> its worker; any other stage gets a process row of its own.
        name: the pipeline's name.
        limit: maximum size in bytes; later events are counted and left out.

    Attributes:
        left_out: events for which there was no room, and impossible times (of another host's clock).

    Raises:
        SinkError: the file cannot be created.
    """

    def __init__(
        self,
        path: str | Path,
        workers: Mapping[str, str] | None = None,
        name: str = "streamvos",
        limit: int = LIMIT,
    ) -> None:
        self.left_out = 0
        self._path, self._limit, self._workers = Path(path), limit, dict(workers or {})
        self._processes: dict[str, int] = {}
        self._threads: dict[tuple[int, str], int] = {}
        self._ends: dict[tuple[str, str], list[int]] = {}  # (stage, stream) -> end of each lane's last slice
        self._lines: list[bytes] = []  # not written yet
        self._arrows = self._bytes = 0
        self._full = False
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._file = open(self._path, "wb", buffering=0)  # noqa: SIM115
        except OSError as error:
            raise cannot_write(self._path, error) from None
        self._name("process", _WHOLE, f"pipeline {name}", PIPELINE)
        for worker in dict.fromkeys(self._workers.values()):
            self._process(worker)
        self._write()

    def frames(self, stream: str, incarnation: int, frames: Iterable[Any]) -> None:
        """Draw frames of a stream.

        Args:
            stream: the stream's name.
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

    def instant(self, name: str, stream: str | None = None, **more: Any) -> None:
        """Mark this moment in the pipeline's own row; `stream` and `more` are shown when it is selected."""
        self._mark(name, time.monotonic_ns(), _WHOLE, {"stream": stream, **more} if stream else more)
        self._write()

    def place(self, workers: Mapping[str, str]) -> None:
        """Draw further stages in the rows of their workers; stage -> worker."""
        self._workers |= workers

    def close(self) -> None:
        """End the file. Closing twice does no harm."""
        if self.left_out:
            self._note("left out", {"left out": self.left_out})
        self._lines.append(b"\n]\n")
        self._write()
        self._file.close()

    def __enter__(self) -> TraceWriter:
        return self

    def __exit__(self, *_: object) -> None:
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
            row = self._row(stage, stream, self._lane(stage, stream, started, done))
            waited = {"waited ms": (started - received) / 1e6}
            self._add("X", stage, started, row, {**arguments, **waited}, dur=_us(done - started))
            if len(spans) > 1:
                phase = "s" if number == 0 else "f" if number == len(spans) - 1 else "t"
                end = {"bp": "e"} if phase == "f" else {}
                self._add(phase, "frame", started, row, None, cat="flow", id=self._arrows, **end)
        if written is not None and written[0] >= captured:
            life = {"cat": f"glass to mask, {stream}", "id": f"{stream}/{incarnation}/{report.seq}"}
            self._add("b", f"frame {report.seq}", captured, _WHOLE, arguments, **life)
            self._add("e", f"frame {report.seq}", written[0], _WHOLE, None, **life)
        for cause, count in report.dropped.items():
            row = self._row("source", stream)
            self._mark(f"dropped: {cause}", captured, row, {**arguments, "frames": count})
        if report.recovered:
            self._mark("recovered", captured if written is None else written[0], _WHOLE, arguments)

    def _lane(self, stage: str, stream: str, started: int, done: int) -> int:
        """The first of a stage's rows in which this slice overlaps no other; slices of a row must nest."""
        ends = self._ends.setdefault((stage, stream), [])
        lane = next((lane for lane, end in enumerate(ends) if end <= started), len(ends))
        ends[lane : lane + 1] = [done]
        return lane

    def _mark(self, name: str, at: int, row: Row, arguments: Mapping[str, Any]) -> None:
        shown = {
            key: value if isinstance(value, (bool, int, type(None))) else without_credentials(str(value))
            for key, value in arguments.items()
        }
        self._add("i", without_credentials(name), at, row, shown, s="g" if row == _WHOLE else "t")

    def _row(self, kind: str, stream: str, lane: int = 0) -> Row:
        """The row of a stream's stage, which is named when it is first used."""
        own = f"{kind}.{stream}"  # an added stream has an extractor of its own, too
        stage = kind if kind == "extractor" and own not in self._workers else own
        process = self._process(self._workers.get(stage, stage))
        name = f"extractor {stream}" if kind == "extractor" else stage
        name = f"{name} ({lane + 1})" if lane else name
        if (process, name) not in self._threads:
            thread = self._threads[process, name] = len(self._threads) + 1
            # rows in the order in which a frame passes them, whichever was drawn first
            self._name("thread", (process, thread), name, STAGES.index(kind))
        return process, self._threads[process, name]

    def _process(self, worker: str) -> int:
        if worker not in self._processes:
            number = self._processes[worker] = PIPELINE + 1 + len(self._processes)
            self._name("process", (number, 0), worker, number)
        return self._processes[worker]

    def _name(self, kind: str, row: Row, name: str, place: int) -> None:
        self._add("M", f"{kind}_name", 0, row, {"name": name})
        self._add("M", f"{kind}_sort_index", 0, row, {"sort_index": place})

    def _note(self, name: str, arguments: Mapping[str, Any]) -> None:
        self._append(_event("i", name, time.monotonic_ns(), _WHOLE, arguments, s="g"))

    def _add(self, *fields: Any, **more: Any) -> None:
        """Add the event with these fields, if there is room for it."""
        line = _event(*fields, **more)
        if not self._full and self._bytes + len(line) > self._limit - _RESERVE:
            self._full = True
            self._note("trace full", {"note": f"the trace has its {self._limit} bytes; the rest is left out"})
        if self._full:
            self.left_out += 1
        else:
            self._append(line)

    def _append(self, line: bytes) -> None:
        self._lines.append((b",\n" if self._bytes else b"[\n") + line)
        self._bytes += len(self._lines[-1])

    def _write(self) -> None:
        data, self._lines = b"".join(self._lines), []
        try:
            while data and not self._file.closed:
                data = data[self._file.write(data) :]
        except OSError as error:
            _logger.warning("the trace ends early: %s", cannot_write(self._path, error))
            self._file.close()


def _event(
    phase: str, name: str, at: int, row: Row, arguments: Mapping[str, Any] | None = None, **more: Any
) -> bytes:
    event = {"ph": phase, "name": name, "ts": _us(at), "pid": row[0], "tid": row[1], **more}
    return _encode(event if arguments is None else {**event, "args": arguments}).encode()


def _us(nanoseconds: int) -> float:
    """Microseconds; a double is exact to the nanosecond for 100 days."""
    return nanoseconds / 1000
