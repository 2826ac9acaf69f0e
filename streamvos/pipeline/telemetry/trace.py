"""What every stage did when, as a file that Perfetto and chrome://tracing open.

    with TraceWriter("out/trace.json", {"source.front": "source.front", "extractor": "compute"}) as trace:
        trace.frames("front", 1, frames)                 # as the sinks acknowledge them
        trace.instant("restart", stage="memory.front", reason="signal 9")

The form is the JSON array of Chrome's Trace Event Format: one event a line, times in microseconds of the
monotonic clock. Its closing "]" may be missing, so that the file of a process that was killed opens too.

A process row is a worker, a thread row a stage (the extractor has one for each stream). A slice is a stage's
work on a frame; arrows follow the frame; an asynchronous slice goes from glass to mask.
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from streamvos.pipeline.telemetry.logs import without_credentials
from streamvos.pipeline.telemetry.statistics import STAGES
from streamvos.sinks.sink import cannot_write

LIMIT = 256 * 2**20
"""Bytes of a trace, at most; about as much as Perfetto's page in a browser opens with ease."""

PIPELINE = 1
"""Number of the process row that holds what concerns no single worker: frames, and events of the whole."""

_RESERVE = 4096  # for the note that the file is full, and for its end
_LANES = 4  # rows beside each other where a stage works on frames at the same time, as sinks do
_encode = json.JSONEncoder(separators=(",", ":"), allow_nan=False, default=str).encode
_FLUSH = 0.5  # seconds that may be lost when the process is killed


class TraceWriter:
    """Writes the trace of one pipeline. Any thread may call it; after it is open, it never raises.

    Args:
        path: replaced if it exists.
        workers: name of each stage -> name of its worker; stages that are not named get a row of their own.
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
        self._lock = threading.Lock()
        self._processes: dict[str, int] = {}
        self._threads: dict[tuple[int, str], int] = {}
        self._ends: dict[
            tuple[str, str], list[int]
        ] = {}  # (stage, stream) -> end of the last slice of each lane
        self._arrows = 0
        self._bytes = self._events = 0
        self._full = False
        self._flushed = time.monotonic()
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = open(self.path, "wb")  # noqa: SIM115
        except OSError as error:
            raise cannot_write(self.path, error) from None
        with self._lock:
            self._write_bytes(b"[\n")
            self._name_process(PIPELINE, f"pipeline {name}")
            for worker in dict.fromkeys(self._workers.values()):
                self._process(worker)

    def frames(self, stream: str, incarnation: int, frames: Iterable[Any]) -> None:
        """Draw frames.

        Args:
            stream, incarnation: theirs.
            frames: as `StreamStatistics.add` takes them; what is not of that form is left out.
        """
        with self._lock:
            for frame in frames:
                try:
                    self._draw(stream, incarnation, *frame)
                except (TypeError, ValueError, AttributeError):
                    self.left_out += 1
            self._flush()

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
            name: of what happened.
            stage: on whose row; None = on the pipeline's own.
            stream: whose; goes into the arguments.
            at: monotonic ns; None = now.
            more: further arguments, shown when it is selected.
        """
        arguments = {"stream": stream, **more} if stream else more
        with self._lock:
            process, thread = (PIPELINE, 0) if stage is None else self._row(stage, stream or "", 0)
            self._mark(name, self._clock() if at is None else at, process, thread, arguments)
            self._flush()

    def close(self) -> None:
        """End the file. Closing twice does no harm."""
        with self._lock:
            if self._file.closed:
                return
            if self.left_out:
                arguments = {"left out": self.left_out}
                event = _event("i", "left out", self._clock(), PIPELINE, 0, args=arguments, s="g")
                self._write(event, reserved=True)
            self._write_bytes(b"\n]\n")
            try:
                self._file.close()
            except OSError as error:
                self._fail(error)

    def __enter__(self) -> TraceWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _draw(
        self,
        stream: str,
        incarnation: int,
        seq: int,
        captured: int,
        stamps: Mapping[str, Any],
        dropped: Mapping[str, int],
        recovered: bool,
    ) -> None:
        if self._full:
            self.left_out += 1
            return
        written = _times(stamps.get("sinks"))
        arguments = {"stream": stream, "seq": seq, "incarnation": incarnation}
        spans = []
        for stage in STAGES:
            if stage not in stamps:
                continue
            times = _times(stamps[stage])
            # a stage on another host has another clock: its work would lie days away from the frame
            if times is None or times[1] < captured or (written is not None and times[2] > written[2]):
                self.left_out += 1
                continue
            spans.append((stage, times))
        arrow = self._arrows = self._arrows + 1
        for number, (stage, (received, started, done)) in enumerate(spans):
            name = stage if stage == "extractor" else f"{stage}.{stream}"
            lane = self._lane(name, stream, started, done)
            process, thread = self._row(name, stream, lane)
            waited = {"waited ms": (started - received) / 1e6}
            self._write(
                _event(
                    "X",
                    stage,
                    started,
                    process,
                    thread,
                    args={**arguments, **waited},
                    dur=_us(done - started),
                )
            )
            if len(spans) > 1:
                phase = "s" if number == 0 else "f" if number == len(spans) - 1 else "t"
                end = {"bp": "e"} if phase == "f" else {}
                self._write(_event(phase, "frame", started, process, thread, cat="flow", id=arrow, **end))
        if written is not None and written[0] >= captured:
            life = {"cat": f"glass to mask, {stream}", "id": f"{stream}/{incarnation}/{seq}"}
            self._write(_event("b", f"frame {seq}", captured, PIPELINE, 0, args=arguments, **life))
            self._write(_event("e", f"frame {seq}", written[0], PIPELINE, 0, **life))
        for cause, count in dropped.items():
            process, thread = self._row(f"source.{stream}", stream, 0)
            self._mark(f"dropped: {cause}", captured, process, thread, {**arguments, "frames": count})
        if recovered:
            moment = captured if written is None else written[0]
            self._mark("recovered", moment, PIPELINE, 0, arguments)

    def _lane(self, stage: str, stream: str, started: int, done: int) -> int:
        """The row beside others where this slice overlaps none; slices of a row must nest."""
        ends = self._ends.setdefault((stage, stream), [0])
        for lane, end in enumerate(ends):
            if end <= started:
                ends[lane] = max(done, started)
                return lane
        if len(ends) < _LANES:
            ends.append(max(done, started))
        else:  # never with stages as they are; drawn over the one that ended first
            ends[ends.index(min(ends))] = max(done, started)
            return ends.index(max(done, started))
        return len(ends) - 1

    def _mark(self, name: str, at: int, process: int, thread: int, arguments: Mapping[str, Any]) -> None:
        scope = "g" if process == PIPELINE else "t"
        self._write(
            _event("i", without_credentials(name), at, process, thread, args=_told(arguments), s=scope)
        )

    def _row(self, stage: str, stream: str, lane: int) -> tuple[int, int]:
        """Process and thread number of a stage's row, which is named when it is first used."""
        process = self._process(self._workers.get(stage, stage))
        name = f"{stage} {stream}".strip() if stage == "extractor" else stage
        name = f"{name} ({lane + 1})" if lane else name
        if (process, name) not in self._threads:
            thread = self._threads[process, name] = len(self._threads) + 1
            self._write(_event("M", "thread_name", 0, process, thread, args={"name": name}), reserved=True)
            # rows in the order in which a frame passes them, whichever was drawn first
            kind = stage.partition(".")[0]
            order = STAGES.index(kind) if kind in STAGES else len(STAGES)
            place = {"sort_index": order}
            self._write(_event("M", "thread_sort_index", 0, process, thread, args=place), reserved=True)
        return process, self._threads[process, name]

    def _process(self, worker: str) -> int:
        if worker not in self._processes:
            self._processes[worker] = PIPELINE + 1 + len(self._processes)
            self._name_process(self._processes[worker], worker)
        return self._processes[worker]

    def _name_process(self, number: int, name: str) -> None:
        self._write(_event("M", "process_name", 0, number, 0, args={"name": name}), reserved=True)
        self._write(
            _event("M", "process_sort_index", 0, number, 0, args={"sort_index": number}), reserved=True
        )

    def _write(self, event: Mapping[str, Any], reserved: bool = False) -> None:
        if self._full and not reserved:
            self.left_out += 1
            return
        line = _encode(event).encode()
        if not reserved and self._bytes + len(line) + 2 > self._limit - _RESERVE:
            self._full = True
            self.left_out += 1
            note = {"note": f"the trace has its {self._limit} bytes; what comes later is left out"}
            self._write(
                _event("i", "trace full", self._clock(), PIPELINE, 0, args=note, s="g"), reserved=True
            )
            return
        if self._bytes + len(line) + 8 > self._limit:  # even the reserve is used up
            self.left_out += 1
            return
        self._write_bytes((b",\n" if self._events else b"") + line)
        self._events += 1

    def _write_bytes(self, data: bytes) -> None:
        if self.failure is not None or self._file.closed:
            return
        try:
            self._file.write(data)
            self._bytes += len(data)
        except OSError as error:
            self._fail(error)

    def _flush(self) -> None:
        if time.monotonic() - self._flushed < _FLUSH or self.failure is not None or self._file.closed:
            return
        self._flushed = time.monotonic()
        try:
            self._file.flush()
        except OSError as error:
            self._fail(error)

    def _fail(self, error: OSError) -> None:
        """A full disk ends the trace, and nothing else."""
        if self.failure is None:
            self.failure = str(cannot_write(self.path, error))
        # what is still buffered would raise again from every later call
        descriptor = os.open(os.devnull, os.O_WRONLY)
        try:
            if not self._file.closed:
                os.dup2(descriptor, self._file.fileno())
        finally:
            os.close(descriptor)


def read_trace(path: str | Path) -> list[dict[str, Any]]:
    """The events of a trace, also of one that was cut off in the middle of a line.

    Raises:
        ValueError: it is none.
    """
    text = Path(path).read_text(encoding="utf-8", errors="replace")
    try:
        events = json.loads(text)
    except ValueError:
        first, *lines = text.splitlines() or [""]
        if first != "[":
            raise ValueError(f"{path} is no trace: it does not begin with a line that holds [") from None
        events = [json.loads(line.rstrip(",")) for line in lines if _is_whole(line)]
    if not isinstance(events, list):
        raise ValueError(f"{path} is no trace in the form of a JSON array")
    return events


def _is_whole(line: str) -> bool:
    try:
        return isinstance(json.loads(line.rstrip(",")), dict)
    except ValueError:
        return False


def _event(phase: str, name: str, at: int, process: int, thread: int, **more: Any) -> dict[str, Any]:
    return {"ph": phase, "name": name, "ts": _us(at), "pid": process, "tid": thread, **more}


def _us(nanoseconds: int) -> float:
    """Microseconds; a double holds nanoseconds of 100 days exactly enough."""
    return nanoseconds / 1000


def _times(stamps: Any) -> tuple[int, int, int] | None:
    if isinstance(stamps, (list, tuple)) and len(stamps) == 3 and all(isinstance(one, int) for one in stamps):
        received, started, done = stamps
        return (received, started, done) if started <= done else None
    return None


def _told(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments as JSON holds them, without credentials."""
    return {
        name: value if isinstance(value, (bool, int, type(None))) else without_credentials(str(value))
        for name, value in arguments.items()
    }
