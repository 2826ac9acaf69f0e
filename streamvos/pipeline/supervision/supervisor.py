"""The supervisor: starts the workers, watches them, restores streams, and ends everything in order.

    Supervisor(config, EventLog("text")).run()

One thread, one loop. Every message, death, deadline and signal is handled to its end before the next one, so
that docs/protocol.md, 5, is the whole of what can happen. Here are the sockets, processes and signals; the
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
from streamvos.pipeline.supervision.commands import Commands
from streamvos.pipeline.supervision.dispatcher import Dispatcher
from streamvos.pipeline.supervision.processes import Instance, WorkerSlot, start_worker
from streamvos.pipeline.supervision.topology import Topology
from streamvos.pipeline.supervision.worker_pool import Context
from streamvos.pipeline.telemetry.logs import EventLog, warnings_as_events
from streamvos.pipeline.telemetry.observation import Observation
from streamvos.pipeline.telemetry.trace import TraceWriter
from streamvos.pipeline.wire.arenas import Arena
from streamvos.pipeline.wire.messages import ARRAY_BYTES, Message, Refused, decode, encode, public_session
from streamvos.pipeline.wire.runtime import Runtime
from streamvos.pipeline.wire.security import Curve, bind

TICK_SECONDS = 0.05

STATUS_SECONDS = 0.5
"""How old the metrics of the endpoint may be."""

HELD_SECONDS = 0.5
"""A turn that took longer was none of the workers' fault: this process was stopped, or the machine slept."""

PING_SECONDS = 1.0
"""How often remote workers hear that the supervisor lives."""

_QUEUE = 10_000  # messages that wait for a worker; never reached by one that reads
_HELD = 256  # messages of each worker that wait here; further ones wait at the worker
_BUDGET = 1_000  # messages of one turn, so that the other sockets have theirs


class Supervisor:
    """Runs one pipeline.

    Args:
        config: of the pipeline.
        log: where events go.
    """

    def __init__(self, config: PipelineConfig, log: EventLog):
        self.config, self._log = config, log
        self._session = secrets.token_bytes(8)
        self._drained_by: float | None = None  # monotonic seconds; None = no signal has come
        self._signal: int | None = None
        self._forced = False
        self._status: dict[str, Any] = {}
        self._status_at = self._pinged_at = 0.0
        self._turned_at = time.monotonic()

    def run(self) -> int:
        """Run until every stream is over, or a signal comes.

        Returns:
            0 if all streams ended in order; 1 if one failed, 2 if that was the input's fault; 128 + n after a
            second signal n.

        Raises:
            StreamvosError: the configuration cannot be used here.
        """
        with contextlib.ExitStack() as stack:
            self._open(stack)
            stack.enter_context(self._signals())
            stack.enter_context(
                warnings_as_events(lambda level, text: self._log.event("warned", level, text=text))
            )
            self._pool.start_all()
            while not (self._forced or self._manager.all_over):
                self._turn()
            self._status = self._dispatcher.status()
            self._pool.dismiss(self._forced, lambda: self._read(self._workers))
        code = 128 + (self._signal or signal.SIGINT) if self._forced else self._manager.code
        self._log.event("done", exit_code=code)
        return code

    def summary(self) -> dict[str, Any]:
        """The last status, as `ctl status` would show it."""
        return self._status

    # ---- beginning

    def _open(self, stack: contextlib.ExitStack) -> None:
        config, security = self.config, self.config.security
        self._curve = None if security.secret is None else Curve(security.secret, security.clients)
        runtime = stack.enter_context(Runtime.claim(config.name))
        self._runtime, self._topology = runtime, Topology.of(config, runtime)
        trace = None
        if config.observe.trace is not None:
            workers = {stage: name for name, stages in self._topology.workers.items() for stage in stages}
            trace = stack.enter_context(TraceWriter(config.observe.trace, workers, config.name))
        self._observation = Observation([one.name for one in config.streams], self._log, trace)
        self._arenas = {name: Arena.create(name) for name in self._topology.arenas}
        for arena in self._arenas.values():
            stack.callback(os.close, arena.fd)
        # workers hold the reading end; the writing end closes with this process, however that comes about
        self._pipe, writing = os.pipe()
        stack.callback(os.close, self._pipe)
        stack.callback(os.close, writing)

        self._zmq: zmq.Context[Any] = zmq.Context()
        stack.callback(self._zmq.destroy, linger=0)
        self._poller = zmq.Poller()
        self._workers = self._router(runtime.workers)
        self._remote = None
        if config.remote:
            # users have keys of their own, which are no leave to pose as a stage
            own = None if security.secret is None else Curve(security.secret, serves_own=True)
            self._remote = self._router(f"tcp://{config.host}:{config.port}", own)
            if own is not None:
                self._observation.include("remote workers", own.denied)
        init = {"pipeline_session": self._session, "runtime": str(runtime.folder), "started": time.time_ns()}
        context = Context(config, self._topology, self._start, self._send, init, self._observation, self._log)
        self._dispatcher = Dispatcher(context)
        self._manager, self._pool = self._dispatcher.manager, self._dispatcher.pool
        self._users = ControlServer(
            self._zmq,
            runtime.control,
            public_session(self._session),
            Commands(self._dispatcher),
            config.control,
            self._curve,
        )
        stack.callback(self._users.close)
        self._observation.include("control", self._users.refused)
        if self._curve is not None:
            self._observation.include("control keys", self._curve.denied)
        for one in self._users.sockets():
            self._poller.register(one, zmq.POLLIN)
        self._status = self._dispatcher.status()
        if config.observe.prometheus is not None:
            from streamvos.pipeline.telemetry.prometheus import serve_metrics  # 10 MiB that few ask for

            url = stack.enter_context(serve_metrics(config.observe.prometheus, lambda: self._status))
            self._log.event("metrics", url=url)
        self._log.event("serving", pipeline=config.name, control=runtime.control)

    def _router(self, address: str, curve: Curve | None = None) -> zmq.Socket[bytes]:
        router: zmq.Socket[bytes] = self._zmq.socket(zmq.ROUTER)
        router.setsockopt(zmq.LINGER, 200)
        router.setsockopt(zmq.SNDHWM, _QUEUE)
        router.setsockopt(zmq.RCVHWM, _HELD)
        router.setsockopt(zmq.MAXMSGSIZE, ARRAY_BYTES)  # a snapshot, at most
        bind(router, address, curve)
        self._poller.register(router, zmq.POLLIN)
        return router

    @contextlib.contextmanager
    def _signals(self) -> Iterator[None]:
        """Note SIGINT, SIGTERM and SIGHUP for the loop's next turn; what is ignored (nohup) stays ignored."""

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
        self._free_arenas()
        if self._drained_by is not None and now >= self._drained_by:
            self._manager.cut_short()
        if now >= self._status_at + STATUS_SECONDS:
            self._status, self._status_at = self._dispatcher.status(), now
        self._turned_at = time.monotonic()

    def _drain(self, now: float) -> None:
        """The first signal: all streams end in order."""
        self._drained_by = now + self.config.supervision.drain_timeout
        self._log.event("stopping", signal=signal.Signals(self._signal or signal.SIGTERM).name)
        self._pool.leaving = True
        self._manager.close()

    def _free_arenas(self) -> None:
        """Give back the shared memory of streams that are over, when their own workers are gone."""
        for name in self._manager.take_cleared():
            for arena in [one for key, one in self._arenas.items() if key.startswith(f"{name}/")]:
                arena.free()

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
                self._observation.refuse("supervisor", error.cause)
            except (TypeError, ValueError, KeyError, AttributeError, IndexError) as error:
                # a malformed message must not end the supervisor
                self._observation.refuse("supervisor", "field", f"{type(error).__name__}: {error}")

    def _take(self, identity: bytes, parts: list[bytes], remote: bool) -> None:
        found = self._pool.find(identity)
        if found is None:
            if not self._pool.knew(identity):
                raise Refused("peer")
            return
        worker, instance = found
        if remote != (instance.process is None):  # another host uses the name of a local worker
            raise Refused("peer")
        own = None if remote and not instance.prepared else self._session  # a remote one learns it with INIT
        self._dispatcher.take(worker, instance, decode(parts, own))

    def _adopt(self, identity: bytes, parts: list[bytes]) -> None:
        """A remote worker says hello."""
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
        link = {"control": self._runtime.workers, "session": self._session.hex(), "pipe": self._pipe}
        arenas = {name: arena.fd for name, arena in self._arenas.items()}
        return start_worker(worker, spare, link, arenas)
