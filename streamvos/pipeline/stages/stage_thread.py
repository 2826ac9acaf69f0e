"""A thread for stages: it polls their sockets, takes the supervisor's orders, and lets them step in turns.

for stages in in_turns(all_stages):
    StageThread(stages, on_failure).start()
"""

from __future__ import annotations

import contextlib
import math
import queue
import threading
from collections.abc import Callable, Mapping, Sequence

import zmq

from streamvos.pipeline.stages.stage import Stage
from streamvos.pipeline.wire.messages import Message
from streamvos.pipeline.wire.waker import Waker


class StageThread(threading.Thread):
    """Runs stages that work in turns: polls their sockets, and passes on what the supervisor says."""

    def __init__(self, stages: Sequence[Stage], on_failure: Callable[[Stage, Exception], None]):
        super().__init__(name=stages[0].name, daemon=True)
        self._stages = {stage.name: stage for stage in stages}
        self._running = stages[0]
        self._on_failure = on_failure
        self._orders: queue.SimpleQueue[Message | Mapping[str, str] | None] = queue.SimpleQueue()
        self._waker = Waker()

    def order(self, order: Message | Mapping[str, str] | None) -> None:
        """From the main thread: a control message, endpoints to connect to, or None to end."""
        self._orders.put(order)
        self._waker.wake()

    def run(self) -> None:
        try:
            self._loop()
        except Exception as error:  # whatever it is, the supervisor hears of it
            self._on_failure(self._running, error)
        finally:
            for stage in self._stages.values():
                stage.busy_since = 0  # it ended, and does not hang
                with contextlib.suppress(Exception):
                    stage.close()
            self._waker.close()

    def _loop(self) -> None:
        poller = zmq.Poller()
        stages = list(self._stages.values())
        for socket in (self._waker.descriptor, *(one for stage in stages for one in stage.sockets())):
            poller.register(socket, zmq.POLLIN)
        # what a stage has no use for yet is read all the same, or the poll would not wait
        boxes = {box.socket: box for stage in stages for box in stage.boxes}
        for box in boxes.values():
            box.polled = True
        wait: float | None = None
        while True:
            for socket, _ in poller.poll(None if wait is None else max(0, math.ceil(wait * 1000))):
                if socket in boxes:
                    boxes[socket].collect()
            self._waker.clear()  # before looking, or an order that comes meanwhile would wait
            while not self._orders.empty():
                order = self._orders.get()
                if order is None:
                    return
                self._obey(order)
            wait = None
            for self._running in stages:
                again = self._running.step()
                wait = min((one for one in (wait, again) if one is not None), default=None)

    def _obey(self, order: Message | Mapping[str, str]) -> None:
        if not isinstance(order, Message):
            for stage in self._stages.values():
                stage.connect(order)
            return
        stage = self._running = self._stages[order["stage"]]
        if order.kind == "reset":
            answer = stage.reset(order)
            stage.tell("reset_done", order.stream, incarnation=order.incarnation, **answer)
        else:
            stage.control(order)


def in_turns(stages: Sequence[Stage]) -> list[list[Stage]]:
    """Which stages share a thread: the decoder and the memory of a stream, who wait for each other anyway.

    The decoder comes first, so that a mask is on its way before the memory learns from it.
    """
    groups: dict[str, list[Stage]] = {}
    for stage in stages:
        kind = stage.name.partition(".")[0]
        key = f"target.{stage.stream}" if kind in ("memory", "decoder") else stage.name
        groups.setdefault(key, []).append(stage)
    return [sorted(group, key=lambda stage: stage.name) for group in groups.values()]
