"""The workers of a pipeline: who runs what, who is held ready, who died, and when they start again.

    crew = Crew(config, topology, start_one, send, on_death, log)
    crew.start_all()
    crew.look(); ...; crew.watch()       # deaths, deadlines, restarts; many times a second

What a death means for streams is the conductor's business: `on_death` is called, and says whether there shall
be another life.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

from streamvos.pipeline.config.pipeline import PipelineConfig
from streamvos.pipeline.supervision.processes import Instance
from streamvos.pipeline.supervision.restarts import Restarts
from streamvos.pipeline.supervision.topology import Topology
from streamvos.pipeline.telemetry.logs import EventLog
from streamvos.pipeline.wire.messages import Message

KILL_AFTER = 0.5
"""Seconds between `exit` and SIGKILL."""

SPARE_DELAY = 1.0
"""Seconds before the next spare worker is started, so that its imports do not slow down a recovery."""


class Member:
    """A place in the crew, which one instance after another fills.

    Attributes:
        name, stages: of the worker.
        remote: somebody else starts it.
        restarts: its deaths.
        current: who runs the stages; None while nobody does.
        spare: who is held ready for it.
        lives: instances so far.
        start_at: monotonic seconds of the next start; None = none is due.
        spare_at: the same for the next spare one.
        retired: no stream needs it any more.
    """

    def __init__(self, name: str, stages: tuple[str, ...], remote: bool, restarts: Restarts):
        self.name, self.stages, self.remote, self.restarts = name, stages, remote, restarts
        self.current: Instance | None = None
        self.spare: Instance | None = None
        self.lives = 0
        self.start_at: float | None = None
        self.spare_at: float | None = None
        self.retired = False

    @property
    def instances(self) -> list[Instance]:
        """Those who live: the one at work, the one held ready."""
        return [one for one in (self.current, self.spare) if one is not None]

    @property
    def is_source(self) -> bool:
        """Whether it opens a source."""
        return any(stage.startswith("source.") for stage in self.stages)

    @property
    def is_ready(self) -> bool:
        """Whether it can be told to begin."""
        return self.current is not None and self.current.state == "ready"


class Crew:
    """All workers.

    Args:
        config, topology: of the pipeline.
        start_one: starts a process: (member, spare) -> instance.
        send: sends a control message to an instance.
        initialize: INIT for an instance.
        on_death: (member, reason) -> whether to start it again.
        log: where events go.

    Attributes:
        members: by name.
        leaving: nobody is started again.
    """

    def __init__(
        self,
        config: PipelineConfig,
        topology: Topology,
        start_one: Callable[[Member, bool], Instance],
        send: Callable[[Instance, Message], None],
        initialize: Callable[[Member, Instance], Message],
        on_death: Callable[[Member, str], bool],
        log: EventLog,
    ):
        self._limits, self._topology, self._log = config.supervision, topology, log
        self._start_one, self._send, self._init, self._on_death = start_one, send, initialize, on_death
        self.leaving = False
        self._buried: deque[bytes] = deque(maxlen=256)
        self.members = {
            name: Member(name, stages, False, self._restarts(config, stages))
            for name, stages in topology.workers.items()
        }
        for name in topology.remote:
            self.members[name] = Member(name, (name,), True, Restarts(None, self._limits.restart_window))

    def _restarts(self, config: PipelineConfig, stages: tuple[str, ...]) -> Restarts:
        live = any(s.startswith("source.") and config.stream(s.partition(".")[2]).live for s in stages)
        return Restarts(None if live else self._limits.max_restarts, self._limits.restart_window)

    # ---- who is who

    def __iter__(self) -> Iterator[Member]:
        return iter(self.members.values())

    def of_stage(self, stage: str) -> Member:
        """Who runs a stage."""
        return self.members[self._topology.worker_of(stage)]

    def find(self, identity: bytes) -> tuple[Member, Instance] | None:
        """Whose routing id it is; that of a life that is over is nobody's."""
        for member in self:
            for instance in member.instances:
                if instance.identity == identity:
                    return member, instance
        return None

    def knew(self, identity: bytes) -> bool:
        """Whether it is of a life that is over, whose last words may still come in."""
        return identity in self._buried

    def are_ready(self, names: set[str]) -> bool:
        """Whether all of these can be told to begin."""
        return all(self.members[name].is_ready for name in names)

    def working(self) -> list[Instance]:
        """Those who are READY, without spare ones."""
        return [m.current for m in self if m.current is not None and m.current.state == "ready"]

    # ---- lives

    def start_all(self) -> None:
        """The first lives."""
        for member in self:
            if not member.remote:
                self._start(member)

    def adopt(self, member: Member, identity: bytes) -> None:
        """A remote worker has said hello: a new life, and the end of the one before."""
        if member.current is not None:
            self._bury(member, member.current, "it was started anew")
        instance = Instance(member.name, member.stages, identity, member.lives, None, state="initializing")
        instance.last_beat = time.monotonic()
        instance.deadline = instance.last_beat + self._limits.start_timeout
        member.current, member.start_at = instance, None
        member.lives += 1
        self._log.event("joined", worker=member.name, life=instance.life)

    def tell_to_prepare(self, may: Callable[[Member], bool]) -> None:
        """INIT to everybody who has said hello, was not told yet, and may be told."""
        for member in self:
            for instance in member.instances:
                if instance.state != "initializing" or instance.told:
                    continue
                if may(member):
                    self._prepare(member, instance)
                else:
                    instance.deadline = time.monotonic() + self._limits.start_timeout

    def ready(self, member: Member, instance: Instance, message: Message) -> bool:
        """An instance has said READY; whether it is at work now."""
        instance.state, instance.endpoints = "ready", dict(message["endpoints"])
        if message["standby"]:
            self._log.event("standby_ready", worker=member.name, life=instance.life)
            if not instance.spare:  # it was needed before it was ready
                self._promote(member, instance)
            return False
        self._log.event("ready", worker=member.name, life=instance.life)
        if member.name == self._topology.standby and member.spare is None:
            # the next one waits as long as a worker would that died as often
            member.spare_at = time.monotonic() + max(SPARE_DELAY, member.restarts.delay)
        return True

    def look(self) -> None:
        """See who has died; what they said before is read first, and then `watch` is called."""
        for member in self:
            for instance in member.instances:
                instance.seen_dead = instance.has_ended()

    def excuse(self, seconds: float) -> None:
        """Nobody could be heard for so long, through no fault of theirs."""
        for member in self:
            for instance in member.instances:
                instance.last_beat += seconds
                instance.deadline += seconds

    def watch(self) -> None:
        """Deaths that were seen, deadlines, and restarts that are due."""
        now = time.monotonic()
        for member in self:
            for instance in member.instances:
                if instance.seen_dead:
                    self._bury(member, instance, instance.exit_reason())
                else:
                    self._watch(member, instance, now)
            if self.leaving or member.retired:
                continue
            if member.start_at is not None and now >= member.start_at:
                self._revive(member)
            if member.spare_at is not None and now >= member.spare_at and member.spare is None:
                self._start(member, spare=True)

    def retire(self, name: str) -> None:
        """Let a worker go that no stream needs any more."""
        member = self.members[name]
        member.retired = True
        for instance in member.instances:
            instance.expected = True
            if instance.state == "starting":  # it has not called yet, and would not hear it
                instance.kill("no stream needs it any more")
            else:
                self._send(instance, Message("exit"))

    def dismiss(self, forced: bool, meanwhile: Callable[[], None]) -> None:
        """Everybody goes: told, and a moment later killed.

        Args:
            forced: without being told.
            meanwhile: called while we wait.
        """
        self.leaving = True
        everybody = [instance for member in self for instance in member.instances]
        for instance in everybody:
            instance.expected = True
            if forced:
                instance.kill("interrupted twice")
            else:
                self._send(instance, Message("exit"))
        limit = time.monotonic() + KILL_AFTER
        own = [one for one in everybody if one.process is not None]
        while time.monotonic() < limit and not all(one.has_ended() for one in own):
            time.sleep(0.01)
            meanwhile()
        for instance in own:
            instance.kill("it did not exit")
            instance.bury()

    # ---- for status

    def status(self) -> dict[str, dict[str, Any]]:
        """Name -> what is known of each worker, its heartbeat included."""
        told = {}
        for member in self:
            current, spare = member.current, member.spare
            told[member.name] = {
                "pid": None if current is None else current.pid,
                "state": "dead" if current is None else current.state,
                "stages": list(member.stages),
                "restarts": member.restarts.count,
                "standby": None if spare is None else spare.state,
                "beat": {} if current is None else dict(current.beat),
            }
        return told

    # ---- inside

    def _start(self, member: Member, spare: bool = False) -> None:
        try:
            instance = self._start_one(member, spare)
        except OSError as error:  # no descriptors, no memory: perhaps later
            self._cannot_start(member, spare, f"cannot be started: {error.strerror or error}")
            return
        instance.deadline = time.monotonic() + self._limits.start_timeout
        member.lives += 1
        if spare:
            member.spare, member.spare_at = instance, None
        else:
            member.current, member.start_at, member.spare_at = instance, None, None
        self._log.event(
            "started", worker=member.name, life=instance.life, pid=instance.pid, spare=instance.spare
        )

    def _cannot_start(self, member: Member, spare: bool, reason: str) -> None:
        self._log.event("died", "error", worker=member.name, life=member.lives, reason=reason)
        if spare:
            member.spare_at = time.monotonic() + 10 * SPARE_DELAY
            return
        member.start_at = None
        if self._on_death(member, reason):
            member.start_at = time.monotonic() + max(member.restarts.delay, SPARE_DELAY)

    def _prepare(self, member: Member, instance: Instance) -> None:
        instance.told = True
        self._send(instance, self._init(member, instance))

    def _promote(self, member: Member, instance: Instance) -> None:
        """What was held ready gets to work."""
        instance.state = "initializing"
        instance.deadline = time.monotonic() + self._limits.start_timeout
        self._prepare(member, instance)

    def _revive(self, member: Member) -> None:
        """The next life: the one held ready, or a new process."""
        member.start_at = None
        if member.remote:
            return
        if member.spare is None:
            self._start(member)
            return
        instance, member.spare = member.spare, None
        member.current, instance.spare = instance, False
        if instance.state == "ready":
            self._promote(member, instance)

    def _bury(self, member: Member, instance: Instance, reason: str) -> None:
        """A life is over."""
        instance.state = "dead"
        self._buried.append(instance.identity)
        if instance.process is None:
            self._send(instance, Message("exit"))  # whoever it is that lives on at the other end
        instance.bury()
        if instance is member.spare:
            member.spare = None
            if not (self.leaving or member.retired):
                self._log.event("standby_died", "warning", worker=member.name, reason=reason)
                member.spare_at = time.monotonic() + 10 * SPARE_DELAY
            return
        member.current = None
        if instance.expected:
            return
        self._log.event("died", "warning", worker=member.name, life=instance.life, reason=reason)
        if self.leaving or member.retired:
            return
        if not self._on_death(member, reason):
            return
        delay = member.restarts.delay
        member.start_at = time.monotonic() + delay
        if not delay or (member.spare is not None and member.spare.state == "ready"):
            self._revive(member)

    def _watch(self, member: Member, instance: Instance, now: float) -> None:
        reason = self._overdue(instance, now)
        if not reason:
            return
        instance.kill(reason)

    def _overdue(self, instance: Instance, now: float) -> str:
        limits = self._limits
        if instance.state in ("starting", "initializing"):
            return f"no READY within {limits.start_timeout:g} s" if now > instance.deadline else ""
        if now - instance.last_beat > limits.heartbeat_timeout:
            return f"no heartbeat for {limits.heartbeat_timeout:g} s"
        for stage, beat in instance.beat.get("stages", {}).items():
            since = beat.get("busy_since", 0)
            if since and time.monotonic_ns() - since > limits.hang_timeout * 1e9:
                return f"hung for {limits.hang_timeout:g} s in {stage}"
        return ""
