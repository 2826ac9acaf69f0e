"""What every stage is: a loop over sockets, in a thread of its own.

A stage has inboxes (it consumes) and outboxes (it produces), does what can be done without waiting in `step`,
and tells the supervisor what it has to know. It never blocks on a socket: the worker polls for it.

    class Doubler(Stage):
        def step(self):
            while self.outbox.credit and (message := self.inbox.receive()) is not None:
                ...
            return None
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import zmq

from streamvos.pipeline.config.pipeline import PipelineConfig
from streamvos.pipeline.wire.arenas import Arena
from streamvos.pipeline.wire.inbox import Inbox
from streamvos.pipeline.wire.messages import Message
from streamvos.pipeline.wire.outbox import Outbox
from streamvos.pipeline.wire.spec import EdgeSpec

_CARRIED = ("captured", "pts", "dropped", "commands")


@dataclass
class StageContext:
    """What a stage gets from its worker.

    Attributes:
        config: of the whole pipeline.
        zmq: one context per worker.
        session: of the supervisor; goes into every message.
        arenas: name -> shared memory, inherited.
        edges: name -> edge, all of the pipeline.
        tell: sends a control message to the supervisor; from any thread.
        life: how many workers have run these stages before this one; 0 for the first.
        facts: what the source of each stream says of itself (size, fps, length), by stream.
        shared: what stages of one worker share, such as the loaded method.
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

    The worker calls, in this order: `prepare`, `bind` and `connect` in its main thread; then, in the stage's
    own thread, `reset` and `control` when the supervisor says so, `step` after every event, and `close`.

    Attributes:
        name: "memory.front".
        stream: "front"; "" for the extractor.
        inboxes, outboxes: by edge name.
        frames: how many it has finished.
        busy_since: monotonic ns since when it works on one frame; 0 = it waits.
        drops: frames dropped here, by cause.
        waiting_for: what it waits for that lies outside the pipeline and should not take so long, such as
            room on a disk; "" = nothing.
        waiting_since: monotonic ns; 0 = it does not.
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
        """All of them."""
        return [*self.inboxes.values(), *self.outboxes.values()]

    def prepare(self) -> dict[str, Any]:
        """Everything slow or that may fail: open, load, warm up, size arenas.

        Returns:
            Facts for the supervisor and the other stages (a source: size, fps, ...).

        Raises:
            StreamvosError: it cannot be; not tried again if it is the input's fault.
        """
        return {}

    def bind(self) -> dict[str, str]:
        """Bind the inboxes.

        Returns:
            Edge name -> endpoint.
        """
        return {name: inbox.bind() for name, inbox in self.inboxes.items()}

    def connect(self, endpoints: Mapping[str, str]) -> None:
        """Connect the outboxes whose endpoints are known, where they are new."""
        for name, outbox in self.outboxes.items():
            if name in endpoints:
                outbox.connect(endpoints[name])

    def reset(self, message: Message) -> dict[str, Any]:
        """Begin incarnation `message.incarnation` of stream `message.stream`; drop what is held of it.

        Returns:
            More for `reset_done`.
        """
        for box in self.boxes:
            if box.spec.stream == message.stream:
                box.reset(message.incarnation)
        return {}

    def control(self, message: Message) -> None:  # noqa: B027
        """A control message of another kind than reset: start, release, command, stop."""

    @abstractmethod
    def step(self) -> float | None:
        """Do all that can be done without waiting.

        Returns:
            Seconds after which to call again though nothing has come; None = not before something comes.
        """

    def sockets(self) -> list[zmq.Socket[bytes] | int]:
        """What to poll for reading; a number is a file descriptor."""
        return [box.socket for box in self.boxes]

    def beat(self) -> dict[str, Any]:
        """What the heartbeat says of this stage; called from another thread."""
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
        """Whether it has sent `end`: a source that fails after that lets what is on its way be written."""
        return False

    def close(self) -> None:
        """Let go of everything."""
        for box in self.boxes:
            box.close()

    def tell(self, kind: str, stream: str | None = None, **more: Any) -> None:
        """Send a control message to the supervisor."""
        incarnation, seq = more.pop("incarnation", 0), more.pop("seq", 0)
        arrays = more.pop("arrays", {})
        name = self.stream if stream is None else stream
        self.context.tell(Message(kind, name, incarnation, seq, {"stage": self.name, **more}, arrays))


def carried(message: Message, stage: str, times: list[int]) -> dict[str, Any]:
    """Fields that go with a frame to the sinks; `times` are the stage's [received, started, done] in ns."""
    fields = {name: message.fields[name] for name in _CARRIED if name in message.fields}
    return {**fields, "stamps": {**message.get("stamps", {}), stage: times}}


def now() -> int:
    """Monotonic nanoseconds, the clock of the whole pipeline."""
    return time.monotonic_ns()
