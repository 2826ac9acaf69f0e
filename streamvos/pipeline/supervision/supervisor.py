"""The supervisor: starts the workers, watches them, restores streams, and ends everything in order.

    Supervisor(config, EventLog("text")).run()

One thread runs one loop. Every message, death, deadline and signal is handled completely before the next one,
so that docs/protocol.md, 5, lists all that can happen. This file holds sockets, processes and signals; the
`dispatcher` decides.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import time
from collections.abc import Iterator
from types import FrameType
from typing import Any

import zmq

from streamvos.pipeline.clients.control import ControlServer
from streamvos.pipeline.config.pipeline import PipelineConfig
from streamvos.pipeline.supervision.additions import in_background
from streamvos.pipeline.supervision.commands import Commands
from streamvos.pipeline.supervision.dispatcher import Dispatcher
from streamvos.pipeline.supervision.notify import Notifier, count_states
from streamvos.pipeline.supervision.processes import Instance, WorkerSlot, start_worker
from streamvos.pipeline.supervision.resources import Resources
from streamvos.pipeline.supervision.topology import Topology
from streamvos.pipeline.supervision.worker_pool import Context
from streamvos.pipeline.telemetry.lines import WorkerOutput
from streamvos.pipeline.telemetry.logs import EventLog, warnings_as_events
from streamvos.pipeline.telemetry.observation import Observation
from streamvos.pipeline.telemetry.trace import TraceWriter
from streamvos.pipeline.wire.admission import raise_descriptor_limit
from streamvos.pipeline.wire.messages import (
    ARRAY_BYTES,
    Message,
    Refused,
    RejectionCounter,
    decode,
    encode,
    public_session,
)
from streamvos.pipeline.wire.runtime import Runtime
from streamvos.pipeline.wire.security import Curve, bind

TICK_SECONDS = 0.05

STATUS_SECONDS = 0.5
"""Maximum age of the status that the metrics show."""

HELD_SECONDS = 0.5
"""A turn that took longer is not the workers' fault: this process was stopped, or the machine slept."""

PING_SECONDS = 1.0
"""Interval of messages that tell remote workers that the supervisor lives."""

_QUEUE = 10_000  # messages that wait for a worker; only one that does not read reaches this
_HELD = 256  # messages of each worker that wait here; further ones wait at the worker
_BUDGET = 1_000  # messages of one turn, so that every socket gets its turn


class Supervisor:
    """Runs one pipeline.

    Args:
        config: the pipeline's configuration.
        log: receives the events.
    """

    def __init__(self, config: PipelineConfig, log: EventLog):
        self._config, self._log = config, log
        self._session = secrets.token_bytes(8)
        self._drained_by: float | None = None  # monotonic seconds; None = no signal has come
        self._signal: int | None = None
        self._forced = False
        self._status: dict[str, Any] = {}
        self._status_at = self._pinged_at = 0.0
        self._turned_at = time.monotonic()

    def run(self) -> int:
        """Run until every stream has ended; a first signal ends them in order, a second one at once.

        Returns:
            0 if all streams ended in order; 1 if one failed, 2 if its input was at fault; 128 + n after a
            second signal n.

        Raises:
            StreamvosError: the configuration cannot be used on this machine.
        """
        with contextlib.ExitStack() as stack:
            stack.enter_context(
                warnings_as_events(lambda level, text: self._log.event("warned", level, text=text))
            )
            raise_descriptor_limit()
            self._notifier = stack.enter_context(Notifier.from_environment())
            self._open(stack)
            stack.enter_context(self._signals())
            self._pool.start_all()
            self._notifier.ready()
            while not (self._forced or self._dispatcher.finished):
                self._turn()
            self._status = self._dispatcher.status()
            self._pool.dismiss(self._forced, lambda: self._read(self._workers))
        code = 128 + (self._signal or signal.SIGINT) if self._forced else self._manager.ends.code
        self._log.event("done", exit_code=code)
        return code

    def summary(self) -> dict[str, Any]:
        """The last status, as `ctl status` would show it."""
        return self._status

    # ---- start

    def _open(self, stack: contextlib.ExitStack) -> None:
        config, security = self._config, self._config.security
        curve = None if security.secret is None else Curve(security.secret, security.clients)
        runtime = stack.enter_context(Runtime.claim(config.name))
        topology = Topology(config, runtime)
        self._topology, self._resources = topology, Resources(topology, runtime)
        stack.callback(self._resources.close)
        self._resources.begin(config)
        trace = None
        if config.observe.trace is not None:
            workers = {stage: name for name, stages in topology.workers.items() for stage in stages}
            trace = stack.enter_context(TraceWriter(config.observe.trace, workers, config.name))
        self._observation = Observation([one.name for one in config.streams], self._log, trace)
        # workers hold the reading end; the writing end closes when this process ends, in whatever way
        pipe, writing = os.pipe()
        for descriptor in (pipe, writing):
            stack.callback(os.close, descriptor)
        # what a library prints in a worker; nobody may read our own standard error
        self._output = stack.enter_context(WorkerOutput(lambda text: self._log.event("printed", text=text)))
        self._link = {"control": runtime.workers, "session": self._session.hex(), "pipe": pipe}

        self._zmq: zmq.Context[Any] = zmq.Context()
        stack.callback(self._zmq.destroy, linger=0)
        self._poller = zmq.Poller()
        self._workers = self._router(runtime.workers)
        self._remote = None
        if config.remote:
            # users' keys must not admit them as stages
            own = None if security.secret is None else Curve(security.secret, serves_own=True)
            refused = RejectionCounter("remote workers") if own is None else own.denied
            self._remote = self._router(f"tcp://{config.host}:{config.port}", own, refused)
            self._observation.include("remote workers", refused)
        init = {"pipeline_session": self._session, "runtime": str(runtime.folder), "started": time.time_ns()}
        context = Context(
            config,
            topology,
            self._start,
            self._send,
            init,
            self._resources,
            in_background,
            self._observation,
            self._log,
        )
        self._dispatcher = Dispatcher(context)
        self._manager, self._pool = self._dispatcher.manager, self._dispatcher.pool
        session, commands = public_session(self._session), Commands(self._dispatcher)
        self._users = ControlServer(
            self._zmq, runtime.control, session, commands, config.control, curve, security.remote_files
        )
        stack.callback(self._users.close)
        self._observation.include("control", self._users.refused)
        if curve is not None:
            self._observation.include("control keys", curve.denied)
        for one in self._users.sockets():
            self._poller.register(one, zmq.POLLIN)
        self._status = self._dispatcher.status()
        if config.observe.prometheus is not None:
            from streamvos.pipeline.telemetry.prometheus import serve_metrics  # 10 MiB that few need

            url = stack.enter_context(serve_metrics(config.observe.prometheus, lambda: self._status))
            self._log.event("metrics", url=url)
        self._log.event("serving", pipeline=config.name, control=runtime.control)

    def _router(
        self, address: str, curve: Curve | None = None, refused: RejectionCounter | None = None
    ) -> zmq.Socket[bytes]:
        router: zmq.Socket[bytes] = self._zmq.socket(zmq.ROUTER)
        router.linger, router.sndhwm, router.rcvhwm = 200, _QUEUE, _HELD
        router.maxmsgsize = ARRAY_BYTES  # a snapshot, at most
        bind(router, address, curve, refused)
        self._poller.register(router, zmq.POLLIN)
        return router

    @contextlib.contextmanager
    def _signals(self) -> Iterator[None]:
        """Note SIGINT, SIGTERM and SIGHUP for the next turn; ignored ones (nohup) stay ignored."""

        def note(number: int, _: FrameType | None) -> None:
            self._forced = self._signal is not None
            self._signal = number

        numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
        caught = [number for number in numbers if signal.getsignal(number) is not signal.SIG_IGN]
        handlers = {number: signal.signal(number, note) for number in caught}
        try:
            yield
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)

    # ---- the loop

    def _turn(self) -> None:
        """Handle everything that has happened since the last turn."""
        self._poller.poll(round(TICK_SECONDS * 1000))
        now = time.monotonic()
        if (held := now - self._turned_at) > HELD_SECONDS:
            self._pool.excuse(held)
        if self._signal is not None and self._drained_by is None:
            self._drain(now)
        self._users.handle()
        self._pool.look()
        self._read(self._workers)
        if self._remote is not None:
            self._read(self._remote)
            self._ping(now)
        self._dispatcher.watch()
        if self._drained_by is not None and now >= self._drained_by:
            self._manager.ends.cut_short()
        if now >= self._status_at + STATUS_SECONDS:
            self._status, self._status_at = self._dispatcher.status(), now
        states = (one["state"] for one in self._status["streams"].values())
        self._notifier.alive(now, count_states(states))
        self._turned_at = time.monotonic()

    def _drain(self, now: float) -> None:
        """End all streams in order after the first signal."""
        self._drained_by = now + self._config.supervision.drain_timeout
        self._log.event("stopping", signal=signal.Signals(self._signal or signal.SIGTERM).name)
        self._notifier.stopping()
        self._pool.leaving = True
        self._manager.ends.close()

    def _ping(self, now: float) -> None:
        if now < self._pinged_at + PING_SECONDS:
            return
        self._pinged_at = now
        for worker in self._pool:
            if worker.remote and worker.current is not None:
                self._send(worker.current, Message("ping"))

    # ---- messages

    def _read(self, router: zmq.Socket[bytes]) -> None:
        for _ in range(_BUDGET):
            try:
                identity, *parts = router.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return
            try:
                if router is self._remote:
                    self._adopt(identity, parts)
                self._take(identity, parts, remote=router is self._remote)
            except Refused as error:
                self._observation.refuse(error.cause)
            except (TypeError, ValueError, KeyError, AttributeError, IndexError) as error:
                # a malformed message must not end the supervisor
                self._observation.refuse("field", f"{type(error).__name__}: {error}")

    def _take(self, identity: bytes, parts: list[bytes], remote: bool) -> None:
        found = self._pool.find(identity)
        if found is None:
            if not self._pool.knew(identity):
                raise Refused("peer")
            return
        worker, instance = found
        if remote != worker.remote:  # another host uses the name of a local worker
            raise Refused("peer")
        own = None if remote and not instance.prepared else self._session  # INIT tells remote workers
        self._dispatcher.take(worker, instance, decode(parts, own))

    def _adopt(self, identity: bytes, parts: list[bytes]) -> None:
        """Adopt a remote worker that says hello."""
        name = identity.decode(errors="replace").removeprefix("remote ").partition("#")[0]
        worker = self._pool.workers.get(name)
        if worker is None or not worker.remote or self._pool.find(identity) is not None:
            return
        if decode(parts, None).kind == "hello":
            self._pool.adopt(worker, identity)

    def _send(self, instance: Instance, message: Message) -> None:
        router = self._remote if instance.process is None else self._workers
        if router is not None:
            with contextlib.suppress(zmq.Again):
                router.send_multipart([instance.identity, *encode(message, self._session)], zmq.NOBLOCK)

    def _start(self, worker: WorkerSlot, spare: bool) -> Instance:
        arenas = self._resources.descriptors(self._topology.streams_of(worker.name))
        return start_worker(worker, spare, self._link, arenas, self._output.descriptor)
