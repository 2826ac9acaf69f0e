"""Shares of machines that are kept in memory, and a fleet over them: no processes, no Ray."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager

import numpy as np
from fleet.fleets import until, values

from streamvos.fleet.client import FleetClient
from streamvos.fleet.cluster import GoneError, Place
from streamvos.fleet.config import make_fleet
from streamvos.fleet.running import Fleet
from streamvos.fleet.store import State, Store
from streamvos.pipeline.telemetry.logs import EventLog
from streamvos.types import InputError, StreamvosError


class Machine:
    """A share in memory: it applies every order at once, and saves a state that holds them."""

    def __init__(self, store: Store, life: str):
        self.store, self.life = store, life
        self.store_number, self.problem = store.number, None
        self.streams: dict[str, dict] = {}

    def start(self, name, epoch, table):
        if json.loads(table)["source"].endswith("broken"):
            raise InputError("no such camera")
        assert epoch > self.streams.get(name, {"epoch": 0})["epoch"]
        states = self.store.states(name)
        seq = states[0].seq if states else 0
        objects = json.loads(self.store.read_state(name, states[0])) if states else []
        covers = states[0].covers if states else 0
        self.streams[name] = {"epoch": epoch, "seq": seq, "objects": objects, "covers": covers}
        for number in self.store.order_numbers(name):
            if number > covers:
                self._apply(name, number)

    def stop(self, name, epoch, keep):
        if self.streams.get(name, {"epoch": 0})["epoch"] > epoch:
            return
        if keep and name in self.streams:
            self._save(name)
        self.streams.pop(name, None)

    def order(self, name, number):
        if name not in self.streams:
            raise StreamvosError(f"the stream {name!r} is not here")
        one = self.streams[name]
        if number > one["covers"]:
            self._apply(name, number)
            self._save(name)
        return one["seq"]

    def _apply(self, name, number):
        order, one = self.store.read_order(name, number), self.streams[name]
        if order.mask is not None and order.mask.shape != (48, 64):
            raise InputError("the mask has another size")
        new = {order.forget} if order.mask is None else set(map(int, np.unique(order.mask))) - {0}
        one["objects"] = sorted(
            set(one["objects"]) - new if order.mask is None else set(one["objects"]) | new
        )
        one["covers"], one["seq"] = number, one["seq"] + 1

    def _save(self, name):
        one = self.streams[name]
        state = State(one["epoch"], one["seq"], one["covers"])
        self.store.write_state(name, state, json.dumps(one["objects"]).encode())

    def report(self):
        if self.problem is not None:
            raise self.problem
        statuses = {
            name: {
                "state": "running", "reason": "", "waiting_for": "", "waiting_seconds": 0.0, "incarnation": 1,
                "seq": one["seq"], "fps": 10.0, "frames": 5, "objects": one["objects"], "size": [48, 64],
                "dropped": {"newer frame": 2}, "restarts": 0, "recoveries": 0, "left_out": 0, "queues": {},
                "latencies": {}, "recovery_ms": None,
            }
            for name, one in self.streams.items()
        }  # fmt: skip
        streams = {n: {"epoch": one["epoch"], "problem": "", "saved": 0} for n, one in self.streams.items()}
        status = {"streams": statuses, "workers": {}, "restarts": {}, "refused": {}}
        return {
            "life": self.life,
            "store": self.store_number,
            "pid": 1,
            "streams": streams,
            "status": status,
            "store_problem": "",
        }


class Machines:
    """A cluster of them."""

    def __init__(self, store: Store):
        self.store, self.up, self.count = store, {}, 0
        self.pause = threading.Event()  # stops wait for it
        self.pause.set()
        self.hangs = threading.Event()  # the list of shares waits for it
        self.hangs.set()
        self.stops, self.silent, self.broken = True, False, ""
        self.tables: dict[str, str] = {}

    def begin(self, share: str) -> None:
        self.count += 1
        self.up[share] = Machine(self.store, str(self.count))

    def shares(self):
        self.hangs.wait(10)
        if self.silent:
            raise StreamvosError("no head")
        return {share: Place(f"host-{share[0]}") for share in self.up}

    def call(self, share, method, *arguments, timeout):
        if method == "stop":
            self.pause.wait(10)
            if not self.stops:
                return None
        if share not in self.up:
            raise GoneError("gone")
        if method == "start":
            self.tables[arguments[0]] = arguments[2]
            if self.broken:
                raise StreamvosError(self.broken)
        return getattr(self.up[share], method)(*arguments)

    def restart(self, share):
        self.begin(share)

    def where(self) -> dict[str, str]:
        return {name: share for share, one in list(self.up.items()) for name in list(one.streams)}

    def objects(self, name: str) -> list[int]:
        return self.up[self.where()[name]].streams[name]["objects"]


@contextmanager
def fleet_of(store: Store, machines: Machines, folder, **more) -> Iterator[FleetClient]:
    config = make_fleet(values(folder, **more))
    with closing(EventLog("json")) as log:
        one = Fleet(config, store, machines, log)
        ended: list[object] = []

        def run() -> None:
            try:
                ended.append(one.run())
            except Exception as error:
                ended.append(error)

        thread = threading.Thread(target=run)
        thread.start()
        try:
            client = until(lambda: ended or try_client(), 20)
            assert isinstance(client, FleetClient), ended
            with client:
                yield client
                if thread.is_alive():
                    client.stop()
        finally:
            one._signals = max(1, one._signals)
            thread.join(20)
        assert ended == [0]


def try_client() -> FleetClient | None:
    try:
        return FleetClient("site", timeout=20)
    except InputError:
        return None
