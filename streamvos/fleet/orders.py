"""Orders of users to streams that may be anywhere, or nowhere just now: stored first, then applied in order.

orders.take("front", Order(mask), reply)       # reply(True, seq=...) once it is applied, wherever that is
orders.carry_on()                              # whenever a stream has begun to run
"""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

from streamvos.fleet.cluster import Cluster
from streamvos.fleet.controller import Controller
from streamvos.fleet.store import Order, Store
from streamvos.pipeline.clients.control import Reply
from streamvos.pipeline.telemetry.logs import EventLog
from streamvos.types import InputError, StreamvosError

ORDER_SECONDS = 70.0
"""How long a share may take; a pipeline answers within 60 s."""

Later = Callable[[Callable[[], Any], Callable[[Future[Any]], None]], Future[Any]]


MOST_UNSTORED = 16
"""Most orders of a stream that wait for the store."""


@dataclass
class _Pending:
    """An order that is stored, and not applied yet; `busy`: a share has it now."""

    number: int
    reply: Reply
    busy: bool = False
    problem: str = ""


class Orders:
    """All orders that are not applied yet. What was not applied when this process ended, the store still has.

    Args:
        controller: says where streams run.
        store, cluster, log: the fleet's.
        later: does something in another thread, and takes over its outcome in this one.

    Attributes:
        problem: why the store did not take what it was given last; "" if it did.
    """

    def __init__(self, controller: Controller, store: Store, cluster: Cluster, log: EventLog, later: Later):
        self._controller, self._store, self._cluster = controller, store, cluster
        self._log, self._later = log, later
        self._numbers: dict[str, int] = {}  # stream -> its last order
        self._unstored: dict[str, deque[tuple[Order, Reply]]] = {}  # the first of each is being stored
        self._waiting: dict[str, deque[_Pending]] = {}  # the first of each is given to its share
        self.problem = ""

    def add(self, stream: str, last: int) -> None:
        """Begin with a stream, whose last order has this number."""
        self._numbers[stream] = last

    def drop(self, stream: str) -> None:
        """A stream was removed."""
        self._numbers.pop(stream, None)
        replies = [reply for _, reply in self._unstored.pop(stream, ())]
        for reply in (*replies, *(pending.reply for pending in self._waiting.pop(stream, ()))):
            answer(reply, False, error=f"stream {stream} was removed")

    def take(self, stream: str, order: Order, reply: Reply) -> None:
        """Store an order before anything else happens, so that it outlives every machine, then apply it.

        Raises:
            InputError: there is no such stream, or too many of its orders wait for the store.
        """
        self._controller.known(stream)
        queue = self._unstored.setdefault(stream, deque())
        if len(queue) >= MOST_UNSTORED:
            raise InputError(f"{len(queue)} orders to {stream} wait already for the store; try again later")
        queue.append((order, reply))
        if len(queue) == 1:
            self._store_next(stream, queue)

    def _store_next(self, stream: str, queue: deque[tuple[Order, Reply]]) -> None:
        """Store the orders of a stream one after the other.

        If a later one were there first, and part of a saved state, the earlier one would count as part of it.
        """
        order, reply = queue[0]
        number = self._numbers[stream] = self._numbers[stream] + 1

        def stored(done: Future[Any]) -> None:
            if self._unstored.get(stream) is not queue:  # the stream was removed meanwhile
                return
            queue.popleft()
            error = done.exception()
            self.problem = str(error or "")
            if error is None:
                self._waiting.setdefault(stream, deque()).append(_Pending(number, reply))
            else:
                self._log.event("store_failed", "warning", error=str(error))
                answer(reply, False, error=f"not applied, since it cannot be stored: {error}")
                self._remove(stream, number)  # perhaps it was stored nevertheless
            if queue:
                self._store_next(stream, queue)
            self.carry_on()

        self._later(lambda: self._store.write_order(stream, number, order), stored)

    def carry_on(self) -> None:
        """Give each running stream its next order."""
        for name, waiting in list(self._waiting.items()):
            stream = self._controller.streams.get(name)
            if waiting and stream is not None and stream.phase == "running" and not waiting[0].busy:
                waiting[0].busy = True
                self._give(name, stream.share, waiting[0])

    def _give(self, name: str, share: str, pending: _Pending) -> None:
        def done(call: Future[Any]) -> None:
            pending.busy = False
            error = call.exception()
            if error is not None and not isinstance(error, InputError):  # tried again when the stream is back
                if str(error) != pending.problem:
                    pending.problem = str(error)
                    self._log.event("order_waits", "warning", stream=name, error=pending.problem)
                return
            waiting = self._waiting.get(name)
            if waiting and waiting[0] is pending:
                waiting.popleft()
            if error is None:
                answer(pending.reply, True, seq=call.result())
            else:
                answer(pending.reply, False, error=str(error))
                self._remove(name, pending.number)
            self.carry_on()

        number = pending.number
        self._later(lambda: self._cluster.call(share, "order", name, number, timeout=ORDER_SECONDS), done)

    def _remove(self, name: str, number: int) -> None:
        """Remove an order that was not taken; one that stays behind is refused again."""
        self._later(lambda: self._store.remove_order(name, number), lambda _: None)


def answer(reply: Reply | None, ok: bool, **fields: Any) -> None:
    """Answer a user, if one is waiting."""
    if reply is not None:
        with contextlib.suppress(StreamvosError):
            reply(ok, **fields)
