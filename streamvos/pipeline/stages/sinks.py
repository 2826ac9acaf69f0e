"""The stage that a stream's results end in: files, videos, subscribers.

Every sink has a thread and a queue of its own, so that a slow one holds up nothing, but under policy
"lossless" its own stream, which must not lose results. docs/protocol.md, 4 to 6.

    stage = SinksStage("sinks.front", context)
    stage.prepare()                     # files are begun, or continued where an earlier life was killed
    stage.bind()
    stage.reset(Message("reset", "front", 1))
    stage.step()
"""

from __future__ import annotations

import json
import time
from collections import Counter, deque
from contextlib import suppress
from pathlib import Path
from typing import Any

import zmq

from streamvos.pipeline.config.streams import SinkConfig
from streamvos.pipeline.stages.reassembly import ReceivedResult, read_result
from streamvos.pipeline.stages.sink_queue import Entry, FileWriter, PublishWriter, SinkQueue, Writer
from streamvos.pipeline.stages.stage import Stage, StageContext, now, remember_command
from streamvos.pipeline.wire.messages import Message, Refused, public_session
from streamvos.pipeline.wire.waker import Waker
from streamvos.sinks import JsonLinesSink, LabelMapSink, OverlayVideoSink
from streamvos.sinks.overlay_parts import part_path, remove_partial_parts, rescue_parts
from streamvos.types import SinkError, StreamvosError

ACK_SECONDS = 0.02
"""Acknowledgements are gathered for so long."""

FIRST_INCARNATION = 1

_CLOSE_SECONDS = 0.8  # the worker gives a stage a second


class SinksStage(Stage):
    """Hands each result to all sinks of the stream, once, and says what has been written."""

    def __init__(self, name: str, context: StageContext):
        super().__init__(name, context)
        self._config = context.config.stream(self.stream)
        self._lossless = self._config.effective_policy == "lossless"
        self._inbox = self.inboxes[f"{self.stream}/results"]
        self._waker = Waker()
        self._queues: list[SinkQueue] = []
        self._reported: set[SinkQueue] = set()
        self._waiting: deque[tuple[int, Message]] = deque()  # when it came, and a message
        self._incarnation = 0
        self._last: int | None = None  # seq of the last result that was taken
        self._resumed_at = 0  # frame after the last one that an earlier life wrote
        self._recovering = False
        self._obeyed: dict[int, int] = {}  # number of a command -> at which frame, lately
        self._unwritten: deque[list[Any]] = deque()  # rows of the next `ack`, by seq
        self._written: list[list[Any]] = []
        self._acked = -1
        self._ack_due = self._ending = self._ended = self._cut = False
        self._ack_after = 0.0
        self._failure: StreamvosError | None = None

    # ---- the worker's calls

    def prepare(self) -> dict[str, Any]:
        begun = _Begun(self.context, self.stream)
        for sink in self._config.sinks:
            writer = self._publisher(sink) if sink.kind == "publish" else self._file(sink, begun)
            waits = self._config.overflow_of(sink) == "wait"
            self._queues.append(SinkQueue(sink.kind, writer, sink.queue, waits, self._waker.wake))
        begun.mark()
        return {}

    def sockets(self) -> list[zmq.Socket[bytes] | int]:
        return [*super().sockets(), self._waker.descriptor]

    def reset(self, message: Message) -> dict[str, Any]:
        super().reset(message)
        self._waiting.clear()
        self._incarnation = message.incarnation
        self._recovering = message.incarnation > FIRST_INCARNATION
        written = self._resumed_at if self._last is None else self._last + 1
        return {"next": written, "obeyed": list(self._obeyed.items())}

    def control(self, message: Message) -> None:
        if message.kind == "stop":
            self._waiting.clear()
            self._end(at_once=True)

    def step(self) -> float | None:
        self._waker.clear()
        # read at once, or the poll for this socket would not wait; credit is what holds the decoder
        while (message := self._inbox.receive()) is not None:
            self._waiting.append((now(), message))
        while self._waiting and self._has_room():
            received, message = self._waiting.popleft()
            if message.kind == "end":
                self._end()
            elif message.kind == "result":
                self._take(message, received)
                self._inbox.grant(message)
            self.busy_since = 0
        self._look_at_failures()
        wait = self._acknowledge()
        self._conclude()
        return wait

    def beat(self) -> dict[str, Any]:
        queues = {f"{queue.kind} queue": queue.depth for queue in self._queues}
        report = super().beat()
        refused = sum((Counter(queue.refused) for queue in self._queues), Counter(report["refused"]))
        writing = any(queue.writing for queue in self._queues)
        waiting = [(one.waiting_since, one.waiting_for) for one in self._queues if one.waiting_since]
        since, reason = min(waiting, default=(0, ""))
        return {
            **report,
            "refused": dict(refused),
            "queues": queues,
            "writing": writing,
            "waiting_for": reason,
            "waiting_since": since,
        }

    def close(self) -> None:
        for queue in self._queues:
            queue.abort()
        deadline = time.monotonic() + _CLOSE_SECONDS
        for queue in self._queues:
            queue.join(deadline - time.monotonic())
        super().close()
        self._waker.close()

    # ---- results

    def _has_room(self) -> bool:
        return all(queue.has_room for queue in self._queues if queue.waits)

    def _take(self, message: Message, received: int) -> None:
        if self._last is not None and message.seq <= self._last:
            self._ack_due = True  # written in an earlier incarnation
            return
        if self._last is not None and self._lossless and message.seq > self._last + 1:
            raise SinkError(
                f"{self.name} got result {message.seq} where {self._last + 1} was due; something was lost on "
                "the way, and the stream is begun anew"
            )
        started = self.busy_since = now()
        try:
            received_result = read_result(self._inbox, message, self.stream, self._config.shows_pictures)
        except Refused as error:  # of an earlier incarnation, or of a peer that does not know the protocol
            self._inbox.refused[error.cause] += 1
            return
        self._hand_out(received_result, message, [received, started, now()])

    def _hand_out(self, received: ReceivedResult, message: Message, times: list[int]) -> None:
        recovered, self._recovering = self._recovering, False
        stamps = {**received.stamps, "sinks": times}
        header = {
            "seq": message.seq,
            "incarnation": message.incarnation,
            "captured": received.frame.captured_ns,
            "pts": received.frame.pts,
            "dropped": received.dropped,
            "recovered": recovered,
            "stamps": stamps,
        }
        entry = Entry(received.frame, received.result, header)
        for queue in self._queues:
            if queue.put(entry):
                self.drops[f"{queue.kind} queue full"] += 1
        self._unwritten.append([message.seq, received.frame.captured_ns, stamps, received.dropped, recovered])
        self._last = message.seq
        for number in message.get("commands", []):  # the memory may die before it has answered them
            remember_command(self._obeyed, number, message.seq)
        self.frames += 1

    # ---- acknowledgements

    def _mark(self) -> int:
        """Everything up to this frame is where it should be; -1: nothing."""
        last = -1 if self._last is None else self._last
        if not self._lossless:
            return last
        # of one that has failed too: what it did not write is not safe
        return min((queue.written for queue in self._queues if queue.waits), default=last)

    def _acknowledge(self, at_once: bool = False) -> float | None:
        mark = self._mark()
        while self._unwritten and self._unwritten[0][0] <= mark:
            self._written.append(self._unwritten.popleft())
            self._acked = self._written[-1][0]
            self._ack_due = True
        if not self._ack_due or self._acked < 0:
            return None
        remaining = self._ack_after - time.monotonic()
        if remaining > 0 and not at_once:
            return remaining
        self.tell("ack", incarnation=self._incarnation, seq=self._acked, frames=self._written)
        self._written, self._ack_due = [], False
        self._ack_after = time.monotonic() + ACK_SECONDS
        return None

    # ---- ends

    def _look_at_failures(self) -> None:
        """Report sinks that have failed.

        Raises:
            StreamvosError: one that the stream has to wait for, unless the stream closes with what it has.
        """
        for queue in self._queues:
            if queue.error is None or not queue.over or queue in self._reported:
                continue
            self._reported.add(queue)
            if self._lossless and queue.waits and not self._cut:
                self._failure = self._failure or queue.error
            else:
                self.tell(
                    "sink_failed", incarnation=self._incarnation, sink=queue.kind, error=str(queue.error)
                )
        if self._failure is not None:
            self._acknowledge(at_once=True)
            raise SinkError(str(self._failure))

    def _end(self, at_once: bool = False) -> None:
        self._ending, self._ended = True, False
        self._cut = self._cut or at_once
        for queue in self._queues:
            queue.end(at_once)

    def _conclude(self) -> None:
        if self._ending and not self._ended and all(queue.over for queue in self._queues):
            self._look_at_failures()  # closing may have failed too
            self._acknowledge(at_once=True)
            self._ended = True
            self.tell("ended", incarnation=self._incarnation, seq=max(self._acked, 0))

    # ---- sinks

    def _file(self, sink: SinkConfig, begun: _Begun) -> Writer:
        assert sink.path is not None
        resume = begun.before
        if sink.kind == "json":
            lines = JsonLinesSink(sink.path, resume=resume)
            self._goes_on_after(lines.last_index)
            return FileWriter(lines, lines.last_index)
        if sink.kind == "labels":
            stems = self.context.facts.get(self.stream, {}).get("stems")
            named = stems.split("\0").__getitem__ if stems else None
            return FileWriter(LabelMapSink(sink.path, stems=named, resume=resume))
        if not resume:
            remove_partial_parts(sink.path)
        last = rescue_parts(sink.path) if resume else None
        if last is None:  # the life before this one did not get so far, but one before it did
            last = begun.shown.get(str(sink.path))
        else:
            begun.shown[str(sink.path)] = last
        self._goes_on_after(last)
        part = part_path(sink.path, self.context.life + 1 if resume else 1)
        return FileWriter(OverlayVideoSink(part, recoverable=True), last)

    def _goes_on_after(self, last: int | None) -> None:
        if last is not None:
            self._resumed_at = max(self._resumed_at, last + 1)

    def _publisher(self, sink: SinkConfig) -> Writer:
        from streamvos.pipeline.clients.publishing import Publisher

        shared = self.context.shared
        address = sink.address or f"ipc://{shared['runtime']}/masks-{self.stream}.sock"
        publisher = Publisher(
            self.context.zmq,
            address,
            self.stream,
            public_session(self.context.session),
            curve=shared.get("curve"),
        )
        return PublishWriter(publisher)


class _Begun:
    """Whether an earlier life of this very session has begun the files of a stream.

    What an earlier run left under the same names is not to be continued, so a file beside the sockets says
    which session has begun them.

    Attributes:
        before: whether one has.
        shown: overlay video -> index of the last frame in its finished parts.
    """

    def __init__(self, context: StageContext, stream: str):
        folder = context.shared.get("runtime")
        self._path = None if folder is None else Path(folder) / f"sinks-{stream}.begun"
        self._session = context.session.hex()
        self.before = context.life > 0
        self.shown: dict[str, int] = {}
        if self.before and self._path is not None:
            noted: dict[str, Any] = {}
            with suppress(OSError, ValueError):  # none, or torn: begun anew
                noted = json.loads(self._path.read_text())
            self.before = noted.get("session") == self._session
            self.shown = noted.get("shown", {}) if self.before else {}

    def mark(self) -> None:
        """Say so."""
        if self._path is not None:
            with suppress(OSError):  # then a killed worker begins its files anew
                self._path.write_text(json.dumps({"session": self._session, "shown": self.shown}))
