"""Frames of a source as JPEG: encoded for subscribers only, the newest one wins, checked on arrival."""

from __future__ import annotations

import io
import time

import numpy as np
import pytest
import zmq
from PIL import Image
from pipeline.small_server import SESSION, short_folder

from streamvos.pipeline.clients.published import Picture
from streamvos.pipeline.clients.publishing import SILENT_SECONDS, FramePublisher
from streamvos.pipeline.clients.subscribing import FrameSubscription
from streamvos.pipeline.wire.messages import Array, Message, encode


@pytest.fixture
def place():
    with short_folder() as folder:
        yield f"ipc://{folder}/e0.view"


@pytest.fixture
def context():
    made: zmq.Context = zmq.Context()
    yield made
    made.destroy(linger=0)


def header(seq: int) -> dict[str, object]:
    return {"seq": seq, "incarnation": 2, "captured": 1000 + seq, "pts": seq / 25}


def offered_until_received(
    publisher: FramePublisher, frames: FrameSubscription, image: np.ndarray
) -> Picture:
    deadline, seq = time.monotonic() + 20, 0
    while (one := frames.receive(0.05)) is None:
        assert time.monotonic() < deadline
        publisher.offer(lambda: image, header(seq))
        seq += 1
    return one


def test_a_subscriber_gets_frames_as_jpeg(context, place):
    rows, columns = np.mgrid[:48, :64]
    image = np.stack([4 * columns, 5 * rows, 0 * rows + 90], axis=2).astype(np.uint8)
    publisher = FramePublisher(context, place, "front", SESSION)
    with FrameSubscription(context, place, "front") as frames:
        one = offered_until_received(publisher, frames, image)
        assert (one.stream, one.incarnation, one.size) == ("front", 2, (48, 64))
        assert one.captured_ns == 1000 + one.seq
        assert one.pts == one.seq / 25
        shown = np.asarray(Image.open(io.BytesIO(one.jpeg)))
        assert np.abs(shown.astype(int) - image).mean() < 4  # JPEG loses a little
    publisher.close()


def test_without_a_subscriber_no_picture_is_even_looked_at(context, place):
    publisher = FramePublisher(context, place, "front", SESSION)
    publisher.offer(lambda: pytest.fail("nobody wants it"), header(0))
    with FrameSubscription(context, place, "other") as frames:  # a topic that is not there
        assert frames.receive(0.2) is None
        publisher.offer(lambda: pytest.fail("nobody wants it"), header(1))
    publisher.close()


def test_malformed_frames_are_counted_and_skipped(context, place):
    socket = context.socket(zmq.PUB)
    socket.bind(place)
    good = {"size": [2, 2], "captured": 5, "pts": 0.0}
    bad = [
        {**good, "size": [0, 2]},
        {**good, "captured": "now"},
        {**good, "pts": None},
        {},
    ]
    with FrameSubscription(context, place, "front") as frames:
        image = {"image": Array.of(np.zeros(7, np.uint8))}
        deadline = time.monotonic() + 20
        while frames.receive(0.05) is None:
            assert time.monotonic() < deadline
            for fields in bad:
                socket.send_multipart(
                    [b"jpeg/front/", *encode(Message("frame", "front", 1, 3, fields, image), SESSION)[1:]]
                )
            socket.send_multipart(
                [b"jpeg/front/", *encode(Message("frame", "front", 1, 3, good, {}), SESSION)[1:]]
            )
            socket.send_multipart(
                [b"jpeg/front/", *encode(Message("frame", "front", 1, 3, good, image), SESSION)[1:]]
            )
        assert set(frames.refused) >= {"size", "captured or pts", "image"}
    socket.close(linger=0)


def test_who_comes_in_a_pause_gets_the_last_frame_once(context, place):
    image = np.full((48, 64, 3), 77, np.uint8)
    publisher = FramePublisher(context, place, "front", SESSION)
    taken = []

    def picture():
        taken.append(image)
        return image

    with FrameSubscription(context, place, "front") as first:
        offered_until_received(publisher, first, image)
        while first.receive(0.1) is not None:  # what was on the way
            pass
        publisher.offer(picture, header(7))
        assert first.receive(20).seq == 7
        time.sleep(SILENT_SECONDS)
        publisher.repeat()
        assert len(taken) == 1, "nobody has come"
        with FrameSubscription(context, place, "front") as late:
            deadline = time.monotonic() + 20
            while (one := late.receive(0.05)) is None:
                assert time.monotonic() < deadline
                publisher.repeat()
            assert one.seq == 7
            publisher.repeat()
            assert len(taken) == 2, "it has been shown"
    publisher.close()
