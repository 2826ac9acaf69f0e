"""One sink of a pipeline: a bounded queue and the thread that writes its entries.

queue = SinkQueue("json", FileWriter(JsonLinesSink("out.jsonl")), capacity=32, waits=True, wake=waker.wake)
if queue.has_room: queue.put(entry)
queue.end()                         # close the sink after the last entry
queue.written, queue.over, queue.error

When a disk is full, the thread waits for space and tries the same entry again.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from streamvos.sinks.sink import Sink, full_reason
from streamvos.types import Frame, Result, SinkError, StreamvosError

if TYPE_CHECKING:
    from streamvos.pipeline.clients.publishing import Publisher

CUT_SECONDS = 0.3
"""How long a sink that has to close at once may still write queued entries."""

FIRST_RETRY, LONGEST_RETRY = 0.25, 5.0
"""Seconds between attempts to write to a full disk: the first and the longest; they double each time."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One result for the sinks.

    Attributes:
        frame: the frame; without a sink that shows pictures, its picture is black and takes no memory.
        result: its mask and objects, without probabilities.
        header: seq, incarnation, captured, pts, dropped, recovered, stamps.
    """

    frame: Frame
    result: Result
    header: dict[str, Any]


class FileWriter:
    """Writes entries to a file or folder.

    Args:
        sink: the file or folder.
        after: the last frame that an earlier worker wrote, or None.

    Attributes:
        idle_seconds: time without entries after which `idle` is called; None = never.
    """

    idle_seconds: float | None = None

    def __init__(self, sink: Sink, after: int | None = None):
        self._sink, self.place = sink, str(sink.path)
        self._after = -1 if after is None else after
        self.refused: Mapping[str, int] = {}

    def wait_with(self, on_full: Callable[[Exception], bool]) -> None:
        """Call `on_full` when the disk is full; it waits, and returns whether to try again."""
        self._sink.on_full = on_full

    def write(self, entry: Entry) -> None:
        if entry.frame.index > self._after:
            self._sink.write(entry.frame, entry.result)

    def idle(self) -> None:
        """Do nothing: what has been written stays."""

    def finish(self) -> None:
        """Close the sink under its final name."""
        self._sink.close()

    def abort(self) -> None:
        """Close the sink if `finish` has not; never raises."""
        self._sink.abort()


class PublishWriter:
    """Sends entries to subscribers."""

    place = ""
    idle_seconds: float | None = 0.5

    def __init__(self, publisher: Publisher):
        self._publisher = publisher
        self.refused: Mapping[str, int] = publisher.refused
        self._end = {"seq": 0, "incarnation": 0}
        self._last: Entry | None = None

    def wait_with(self, on_full: Callable[[Exception], bool]) -> None:
        """Do nothing: it fills no disk."""

    def write(self, entry: Entry) -> None:
        self._last = entry
        self._publisher.publish(entry.frame, entry.result, entry.header)
        self._end = {"seq": entry.header["seq"] + 1, "incarnation": entry.header["incarnation"]}

    def idle(self) -> None:
        """Give the last masks to those who came since, as the stream gives none now."""
        if self._last is not None:
            self._publisher.repeat(self._last.result, self._last.header)

    def finish(self) -> None:
        self._publisher.end(self._end)
        self._publisher.close()

    def abort(self) -> None:
        with suppress(Exception):
            self._publisher.close()


Writer = FileWriter | PublishWriter


class SinkQueue:
    """A queue and the thread that writes its entries.

    Args:
        kind: the kind of sink, for messages.
        writer: used by the thread only.
        capacity: number of entries that may wait.
        waits: the stage checks `has_room` before `put`; otherwise a new entry replaces the oldest.
        wake: called after each entry, and at the end.

    Attributes:
        written: seq of the last entry written; -1 before the first.
        refused: cause -> number of subscribers' messages that broke a rule.
        error: why the sink has failed, or None.
        over: whether the sink is closed.
        writing: whether an entry is being written.
        waiting_for: why and where the disk takes nothing more; "" = it does not wait for space.
        waiting_since: when that wait began, monotonic ns; 0 = it does not wait.
    """

    def __init__(self, kind: str, writer: Writer, capacity: int, waits: bool, wake: Callable[[], None]):
        self.kind, self.waits = kind, waits
        self.written = -1
        self.error: StreamvosError | None = None
        self.over = self.writing = False
        self.refused = writer.refused
        self._writer, self._capacity, self._wake = writer, capacity, wake
        self._entries: deque[Entry] = deque()
        self._changed = threading.Condition()
        self._ending = self._aborting = False
        self._cut_at: float | None = None
        self._retry = FIRST_RETRY
        self._left_out = False  # the sink had to end while the disk was full
        self.waiting_for, self.waiting_since = "", 0
        writer.wait_with(self._wait_for_room)
        self._thread = threading.Thread(target=self._run, name=f"sink {kind}", daemon=True)
        self._thread.start()

    @property
    def has_room(self) -> bool:
        """Whether `put` drops nothing; true of a closed sink."""
        return self.over or len(self._entries) < self._capacity

    @property
    def depth(self) -> int:
        """Number of waiting entries."""
        return len(self._entries)

    def put(self, entry: Entry) -> int:
        """Queue one entry; returns the number of older ones dropped for it."""
        with self._changed:
            if self._ending or self.over or self.error is not None:
                return 0
            dropped = len(self._entries) >= self._capacity
            if dropped:
                self._entries.popleft()
            self._entries.append(entry)
            self._changed.notify_all()
        return int(dropped)

    def end(self, at_once: bool = False) -> None:
        """Close the sink after the last entry; `at_once`: after `CUT_SECONDS` at the latest."""
        with self._changed:
            self._ending = True
            if at_once and self._cut_at is None:
                self._cut_at = time.monotonic() + CUT_SECONDS
            self._changed.notify_all()

    def abort(self) -> None:
        """Close the sink now, without its final name; its files are valid up to the last entry."""
        with self._changed:
            self._aborting = True
            self._changed.notify_all()

    def join(self, seconds: float) -> None:
        """Wait for the end of the thread, for so many seconds at most."""
        self._thread.join(max(0.0, seconds))

    def _run(self) -> None:
        try:
            while (entry := self._next()) is not None:
                self.writing = True
                try:
                    self._writer.write(entry)
                except StreamvosError:
                    if not self._left_out:
                        raise
                    break
                self.writing = False
                self._has_got_room()
                self.written = int(entry.header["seq"])
                self._wake()
            if not self._aborting:
                self._writer.finish()
        except StreamvosError as error:
            self.error = error
        except Exception as error:  # a library's own
            self.error = SinkError(f"the sink failed: {type(error).__name__}: {error}")
        finally:
            self._writer.abort()  # does nothing after `finish`
            with self._changed:
                self._entries.clear()
                self.over, self.writing = True, False
            self._has_got_room()
            self._wake()

    def _wait_for_room(self, error: Exception) -> bool:
        """Wait because the disk is full; False if the sink has to end."""
        with self._changed:
            if not self.waiting_since:
                self.waiting_for = f"{full_reason(error)} ({self.kind} sink: {self._writer.place})"
                self.waiting_since = time.monotonic_ns()
            again = time.monotonic() + self._retry
            self._retry = min(2 * self._retry, LONGEST_RETRY)
            while not self._aborting:
                limit = again if self._cut_at is None else min(again, self._cut_at)
                left = limit - time.monotonic()
                if left <= 0:
                    break
                self._changed.wait(left)
            is_cut = self._cut_at is not None and time.monotonic() >= self._cut_at
            self._left_out = self._aborting or is_cut
            return not self._left_out

    def _has_got_room(self) -> None:
        self.waiting_for, self.waiting_since, self._retry = "", 0, FIRST_RETRY

    def _next(self) -> Entry | None:
        with self._changed:
            while not (self._entries or self._ending or self._aborting):
                if not self._changed.wait(self._writer.idle_seconds):
                    self._writer.idle()
            late = self._cut_at is not None and time.monotonic() > self._cut_at
            if self._aborting or late or not self._entries:
                return None
            return self._entries.popleft()
