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
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from fractions import Fraction
from types import FrameType
from typing import Any

import zmq

from streamvos.fleet.cluster import Cluster, ClusterLostError, GoneError, Place
from streamvos.fleet.config import FleetConfig
from streamvos.fleet.controller import Controller, Start, Stop
from streamvos.fleet.orders import Orders
from streamvos.fleet.overview import overview
from streamvos.fleet.reports import BEGIN_SECONDS, Reports
from streamvos.fleet.store import Store
from streamvos.fleet.users import Users
from streamvos.pipeline.clients.control import ControlServer
from streamvos.pipeline.telemetry.logs import EventLog
from streamvos.pipeline.wire.runtime import Runtime
from streamvos.types import StreamvosError

LOOK_SECONDS = 1.0
"""How often shares are asked for their report."""

HEAD_SECONDS = 45.0
"""When the cluster has not answered for so long, it is gone. Ray itself ends this process after 60 s."""

STORE_SECONDS = 15.0
"""How long a small object of the store may take."""

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
        self._reports = Reports(cluster, store.number, log, self._count_gone)
        self._look: Future[Any] | None = None
        self._look_at = 0.0
        self._looked: float | None = None  # first
        self._decides = False
        self._cluster_silent_since: float | None = None
        self._probe: Future[Any] | None = None
        self._probed_at = 0.0
        # frames of streams' earlier placements, by what became of them
        self._gone: defaultdict[str, Counter[str]] = defaultdict(Counter)
        self._returns: list[float] = [0, 0.0]  # how many streams came back, and their seconds in all
        self._outcomes: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        # what takes long does not hold up the rest
        self._pool = ThreadPoolExecutor(64, "fleet")
        self._looking = ThreadPoolExecutor(1, "look")
        self._moving = ThreadPoolExecutor(64, "streams")
        self._signals = 0

    # ---- the beginning and the end

    def load(self) -> None:
        """Become the one that decides, and take over the streams of the store and of the file."""
        self._store.take_over()
        self._users.load()

    def run(self) -> int:
        """Run until a signal or a user ends it; 0, or 1 if states could not be saved at the end.

        Raises:
            StreamvosError: it cannot begin.
        """
        with contextlib.ExitStack() as stack:
            runtime = stack.enter_context(Runtime.claim(self._config.name))
            self.load()
            context: zmq.Context[Any] = zmq.Context()
            stack.callback(context.destroy, linger=200)
            verbs = {"drain": self._users.drain, "undrain": self._users.undrain}
            session = secrets.token_bytes(8)
            control = ControlServer(context, runtime.control, session, self._users, verbs=verbs)
            stack.callback(control.close)
            stack.callback(self._reports.close)
            for pool in (self._pool, self._looking, self._moving):
                stack.callback(pool.shutdown, wait=False, cancel_futures=True)
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
            return self._end()

    def turn(self) -> None:
        """Take over what was done, look at the shares if it is time, and begin what is to be done.

        Raises:
            StreamvosError: the cluster is gone, or another `fleet up` uses the store now.
        """
        while not self._outcomes.empty():
            self._outcomes.get()()
        now = self._clock()
        if (asking_since := self._reports.asking_since) is not None:  # Ray waits for its head
            self._check_cluster("Ray's head does not answer", asking_since, now)
        if self._look is None and now >= self._look_at:
            self._look_at = now + LOOK_SECONDS
            self._look = self._later_in(self._looking, lambda: self._reports.ask(now), self._saw)
            self._probe_store(now)

    def _probe_store(self, now: float) -> None:
        """See whether the store is there and ours; write to it, if it did not take something."""
        if self._probe is not None:
            if now - self._probed_at > STORE_SECONDS:
                self._orders.problem = f"the store {self._store.url} does not answer"
            return
        problem = self._orders.problem

        def probe() -> bool:
            if problem:
                self._store.check()
            return self._store.is_ours()

        def probed(done: Future[Any]) -> None:
            self._probe = None
            if (error := done.exception()) is not None:
                self._orders.problem = str(error)
            elif not done.result():
                raise StreamvosError(
                    f"another `streamvos fleet up` uses the store {self._store.url} now, so this one ends; "
                    "streams go on"
                )
            elif problem == self._orders.problem:
                self._orders.problem = ""

        self._probe, self._probed_at = self.later(probe, probed), now

    def _end(self) -> int:
        """Stop all streams with their states saved; a second signal does not wait for that."""
        self._log.event("stopping")
        self._moving.shutdown(wait=False, cancel_futures=True)  # what was to begin does not
        running = [one for one in self._controller.streams.values() if one.share]
        calls = [
            self._pool.submit(
                self._cluster.call, one.share, "stop", one.name, one.epoch, not one.removed, timeout=30.0
            )
            for one in running
        ]
        limit = self._clock() + 30.0
        while self._signals < 2 and self._clock() < limit and not all(call.done() for call in calls):
            time.sleep(_TURN_SECONDS)
        failed = [
            one.name
            for one, call in zip(running, calls, strict=True)
            if not call.done() or not isinstance(call.exception(), (GoneError, type(None)))
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
        return self._later_in(self._pool, work, then)

    def _later_in(
        self, pool: ThreadPoolExecutor, work: Callable[[], Any], then: Callable[[Future[Any]], None]
    ) -> Future[Any]:
        future = pool.submit(work)
        future.add_done_callback(lambda done: self._outcomes.put(lambda: then(done)))
        return future

    # ---- shares

    def _saw(self, done: Future[Any]) -> None:
        """Take over the shares' reports, and do what follows from them."""
        self._look = None
        now = self._clock()
        if (error := done.exception()) is not None:
            self._cluster_is_silent(error, now)
            return
        self._cluster_silent_since = None
        for share in self._reports.take(done.result(), now):
            self.later(lambda share=share: self._cluster.restart(share), lambda _: None)  # type: ignore[misc]
        self._controller.sees(self._reports.of_shares(), now)
        for name, seconds in self._controller.returns:
            self._returns = [self._returns[0] + 1, self._returns[1] + seconds]
            self._log.event("returned", stream=name, seconds=round(seconds, 2))
        self._controller.returns.clear()
        self._looked = now if self._looked is None else self._looked
        # streams that run are found before others begin, and those that do not run are spread over all shares
        self._decides = self._decides or self._reports.all_began() or now - self._looked > BEGIN_SECONDS
        for action in self._controller.decide(now) if self._decides else ():
            self._begin(action)
        self._orders.carry_on()
        self._users.settle()
        self._shown = self.overview()

    def _cluster_is_silent(self, error: BaseException, now: float) -> None:
        """What was seen last still counts; unless the cluster is gone, with all its shares."""
        if not isinstance(error, StreamvosError):
            raise error
        if self._cluster_silent_since is None:
            self._cluster_silent_since = now
            self._log.event("cluster_silent", "warning", error=str(error))
        self._check_cluster(str(error), self._cluster_silent_since, now)

    def _check_cluster(self, problem: str, since: float, now: float) -> None:
        if now - since > HEAD_SECONDS:
            what = "what runs ends with it; begin a new cluster, where `fleet up` goes on from the store"
            self._log.event("cluster_lost", "error", error=problem)
            raise ClusterLostError(f"{problem}: {what}")

    def _count_gone(self, statuses: Mapping[str, Any]) -> None:
        """Keep the counts of placements that have ended."""
        for name, status in statuses.items():
            if name in self._controller.streams:
                self._gone[name] += Counter({"frames": status.get("frames", 0), **status.get("dropped", {})})

    def _begin(self, action: Start | Stop) -> None:
        name, share, epoch = action.stream, action.share, action.epoch
        if isinstance(action, Stop):
            self._log.event("stream_stops", stream=name, share=share, epoch=epoch)
            self._later_in(
                self._moving,
                lambda: self._cluster.call(share, "stop", name, epoch, action.keep, timeout=CALL_SECONDS),
                lambda done: self._stopped(action, done.exception()),
            )
            return
        entry = self._users.placed(name, epoch)

        def start() -> Any:
            self._store.write_stream(name, entry)  # before it begins, so that no epoch is used twice
            table = json.dumps({key: value for key, value in entry.table.items() if value is not None})
            return self._cluster.call(share, "start", name, epoch, table, timeout=CALL_SECONDS)

        self._log.event("stream_starts", stream=name, share=share, epoch=epoch)
        self._later_in(self._moving, start, lambda done: self._started(action, done.exception()))

    def _started(self, start: Start, error: BaseException | None) -> None:
        name, now = start.stream, self._clock()
        if error is None:
            self._controller.began(name, start.epoch, now)
            self._orders.carry_on()
        else:
            self._log.event("start_failed", "warning", stream=name, share=start.share, error=str(error))
            if self._controller.failed(name, start.epoch, str(error), now):
                self._users.failed(name, error)
        self._users.settle()

    def _stopped(self, stop: Stop, error: BaseException | None) -> None:
        name, now = stop.stream, self._clock()
        if error is not None and not isinstance(error, GoneError):
            self._log.event("stop_failed", "warning", stream=name, share=stop.share, error=str(error))
            self._controller.still_there(name, stop.epoch, now)
            return
        statuses = self._reports.last.get(stop.share, {}).get("status", {}).get("streams", {})
        self._count_gone({one: status for one, status in statuses.items() if one == name})
        self._controller.ended(name, stop.epoch, now)
        self._users.settle()

    # ---- for `Users`

    @property
    def machines(self) -> Mapping[str, Place]:
        """Where the shares are."""
        return self._reports.machines

    def soon(self) -> None:
        """Look and decide at the next turn."""
        self._look_at = 0.0

    def end(self) -> None:
        """End the fleet."""
        self._signals += 1

    def forget(self, stream: str) -> None:
        """Forget what was counted of a stream."""
        self._gone.pop(stream, None)

    def overview(self) -> dict[str, Any]:
        """Everything that the page, the metrics and `status` show; it does not change afterwards."""
        shown = overview(self._config.name, self._controller, self._reports, self._gone)
        returns = dict(zip(("count", "seconds"), self._returns, strict=True))
        return shown | {"returns": returns, "store": shown["store"] or self._orders.problem}
