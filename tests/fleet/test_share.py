"""A share: an ordinary pipeline whose streams outlive it, through the store."""

from __future__ import annotations

import json
import os
import signal
import tempfile

import pytest
from fleet.fleets import camera, square, until, values

from streamvos import Client, InputError
from streamvos.fleet.config import make_fleet
from streamvos.fleet.share import Share, placed
from streamvos.fleet.store import Entry, Order, Store, StoreError
from streamvos.types import StreamvosError


@pytest.fixture
def begin(tmp_path, monkeypatch):
    """Begins shares; afterwards none is left."""
    with tempfile.TemporaryDirectory(prefix="svos", dir="/tmp") as runtime:
        monkeypatch.setenv("XDG_RUNTIME_DIR", runtime)
        monkeypatch.setenv("OMP_NUM_THREADS", "1")
        config = make_fleet(values(tmp_path))
        begun: list[Share] = []

        def one(name: str) -> Share:
            begun.append(
                Share(name, json.dumps(config.pipeline(name)), config.store, config.snapshot_seconds)
            )
            return begun[-1]

        yield one
        for share in begun:
            share.close()


def objects(name: str, stream: str) -> list[int]:
    with Client(name) as client:
        return client.status()["streams"][stream]["objects"]


def test_a_stream_goes_on_in_another_share(begin, tmp_path):
    """Killed, not asked: with the objects of its last state, and an order that came after it."""
    store = Store(str(tmp_path / "store"), begin=True)
    store.write_stream("front", Entry(camera("front"), epoch=1))
    first = begin("site-a-0")
    first.start("front", 1, json.dumps(camera("front")))
    store.write_order("front", 1, Order(square(7)))
    frame = first.order("front", 1)
    assert first.order("front", 1) == frame  # once, however often it is asked for
    until(lambda: 7 in objects("site-a-0", "front"))
    until(lambda: store.states("front") and store.states("front")[0].covers == 1)
    store.write_order("front", 2, Order(square(9)))  # stored, and its machine dies before it hears of it
    os.kill(first.report()["pid"], signal.SIGKILL)
    with pytest.raises(StreamvosError, match="ended with code -9"):
        until(lambda: first.report() and None, 10)

    store.write_stream("front", Entry(camera("front"), epoch=2))
    second = begin("site-b-0")
    state = store.states("front")[0]
    second.start("front", 2, json.dumps(camera("front")))
    until(lambda: {7, 9} <= set(objects("site-b-0", "front")))
    report = second.report()
    assert report["streams"]["front"]["epoch"] == 2
    assert report["status"]["streams"]["front"]["seq"] > state.seq  # frames are counted on
    until(lambda: store.states("front")[0].epoch == 2 and store.states("front")[0].covers == 2)

    store.write_order("front", 3, Order(np_mask_of_another_size()))
    with pytest.raises(InputError, match="48"):
        second.order("front", 3)
    with pytest.raises(StoreError, match="No such file"):  # neither applied nor refused
        second.order("front", 9)
    store.write_order("front", 4, Order(forget=7))
    (tmp_path / "store/orders/front/00000004.json").write_text("damaged")
    store.write_order("front", 5, Order(forget=9))
    assert second.order("front", 5) > 0  # one that cannot be read does not hold up the next
    with pytest.raises(InputError, match="no order of a user"):
        second.order("front", 4)

    second.stop("front", 1, keep=False)  # told late, and meant for an earlier placement
    with pytest.raises(StreamvosError, match="placed here again"):
        second.start("front", 1, json.dumps(camera("front")))
    assert second.report()["streams"]["front"]["epoch"] == 2
    with Client("site-b-0") as client:  # begun by nobody whom we know
        client.add_stream(**camera("stray"))
    assert second.report()["streams"]["stray"]["epoch"] == 0
    second.stop("stray", 0, keep=False)
    (tmp_path / "store").rename(tmp_path / "away")
    with pytest.raises(StoreError, match="folder is gone"):
        second.stop("front", 2, keep=True)
    until(lambda: "folder is gone" in second.report()["store_problem"], 20)
    (tmp_path / "away").rename(tmp_path / "store")
    until(lambda: not second.report()["store_problem"], 20)
    second.stop("front", 2, keep=True)
    assert second.report()["streams"] == {}
    with pytest.raises(StreamvosError, match="not here"):
        second.order("front", 4)
    with pytest.raises(InputError, match="no source"):
        second.start("broken", 1, json.dumps({**camera("broken"), "source": "no source"}))
    assert second.report()["streams"] == {}


def np_mask_of_another_size():
    return square(3)[:30]


def test_files_of_placements_do_not_replace_each_other():
    sinks = [
        {"kind": "json", "path": "/out/front.jsonl"},
        {"kind": "labels", "path": "/out/labels"},
        {"kind": "publish"},
    ]
    assert [one.get("path") for one in placed({"name": "s", "sinks": sinks}, 3)["sinks"]] == [
        "/out/front.3.jsonl",
        "/out/labels.3",
        None,
    ]
    assert placed({"name": "s"}, 1)["sinks"] == [{"kind": "publish"}]
