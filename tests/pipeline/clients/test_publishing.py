"""Masks for subscribers: what arrives is what was sent, in the form asked for, and nobody is waited for."""

from __future__ import annotations

import time

import numpy as np
import pytest
import zmq
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as some
from pipeline.raw_client import RawSubscriber
from pipeline.small_server import (
    SESSION,
    SIZE,
    make_frame,
    make_header,
    make_result,
    short_folder,
    wait_for_forms,
)

from streamvos.masks.labelmap import read_label_map
from streamvos.pipeline.clients import publishing
from streamvos.pipeline.clients.published import End, Mask, from_png
from streamvos.pipeline.clients.publishing import QUEUE, Publisher
from streamvos.pipeline.clients.subscribing import Subscription
from streamvos.pipeline.wire.messages import Array, Message, Refused, encode
from streamvos.types import InputError


@pytest.fixture
def place():
    with short_folder() as folder:
        yield f"ipc://{folder}/masks.sock"


@pytest.fixture
def context():
    context = zmq.Context()
    yield context
    context.destroy(linger=0)  # with whatever a failed test left open


@pytest.fixture
def publisher(context, place):
    with Publisher(context, place, "front", SESSION) as publisher:
        yield publisher


def blobs(rng: np.random.Generator, size: tuple[int, int] = SIZE) -> np.ndarray:
    """A label map with a few objects; one time in five, with none."""
    mask = np.zeros(size, np.uint8)
    for number in rng.choice(np.arange(1, 255), rng.integers(0, 5), replace=False):
        top, left = rng.integers(0, size[0]), rng.integers(0, size[1])
        mask[top : top + rng.integers(1, 12), left : left + rng.integers(1, 12)] = number
    return mask


@pytest.mark.parametrize("form", ["rle", "png", "raw"])
def test_a_client_without_our_code_gets_the_same_label_maps(publisher, place, rng, form):
    masks = [blobs(rng) for _ in range(12)]
    with RawSubscriber(place, form, "front") as subscriber:
        wait_for_forms(publisher, form)
        for seq, mask in enumerate(masks):
            publisher.publish(make_frame(seq), make_result(mask, seq), make_header(seq))
        publisher.end({"seq": 11, "incarnation": 1})
        for seq, mask in enumerate(masks):
            header, label_map = subscriber.receive()
            assert np.array_equal(label_map, mask)
            assert (header["seq"], header["incarnation"], header["captured"]) == (seq, 1, 1000 + seq)
            assert header["pts"] == seq / 25
            assert header["size"] == list(SIZE)
            assert header["session"] == SESSION
            assert header["stamps"]["decoder"] == [4, 5, 6]
            assert header["dropped"] == {"newer frame": 1}
            assert header["recovered"] is False
            expected = make_result(mask).objects
            assert [one["id"] for one in header["objects"]] == list(expected)
            for one in header["objects"]:
                known = expected[one["id"]]
                assert (one["score"], one["state"], one["area"]) == (known.score, known.state, known.area)
                assert one["box"] == list(known.box)
        header, nothing = subscriber.receive()
        assert (header["kind"], header["seq"], nothing) == ("end", 11, None)


@pytest.mark.parametrize("form", ["rle", "png", "raw"])
def test_our_subscription_reads_them_too(publisher, place, context, rng, form):
    mask = blobs(rng)
    with Subscription(context, [place], "", form) as subscription:
        wait_for_forms(publisher, form)
        publisher.publish(make_frame(3), make_result(mask), make_header(3, recovered=True))
        publisher.end({"seq": 3})
        one = subscription.receive(10)
        assert isinstance(one, Mask)
        assert np.array_equal(one.label_map, mask)
        assert (one.stream, one.seq, one.recovered, one.size) == ("front", 3, True, SIZE)
        assert one.objects == make_result(mask).objects
        assert isinstance(subscription.receive(10), End)
        assert subscription.receive(0.01) is None


def test_who_comes_in_a_pause_gets_the_last_masks_and_the_others_see_them_once(
    publisher, place, context, rng
):
    result, header = make_result(blobs(rng)), make_header(3)
    with Subscription(context, [place], "", "rle") as first:
        wait_for_forms(publisher, "rle")
        publisher.publish(make_frame(3), result, header)
        assert first.receive(10).seq == 3
        publisher.repeat(result, header)  # nobody has come: nothing is sent
        with Subscription(context, [place], "front", "rle") as late:
            until_received = iter(range(400))
            while (one := late.receive(0.05)) is None:
                next(until_received)
                publisher.repeat(result, header)
            assert (one.seq, one.repeated) == (3, True)
            assert late.receive(0.1) is None
        assert first.receive(0.1) is None


def test_a_png_is_one_that_every_tool_reads(publisher, place, rng, tmp_path):
    mask = blobs(rng)
    with RawSubscriber(place, "png", "front") as subscriber:
        wait_for_forms(publisher, "png")
        publisher.publish(make_frame(), make_result(mask), make_header(0))
        _, _, buffer = subscriber.socket.recv_multipart()
    (tmp_path / "mask.png").write_bytes(buffer)
    assert np.array_equal(read_label_map(tmp_path / "mask.png"), mask)


def test_only_what_is_wanted_is_made(publisher, place, rng, monkeypatch):
    made = []
    encoded = publishing._encoded
    monkeypatch.setattr(publishing, "_encoded", lambda form, *rest: made.append(form) or encoded(form, *rest))

    def publish() -> list[str]:
        made.clear()
        publisher.publish(make_frame(), make_result(blobs(rng)), make_header(0))
        return sorted(made)

    assert publish() == []
    with RawSubscriber(place, "png", "front"), RawSubscriber(place, "png"):
        wait_for_forms(publisher, "png")
        assert publish() == ["png"]
        with RawSubscriber(place, "raw"):
            wait_for_forms(publisher, "png", "raw")
            assert publish() == ["png", "raw"]
        wait_for_forms(publisher, "png")
    wait_for_forms(publisher)  # whoever goes away without a word is noticed as well
    assert publish() == []


def test_objects_are_not_asked_for_when_nobody_listens(publisher):
    def fail() -> None:
        raise AssertionError("asked")

    result = make_result(np.zeros(SIZE, np.uint8))
    object.__setattr__(result, "_objects", fail)
    publisher.publish(make_frame(), result, make_header(0))


@pytest.mark.parametrize(
    "topic", [b"", b"r", b"rle", b"rle/back/", b"jpeg/front/", b"\xff\xfe", b"rle/front/more"]
)
def test_topics_that_match_nothing_make_nothing(publisher, place, context, topic):
    with RawSubscriber(place, "raw", "front") as known:
        known.socket.subscribe(topic)
        wait_for_forms(publisher, "raw")
        deadline = time.monotonic() + 10
        while publisher.refused["subscription"] != 1:
            assert time.monotonic() < deadline
            assert publisher.forms == ("raw",)


@settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
@given(some.lists(some.binary(max_size=1500), min_size=1, max_size=3))
def test_whatever_comes_the_publisher_lives(fuzzed, parts):
    publisher, rude = fuzzed
    rude.send_multipart(parts)
    publisher.publish(make_frame(), make_result(np.ones(SIZE, np.uint8)), make_header(0))
    assert len(publisher._wanted) <= 64
    assert len(publisher.refused) < 5


@pytest.fixture(scope="module")
def fuzzed():
    """A publisher, and an XSUB socket, which may send it anything."""
    context = zmq.Context()
    with short_folder() as folder, Publisher(context, f"ipc://{folder}/m", "front", SESSION) as publisher:
        rude = context.socket(zmq.XSUB)
        rude.linger = 0
        rude.connect(f"ipc://{folder}/m")
        yield publisher, rude
        rude.close()
        # after all of it, somebody with manners is served
        with RawSubscriber(f"ipc://{folder}/m", "rle", "front") as subscriber:
            deadline = time.monotonic() + 20
            while "rle" not in publisher.forms:
                assert time.monotonic() < deadline
            publisher.publish(make_frame(), make_result(np.ones(SIZE, np.uint8)), make_header(5))
            assert subscriber.receive()[1].all()
    context.term()


def test_thousands_of_subscriptions_are_no_more_than_three_topics(publisher, place):
    context = zmq.Context()
    greedy = context.socket(zmq.SUB)
    greedy.linger = greedy.sndhwm = 0  # no high-water mark: it loses none of its subscriptions
    try:
        greedy.connect(place)
        for number in range(5000):
            greedy.subscribe(f"rle/front/{number}")
        greedy.subscribe("raw/front/")
        wait_for_forms(publisher, "raw")
        assert publisher._wanted == {b"raw/front/"}
        assert publisher.refused["subscription"] == 5000
    finally:
        greedy.close()
        context.term()


def test_a_subscriber_that_sleeps_loses_and_the_others_do_not(publisher, place, rng):
    size = (240, 320)
    mask = rng.integers(0, 3, size, np.uint8)  # raw: 77 kB each, so that the system's buffers fill soon
    with RawSubscriber(place, "raw", "front") as asleep, RawSubscriber(place, "raw", "front") as awake:
        asleep.socket.setsockopt(zmq.RCVHWM, 1)
        wait_for_forms(publisher, "raw")
        deadline = time.monotonic() + 20
        seq = 0
        while True:  # until both are there: the first subscription is the only one that is reported
            publisher.publish(make_frame(seq, size), make_result(mask), make_header(seq))
            seq += 1
            if awake.socket.poll(20) and asleep.socket.poll(20):
                break
            assert time.monotonic() < deadline
        while awake.socket.poll(100):
            awake.receive()
        for number in range(seq, seq + 500):
            publisher.publish(make_frame(number, size), make_result(mask), make_header(number))
            header, _ = awake.receive()
            assert header["seq"] == number
        got = []
        while asleep.socket.poll(300):
            got.append(asleep.receive()[0]["seq"])
        assert len(got) < 500  # it lost some
        assert got == sorted(got)
    assert QUEUE == 16


def test_runs_that_do_not_fit_into_a_header_are_left_out_and_counted(publisher, place, rng):
    noise = rng.integers(1, 3, (1200, 1200), np.uint8)
    with RawSubscriber(place, "rle", "front") as subscriber:
        wait_for_forms(publisher, "rle")
        publisher.publish(make_frame(0, noise.shape), make_result(noise), make_header(0))
        publisher.publish(make_frame(1), make_result(np.ones(SIZE, np.uint8)), make_header(1))
        assert subscriber.receive()[0]["seq"] == 1
    assert publisher.refused["header too large"] == 1


def test_masks_that_are_none_are_refused_by_the_subscription(context, place, rng):
    def sent(**changes: object) -> list:
        header = make_header(0, size=list(SIZE), objects=[])
        fields = {name: value for name, value in header.items() if name not in ("seq", "incarnation")}
        fields |= changes
        arrays = {"mask": Array.of(np.zeros(changes.get("_shape", SIZE), np.uint8))}
        fields.pop("_shape", None)
        _, *rest = encode(Message("mask", "front", 1, 0, fields, arrays), SESSION)
        return [b"raw/front/", *rest]

    good = sent()
    one = {"id": 1, "score": 0.5, "state": "tracking", "box": None, "area": 0}
    bad = [
        sent(size=[0, 5]),
        sent(size="large"),
        sent(size=[2**40, 2**40]),
        sent(_shape=(3, 3)),
        sent(objects=None),
        sent(objects=[1]),
        sent(objects=[{**one, "id": 0}]),
        sent(objects=[{**one, "state": "asleep"}]),
        sent(objects=[{**one, "box": [1, 2]}]),
        sent(objects=[{**one, "area": -1}]),
        sent(objects=[one] * 300),
        sent(captured=-1),
        sent(pts="soon"),
        sent(dropped=[1]),
        sent(dropped={"x": -1}),
        sent(stamps={"source": [1]}),
        [b"raw/../../etc/", *good[1:]],
        [b"raw/back/", *good[1:]],
        *([b"raw/front/", rng.bytes(60)] for _ in range(20)),
        *([b"raw/front/", good[1][:cut], good[2]] for cut in range(0, len(good[1]), 7)),
    ]
    with Subscription(context, [], "", "raw") as subscription:
        socket = context.socket(zmq.PUB)
        socket.linger = 0
        socket.sndhwm = 0
        socket.bind(place)
        subscription._socket.setsockopt(zmq.RCVHWM, 0)
        subscription._socket.connect(place)
        deadline = time.monotonic() + 20
        while subscription.receive(0.02) is None:
            socket.send_multipart(good)
            assert time.monotonic() < deadline
        while subscription.receive(0.1) is not None:
            pass
        for parts in bad:
            socket.send_multipart(parts)
        socket.send_multipart(sent(pts=99))
        assert subscription.receive(10).pts == 99
        assert sum(subscription.refused.values()) == len(bad)
        socket.close()
    with pytest.raises(Refused):  # what is only seen when it is unpacked
        from_png(Array.of(np.frombuffer(rng.bytes(100), np.uint8)), SIZE)


def test_an_address_that_is_open_taken_or_no_socket_is_refused(context, place, publisher, tmp_path):
    with pytest.raises(InputError, match="CURVE keys"):
        Publisher(context, "tcp://*:5998", "front", SESSION)
    with pytest.raises(InputError, match=r"serves at .* already"):
        Publisher(context, place, "front", SESSION)
    with short_folder() as folder:
        (folder / "holiday.mp4").write_bytes(b"precious")
        with pytest.raises(InputError, match="no socket"):
            Publisher(context, f"ipc://{folder}/holiday.mp4", "front", SESSION)
        assert (folder / "holiday.mp4").read_bytes() == b"precious"
