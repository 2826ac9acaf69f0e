"""The base class of stages, and the thread that polls their sockets.

A stage consumes messages from inboxes and produces messages in outboxes. `step` does everything that is
possible without waiting; a stage never blocks on a socket, since its thread polls for it.

    class Doubler(Stage):
        def step(self):
            while self.outbox.credit and (message := self.inbox.receive()) is not None:
                ...
            return None
"""

from __future__ import annotations

import contextlib
import math
import queue
import threading
import time
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import zmq

from streamvos.pipeline.config.pipeline import PipelineConfig
from streamvos.pipeline.wire.arenas import Arena
from streamvos.pipeline.wire.inbox import Inbox
from streamvos.pipeline.wire.messages import Message
from streamvos.pipeline.wire.outbox import Outbox
from streamvos.pipeline.wire.spec import EdgeSpec
from streamvos.pipeline.wire.waker import Waker

COMMANDS_REMEMBERED = 256

_CARRIED = ("captured", "pts", "dropped", "commands")


@dataclass
class StageContext:
    """What a stage gets from its worker.

    Attributes:
        config: of the whole pipeline.
        zmq: one context per worker.
        session: of the supervisor; goes into every message.
        arenas: name -> shared memory.
        edges: name -> edge, all of the pipeline.
        tell: sends a control message to the supervisor; from any thread.
        life: how many workers have run these stages before this one.
        facts: stream -> size, fps, length, ... of its source.
        shared: what the stages of a worker share, such as the loaded method.
    """

    config: PipelineConfig
    zmq: zmq.Context[Any]
    session: bytes
    arenas: Mapping[str, Arena]
    edges: Mapping[str, EdgeSpec]
    tell: Callable[[Message], None]
    life: int = 0
    facts: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    shared: dict[str, Any] = field(default_factory=dict)


class Stage(ABC):
    """One stage of one stream (the extractor: of all streams).

    The worker calls `prepare` and `bind` in its main thread; then, in the stage's own thread, `connect`,
    `reset` and `control` when the supervisor says so, `step` after every event, and `close`.

    Attributes:
        name: "memory.front".
        stream: "front"; "" for the extractor.
        inboxes, outboxes: by edge name.
        frames: number of frames finished.
        busy_since: when the work on the current frame began, monotonic ns; 0 = idle.
        drops: frames dropped here, by cause.
        waiting_for: cause of a long wait for something outside the pipeline, such as disk space; "" = none.
        waiting_since: when that wait began, monotonic ns; 0 = none.
    """

    def __init__(self, name: str, context: StageContext):
        self.name, self.context = name, context
        self.stream = name.partition(".")[2]
        self.frames = 0
        self.busy_since = 0
        self.waiting_for, self.waiting_since = "", 0
        self.drops: Counter[str] = Counter()
        self.inboxes: dict[str, Inbox] = {}
        self.outboxes: dict[str, Outbox] = {}
        for edge in context.edges.values():
            if edge.consumer == name:
                self.inboxes[edge.name] = Inbox(context.zmq, edge, context.session, context.arenas)
            if edge.producer == name:
                self.outboxes[edge.name] = Outbox(context.zmq, edge, context.session, context.arenas)

    @property
    def boxes(self) -> list[Inbox | Outbox]:
        """All inboxes and outboxes."""
        return [*self.inboxes.values(), *self.outboxes.values()]

    def prepare(self) -> dict[str, Any]:
        """Do everything that is slow or may fail: open, load, warm up, size arenas.

        Returns:
            Facts for the supervisor and the other stages (a source: size, fps, ...).

        Raises:
            StreamvosError: it failed; not tried again after an `InputError`.
        """
        return {}

    def bind(self) -> dict[str, str]:
        """Bind the inboxes; returns edge name -> endpoint."""
        return {name: inbox.bind() for name, inbox in self.inboxes.items()}

    def connect(self, endpoints: Mapping[str, str]) -> None:
        """Connect the outboxes to the endpoints that are known, by edge name."""
        for name, outbox in self.outboxes.items():
            if name in endpoints:
                outbox.connect(endpoints[name])

    def reset(self, message: Message) -> dict[str, Any]:
        """Begin a new incarnation of a stream: drop its messages; returns more fields for `reset_done`."""
        for box in self.boxes:
            if box.spec.stream == message.stream:
                box.reset(message.incarnation)
        return {}

    def control(self, message: Message) -> None:  # noqa: B027
        """Handle a control message other than reset: start, release, command, stop, ..."""

    @abstractmethod
    def step(self) -> float | None:
        """Do all that can be done without waiting.

        Returns:
            Seconds after which to call again even without an event; None = only after an event.
        """

    def sockets(self) -> list[zmq.Socket[bytes] | int]:
        """What to poll for reading; a number is a file descriptor."""
        return [box.socket for box in self.boxes]

    def beat(self) -> dict[str, Any]:
        """This stage's entry in the heartbeat; called from another thread."""
        refused = sum((Counter(box.refused) for box in self.boxes), Counter[str]())
        return {
            "frames": self.frames,
            "busy_since": self.busy_since,
            "waiting_for": self.waiting_for,
            "waiting_since": self.waiting_since,
            "drops": dict(self.drops),
            "refused": dict(refused),
        }

    @property
    def ended(self) -> bool:
        """Whether it has sent `end`; if a source fails after that, frames already sent are still written."""
        return False

    def close(self) -> None:
        """Close all sockets."""
        for box in self.boxes:
            box.close()

    def tell(self, kind: str, stream: str | None = None, **more: Any) -> None:
        """Send a control message to the supervisor."""
        incarnation, seq = more.pop("incarnation", 0), more.pop("seq", 0)
        arrays = more.pop("arrays", {})
        name = self.stream if stream is None else stream
        self.context.tell(Message(kind, name, incarnation, seq, {"stage": self.name, **more}, arrays))


def carried(message: Message, stage: str, times: list[int]) -> dict[str, Any]:
    """Fields that travel with a frame to the sinks; `times`: the stage's [received, started, done] in ns."""
    fields = {name: message.fields[name] for name in _CARRIED if name in message.fields}
    return {**fields, "stamps": {**message.get("stamps", {}), stage: times}}


def now() -> int:
    """Monotonic nanoseconds, the clock of the whole pipeline."""
    return time.monotonic_ns()


def remember_command(applied: dict[int, int], number: int, seq: int) -> None:
    """Note at which frame a command was applied; the oldest of `COMMANDS_REMEMBERED` entries go."""
    applied[number] = seq
    while len(applied) > COMMANDS_REMEMBERED:
        del applied[next(iter(applied))]


class StageThread(threading.Thread):
    """Runs stages in turns: polls their sockets and passes on the supervisor's messages."""

    def __init__(self, stages: Sequence[Stage], on_failure: Callable[[Stage, Exception], None]):
        super().__init__(name=stages[0].name, daemon=True)
        self._stages = {stage.name: stage for stage in stages}
        self._running = stages[0]
        self._on_failure = on_failure
        self._orders: queue.SimpleQueue[Message | Mapping[str, str] | None] = queue.SimpleQueue()
        self._waker = Waker()

    def order(self, order: Message | Mapping[str, str] | None) -> None:
        """Pass on a control message or endpoints to connect to, or None to end; from the main thread."""
        self._orders.put(order)
        self._waker.wake()

    def run(self) -> None:
        try:
            self._loop()
        except Exception as error:  # whatever it is, the supervisor is informed
            self._on_failure(self._running, error)
        finally:
            for stage in self._stages.values():
                stage.busy_since = 0  # it has ended and does not hang
                with contextlib.suppress(Exception):
                    stage.close()
            self._waker.close()

    def _loop(self) -> None:
        poller = zmq.Poller()
        stages = list(self._stages.values())
        for socket in (self._waker.descriptor, *(one for stage in stages for one in stage.sockets())):
            poller.register(socket, zmq.POLLIN)
        # messages that a stage cannot use yet are read all the same, or the poll would not wait
        boxes = {box.socket: box for stage in stages for box in stage.boxes}
        for box in boxes.values():
            box.polled = True
        wait: float | None = None
        while True:
            for socket, _ in poller.poll(None if wait is None else max(0, math.ceil(wait * 1000))):
                if socket in boxes:
                    boxes[socket].collect()
            self._waker.clear()  # before looking, so that no later order is missed
            while not self._orders.empty():
                order = self._orders.get()
                if order is None:
                    return
                self._obey(order)
            wait = None
            for self._running in stages:
                again = self._running.step()
                wait = min((one for one in (wait, again) if one is not None), default=None)

    def _obey(self, order: Message | Mapping[str, str]) -> None:
        if not isinstance(order, Message):
            for stage in self._stages.values():
                stage.connect(order)
            return
        stage = self._running = self._stages[order["stage"]]
        if order.kind == "reset":
            answer = stage.reset(order)
            stage.tell("reset_done", order.stream, incarnation=order.incarnation, **answer)
        else:
            stage.control(order)


def in_turns(stages: Sequence[Stage]) -> list[list[Stage]]:
    """Groups of stages that share a thread: a stream's decoder and memory, which wait for each other anyway.

    The decoder comes first, so that a mask is sent before the memory learns from it.
    """
    groups: dict[str, list[Stage]] = {}
    for stage in stages:
        kind = stage.name.partition(".")[0]
        key = f"target.{stage.stream}" if kind in ("memory", "decoder") else stage.name
        groups.setdefault(key, []).append(stage)
    return [sorted(group, key=lambda stage: stage.name) for group in groups.values()]
