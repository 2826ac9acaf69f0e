"""What outlives a machine, in a folder and in fsspec's bucket in memory."""

from __future__ import annotations

import os
import secrets

import fsspec
import numpy as np
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from streamvos.fleet.store import Entry, Order, OverruledError, State, Store, StoreError
from streamvos.types import InputError

TABLE = {"name": "front", "source": "rtsp://user:secret@camera/stream"}


class Listings(MemoryFileSystem):
    """A bucket in memory that looks at its listings before it asks, as those of clouds do."""

    protocol = ("listings",)

    def ls(self, path, detail=True, **options):
        path = self._strip_protocol(path)
        listed = self.dircache.get(path)  # None too if it is told not to keep any
        if listed is None:
            listed = self.dircache[path] = super().ls(path, detail=True)
        return listed if detail else [one["name"] for one in listed]

    def exists(self, path, **options):
        path = self._strip_protocol(path)
        listed = self.dircache.get(path.rpartition("/")[0])
        return super().exists(path) if listed is None else path in [one["name"] for one in listed]


fsspec.register_implementation("listings", Listings, clobber=True)


@pytest.fixture(scope="session")
def bucket():
    """An S3 server on this machine."""
    pytest.importorskip("s3fs", reason="needs s3fs: uv pip install s3fs 'moto[server]'")
    server = pytest.importorskip("moto.server", reason="needs moto: uv pip install s3fs 'moto[server]'")
    import boto3

    serving = server.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    serving.start()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", "http://{}:{}".format(*serving.get_host_and_port()))
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            patch.setenv(name, "testing")
        boto3.client("s3", region_name="us-east-1").create_bucket(Bucket="cameras")
        yield "s3://cameras"
    serving.stop()


@pytest.fixture(params=["folder", "memory", "listings", "s3"])
def store(request, tmp_path):
    urls = {"folder": str(tmp_path / "site"), "s3": None}
    url = urls.get(request.param, f"{request.param}://{secrets.token_hex(4)}")
    if url is None:
        url = f"{request.getfixturevalue('bucket')}/{secrets.token_hex(4)}"
    return Store(url, begin=True)


def test_streams_come_back(store):
    assert store.streams() == {}
    store.write_stream("front", Entry(TABLE, "file", 3))
    store.write_stream("back.2", Entry({"name": "back.2"}))
    store.write_stream("front", Entry(TABLE, "file", 4))
    assert store.streams() == {"front": Entry(TABLE, "file", 4), "back.2": Entry({"name": "back.2"})}
    store.remove_stream("front")
    assert set(store.streams()) == {"back.2"}


def test_what_others_wrote_since_the_last_look_is_seen(store):
    store.write_stream("front", Entry(TABLE, epoch=1))
    assert set(store.streams()) == {"front"}
    store.write_stream("back", Entry(TABLE, epoch=1))
    store.write_state("back", State(1, 2, 0), b"state")
    assert store.states("back") == [State(1, 2, 0)]
    store.remove_stream("front")
    with pytest.raises(OverruledError):
        store.write_state("front", State(1, 2, 0), b"state")
    assert set(store.streams()) == {"back"}


@settings(deadline=None)
@given(arrays(np.uint8, st.tuples(st.integers(1, 20), st.integers(1, 20)), elements=st.integers(0, 255)))
def test_masks_come_back_bit_by_bit(mask):
    order = Order.from_json(Order(mask).to_json())
    np.testing.assert_array_equal(order.mask, mask)


def test_orders_are_kept_until_two_states_have_them(store):
    store.write_stream("front", Entry(TABLE, epoch=1))
    for number in (1, 2, 3):
        store.write_order("front", number, Order(forget=number))
    store.write_state("front", State(1, 10, 2), b"one")
    assert store.order_numbers("front") == [1, 2, 3]  # the only state may turn out to be damaged
    store.write_state("front", State(1, 20, 3), b"two")
    assert store.order_numbers("front") == [3]
    assert store.read_order("front", 3).forget == 3
    assert store.states("front") == [State(1, 20, 3), State(1, 10, 2)]
    store.write_stream("front", Entry(TABLE, epoch=2))
    store.write_state("front", State(2, 5, 3), b"three")
    assert store.states("front") == [State(2, 5, 3), State(1, 20, 3)]
    assert store.read_state("front", State(2, 5, 3)) == b"three"
    assert store.order_numbers("front") == []
    store.remove_stream("front")
    assert store.states("front") == []


def test_a_machine_that_was_cut_off_is_overruled(store):
    """It may not remove an order either: its successor may not have read it yet."""
    store.write_stream("front", Entry(TABLE, epoch=1))
    store.write_order("front", 1, Order(forget=1))
    store.write_state("front", State(1, 5, 1), b"old")
    store.write_stream("front", Entry(TABLE, epoch=2))
    with pytest.raises(OverruledError, match="placed again"):
        store.write_state("front", State(1, 999, 1), b"old")
    assert (store.states("front"), store.order_numbers("front")) == ([State(1, 5, 1)], [1])
    store.remove_stream("front")
    with pytest.raises(OverruledError, match="removed"):
        store.write_state("front", State(2, 5, 0), b"new")
    assert store.states("front") == []


def test_what_a_machine_left_half_written_is_cleared_away(tmp_path):
    store = Store(str(tmp_path / "site"), begin=True)
    store.write_stream("front", Entry(TABLE, epoch=1))
    partial = tmp_path / "site/states/front/00000001-000000000003-00000000.1a2b3c4d.partial"
    partial.parent.mkdir(parents=True)
    partial.write_bytes(b"half")
    store.write_state("front", State(1, 5, 0), b"whole")
    assert [path.name for path in partial.parent.iterdir()] == ["00000001-000000000005-00000000"]


def test_a_name_is_on_the_disk_before_an_order_is_answered(tmp_path, monkeypatch):
    store = Store(str(tmp_path / "site"), begin=True)
    synced: list[str] = []
    monkeypatch.setattr(os, "fsync", lambda number: synced.append(os.readlink(f"/proc/self/fd/{number}")))
    store.write_order("front", 1, Order(forget=1))
    assert synced[0].endswith(".partial")
    assert synced[1:] == [str(tmp_path / "site/orders/front")]


def test_each_store_has_a_number_and_one_process_that_decides(store, tmp_path):
    again, other = Store(store.url), Store(str(tmp_path / "other"), begin=True)
    assert again.number == store.number != other.number
    store.take_over()
    assert store.is_ours()
    again.take_over()
    assert again.is_ours()
    assert not store.is_ours()


def test_what_cannot_be_written_is_said_and_leaves_nothing(tmp_path, monkeypatch):
    store = Store(str(tmp_path / "site"), begin=True)
    store.write_stream("front", Entry(TABLE))

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StoreError, match=r"the store .*site: No space left on device"):
        store.write_order("front", 1, Order(forget=1))
    monkeypatch.undo()
    assert store.order_numbers("front") == []
    assert not list((tmp_path / "site").rglob("*.partial"))


def test_a_folder_that_is_gone_is_neither_empty_nor_made_anew(tmp_path):
    """As when it is not mounted: what is there then is not the store."""
    store = Store(str(tmp_path / "site"), begin=True)
    (tmp_path / "site").rename(tmp_path / "away")
    with pytest.raises(StoreError, match="its folder is gone"):
        store.streams()
    with pytest.raises(StoreError, match="its folder is gone"):
        store.write_order("front", 1, Order(forget=1))
    (tmp_path / "site").mkdir()
    for use in (
        lambda: Store(str(tmp_path / "site")),
        store.streams,
        store.check,
        lambda: store.write_state("front", State(1, 1, 0), b""),
    ):
        with pytest.raises(StoreError, match="is it mounted"):
            use()
    assert not list((tmp_path / "site").iterdir())
    (tmp_path / "site").rmdir()
    (tmp_path / "away").rename(tmp_path / "site")
    Store(str(tmp_path / "site")).write_order("front", 1, Order(forget=1))
    assert store.order_numbers("front") == [1]


def test_a_place_that_nobody_can_write_is_refused(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(StoreError, match="the store"):
        Store(str(tmp_path / "file"), begin=True)
    for url in ("nosuch://bucket", "zip://there/is/none.zip", "dask://"):
        with pytest.raises((InputError, StoreError), match=url.partition(":")[0]) as caught:
            Store(url, begin=True)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "text",
    [
        *("", "[]", "{}", '{"forget": "x"}', '{"forget": Infinity}', "[" * 100_000),
        *('{"size": [2], "objects": {"1": {}}}', '{"size": [1000000000, 1000000000], "objects": {}}'),
        '{"size": [1, 1], "objects": {"300": {"size": [1, 1], "counts": "01"}}}',
    ],
)
def test_what_is_no_order_is_refused(text):
    with pytest.raises(InputError):
        Order.from_json(text)


@pytest.mark.parametrize("text", ["{", "[]", '{"table": 1}', '{"table": {}, "epoch": "1"}', "1" * 10_000])
def test_a_damaged_entry_is_named(tmp_path, text):
    store = Store(str(tmp_path / "site"), begin=True)
    store.write_stream("front", Entry(TABLE))
    (tmp_path / "site/streams/front.json").write_text(text)
    with pytest.raises(InputError, match=r"front\.json is no stream"):
        store.streams()
