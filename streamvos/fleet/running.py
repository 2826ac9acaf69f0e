"""A fleet that runs: asks its shares, carries out the controller's decisions, and serves its users.

    Fleet(config, store, cluster, EventLog("text")).run()

It speaks the protocol of a pipeline (docs/protocol.md, 8) at its own name, so `streamvos ctl annotate front
mask.png --at site` reaches the stream wherever it runs. One thread decides and talks to users; what may take
long, such as a call to a share or to the store, runs in others, and its outcome is taken over by the first.
"""

from __future__ import annotations

import contextlib
import json
import queue
import secrets
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from fractions import Fraction
from types import FrameType
from typing import Any

import zmq

from streamvos.fleet.cluster import Cluster, GoneError, SilentError
from streamvos.fleet.config import FleetConfig
from streamvos.fleet.controller import Controller, Report, Start, Stop
from streamvos.fleet.orders import Orders
from streamvos.fleet.overview import overview
from streamvos.fleet.store import Store
from streamvos.fleet.users import Users
from streamvos.pipeline.clients.control import ControlServer
from streamvos.pipeline.telemetry.logs import EventLog
from streamvos.pipeline.wire.runtime import Runtime
from streamvos.types import StreamvosError

LOOK_SECONDS = 1.0
"""How often shares are asked for their report."""

LOST_SECONDS = 15.0
"""A share that gives no report for so long is started again, and its streams go elsewhere."""

ANSWER_SECONDS = 5.0
"""How long one report may take."""

CALL_SECONDS = 100.0
"""How long the start or the stop of a stream may take."""

_TURN_SECONDS = 0.05


class Fleet:
    """Runs one fleet.

    Args:
        config: the fleet's.
        store: what outlives it.
        cluster: its machines.
        log: receives the events.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        config: FleetConfig,
        store: Store,
        cluster: Cluster,
        log: EventLog,
        clock: Callable[[], float] = time.monotonic,
    ):
        self._config, self._store, self._cluster, self._log = config, store, cluster, log
        self._clock = clock
        self._controller = Controller(Fraction(config.reserve).limit_denominator(1000))
        self._orders = Orders(self._controller, store, cluster, log, self.later)
        self._users = Users(config, store, self._controller, self._orders, self, log)
        self.machines: dict[str, str] = {}
        self._reports: dict[str, dict[str, Any]] = {}
        self._asked: dict[str, float] = {}  # share -> when the report that we have was asked for
        self._silent_since: dict[str, float] = {}
        self._look: Future[Any] | None = None
        self._look_at = 0.0
        self._gone: Counter[str] = Counter()  # frames of streams' earlier placements, by what became of them
        self._outcomes: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._pool = ThreadPoolExecutor(64, "fleet")
        self._signals = 0

    # ---- the beginning and the end

    def load(self) -> None:
        """Take over the streams of the store and of the file; see `Users.load`."""
        self._users.load()

    def run(self) -> int:
        """Run until a signal or a user ends it; 0, or 1 if states could not be saved at the end.

        Raises:
            StreamvosError: it cannot begin.
        """
        self.load()
        with contextlib.ExitStack() as stack:
            runtime = stack.enter_context(Runtime.claim(self._config.name))
            context: zmq.Context[Any] = zmq.Context()
            stack.callback(context.destroy, linger=200)
            verbs = {"drain": self._users.drain, "undrain": self._users.undrain}
            session = secrets.token_bytes(8)
            control = ControlServer(context, runtime.control, session, self._users, verbs=verbs)
            stack.callback(control.close)
            stack.callback(self._pool.shutdown, wait=False, cancel_futures=True)
            from streamvos.fleet.page import serve_page

            self._shown = self.overview()
            url = stack.enter_context(serve_page(self._config.http, lambda: self._shown))
            stack.enter_context(self._caught())
            self._log.event("fleet", name=self._config.name, status=url, control=runtime.control)
            poller = zmq.Poller()
            for socket in control.sockets():
                poller.register(socket, zmq.POLLIN)
            while not self._signals:
                poller.poll(round(1000 * _TURN_SECONDS))
                control.handle()
                self.turn()
            return self._end(control)

    def turn(self) -> None:
        """Take over what was done, look at the shares if it is time, and begin what is to be done."""
        while not self._outcomes.empty():
            self._outcomes.get()()
        now = self._clock()
        if self._look is None and now >= self._look_at:
            self._look_at = now + LOOK_SECONDS
            self._look = self.later(lambda: self._ask_all(now), self._saw)

    def _end(self, control: ControlServer) -> int:
        """Stop all streams with their states saved; a second signal does not wait for that."""
        self._log.event("stopping")
        running = [one for one in self._controller.streams.values() if one.phase == "running"]
        calls = [
            self._pool.submit(self._cluster.call, one.share, "stop", one.name, True, timeout=30.0)
            for one in running
        ]
        limit = self._clock() + 30.0
        while self._signals < 2 and self._clock() < limit and not all(call.done() for call in calls):
            time.sleep(_TURN_SECONDS)
            control.handle()
        failed = [
            one.name
            for one, call in zip(running, calls, strict=True)
            if not call.done() or call.exception() is not None
        ]
        for name in failed:
            self._log.event("not_saved", "error", stream=name)
        self._log.event("done", exit_code=int(bool(failed)))
        return int(bool(failed))

    @contextlib.contextmanager
    def _caught(self) -> Iterator[None]:
        def note(number: int, _: FrameType | None) -> None:
            self._signals += 1

        handlers = {}
        with contextlib.suppress(ValueError):  # not the main thread
            handlers = {one: signal.signal(one, note) for one in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)

    def later(self, work: Callable[[], Any], then: Callable[[Future[Any]], None]) -> Future[Any]:
        """Do something in another thread, and take over its outcome in this one."""
        future = self._pool.submit(work)
        future.add_done_callback(lambda done: self._outcomes.put(lambda: then(done)))
        return future

    # ---- shares

    def _ask_all(self, now: float) -> tuple[dict[str, str], dict[str, Any], float]:
        """Every share's report, or why there is none; in another thread."""
        machines = self._cluster.shares()
        calls = {
            share: self._pool.submit(self._cluster.call, share, "report", timeout=ANSWER_SECONDS)
            for share in machines
        }
        answers: dict[str, Any] = {}
        for share, call in calls.items():
            try:
                answers[share] = call.result()
            except StreamvosError as error:
                answers[share] = error
        return machines, answers, now

    def _saw(self, done: Future[Any]) -> None:
        """Take over the shares' reports, and do what follows from them."""
        self._look = None
        machines, answers, asked_at = done.result()
        now = self._clock()
        for share, said in answers.items():
            if isinstance(said, dict):
                self._silent_since.pop(share, None)
                self._reports[share], self._asked[share] = said, asked_at
                continue
            since = self._silent_since.setdefault(share, now)
            fresh = share not in self._reports
            if isinstance(said, SilentError) and now - since < LOST_SECONDS:
                continue  # what it said last still counts
            if not fresh:
                self._log.event("share_lost", "warning", share=share, reason=str(said))
            self._forget_share(share)
            if not isinstance(said, GoneError) and (not fresh or now - since > LOST_SECONDS):
                self._silent_since.pop(share, None)
                self.later(lambda share=share: self._cluster.restart(share), lambda _: None)  # type: ignore[misc]
        for share in set(self._reports) - machines.keys():
            self._log.event("share_lost", "warning", share=share, reason="its machine is gone")
            self._forget_share(share)
        for share in machines.keys() - self.machines.keys():
            self._log.event("share_found", share=share, machine=machines[share])
        self.machines = machines
        seen = {share: self._as_report(share) for share in self._reports}
        before = len(self._controller.returns)
        self._controller.sees(seen, now)
        for name, seconds in self._controller.returns[before:]:
            self._log.event("returned", stream=name, seconds=round(seconds, 2))
        for action in self._controller.decide(now):
            self._begin(action)
        self._orders.carry_on()
        self._shown = self.overview()

    def _forget_share(self, share: str) -> None:
        for name, one in self._reports.get(share, {}).get("status", {}).get("streams", {}).items():
            self._count_gone(name, one)
        for table in (self._reports, self._asked):
            table.pop(share, None)

    def _count_gone(self, name: str, status: Mapping[str, Any]) -> None:
        """Keep the counts of a placement that has ended."""
        self._gone[f"{name} frames"] += status.get("frames", 0)
        for cause, count in status.get("dropped", {}).items():
            self._gone[f"{name} {cause}"] += count

    def _as_report(self, share: str) -> Report:
        report = self._reports[share]
        statuses = report["status"]["streams"]
        streams = {name: (one["epoch"], statuses[name]["frames"]) for name, one in report["streams"].items()}
        return Report(report["life"], self._asked[share], streams)

    def _begin(self, action: Start | Stop) -> None:
        name, share, epoch = action.stream, action.share, action.epoch
        if isinstance(action, Stop):
            self._log.event("stream_stops", stream=name, share=share, epoch=epoch)
            self.later(
                lambda: self._cluster.call(share, "stop", name, action.keep, timeout=CALL_SECONDS),
                lambda done: self._stopped(action, done.exception()),
            )
            return
        entry = self._users.placed(name, epoch)

        def start() -> Any:
            self._store.write_stream(name, entry)  # before it begins, so that no epoch is used twice
            table = json.dumps({key: value for key, value in entry.table.items() if value is not None})
            return self._cluster.call(share, "start", name, epoch, table, timeout=CALL_SECONDS)

        self._log.event("stream_starts", stream=name, share=share, epoch=epoch)
        self.later(start, lambda done: self._started(action, done.exception()))

    def _started(self, start: Start, error: BaseException | None) -> None:
        name, now = start.stream, self._clock()
        if error is None:
            self._controller.began(name, start.epoch, now)
            self._orders.carry_on()
        else:
            self._log.event("start_failed", "warning", stream=name, share=start.share, error=str(error))
            self._controller.failed(name, start.epoch, str(error), now)
        self._users.started(name, start.share, error)

    def _stopped(self, stop: Stop, error: BaseException | None) -> None:
        name, now = stop.stream, self._clock()
        if error is not None and not isinstance(error, GoneError):
            self._log.event("stop_failed", "warning", stream=name, share=stop.share, error=str(error))
            self._controller.still_there(name, stop.epoch, now)
            return
        status = self._reports.get(stop.share, {}).get("status", {}).get("streams", {}).get(name)
        if status is not None:
            self._count_gone(name, status)
        self._controller.ended(name, stop.epoch, now)
        self._users.stopped(name)

    # ---- for `Users`

    def soon(self) -> None:
        """Look and decide at the next turn."""
        self._look_at = 0.0

    def end(self) -> None:
        """End the fleet."""
        self._signals += 1

    def overview(self) -> dict[str, Any]:
        """Everything that the page, the metrics and `status` show; it does not change afterwards."""
        problem = self._orders.problem
        return overview(
            self._config.name, self._controller, self.machines, self._reports, self._gone, problem
        )
