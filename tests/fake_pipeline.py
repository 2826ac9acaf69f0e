"""The supervisor's decisions without processes, sockets or a real clock.

    pipeline = FakePipeline(stream("cam"))
    pipeline.begin()                       # every worker says hello, gets ready; the streams run
    pipeline.process("compute").die(-9)
    pipeline.watch()
    pipeline.sent("source.cam", "reset")   # messages to a worker, oldest first

Time passes only in `wait`.
"""

from __future__ import annotations

import io
import json
import signal
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from streamvos.pipeline.config.pipeline import PipelineConfig
from streamvos.pipeline.config.reading import make_config
from streamvos.pipeline.supervision.dispatcher import Dispatcher
from streamvos.pipeline.supervision.processes import Instance, WorkerSlot
from streamvos.pipeline.supervision.topology import Topology
from streamvos.pipeline.supervision.worker_pool import Context
from streamvos.pipeline.telemetry.logs import EventLog
from streamvos.pipeline.telemetry.observation import Observation
from streamvos.pipeline.wire.messages import Array, Message
from streamvos.pipeline.wire.runtime import Runtime

FACTS = {"size": [48, 64], "label": "clip.mp4"}
RESET_STAGES = ("sinks", "decoder", "extractor", "memory")


def stream(name: str, **more: Any) -> dict[str, Any]:
    return {"name": name, "source": f"{name}.mp4", "boxes": ["1:10,10,40,30"], **more}


class FakeProcess:
    """A process that dies when the test says so."""

    def __init__(self, pid: int):
        self.pid, self.signals = pid, list[int]()
        self.returncode: int | None = None

    def poll(self) -> int | None:
        return self.returncode

    def wait(self) -> int | None:
        assert self.returncode is not None, "waited for a process that lives"
        return self.returncode

    def send_signal(self, number: int) -> None:
        self.signals.append(number)
        if number == signal.SIGKILL:
            self.returncode = -number

    def die(self, returncode: int) -> None:
        self.returncode = returncode


class FakeResources:
    """Notes what is taken and given back.

    Attributes:
        held: streams that hold something.
        calls: (what, stream), in order.
        fails: raised by the next `take`.
    """

    def __init__(self) -> None:
        self.held: set[str] = set()
        self.calls: list[tuple[str, str]] = []
        self.fails: Exception | None = None

    def claim(self, config: PipelineConfig) -> None:
        self.calls.append(("claim", config.streams[0].name))

    def take(self, stream: str, claim: None) -> None:
        if self.fails is not None:
            raise self.fails
        self.held.add(stream)

    def free(self, stream: str) -> None:
        self.calls.append(("free", stream))

    def forget(self, stream: str) -> None:
        self.calls.append(("forget", stream))
        self.held.discard(stream)


class FakePipeline:
    """A `Dispatcher` whose workers are played by the test.

    Attributes:
        now: monotonic seconds.
        started: (worker, spare) in the order of starts.
        cannot_start: the system has no room for another process.
        facts: what every source finds.
        checks_wait: additions are checked when the test calls `check`.
    """

    def __init__(self, *streams: Mapping[str, Any], **config: Any):
        self.config = make_config({"streams": list(streams), "method": {"device": "cpu"}, **config})
        self.now = 1000.0
        self.started: list[tuple[str, bool]] = []
        self.cannot_start = False
        self.facts: Mapping[str, Any] = FACTS
        self._lines = io.StringIO()
        self._sent: list[tuple[str, bool, Message]] = []
        clock = lambda: self.now  # noqa: E731
        self.log = EventLog("json", self._lines, clock)
        self.topology = Topology(self.config, Runtime("fake", Path("/nowhere")))
        self.observation = Observation(
            [one.name for one in self.config.streams], self.log, clock=lambda: round(self.now * 1e9)
        )
        self.resources: Any = FakeResources()
        self.checks: list[tuple[Callable[[], Any], Future[Any]]] = []
        self.checks_wait = False
        context = Context(
            self.config, self.topology, self._start, self._send, {"pipeline_session": b"session!"},
            self.resources, self._in_background, self.observation, self.log, clock,
        )  # fmt: skip
        self.dispatcher = Dispatcher(context)
        self.pool, self.manager = self.dispatcher.pool, self.dispatcher.manager

    def _start(self, worker: WorkerSlot, spare: bool) -> Instance:
        if self.cannot_start:
            raise OSError(11, "Resource temporarily unavailable")
        self.started.append((worker.name, spare))
        process: Any = FakeProcess(4000 + len(self.started))
        identity = f"{worker.name}#{worker.lives}".encode()
        return Instance(worker.name, identity, worker.lives, process, spare=spare)

    def _send(self, instance: Instance, message: Message) -> None:
        self._sent.append((instance.worker, instance.spare, message))

    def _in_background(self, work: Callable[[], Any]) -> Future[Any]:
        future: Future[Any] = Future()
        self.checks.append((work, future))
        if not self.checks_wait:
            self.check()
        return future

    def check(self) -> None:
        """Make the checks of additions that wait."""
        while self.checks:
            work, future = self.checks.pop(0)
            try:
                future.set_result(work())
            except BaseException as error:
                future.set_exception(error)

    # ---- what the workers do

    def instance(self, worker: str) -> Instance:
        current = self.pool.workers[worker].current
        assert current is not None, f"{worker} has no process"
        return current

    def process(self, worker: str) -> FakeProcess:
        process: Any = self.instance(worker).process
        return process

    def says(self, worker: str, kind: str, name: str = "", spare: bool = False, **fields: Any) -> None:
        """A message from a worker about the stream `name`; `seq`, `incarnation` and `arrays` are its own."""
        slot = self.pool.workers[worker]
        instance = slot.spare if spare else slot.current
        assert instance is not None
        seq, arrays = fields.pop("seq", 0), fields.pop("arrays", {})
        incarnation = fields.pop("incarnation", self.manager.streams[name].incarnation if name else 0)
        self.dispatcher.take(slot, instance, Message(kind, name, incarnation, seq, fields, arrays))

    def hello(self, worker: str, spare: bool = False) -> None:
        self.says(worker, "hello", spare=spare)

    def ready(self, worker: str) -> None:
        stages = self.pool.workers[worker].stages
        facts = {stage: self.facts for stage in stages if stage.startswith("source.")}
        self.says(worker, "ready", endpoints={}, facts=facts, standby=False)

    def revive(self, worker: str) -> None:
        """A started worker says hello, is initialized, and gets ready."""
        self.hello(worker)
        self.watch()
        self.ready(worker)

    def beat(self, worker: str, **stages: Any) -> None:
        """A heartbeat; `source_cam={"sent": 3}` is what a stage says."""
        named = {name.replace("_", ".", 1): fields for name, fields in stages.items()}
        self.says(worker, "beat", stages=named, memory=10**6)

    def reset_done(self, name: str, *kinds: str, next: int = 0, fresh: bool = False, **more: Any) -> None:
        """Stages answer the reset of a stream."""
        for kind in kinds or RESET_STAGES:
            stage = self.topology.stage(kind, name)
            worker = self.topology.worker_of(stage)
            self.says(worker, "reset_done", name, stage=stage, next=next, fresh=fresh, **more)

    def begin(self) -> None:
        """Every worker starts, and every stream runs."""
        self.pool.start_all()
        sources = [worker.name for worker in self.pool if worker.is_source]
        for name in (*sources, *(worker.name for worker in self.pool if not worker.is_source)):
            self.revive(name)
        for name in self.manager.streams:
            self.reset_done(name)
            assert self.phase(name) == "running"

    def snapshot(self, name: str, seq: int, slot: int) -> None:
        worker = self.topology.worker_of(f"memory.{name}")
        array = Array("uint8", (1,), bytes(1))
        self.says(worker, "snapshot", name, seq=seq, slot=slot, arrays={"snapshot": array})

    def ack(self, name: str, seq: int) -> None:
        self.says(self.topology.worker_of(f"sinks.{name}"), "ack", name, seq=seq, frames=[])

    # ---- what the supervisor does

    def watch(self) -> None:
        """One turn of the supervisor's loop."""
        self.pool.look()
        self.dispatcher.watch()

    def wait(self, seconds: float, beats: bool = True) -> None:
        """Time passes, with all heartbeats or without."""
        for worker in self.pool:
            for instance in worker.instances if beats else ():
                instance.last_beat = self.now + seconds
        self.now += seconds
        self.watch()

    # ---- what can be seen

    def phase(self, name: str) -> str:
        return self.manager.streams[name].phase

    def sent(self, worker: str, kind: str | None = None, spare: bool = False) -> list[Message]:
        """Control messages to a worker, oldest first; those to its standby process if `spare`."""
        return [m for to, s, m in self._sent if to == worker and s == spare and kind in (None, m.kind)]

    def order(self) -> list[tuple[str, str]]:
        """(stage, kind) of every message so far that is for a stage."""
        return [(m["stage"], m.kind) for _, _, m in self._sent if "stage" in m.fields]

    def forget_sent(self) -> None:
        self._sent.clear()

    def events(self, name: str) -> list[dict[str, Any]]:
        """Lines of the log with this event."""
        return [one for one in map(json.loads, self._lines.getvalue().splitlines()) if one["event"] == name]
