"""A fleet and its users, over shares that are kept in memory: no processes, no Ray."""

from __future__ import annotations

import json
import os
import tempfile
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import closing, contextmanager

import numpy as np
import pytest
from fleet.fleets import camera, square, until, values
from PIL import Image

from streamvos.fleet import running as running_module
from streamvos.fleet.client import FleetClient
from streamvos.fleet.cluster import GoneError
from streamvos.fleet.config import make_fleet
from streamvos.fleet.running import Fleet
from streamvos.fleet.store import State, Store
from streamvos.pipeline.telemetry.logs import EventLog
from streamvos.types import InputError, StreamvosError


class Machine:
    """A share in memory: it applies every order at once, and saves a state that holds them."""

    def __init__(self, store: Store, life: str):
        self.store, self.life = store, life
        self.streams: dict[str, dict] = {}

    def start(self, name, epoch, table):
        if json.loads(table)["source"].endswith("broken"):
            raise InputError("no such camera")
        states = self.store.states(name)
        seq = states[0].seq if states else 0
        objects = json.loads(self.store.read_state(name, states[0])) if states else []
        covers = states[0].covers if states else 0
        self.streams[name] = {"epoch": epoch, "seq": seq, "objects": objects, "covers": covers}
        for number in self.store.order_numbers(name):
            if number > covers:
                self._apply(name, number)

    def stop(self, name, keep):
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
        return {"life": self.life, "pid": 1, "streams": streams, "status": status, "store_problem": ""}


class Machines:
    """A cluster of them."""

    def __init__(self, store: Store):
        self.store, self.up, self.count = store, {}, 0

    def begin(self, share: str) -> None:
        self.count += 1
        self.up[share] = Machine(self.store, str(self.count))

    def shares(self):
        return {share: f"host-{share[0]}" for share in self.up}

    def call(self, share, method, *arguments, timeout):
        if share not in self.up:
            raise GoneError("gone")
        return getattr(self.up[share], method)(*arguments)

    def restart(self, share):
        self.begin(share)

    def where(self) -> dict[str, str]:
        return {name: share for share, one in list(self.up.items()) for name in list(one.streams)}

    def objects(self, name: str) -> list[int]:
        return self.up[self.where()[name]].streams[name]["objects"]


@pytest.fixture
def world(tmp_path, monkeypatch) -> Iterator[Store]:
    monkeypatch.setattr(running_module, "LOOK_SECONDS", 0.05)
    with tempfile.TemporaryDirectory(prefix="svos", dir="/tmp") as runtime:
        monkeypatch.setenv("XDG_RUNTIME_DIR", runtime)
        yield Store(str(tmp_path / "store"), begin=True)


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


@pytest.fixture
def machines(world):
    found = Machines(world)
    found.begin("a-0")
    found.begin("b-0")
    return found


def test_streams_and_their_objects_outlive_machines_and_the_fleet(world, machines, tmp_path):
    with fleet_of(world, machines, tmp_path, streams=[camera("front")]) as client:
        until(lambda: "front" in machines.where())
        assert client.add_stream(**camera("back"))["state"] == "running"
        client.annotate("front", square(3))
        client.annotate("back", square(4))
        client.annotate("back", square(5))
        client.forget("back", 4)
        for _ in range(3):
            place = machines.where()["back"]
            del machines.up[place]
            until(lambda: "back" in machines.where())
            machines.begin(place)
            assert machines.objects("back") == [5]
        until(lambda: client.status()["streams"]["back"]["epoch"] == 4)
    # a new fleet, on new machines
    again = Machines(world)
    again.begin("c-0")
    with fleet_of(world, again, tmp_path, streams=[camera("front")]) as client:
        until(lambda: len(again.where()) == 2)
        assert (again.objects("front"), again.objects("back")) == ([3], [5])
        client.remove_stream("back")
    assert set(world.streams()) == {"front"}
    assert world.states("back") == []
    with fleet_of(world, again, tmp_path, streams=[]):  # the file does not name it any more
        pass
    assert world.streams() == {}


def test_an_order_for_a_machine_that_is_lost_meanwhile_is_not(world, machines, tmp_path):
    with fleet_of(world, machines, tmp_path, streams=[camera("front")]):
        until(lambda: "front" in machines.where())
        place = machines.where()["front"]
        for share in list(machines.up):
            del machines.up[share]
        found: list[object] = []
        with FleetClient("site", timeout=30) as other:
            thread = threading.Thread(target=lambda: found.append(other.annotate("front", square(8))))
            thread.start()
            until(lambda: world.order_numbers("front"))
            assert not found
            machines.begin(place)
            thread.join(30)
        assert found
        assert isinstance(found[0], int)
        assert machines.objects("front") == [8]


def test_draining_moves_everything_and_loses_nothing(world, machines, tmp_path):
    with fleet_of(world, machines, tmp_path, streams=[camera("front"), camera("back")]) as client:
        until(lambda: len(machines.where()) == 2)
        client.annotate("front", square(3))
        place = machines.where()["front"]
        assert client.drain(f"host-{place[0]}") == [place]
        until(lambda: list(machines.where().values()) == [*({"a-0", "b-0"} - {place})] * 2)
        assert machines.objects("front") == [3]
        with pytest.raises(InputError, match="no machine or share 'host-x'; there are: a-0 on host-a, b-0"):
            client.drain("host-x")
        machines.begin("a-1")  # a second share of host-a, named by itself
        until(lambda: "a-1" in client.status()["shares"])
        assert client.drain("a-1") == ["a-1"]
        client.drain(place, undo=True)
        assert client.add_stream(**camera("side"))["share"] == place


def test_bad_input_is_one_line_and_leaves_nothing_half_placed(world, machines, tmp_path):
    Image.fromarray(square(1)).save(tmp_path / "first.png")
    with fleet_of(world, machines, tmp_path, streams=[camera("front")]) as client:
        until(lambda: "front" in machines.where())
        for table, why in [
            (camera("front"), "there is a stream 'front' already"),
            (camera("tall", height=480), r"height = 480, and \[\[sizing\]\] knows tvos at 48"),
            (
                camera("file", source="clip.mp4", realtime=False, fps=None, boxes=["1:2,2,9,9"]),
                "live streams",
            ),
            (camera("odd", mask=str(tmp_path / "none.png")), "no mask"),
            (camera("broken", source="rtsp://camera/broken", realtime=False, fps=None), "no such camera"),
        ]:
            table = {key: value for key, value in table.items() if value is not None}
            with pytest.raises(InputError, match=why) as caught:
                client.add_stream(**table)
            assert "\n" not in str(caught.value)
        with pytest.raises(InputError, match="another size"):
            client.annotate("front", square(2)[:20])
        with pytest.raises(InputError, match="no stream 'nobody'"):
            client.annotate("nobody", square(2))
        with pytest.raises(InputError, match="does not pause"):
            client.pause("front")
        client.add_stream(**camera("masked", mask=str(tmp_path / "first.png")))
        assert machines.objects("masked") == [1]
        until(lambda: set(world.streams()) == {"front", "masked"})
        assert world.order_numbers("front") == []


def test_a_store_that_is_full_refuses_what_is_new_and_stops_nothing(world, machines, tmp_path, monkeypatch):
    with fleet_of(world, machines, tmp_path, streams=[camera("front")]) as client:
        until(lambda: "front" in machines.where())

        def full(_):
            raise OSError(28, "No space left on device")

        with monkeypatch.context() as patched:
            patched.setattr(os, "fsync", full)
            with pytest.raises(InputError, match=r"cannot be stored: the store .*: No space left on device"):
                client.annotate("front", square(2))
            with pytest.raises(InputError, match=r"stream back cannot be added: the store .*: No space left"):
                client.add_stream(**camera("back"))
            assert set(machines.where()) == {"front"}
        assert client.annotate("front", square(2)) >= 0
        client.add_stream(**camera("back"))
        assert machines.objects("front") == [2]


def test_one_page_and_one_scrape_say_how_all_is(world, machines, tmp_path, capfd):
    with fleet_of(world, machines, tmp_path, streams=[camera("front"), camera("back")]) as client:
        until(lambda: len(machines.where()) == 2)
        url = until(lambda: address(capfd), 10)
        until(lambda: all(one["state"] == "running" for one in client.status()["streams"].values()))
        until(lambda: fetch(f"{url}/readyz")[0] == 200)
        assert fetch(f"{url}/healthz")[0] == 200
        page = fetch(url + "/")[1]
        assert "2 of 2 streams run on 2 shares" in page
        metrics = fetch(f"{url}/metrics")[1]
        for line in (
            'streamvos_stream_state{state="running",stream="front"} 1.0',
            'streamvos_dropped_frames_total{cause="newer frame",stream="back"} 2.0',
            'streamvos_fleet_share_used{share="a-0"} 0.5',
            'streamvos_fleet_placements_total{stream="front"} 1.0',
            "streamvos_fleet_store_up 1.0",
        ):
            assert line in metrics, metrics
        shown = json.loads(fetch(f"{url}/status.json")[1])
        assert set(shown["shares"]) == {"a-0", "b-0"}
        assert fetch(f"{url}/nothing")[0] == 404
        for share in list(machines.up):
            del machines.up[share]
        until(lambda: fetch(f"{url}/readyz")[0] == 503)
        machines.begin("a-0")
        until(lambda: fetch(f"{url}/readyz")[0] == 200)
        metrics = fetch(f"{url}/metrics")[1]
        assert 'streamvos_fleet_gone_frames_total{stream="front",what="newer frame"} 2.0' in metrics
        assert "streamvos_fleet_return_seconds_count 2.0" in metrics


def test_the_same_name_in_the_file_and_added_by_hand(world, machines, tmp_path):
    with fleet_of(world, machines, tmp_path) as client:
        client.add_stream(**camera("front"))
    config = make_fleet(values(tmp_path, streams=[camera("front")]))
    with closing(EventLog("json")) as log, pytest.raises(InputError, match="'front', and one of this name"):
        Fleet(config, world, machines, log).load()


def address(capfd) -> str | None:
    for line in capfd.readouterr().err.splitlines():
        event = json.loads(line)
        if event["event"] == "fleet":
            return event["status"]
    return None


def fetch(url: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(url, timeout=10) as found:
            return found.status, found.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()
