"""The workers of a pipeline: when their processes are started, promoted and killed.

    pool.start_all()
    pool.look(); ...; pool.watch()       # deaths, deadlines, restarts; many times a second

`StreamManager.on_death` decides what a death means for streams, and whether the worker is restarted.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

from streamvos.pipeline.config.pipeline import PipelineConfig
from streamvos.pipeline.config.streams import StreamConfig
from streamvos.pipeline.supervision.processes import Instance, Restarts, WorkerSlot
from streamvos.pipeline.supervision.resources import Resources
from streamvos.pipeline.supervision.topology import Topology
from streamvos.pipeline.telemetry.logs import EventLog
from streamvos.pipeline.telemetry.observation import Observation
from streamvos.pipeline.wire.messages import Message

KILL_AFTER = 0.5
"""Seconds between `exit` and SIGKILL."""

EXIT_SECONDS = 2.0
"""Time for a worker to exit that no stream needs any more; its stages have ended, so it is not busy."""

SPARE_DELAY = 1.0
"""Seconds before the next standby process is started, so that its imports do not slow down a recovery."""


@dataclass(frozen=True)
class Context:
    """What the dispatcher, the workers and the streams share; tests replace the functions."""

    config: PipelineConfig
    topology: Topology
    start: Callable[[WorkerSlot, bool], Instance]  # starts a process; true = a standby one
    send: Callable[[Instance, Message], None]  # sends a control message
    init: Mapping[str, Any]  # fields of every INIT: the session and the runtime folder
    resources: Resources
    background: Callable[[Callable[[], Any]], Future[Any]]  # does something without waiting for it
    observation: Observation
    log: EventLog
    clock: Callable[[], float] = time.monotonic  # seconds


class WorkerPool:
    """All workers.

    Args:
        context: configuration, process starter, sender, log and clock.
        initialize: makes INIT for an instance.
        on_death: (worker, reason) -> whether to restart it.

    Attributes:
        workers: by name.
        leaving: the pipeline ends, and no worker is restarted.
    """

    def __init__(
        self,
        context: Context,
        initialize: Callable[[WorkerSlot, Instance], Message],
        on_death: Callable[[WorkerSlot, str], bool],
    ):
        self._context, self._init, self._on_death = context, initialize, on_death
        self._limits, self._topology = context.config.supervision, context.topology
        self._log, self._clock, self._send = context.log, context.clock, context.send
        self.leaving = False
        self._buried: deque[bytes] = deque(maxlen=256)
        self.workers: dict[str, WorkerSlot] = {}
        self._fill(context.config.streams)

    def _fill(self, streams: Iterable[StreamConfig]) -> list[WorkerSlot]:
        """Make the slots that are missing; `streams`: those that are new."""
        live = {f"source.{one.name}" for one in streams if one.live}
        stages = {**self._topology.workers, **{name: (name,) for name in self._topology.remote}}
        made = []
        for name in stages.keys() - self.workers.keys():
            remote = name in self._topology.remote
            maximum = None if remote or live.intersection(stages[name]) else self._limits.max_restarts
            restarts = Restarts(maximum, self._limits.restart_window)
            made.append(WorkerSlot(name, stages[name], remote, restarts))
        order = list(stages)
        made.sort(key=lambda one: order.index(one.name))
        self.workers |= {one.name: one for one in made}
        return made

    # ---- streams come and go

    def add(self, stream: StreamConfig) -> None:
        """Start the workers of a stream that the topology has got."""
        for worker in self._fill([stream]):
            self._start(worker)

    def drop(self) -> None:
        """Forget the workers and stages that the topology has no more; their processes have ended."""
        known = {**self._topology.workers, **{name: (name,) for name in self._topology.remote}}
        for name in self.workers.keys() - known.keys():
            for instance in self.workers.pop(name).instances:  # a remote one has said hello again
                instance.kill("no stream needs it any more")
                self._send(instance, Message("exit"))
        for name, worker in self.workers.items():
            worker.stages = known[name]

    # ---- which worker is which

    def __iter__(self) -> Iterator[WorkerSlot]:
        return iter(self.workers.values())

    def _instances(self) -> list[tuple[WorkerSlot, Instance]]:
        return [(worker, instance) for worker in self for instance in worker.instances]

    def of_stage(self, stage: str) -> WorkerSlot:
        """The worker that runs a stage."""
        return self.workers[self._topology.worker_of(stage)]

    def find(self, identity: bytes) -> tuple[WorkerSlot, Instance] | None:
        """The worker and its living instance with a routing id; None if there is none."""
        return next((pair for pair in self._instances() if pair[1].identity == identity), None)

    def knew(self, identity: bytes) -> bool:
        """Whether a routing id belongs to a dead instance, whose last messages may still arrive."""
        return identity in self._buried

    # ---- lives

    def start_all(self) -> None:
        """Start the first process of every local worker."""
        for worker in self:
            if not worker.remote:
                self._start(worker)

    def adopt(self, worker: WorkerSlot, identity: bytes) -> None:
        """Begin a new life of a remote worker, which has said hello, and end the one before."""
        if worker.current is not None:
            self._bury(worker, worker.current, "it was started anew")
        instance = Instance(worker.name, identity, worker.lives, None, state="initializing")
        instance.last_beat = self._clock()
        instance.deadline = instance.last_beat + self._limits.start_timeout
        worker.current = instance
        worker.lives += 1
        self._log.event("joined", worker=worker.name, life=instance.life)

    def prepare(self, may: Callable[[WorkerSlot], bool]) -> None:
        """Send INIT to every instance that has said hello and waits for it, and whose worker may begin."""
        for worker, instance in self._instances():
            if instance.state != "initializing" or instance.prepared:
                continue
            if may(worker):
                self._prepare(worker, instance)
            else:
                instance.deadline = self._clock() + self._limits.start_timeout

    def ready(self, worker: WorkerSlot, instance: Instance, message: Message) -> bool:
        """Take an instance's READY; returns whether it works now."""
        instance.state, instance.endpoints = "ready", dict(message["endpoints"])
        if message["standby"]:
            self._log.event("standby_ready", worker=worker.name, life=instance.life)
            if not instance.spare:  # it took over before it was ready
                self._prepare(worker, instance)
            return False
        self._log.event("ready", worker=worker.name, life=instance.life)
        if worker.name == self._topology.standby and worker.spare is None:
            # the next one waits as long as a restart of the worker would
            worker.spare_at = self._clock() + max(SPARE_DELAY, worker.restarts.delay)
        return True

    def look(self) -> None:
        """Note which processes have died; their last messages are read before `watch` is called."""
        for _, instance in self._instances():
            instance.seen_dead = instance.has_ended()

    def excuse(self, seconds: float) -> None:
        """Extend all deadlines by the time in which this process could not run."""
        for _, instance in self._instances():
            instance.last_beat += seconds
            instance.deadline += seconds

    def watch(self) -> None:
        """Act on noted deaths, missed deadlines, and restarts that are due."""
        now = self._clock()
        for worker in self:
            for instance in worker.instances:
                if instance.seen_dead:
                    self._bury(worker, instance, instance.exit_reason())
                elif worker.retired_at is not None and now > worker.retired_at + EXIT_SECONDS:
                    instance.kill("it did not exit")
                elif reason := self._overdue(instance, now):
                    instance.kill(reason)
            if self.leaving or worker.retired:
                continue
            if worker.start_at is not None and now >= worker.start_at:
                self._revive(worker)
            if worker.spare_at is not None and now >= worker.spare_at and worker.spare is None:
                self._start(worker, spare=True)

    def retire(self, name: str) -> None:
        """End a worker that no stream needs any more."""
        worker = self.workers[name]
        worker.retired_at = self._clock()
        for instance in worker.instances:
            # one that has not connected yet would not receive the message
            self._end(instance, "no stream needs it any more" if instance.state == "starting" else "")

    def _end(self, instance: Instance, kill_reason: str) -> None:
        """Kill an instance, or without a reason ask it to exit."""
        instance.expected = True
        if kill_reason:
            instance.kill(kill_reason)
        else:
            self._send(instance, Message("exit"))

    def dismiss(self, forced: bool, meanwhile: Callable[[], None]) -> None:
        """Ask all workers to exit, and kill them a moment later.

        Args:
            forced: kill them at once.
            meanwhile: called while they end.
        """
        self.leaving = True
        instances = [instance for _, instance in self._instances()]
        for instance in instances:
            self._end(instance, "interrupted twice" if forced else "")
        limit = self._clock() + KILL_AFTER
        own = [one for one in instances if one.process is not None]
        while self._clock() < limit and not all(one.has_ended() for one in own):
            time.sleep(0.01)
            meanwhile()
        for instance in own:
            instance.kill("it did not exit")
            instance.bury()

    def status(self) -> dict[str, dict[str, Any]]:
        """Name -> state of each worker, including its last heartbeat."""
        return {
            worker.name: {
                "pid": None if (current := worker.current) is None else current.pid,
                "state": "dead" if current is None else current.state,
                "up": worker.is_ready,
                "stages": list(worker.stages),
                "restarts": worker.restarts.count,
                "standby": None if worker.spare is None else worker.spare.state,
                "beat": {} if current is None else dict(current.beat),
            }
            for worker in self
        }

    def _start(self, worker: WorkerSlot, spare: bool = False) -> None:
        try:
            instance = self._context.start(worker, spare)
        except OSError as error:  # no descriptors or memory; they may be available later
            reason = f"cannot be started: {error.strerror or error}"
            self._log.event("died", "error", worker=worker.name, life=worker.lives, reason=reason)
            if spare:
                worker.spare_at = self._clock() + 10 * SPARE_DELAY
            else:
                self._plan_restart(worker, reason, SPARE_DELAY)
            return
        instance.deadline = self._clock() + self._limits.start_timeout
        worker.lives += 1
        if spare:
            worker.spare, worker.spare_at = instance, None
        else:
            worker.current, worker.start_at, worker.spare_at = instance, None, None
        self._log.event("started", worker=worker.name, life=instance.life, pid=instance.pid, spare=spare)

    def _prepare(self, worker: WorkerSlot, instance: Instance) -> None:
        """Send INIT; a standby process that takes over gets a second one."""
        if instance.prepared:
            instance.state, instance.deadline = "initializing", self._clock() + self._limits.start_timeout
        instance.prepared = True
        self._send(instance, self._init(worker, instance))

    def _revive(self, worker: WorkerSlot) -> None:
        """Begin the next life: with the standby process, or with a new one."""
        worker.start_at = None
        if worker.spare is None:
            self._start(worker)
            return
        instance, worker.spare = worker.spare, None
        worker.current, instance.spare = instance, False
        if instance.state == "ready":
            self._prepare(worker, instance)

    def _bury(self, worker: WorkerSlot, instance: Instance, reason: str) -> None:
        """End a life, and plan the next."""
        instance.state = "dead"
        self._buried.append(instance.identity)
        if instance.process is None:
            self._send(instance, Message("exit"))  # it may still live on the other host
        instance.bury()
        if instance is worker.spare:
            worker.spare = None
            if not (self.leaving or worker.retired):
                self._log.event("standby_died", "warning", worker=worker.name, reason=reason)
                worker.spare_at = self._clock() + 10 * SPARE_DELAY
            return
        worker.current = None
        if instance.expected:
            return
        self._log.event("died", "warning", worker=worker.name, life=instance.life, reason=reason)
        self._plan_restart(worker, reason)

    def _plan_restart(self, worker: WorkerSlot, reason: str, at_least: float = 0.0) -> None:
        worker.start_at = None
        if self.leaving or worker.retired or not self._on_death(worker, reason) or worker.remote:
            return
        at_once = worker.spare is not None and worker.spare.state == "ready"
        worker.start_at = self._clock() + max(0.0 if at_once else worker.restarts.delay, at_least)

    def _overdue(self, instance: Instance, now: float) -> str:
        limits = self._limits
        if instance.state in ("starting", "initializing"):
            return f"no READY within {limits.start_timeout:g} s" if now > instance.deadline else ""
        if now - instance.last_beat > limits.heartbeat_timeout:
            return f"no heartbeat for {limits.heartbeat_timeout:g} s"
        for stage, beat in instance.beat.get("stages", {}).items():
            since = beat.get("busy_since", 0)
            if since and now - since * 1e-9 > limits.hang_timeout:
                return f"hung for {limits.hang_timeout:g} s in {stage}"
        return ""
