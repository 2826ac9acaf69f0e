"""A fleet and its users, over shares that are kept in memory: no processes, no Ray."""

from __future__ import annotations

import json
import os
import threading
import urllib.error
import urllib.request
from contextlib import closing

import pytest
from fleet.fleets import camera, square, until, values
from fleet.machines import Machines, fleet_of
from PIL import Image
from pipeline.small_server import Recorder, serving, short_folder

from streamvos.cli import main
from streamvos.fleet.client import FleetClient
from streamvos.fleet.config import make_fleet
from streamvos.fleet.running import Fleet
from streamvos.pipeline.telemetry.logs import EventLog
from streamvos.types import InputError


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


def test_a_stream_is_added_on_the_command_line(world, machines, tmp_path, capfd):
    objects = {"boxes": ["2:3,4,20,30"], "points": ["5:40,20", "5:50,9,-1"]}
    with fleet_of(world, machines, tmp_path, streams=[]):
        given = [
            f"--{kind}={one}"
            for kind, values in (("box", "boxes"), ("point", "points"))
            for one in objects[values]
        ]
        assert (
            main(["fleet", "add", "side", "rtsp://camera/side", "--height", "48", *given, "--at", "site"])
            == 0
        )
        assert "side: runs on" in capfd.readouterr().out
        table = world.streams()["side"].table
        assert {key: list(table[key]) for key in objects} == objects
        assert (
            main(
                [
                    "fleet",
                    "add",
                    "more",
                    "rtsp://camera/more",
                    "--height",
                    "48",
                    "--box",
                    "2:3",
                    "--at",
                    "site",
                ]
            )
            == 2
        )
        assert "box" in capfd.readouterr().err
        assert set(world.streams()) == {"side"}


def test_a_pipeline_is_no_fleet(tmp_path):
    with short_folder() as folder:
        address = f"ipc://{folder}/control.sock"
        with serving(address, Recorder()), pytest.raises(InputError, match="is a pipeline, and no fleet"):
            FleetClient(address)


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
