"""One sink of a pipeline: a thread of its own, behind a bounded queue.

queue = SinkQueue("json", FileWriter(JsonLinesSink("out.jsonl")), capacity=32, waits=True, wake=waker.wake)
if queue.has_room: queue.put(entry)
queue.end()                         # behind what is queued: close the sink
queue.written, queue.over, queue.error

Where a disk is full, the thread waits for room and tries the same entry again; what comes meanwhile is queued
behind it.
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
"""How long a sink that is told to close at once may still write what is queued."""

FIRST_RETRY, LONGEST_RETRY = 0.25, 5.0
"""Seconds after which a full disk is tried again: at first, and at most; twice as long every time."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One result for the sinks.

    Attributes:
        frame: with its picture, if a sink of the stream shows pictures.
        result: of it.
        header: seq, incarnation, captured, pts, dropped, recovered, stamps.
    """

    frame: Frame
    result: Result
    header: Mapping[str, Any]


class FileWriter:
    """Writes entries to a file or folder; what is written survives a death of this process.

    Args:
        sink: the file or folder.
        after: frames up to this one are there already, from an earlier life.
    """

    def __init__(self, sink: Sink, after: int | None = None):
        self._sink, self.place = sink, str(sink.path)
        self._after = -1 if after is None else after
        self.refused: Mapping[str, int] = {}

    def wait_with(self, on_full: Callable[[Exception], bool]) -> None:
        """Have `on_full` wait when the disk is full, and say whether to try again."""
        self._sink.on_full = on_full

    def write(self, entry: Entry) -> None:
        """Write one result."""
        if entry.frame.index > self._after:
            self._sink.write(entry.frame, entry.result)

    def finish(self) -> None:
        """Close in order."""
        self._sink.close()

    def abort(self) -> None:
        """Close what was not finished; never raises."""
        self._sink.abort()


class PublishWriter:
    """Sends entries to subscribers, as a `FileWriter` writes them."""

    place = ""

    def __init__(self, publisher: Publisher):
        self._publisher = publisher
        self.refused: Mapping[str, int] = publisher.refused
        self._end = {"seq": 0, "incarnation": 0}

    def wait_with(self, on_full: Callable[[Exception], bool]) -> None:
        pass  # it fills no disk

    def write(self, entry: Entry) -> None:
        self._publisher.publish(entry.frame, entry.result, entry.header)
        self._end = {"seq": entry.header["seq"] + 1, "incarnation": entry.header["incarnation"]}

    def finish(self) -> None:
        self._publisher.end(self._end)
        self._publisher.close()

    def abort(self) -> None:
        with suppress(Exception):
            self._publisher.close()


Writer = FileWriter | PublishWriter


class SinkQueue:
    """A queue and the thread that empties it into a sink.

    Args:
        kind: of the sink, for messages.
        writer: belongs to the thread from now on.
        capacity: entries that may wait.
        waits: whether whoever fills it looks for room first; otherwise the oldest entry makes room.
        wake: called after each entry, and at the end.

    Attributes:
        written: seq of the last entry that was written; -1 before.
        refused: cause -> messages of subscribers that broke a rule.
        error: why the sink has ended, if not in order.
        over: whether the thread has let go of the sink.
        writing: an entry is being written.
        waiting_for: "no space left on device" and where; "" = it does not wait for room.
        waiting_since: monotonic ns; 0 = it does not.
    """

    def __init__(
        self,
        kind: str,
        writer: FileWriter | PublishWriter,
        capacity: int,
        waits: bool,
        wake: Callable[[], None],
    ):
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
        self._left_out = False  # there was no room until the end
        self.waiting_for, self.waiting_since = "", 0
        writer.wait_with(self._wait_for_room)
        self._thread = threading.Thread(target=self._run, name=f"sink {kind}", daemon=True)
        self._thread.start()

    @property
    def has_room(self) -> bool:
        """Whether an entry can be put without loss; a sink that has ended takes any number."""
        return self.over or len(self._entries) < self._capacity

    @property
    def depth(self) -> int:
        """Entries that wait."""
        return len(self._entries)

    def put(self, entry: Entry) -> int:
        """Queue one entry.

        Returns:
            How many older ones were dropped for it.
        """
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
        """Close the sink behind the last entry; at once: after `CUT_SECONDS` at the latest."""
        with self._changed:
            self._ending = True
            if at_once and self._cut_at is None:
                self._cut_at = time.monotonic() + CUT_SECONDS
            self._changed.notify_all()

    def abort(self) -> None:
        """Close the sink without its final name, now; files are whole as far as they have come."""
        with self._changed:
            self._aborting = True
            self._changed.notify_all()

    def join(self, seconds: float) -> None:
        """Wait until the thread has ended; one that hangs is left behind."""
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
            self._writer.abort()  # nothing to do where it was finished
            with self._changed:
                self._entries.clear()
                self.over, self.writing = True, False
            self._has_got_room()
            self._wake()

    def _wait_for_room(self, error: Exception) -> bool:
        """The disk is full: wait, longer every time; False if the sink has to end without room."""
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
                self._changed.wait()
            late = self._cut_at is not None and time.monotonic() > self._cut_at
            if self._aborting or late or not self._entries:
                return None
            return self._entries.popleft()
