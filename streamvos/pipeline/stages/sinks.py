"""The stage that writes a stream's results to files, videos and subscribers.

Every sink has a thread and a queue of its own. A slow one holds up only its own stream, and only under policy
"lossless", which must not lose results (docs/protocol.md, 4 to 6).

    stage = SinksStage("sinks.front", context)
    stage.prepare()                     # begins files, or continues those of a killed worker
    stage.bind()
    stage.reset(Message("reset", "front", 1))
    stage.step()
"""

from __future__ import annotations

import json
import time
from collections import Counter, deque
from collections.abc import Callable
from contextlib import suppress
from functools import lru_cache, partial
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np
import zmq
from pydantic import BaseModel, Field, StrictFloat, StrictInt, ValidationError

from streamvos.pipeline.config.files import claim_of, written_by
from streamvos.pipeline.config.streams import SinkConfig
from streamvos.pipeline.stages.sink_queue import Entry, FileWriter, PublishWriter, SinkQueue, Writer
from streamvos.pipeline.stages.stage import Stage, StageContext, now, remember_command
from streamvos.pipeline.wire.inbox import Inbox
from streamvos.pipeline.wire.messages import Message, Refused, public_session
from streamvos.pipeline.wire.runtime import sinks_note
from streamvos.pipeline.wire.waker import Waker
from streamvos.sinks import JsonLinesSink, LabelMapSink, OverlayVideoSink
from streamvos.sinks.overlay_parts import free_part, remove_partial_parts, rescue_parts
from streamvos.types import Frame, InputError, ObjectResult, Result, SinkError, StreamvosError

ACK_SECONDS = 0.02
"""Time between two acknowledgements."""

FIRST_INCARNATION = 1

_CLOSE_SECONDS = 0.8  # the worker allows a stage one second


class SinksStage(Stage):
    """Hands each result to all sinks of the stream, once, and acknowledges what has been written."""

    def __init__(self, name: str, context: StageContext):
        super().__init__(name, context)
        self._config = context.config.stream(self.stream)
        self._lossless = self._config.effective_policy == "lossless"
        self._inbox = self.inboxes[f"{self.stream}/results"]
        self._waker = Waker()
        self._queues: list[SinkQueue] = []
        self._reported: set[SinkQueue] = set()
        self._waiting: deque[tuple[int, Message]] = deque()  # time of arrival (ns), message
        self._incarnation = 0
        self._last: int | None = None  # seq of the last result that was taken
        self._resumed_at = 0  # the frame after the last one that an earlier worker wrote
        self._shown: dict[str, int] = {}  # overlay video -> last frame in its finished parts
        self._recovering = False
        self._obeyed: dict[int, int] = {}  # number of a command -> frame
        self._unwritten: deque[list[Any]] = deque()  # rows of the next `ack`, by seq
        self._written: list[list[Any]] = []
        self._acked = -1
        self._ack_due = self._ending = self._ended = self._cut = False
        self._ack_after = 0.0
        self._failure: StreamvosError | None = None
        # the supervisor holds the claims of the sinks of its host; a remote stage holds its own
        self._claim = claim_of(context.config, [name])
        self._claims = name in context.config.remote

    # ---- the worker's calls

    def prepare(self) -> dict[str, Any]:
        # files of an earlier run are not continued, so a note names the session that has begun them
        note = sinks_note(Path(self.context.shared["runtime"]), self.stream)
        session, resume = self.context.session.hex(), False
        if self.context.life > 0:
            with suppress(OSError, ValueError):  # missing or torn: the files are begun again
                noted = json.loads(note.read_text())
                resume = noted["session"] == session
                self._shown = noted["shown"] if resume else {}
        if self._claims:
            self._claim.enter(begin=not resume)
        for sink in self._config.sinks:
            writer = self._publisher(sink) if sink.kind == "publish" else self._file(sink, resume)
            waits = self._config.overflow_of(sink) == "wait"
            self._queues.append(SinkQueue(sink.kind, writer, sink.queue, waits, self._waker.wake))
        with suppress(OSError):  # if this worker is killed, the next one begins the files again
            note.write_text(json.dumps({"session": session, "shown": self._shown}))
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
        # everything is read, or the poll for this socket would not wait; credit holds the decoder back
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
        own = {"queues": queues, "writing": writing, "waiting_for": reason, "waiting_since": since}
        return {**report, "refused": dict(refused), **own}

    def close(self) -> None:
        for queue in self._queues:
            queue.abort()
        deadline = time.monotonic() + _CLOSE_SECONDS
        for queue in self._queues:
            queue.join(deadline - time.monotonic())
        self._claim.release()
        super().close()
        self._waker.close()

    # ---- results

    def _has_room(self) -> bool:
        return all(queue.has_room for queue in self._queues if queue.waits)

    def _take(self, message: Message, received: int) -> None:
        if self._last is not None and message.seq <= self._last:
            self._ack_due = True  # it was written in an earlier incarnation
            return
        if self._last is not None and self._lossless and message.seq > self._last + 1:
            raise SinkError(
                f"{self.name} got result {message.seq} but expected {self._last + 1}; a result was lost, and "
                "the stream is restarted"
            )
        started = self.busy_since = now()
        try:
            entry = _read_result(self._inbox, message, self.stream, self._config.shows_pictures)
        except Refused as error:
            self._inbox.refused[error.cause] += 1
            return
        header = entry.header
        header["recovered"], self._recovering = self._recovering, False
        header["stamps"]["sinks"] = [received, started, now()]
        for queue in self._queues:
            if queue.put(entry):
                self.drops[f"{queue.kind} queue full"] += 1
        row = [header[name] for name in ("seq", "captured", "stamps", "dropped", "recovered")]
        self._unwritten.append(row)
        self._last = message.seq
        for number in message.get("commands", []):  # the memory may die before it has answered them
            remember_command(self._obeyed, number, message.seq)
        self.frames += 1

    # ---- acknowledgements

    def _mark(self) -> int:
        """The last frame up to which everything is written; -1: none."""
        last = -1 if self._last is None else self._last
        if not self._lossless:
            return last
        # a failed sink counts too: what it did not write is not safe
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
            SinkError: a sink that the stream has to wait for has failed, and the stream is not being stopped.
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

    def _file(self, sink: SinkConfig, resume: bool) -> Writer:
        assert sink.path is not None
        config = self.context.config
        record = self._claim.record(sink.path)
        if sink.kind == "json":
            lines = JsonLinesSink(sink.path, resume=resume, record=record)
            self._goes_on_after(lines.last_index)
            return FileWriter(lines, lines.last_index)
        if sink.kind == "labels":
            facts = self.context.facts.get(self.stream, {})
            stems, numbers = facts.get("stems"), facts.get("numbers")
            named: Callable[[int], str] | None = stems.split("\0").__getitem__ if stems else None
            if named is None and numbers:  # the source's own numbers
                named = partial(_number, *numbers)
            return FileWriter(LabelMapSink(sink.path, stems=named, resume=resume, record=record))
        taken = [place.path for place in written_by(config)]
        if not resume:
            remove_partial_parts(record)
        last = rescue_parts(sink.path, record, taken) if resume else None
        if last is None:  # the last worker finished no part, but an earlier one may have
            last = self._shown.get(str(sink.path))
        else:
            self._shown[str(sink.path)] = last
        self._goes_on_after(last)
        part = 1 if last is None else free_part(sink.path, self.context.life + 1, record, taken)
        return FileWriter(OverlayVideoSink(sink.path, recoverable=True, record=record, part=part), last)

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


class _Object(NamedTuple):
    """Fields of an `ObjectResult`, in the order in which the decoder sends them."""

    id: StrictInt
    score: StrictFloat
    state: Literal["tracking", "uncertain", "lost"]
    box: tuple[StrictInt, StrictInt, StrictInt, StrictInt] | None
    area: StrictInt


class _Fields(BaseModel):
    """Fields of a `result` (docs/protocol.md, 3)."""

    captured: StrictInt
    pts: StrictFloat
    ids: tuple[StrictInt, ...]
    dropped: dict[str, StrictInt]
    stamps: dict[str, Annotated[list[StrictInt], Field(min_length=3, max_length=3)]]
    objects: list[_Object] | None = None


def _read_result(inbox: Inbox, message: Message, stream: str, pictures: bool) -> Entry:
    """Check a `result` and copy its arrays out of shared memory.

    Raises:
        Refused: an array or field is missing or malformed, or its slot has been used again.
    """
    mask = inbox.array(message, "mask")
    if mask.dtype != np.uint8 or mask.ndim != 2 or not mask.size:
        raise Refused("shape", f"a mask is (H, W) uint8, got {mask.shape} {mask.dtype}")
    height, width = mask.shape
    image = inbox.array(message, "image") if pictures else _no_picture(height, width)
    if image.dtype != np.uint8 or image.shape != (height, width, 3):
        raise Refused("shape", f"the picture of a mask {mask.shape} is {image.shape} {image.dtype}")
    try:
        fields = _Fields.model_validate(message.fields)
    except ValidationError as error:
        raise Refused("field", ".".join(map(str, error.errors()[0]["loc"]))) from None
    objects = _no_objects
    if fields.objects is not None:
        found = {one.id: ObjectResult(*one) for one in fields.objects}
        objects = lambda: found  # noqa: E731
    header = {
        "seq": message.seq,
        "incarnation": message.incarnation,
        "captured": fields.captured,
        "pts": fields.pts,
        "dropped": fields.dropped,
        "stamps": fields.stamps,
    }
    frame = Frame(image, message.seq, fields.captured, fields.pts, stream)
    result = Result(mask, message.seq, fields.ids, _no_probabilities, objects)
    return Entry(frame, result, header)


@lru_cache(maxsize=4)
def _no_picture(height: int, width: int) -> np.ndarray:
    return np.broadcast_to(np.zeros(3, np.uint8), (height, width, 3))


def _no_probabilities() -> np.ndarray:
    raise InputError("a pipeline does not send probabilities to its sinks, only masks")


def _no_objects() -> dict[int, ObjectResult]:
    raise InputError("no sink of this stream uses scores and boxes, so they were not computed")


def _number(first: int, stride: int, seq: int) -> str:
    return f"{first + seq * stride:05d}"
