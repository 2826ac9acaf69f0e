"""What goes wrong around a fleet, at the wrong moment: nothing is lost, placed twice, or half there."""

from __future__ import annotations

import json
import os
import threading
from contextlib import closing

import pytest
from fleet.fleets import camera, square, until, values
from fleet.machines import fleet_of

from streamvos.fleet import reports as reports_module
from streamvos.fleet import running as running_module
from streamvos.fleet.client import FleetClient
from streamvos.fleet.cluster import SilentError
from streamvos.fleet.config import make_fleet
from streamvos.fleet.running import Fleet
from streamvos.fleet.store import Order, Store, StoreError
from streamvos.pipeline.telemetry.logs import EventLog
from streamvos.types import InputError, StreamvosError


def test_a_store_that_is_back_is_known_to_be(world, machines, tmp_path):
    """Without anybody who gives an order: /readyz is true again."""
    with fleet_of(world, machines, tmp_path, streams=[camera("front")]) as client:
        until(lambda: "front" in machines.where())
        (tmp_path / "store").rename(tmp_path / "away")
        with pytest.raises(InputError, match="cannot be stored"):
            client.annotate("front", square(2))
        with pytest.raises(InputError, match=r"front is not removed: the store .* folder is gone"):
            client.remove_stream("front")
        assert "folder is gone" in client.status()["store"]
        (tmp_path / "away").rename(tmp_path / "store")
        until(lambda: client.status()["store"] == "", 10)
        assert client.annotate("front", square(3)) >= 0
        assert machines.objects("front") == [3]


def test_what_is_removed_never_comes_back(world, machines, tmp_path):
    """Its machine dies first, its start fails, or it is added again with what is left of it in the store."""
    with fleet_of(world, machines, tmp_path) as client:
        client.add_stream(**camera("front"))
        client.annotate("front", square(9))
        machines.pause.clear()  # its stop waits, and its machine dies
        thread = threading.Thread(target=lambda: remove_by_another("front"))
        thread.start()
        until(lambda: world.streams() == {})
        del machines.up[machines.where()["front"]]
        machines.pause.set()
        thread.join(20)
        assert not thread.is_alive()
        until(lambda: client.status()["streams"] == {})
        world.write_order("front", 7, Order(square(8)))  # a machine that was cut off wrote it
        client.add_stream(**camera("front"))
        assert machines.objects("front") == []
        client.remove_stream("front")
        machines.broken = "no disk"
        thread = threading.Thread(target=add_in_vain, args=("late",))
        thread.start()
        until(lambda: "no disk" in client.status()["streams"].get("late", {}).get("problem", ""))
        client.remove_stream("late")
        thread.join(20)
        assert not thread.is_alive()
    assert world.streams() == {}


def remove_by_another(name: str) -> None:
    with FleetClient("site", timeout=30) as client:
        client.remove_stream(name)


def add_in_vain(name: str) -> None:
    with FleetClient("site", timeout=30) as client, pytest.raises(InputError, match="was removed"):
        client.add_stream(**camera(name))


def test_orders_of_two_users_at_once_are_kept_in_their_order(world, machines, tmp_path, monkeypatch):
    """A state that has the second, stored faster, must not count as one that has the first."""
    slow = threading.Event()
    write = Store.write_order

    def write_order(self, name, number, order):
        if number == 1:
            slow.wait(10)
        write(self, name, number, order)

    monkeypatch.setattr(Store, "write_order", write_order)
    with fleet_of(world, machines, tmp_path, streams=[camera("front")]) as client:
        until(lambda: "front" in machines.where())
        threads = [threading.Thread(target=annotate_by_another, args=(number,)) for number in (3, 4)]
        threads[0].start()
        until(lambda: client.status()["streams"] and threads[0].is_alive())
        threads[1].start()
        threads[1].join(0.5)
        slow.set()
        for thread in threads:
            thread.join(20)
        assert machines.objects("front") == [3, 4]
        place = machines.where()["front"]
        del machines.up[place]
        until(lambda: "front" in machines.where())
        assert machines.objects("front") == [3, 4]


def annotate_by_another(number: int) -> None:
    with FleetClient("site", timeout=30) as client:
        client.annotate("front", square(number, 4 * number))


def test_a_full_store_at_the_beginning_loses_nothing(world, machines, tmp_path, monkeypatch):
    with fleet_of(world, machines, tmp_path, streams=[camera("front")]) as client:
        until(lambda: "front" in machines.where())
        client.annotate("front", square(5))
    changed = make_fleet(values(tmp_path, streams=[camera("front", fps=5.0)]))

    def full(_):
        raise OSError(28, "No space left on device")

    with closing(EventLog("json")) as log:
        with monkeypatch.context() as patched:
            patched.setattr(os, "fsync", full)
            with pytest.raises(StoreError, match="No space left"):
                Fleet(changed, world, machines, log).load()
        assert set(world.streams()) == {"front"}
        assert world.states("front")


def test_a_changed_stream_begins_anew_though_its_machine_lived_on(world, machines, tmp_path):
    with fleet_of(world, machines, tmp_path, streams=[camera("front"), camera("back")]) as client:
        until(lambda: len(machines.where()) == 2)
        client.annotate("front", square(5))
        before = {name: dict(machines.up[place].streams[name]) for name, place in machines.where().items()}
        machines.stops = False  # as if `fleet up` were killed
    machines.stops = True
    with fleet_of(world, machines, tmp_path, streams=[camera("front", fps=5.0), camera("back")]):
        until(lambda: world.streams()["front"].epoch == before["front"]["epoch"] + 2)
        until(lambda: len(machines.where()) == 2)
        assert machines.objects("front") == [5]
        assert json.loads(machines.tables["front"])["fps"] == 5.0
        assert world.streams()["back"].epoch == before["back"]["epoch"]


def test_two_that_decide_are_one_too_many(world, machines, tmp_path):
    """On one machine the second is refused; from another it takes over, and the first ends."""
    with fleet_of(world, machines, tmp_path, streams=[camera("front")]):
        until(lambda: "front" in machines.where())
        other = make_fleet(values(tmp_path))  # without streams: it would remove what the store has
        with closing(EventLog("json")) as log, pytest.raises(InputError, match="runs already"):
            Fleet(other, world, machines, log).run()
        assert set(world.streams()) == {"front"}
    config = make_fleet(values(tmp_path, streams=[camera("front")]))
    with closing(EventLog("json")) as log:
        one = Fleet(config, world, machines, log)
        thread = threading.Timer(0.5, Store(str(tmp_path / "store")).take_over)
        thread.start()
        with pytest.raises(StreamvosError, match="another `streamvos fleet up` uses the store"):
            one.run()
    assert set(machines.where()) == {"front"}


def test_a_share_that_cannot_be_used_says_why(world, machines, tmp_path, monkeypatch):
    monkeypatch.setattr(reports_module, "BEGIN_SECONDS", 1.0)
    monkeypatch.setattr(reports_module, "LOST_SECONDS", 0.3)
    machines.up["b-0"].store_number = "another"
    machines.begin("c-0")
    machines.up["c-0"].problem = StreamvosError("there is no store of a fleet at /mnt")
    machines.begin("d-0")
    machines.up["d-0"].problem = SilentError("it does not answer")
    births = machines.count
    tables = [camera("front"), camera("back"), camera("side")]
    with fleet_of(world, machines, tmp_path, streams=tables) as client:
        until(lambda: "mounted here and there" in client.status()["shares"].get("b-0", {}).get("problem", ""))
        until(lambda: "no store of a fleet at /mnt" in client.status()["shares"]["c-0"]["problem"])
        until(lambda: machines.count == births + 2)  # both were ended, and have begun again
        until(lambda: len(machines.where()) == 3)
        assert "b-0" not in machines.where().values()  # it would run them without their objects
        assert machines.up["b-0"].life == "2"  # others may use it


def test_streams_wait_until_every_share_has_begun(world, machines, tmp_path, monkeypatch):
    """Else the first one gets them all."""
    machines.up["b-0"].problem = SilentError("it begins")
    tables = [camera("front"), camera("back")]
    with fleet_of(world, machines, tmp_path, streams=tables) as client:
        until(lambda: client.status()["shares"].get("a-0", {}).get("state") == "up")
        assert machines.where() == {}
        machines.up["b-0"].problem = None
        until(lambda: sorted(machines.where().values()) == ["a-0", "b-0"])


def test_a_stream_without_room_is_added_and_waits(world, machines, tmp_path):
    del machines.up["b-0"]
    with fleet_of(world, machines, tmp_path, streams=[camera("front"), camera("back")]) as client:
        until(lambda: len(machines.where()) == 2)
        said = client.add_stream(**camera("side"))
        assert (said["state"], said["problem"]) == ("waiting", "no share has room: it takes 1/2 of a share")
        client.remove_stream("back")
        until(lambda: set(machines.where()) == {"front", "side"})


def test_a_cluster_that_does_not_answer_for_a_while_and_then_for_good(world, machines, tmp_path, monkeypatch):
    with fleet_of(world, machines, tmp_path, streams=[camera("front")]) as client:
        until(lambda: client.status()["streams"]["front"]["state"] == "running")
        machines.silent = True
        assert client.annotate("front", square(2)) >= 0  # shares are reached without the head
        assert client.status()["streams"]["front"]["state"] == "running"
        machines.silent = False
    monkeypatch.setattr(running_module, "HEAD_SECONDS", 0.3)
    machines.silent = True
    config = make_fleet(values(tmp_path, streams=[camera("front")]))
    for said in (r"no head: .* begin a new cluster", r"head does not answer: .* begin a new cluster"):
        with closing(EventLog("json")) as log, pytest.raises(StreamvosError, match=said):
            Fleet(config, world, machines, log).run()
        machines.hangs.clear()  # nor is there an answer
    machines.hangs.set()
