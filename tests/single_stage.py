"""One stage at a time, with the test in the place of its neighbors and of the supervisor.

In the test's process the stage runs in the thread that a worker gives it; or a real worker process runs it,
so that it can be killed.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import zmq

from streamvos.pipeline.config.pipeline import PipelineConfig
from streamvos.pipeline.config.reading import make_config
from streamvos.pipeline.stages.stage import Stage, StageContext, StageThread
from streamvos.pipeline.supervision.topology import Topology
from streamvos.pipeline.wire.arenas import Arena
from streamvos.pipeline.wire.inbox import Inbox
from streamvos.pipeline.wire.messages import Message, decode, encode
from streamvos.pipeline.wire.outbox import Outbox
from streamvos.pipeline.wire.runtime import Runtime

SESSION = b"sessions"
PATIENCE = 60.0
"""Seconds after which a test gives up; nothing is timed by it."""


def until(condition: Callable[[], Any], what: str = "it", seconds: float = PATIENCE) -> Any:
    """Wait for a condition, and give its value."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, f"waited {seconds:g} s for {what}"
        time.sleep(0.002)
    return value


class Bench:
    """Sockets, arenas and a folder for one stream "s", and what its stage sends to the supervisor."""

    def __init__(self, stream: Mapping[str, Any], **pipeline: Any):
        if not {"mask", "boxes"} & set(stream) and not stream["source"].startswith("synthetic"):
            stream = {**stream, "boxes": ["1:10,10,40,30"]}  # something to follow
        self.folder = Path(tempfile.mkdtemp(prefix="svos", dir="/tmp"))
        self.config: PipelineConfig = make_config({"streams": [{"name": "s", **stream}], **pipeline})
        self.topology = Topology(self.config, Runtime("bench", self.folder))
        self.zmq: zmq.Context[Any] = zmq.Context()
        self.arenas = {name: Arena.create(name) for name in self.topology.arenas}
        self.messages: list[Message] = []
        self.failures: list[Exception] = []
        self._closers: list[Callable[[], None]] = []

    # ---- the neighbors

    def inbox(self, edge: str) -> Inbox:
        inbox = Inbox(self.zmq, self.topology.edges[edge], SESSION, self.arenas)
        self._closers.append(inbox.close)
        return inbox

    def outbox(self, edge: str) -> Outbox:
        outbox = Outbox(self.zmq, self.topology.edges[edge], SESSION, self.arenas)
        self._closers.append(outbox.close)
        return outbox

    # ---- a stage in this process

    def run(
        self, kind: type[Stage], name: str, life: int = 0, facts: Mapping[str, Any] | None = None
    ) -> Running:
        context = StageContext(
            self.config, self.zmq, SESSION, self.arenas, self.topology.edges, self._hear, life,
            {"s": facts or {}}, {"runtime": str(self.folder)},
        )  # fmt: skip
        return Running(self, kind(name, context))

    def _hear(self, message: Message) -> None:
        # through the wire's form, as a supervisor would get it
        self.messages.append(decode([bytes(part) for part in encode(message, SESSION)], SESSION))

    def heard(self, kind: str) -> list[Message]:
        return [message for message in list(self.messages) if message.kind == kind]

    def close(self) -> None:
        for close in self._closers:
            close()
        self.zmq.destroy(linger=0)
        for arena in self.arenas.values():
            arena.close()
            os.close(arena.fd)
        shutil.rmtree(self.folder, ignore_errors=True)


class Running:
    """A stage in the thread that a worker gives it."""

    def __init__(self, bench: Bench, stage: Stage):
        self.stage, self._bench = stage, bench
        try:
            self.facts = stage.prepare()
            self.endpoints = stage.bind()
        except BaseException:
            stage.close()
            raise
        self._thread = StageThread([stage], lambda _, error: bench.failures.append(error))
        bench._closers.insert(0, self.end)
        self._thread.start()

    def order(self, order: Message | Mapping[str, str]) -> None:
        if isinstance(order, Message):
            order = replace(order, fields={**order.fields, "stage": self.stage.name})
        self._thread.order(order)

    def end(self) -> None:
        self._thread.order(None)
        self._thread.join(5)
        assert not self._thread.is_alive()


class Process:
    """A worker process with one stage; the test plays the supervisor."""

    def __init__(self, bench: Bench, stage: str, life: int, facts: Mapping[str, Any] | None = None):
        self._bench, self.stage = bench, stage
        self.messages: list[Message] = []
        identity = f"{stage} {life} {time.monotonic_ns()}"
        self._identity = identity.encode()
        self._lock = threading.Lock()
        self._socket: zmq.Socket[bytes] = bench.zmq.socket(zmq.ROUTER)
        self._socket.setsockopt(zmq.LINGER, 0)
        address = f"ipc://{bench.folder}/c{time.monotonic_ns()}"
        self._socket.bind(address)
        self._pipe = os.pipe()
        arenas = {name: arena.fd for name, arena in bench.arenas.items()}
        start = {
            "name": stage, "control": address, "session": SESSION.hex(), "identity": identity,
            "arenas": arenas, "parent": os.getpid(), "pipe": self._pipe[0], "stages": [stage],
        }  # fmt: skip
        self.process = subprocess.Popen(
            [sys.executable, "-m", "streamvos.pipeline.stages.worker"],
            stdin=subprocess.PIPE,
            pass_fds=[*arenas.values(), self._pipe[0]],
            start_new_session=True,
        )
        assert self.process.stdin is not None
        with self.process.stdin as letter:
            letter.write(json.dumps(start).encode())
        bench._closers.insert(0, self.kill)
        self.wait_for("hello")
        init = {
            "stages": [stage], "standby": False, "life": life, "facts": {"s": dict(facts or {})},
            "edges": [asdict(edge) for edge in bench.topology.edges.values()],
            "config": bench.config.model_dump(mode="json"), "runtime": str(bench.folder),
        }  # fmt: skip
        self.order(Message("init", fields=init))
        self.ready = self.wait_for("ready")

    def order(self, order: Message | Mapping[str, str]) -> None:
        if not isinstance(order, Message):
            order = Message("connect", fields={"endpoints": dict(order)})
        fields = {**order.fields, "stage": self.stage}
        message = Message(order.kind, order.stream, order.incarnation, order.seq, fields)
        self._socket.send_multipart([self._identity, *encode(message, SESSION)])

    def listen(self) -> None:
        """Take the messages that have come."""
        with contextlib.suppress(zmq.Again):
            while True:
                _, *parts = self._socket.recv_multipart(zmq.NOBLOCK)
                self.messages.append(decode(parts, SESSION))

    def heard(self, kind: str) -> list[Message]:
        if not self._socket.closed:
            self.listen()
        return [message for message in self.messages if message.kind == kind]

    def wait_for(self, kind: str) -> Message:
        def found() -> Message | None:
            failed = self.heard("failed") if kind != "failed" else []
            assert not failed, failed[0].fields
            return next(iter(self.heard(kind)), None)

        return until(found, f"{kind} from {self.stage}")

    def kill(self) -> None:
        """SIGKILL it, and let go of what belongs to it; twice does no harm."""
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(10)
        for end in self._pipe:
            with contextlib.suppress(OSError):
                os.close(end)
        self._pipe = ()
        if not self._socket.closed:
            self.listen()
            self._socket.close(linger=0)


@contextlib.contextmanager
def bench(stream: Mapping[str, Any], **pipeline: Any) -> Iterator[Bench]:
    """A bench that is cleared, also when the test fails."""
    made = Bench(stream, **pipeline)
    try:
        yield made
    finally:
        made.close()


def descriptors() -> int:
    """How many this process has open."""
    return len(os.listdir("/proc/self/fd"))
