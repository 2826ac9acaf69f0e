"""The workers of a pipeline: which processes they have, and when those are started, promoted and killed.

    pool.start_all()
    pool.look(); ...; pool.watch()       # deaths, deadlines, restarts; many times a second

What a death means for streams is `StreamManager`'s business: its `on_death` says whether the worker gets
another process.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from streamvos.pipeline.config.pipeline import PipelineConfig
from streamvos.pipeline.supervision.processes import Instance
from streamvos.pipeline.supervision.topology import Topology
from streamvos.pipeline.telemetry.logs import EventLog
from streamvos.pipeline.wire.messages import Message

KILL_AFTER = 0.5
"""Seconds between `exit` and SIGKILL."""

SPARE_DELAY = 1.0
"""Seconds before the next spare worker is started, so that its imports do not slow down a recovery."""


FIRST_DELAY = 0.5
LONGEST_DELAY = 30.0
"""Seconds before the second restart within the window, and before any restart at most."""


class Restarts:
    """When a worker that died is started again, and when no more: exponential back-off and circuit breaker.

    >>> restarts = Restarts(maximum=2, window=60.0)
    >>> [(restarts.died(at), restarts.delay) for at in (0.0, 1.0, 2.0)]
    [(True, 0.0), (True, 0.5), (False, 0.5)]

    Args:
        maximum: restarts within the window; None = no limit, as for cameras, which come back some time.
        window: seconds.

    Attributes:
        count: restarts so far.
        delay: seconds to wait before the next life.
    """

    def __init__(self, maximum: int | None, window: float):
        self._maximum, self._window = maximum, window
        self._deaths: deque[float] = deque()
        self.count = 0
        self.delay = 0.0

    def died(self, at: float) -> bool:
        """Note a death, in seconds of any clock; returns whether the worker is started again.

        After the first death within the window that is at once, after the next ones later and later.
        """
        while self._deaths and at - self._deaths[0] > self._window:
            self._deaths.popleft()
        if self._maximum is not None and len(self._deaths) >= self._maximum:
            return False
        self._deaths.append(at)
        self.count += 1
        recent = len(self._deaths)
        self.delay = 0.0 if recent == 1 else min(FIRST_DELAY * 2 ** min(recent - 2, 10), LONGEST_DELAY)
        return True


@dataclass
class WorkerSlot:
    """A worker: its stages, its present process and its restarts. Times are monotonic seconds."""

    name: str
    stages: tuple[str, ...]
    remote: bool  # a person starts it on another host
    restarts: Restarts
    current: Instance | None = None  # does the work
    spare: Instance | None = None  # the standby process
    lives: int = 0  # instances so far
    start_at: float | None = None  # when the next one is started; None = none is due
    spare_at: float | None = None  # the same for the next standby process
    retired: bool = False  # no stream needs it any more

    @property
    def instances(self) -> list[Instance]:
        """The one at work and the standby one, if they live."""
        return [one for one in (self.current, self.spare) if one is not None]

    @property
    def is_source(self) -> bool:
        """Whether it opens a source."""
        return any(stage.startswith("source.") for stage in self.stages)

    @property
    def is_ready(self) -> bool:
        """Whether its instance is READY."""
        return self.current is not None and self.current.state == "ready"


class WorkerPool:
    """All workers.

    Args:
        initialize: makes INIT for an instance.
        on_death: (worker, reason) -> whether to start it again.
        The others are those of `Dispatcher`.

    Attributes:
        workers: by name.
        leaving: the pipeline ends, and no worker is started again.
    """

    def __init__(
        self,
        config: PipelineConfig,
        topology: Topology,
        start: Callable[[WorkerSlot, bool], Instance],
        send: Callable[[Instance, Message], None],
        initialize: Callable[[WorkerSlot, Instance], Message],
        on_death: Callable[[WorkerSlot, str], bool],
        log: EventLog,
        clock: Callable[[], float] = time.monotonic,
    ):
        self._limits, self._topology, self._log, self._clock = config.supervision, topology, log, clock
        self._start_process, self._send, self._init, self._on_death = start, send, initialize, on_death
        self.leaving = False
        self._buried: deque[bytes] = deque(maxlen=256)
        self.workers = {
            name: WorkerSlot(name, stages, False, self._restarts(config, stages))
            for name, stages in topology.workers.items()
        }
        for name in topology.remote:
            self.workers[name] = WorkerSlot(name, (name,), True, Restarts(None, self._limits.restart_window))

    def _restarts(self, config: PipelineConfig, stages: tuple[str, ...]) -> Restarts:
        live = any(s.startswith("source.") and config.stream(s.partition(".")[2]).live for s in stages)
        return Restarts(None if live else self._limits.max_restarts, self._limits.restart_window)

    # ---- who is who

    def __iter__(self) -> Iterator[WorkerSlot]:
        return iter(self.workers.values())

    def of_stage(self, stage: str) -> WorkerSlot:
        """The worker that runs a stage."""
        return self.workers[self._topology.worker_of(stage)]

    def find(self, identity: bytes) -> tuple[WorkerSlot, Instance] | None:
        """The worker and instance with a routing id; None for that of a life that is over."""
        for worker in self:
            for instance in worker.instances:
                if instance.identity == identity:
                    return worker, instance
        return None

    def knew(self, identity: bytes) -> bool:
        """Whether a routing id is of a life that is over, whose last messages may still arrive."""
        return identity in self._buried

    def are_ready(self, names: set[str]) -> bool:
        """Whether all of these workers are READY."""
        return all(self.workers[name].is_ready for name in names)

    def working(self) -> list[Instance]:
        """Instances that are READY, without standby ones."""
        return [worker.current for worker in self if worker.current is not None and worker.is_ready]

    # ---- lives

    def start_all(self) -> None:
        """The first lives."""
        for worker in self:
            if not worker.remote:
                self._start(worker)

    def adopt(self, worker: WorkerSlot, identity: bytes) -> None:
        """A remote worker has said hello: a new life begins, and the one before is over."""
        if worker.current is not None:
            self._bury(worker, worker.current, "it was started anew")
        instance = Instance(worker.name, worker.stages, identity, worker.lives, None, state="initializing")
        instance.last_beat = self._clock()
        instance.deadline = instance.last_beat + self._limits.start_timeout
        worker.current, worker.start_at = instance, None
        worker.lives += 1
        self._log.event("joined", worker=worker.name, life=instance.life)

    def prepare(self, may: Callable[[WorkerSlot], bool]) -> None:
        """Send INIT to every instance that has said hello, has not had it yet, and whose worker may begin."""
        for worker in self:
            for instance in worker.instances:
                if instance.state != "initializing" or instance.prepared:
                    continue
                if may(worker):
                    self._prepare(worker, instance)
                else:
                    instance.deadline = self._clock() + self._limits.start_timeout

    def ready(self, worker: WorkerSlot, instance: Instance, message: Message) -> bool:
        """Take an instance's READY; whether it is at work now."""
        instance.state, instance.endpoints = "ready", dict(message["endpoints"])
        if message["standby"]:
            self._log.event("standby_ready", worker=worker.name, life=instance.life)
            if not instance.spare:  # it took over before it was ready
                self._promote(worker, instance)
            return False
        self._log.event("ready", worker=worker.name, life=instance.life)
        if worker.name == self._topology.standby and worker.spare is None:
            # the next one waits as long as a worker would that died as often
            worker.spare_at = self._clock() + max(SPARE_DELAY, worker.restarts.delay)
        return True

    def look(self) -> None:
        """Note which processes have died; their last messages are read before `watch` is called."""
        for worker in self:
            for instance in worker.instances:
                instance.seen_dead = instance.has_ended()

    def excuse(self, seconds: float) -> None:
        """Extend all deadlines by a time in which this process could not run."""
        for worker in self:
            for instance in worker.instances:
                instance.last_beat += seconds
                instance.deadline += seconds

    def watch(self) -> None:
        """Act on deaths that were noted, on deadlines, and on restarts that are due."""
        now = self._clock()
        for worker in self:
            for instance in worker.instances:
                if instance.seen_dead:
                    self._bury(worker, instance, instance.exit_reason())
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
        worker.retired = True
        for instance in worker.instances:
            instance.expected = True
            if instance.state == "starting":  # it has not connected yet, and would not hear it
                instance.kill("no stream needs it any more")
            else:
                self._send(instance, Message("exit"))

    def dismiss(self, forced: bool, meanwhile: Callable[[], None]) -> None:
        """End all workers: they are told to exit, and killed a moment later.

        Args:
            forced: they are killed at once.
            meanwhile: called while they end.
        """
        self.leaving = True
        instances = [instance for worker in self for instance in worker.instances]
        for instance in instances:
            instance.expected = True
            if forced:
                instance.kill("interrupted twice")
            else:
                self._send(instance, Message("exit"))
        limit = self._clock() + KILL_AFTER
        own = [one for one in instances if one.process is not None]
        while self._clock() < limit and not all(one.has_ended() for one in own):
            time.sleep(0.01)
            meanwhile()
        for instance in own:
            instance.kill("it did not exit")
            instance.bury()

    # ---- for status

    def status(self) -> dict[str, dict[str, Any]]:
        """Name -> state of each worker, its last heartbeat included."""
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

    # ---- inside

    def _start(self, worker: WorkerSlot, spare: bool = False) -> None:
        try:
            instance = self._start_process(worker, spare)
        except OSError as error:  # no descriptors, no memory: perhaps later
            self._cannot_start(worker, spare, f"cannot be started: {error.strerror or error}")
            return
        instance.deadline = self._clock() + self._limits.start_timeout
        worker.lives += 1
        if spare:
            worker.spare, worker.spare_at = instance, None
        else:
            worker.current, worker.start_at, worker.spare_at = instance, None, None
        self._log.event(
            "started", worker=worker.name, life=instance.life, pid=instance.pid, spare=instance.spare
        )

    def _cannot_start(self, worker: WorkerSlot, spare: bool, reason: str) -> None:
        self._log.event("died", "error", worker=worker.name, life=worker.lives, reason=reason)
        if spare:
            worker.spare_at = self._clock() + 10 * SPARE_DELAY
            return
        worker.start_at = None
        if self._on_death(worker, reason):
            worker.start_at = self._clock() + max(worker.restarts.delay, SPARE_DELAY)

    def _prepare(self, worker: WorkerSlot, instance: Instance) -> None:
        instance.prepared = True
        self._send(instance, self._init(worker, instance))

    def _promote(self, worker: WorkerSlot, instance: Instance) -> None:
        """A standby process that is READY gets to work."""
        instance.state = "initializing"
        instance.deadline = self._clock() + self._limits.start_timeout
        self._prepare(worker, instance)

    def _revive(self, worker: WorkerSlot) -> None:
        """Begin the next life: with the standby process, or with a new one."""
        worker.start_at = None
        if worker.remote:
            return
        if worker.spare is None:
            self._start(worker)
            return
        instance, worker.spare = worker.spare, None
        worker.current, instance.spare = instance, False
        if instance.state == "ready":
            self._promote(worker, instance)

    def _bury(self, worker: WorkerSlot, instance: Instance, reason: str) -> None:
        """A life is over; decide whether and when the next begins."""
        instance.state = "dead"
        self._buried.append(instance.identity)
        if instance.process is None:
            self._send(instance, Message("exit"))  # it may live on at the other end
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
        if self.leaving or worker.retired or not self._on_death(worker, reason):
            return
        at_once = worker.spare is not None and worker.spare.state == "ready"
        worker.start_at = self._clock() + (0 if at_once else worker.restarts.delay)

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
