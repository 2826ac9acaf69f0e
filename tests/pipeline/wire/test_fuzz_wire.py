"""Whatever bytes come in: nothing is raised but `Refused`, nothing grows, and the good stream goes on."""

from __future__ import annotations

import contextlib
import math
import os
import shutil
import socket
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import msgpack
import numpy as np
import pytest
import zmq
from growth import growth
from hypothesis import given, settings
from hypothesis import strategies as st

from streamvos.pipeline.wire.arenas import Arena, ArenaError
from streamvos.pipeline.wire.inbox import Inbox
from streamvos.pipeline.wire.messages import (
    ITEM_SIZES,
    Array,
    Message,
    Place,
    Refused,
    decode,
    encode,
    tensor_over,
)
from streamvos.pipeline.wire.outbox import Outbox
from streamvos.pipeline.wire.spec import EdgeSpec

SESSION = b"8 bytes."
NAME = "front/features"

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
counts = st.integers(0, 2**63 - 1)
scalars = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False)
    | texts
    | st.binary(max_size=8)
)
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4)
)
envelope = {"v", "kind", "session", "stream", "incarnation", "seq", "arrays"}
field_names = texts.filter(lambda name: name not in envelope)


@st.composite
def array_values(draw: st.DrawFn) -> Array:
    dtype = draw(st.sampled_from(sorted(ITEM_SIZES)))
    shape = tuple(draw(st.lists(st.integers(0, 4), max_size=4)))
    size = math.prod(shape) * ITEM_SIZES[dtype]
    places = st.builds(Place, texts, counts, counts, counts)
    return Array(dtype, shape, draw(st.binary(min_size=size, max_size=size) | places))


messages = st.builds(
    Message,
    texts,
    texts,
    counts,
    counts,
    st.dictionaries(field_names, values, max_size=5),
    st.dictionaries(texts, array_values(), max_size=4),
)


def sent(message: Message) -> list[bytes]:
    return [bytes(part) for part in encode(message, SESSION)]


def decode_or_refuse(parts: list[bytes]) -> Message | None:
    """Also touches everything that a reader would."""
    try:
        message = decode(parts, SESSION)
    except Refused:
        return None
    for array in message.arrays.values():
        if isinstance(array.data, Place):
            with pytest.raises(Refused, match="where"):
                array.numpy()
            continue
        assert array.numpy().nbytes == array.nbytes
        tensor = tensor_over(np.frombuffer(array.data, np.uint8).copy(), array.dtype, array.shape)
        assert tensor.shape == array.shape
    return message


@settings(max_examples=100, deadline=None)
@given(messages)
def test_every_message_comes_as_it_was_sent(message):
    assert decode(sent(message), SESSION) == message


@settings(max_examples=100, deadline=None)
@given(messages, st.data())
def test_a_message_with_a_bad_byte_is_refused_or_right(message, data):
    parts = sent(message)
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(parts) - 1))
        part = bytearray(parts[at])
        where = data.draw(st.integers(0, len(part)))
        change = data.draw(st.sampled_from(["flip", "cut", "insert", "drop", "double", "swap"]))
        if change == "flip" and where < len(part):
            part[where] ^= 1 << data.draw(st.integers(0, 7))
        elif change == "cut":
            del part[where:]
        elif change == "insert":
            part[where:where] = data.draw(st.binary(min_size=1, max_size=6))
        parts[at] = bytes(part)
        if change == "drop" and len(parts) > 1:
            del parts[at]
        elif change == "double":
            parts.insert(at, parts[at])
        elif change == "swap":
            parts[at], parts[0] = parts[0], parts[at]
    decode_or_refuse(parts)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.binary(max_size=200), max_size=8))
def test_random_bytes_are_refused(parts):
    assert decode_or_refuse(parts) is None


@settings(max_examples=100, deadline=None)
@given(st.dictionaries(st.sampled_from(sorted(envelope)) | texts, values, max_size=8), st.lists(st.binary()))
def test_headers_of_the_wrong_things_are_refused_or_right(changes, buffers):
    header = {"v": 1, "kind": "frame", "session": SESSION, "stream": "", "arrays": {}} | changes
    decode_or_refuse([b"", msgpack.packb(header), *buffers])


@settings(max_examples=100, deadline=None)
@given(st.lists(values, max_size=4), st.binary(max_size=8))
def test_arrays_of_the_wrong_things_are_refused_or_right(described, buffer):
    dtype_shape = [["uint8", [len(buffer)]], ["uint8", []], []]
    for prefix in dtype_shape:
        header = {"v": 1, "kind": "k", "session": SESSION, "arrays": {"a": prefix + described}}
        decode_or_refuse([b"", msgpack.packb(header), buffer])


places = st.builds(
    Place, st.just(NAME), st.integers(0, 6) | counts, st.integers(0, 6) | counts, st.integers(0, 200) | counts
)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(places, st.integers(0, 300)), max_size=5), st.binary(max_size=80))
def test_no_place_and_no_head_of_an_arena_reads_outside_it(reads, head):
    arena = Arena.create(NAME)
    try:
        arena.allocate(4, 100)
        arena.write(1, b"x" * 100)
        for scribbled in (b"", head, b"svosmem1" + head):
            os.pwrite(arena.fd, scribbled, 0)
            for place, nbytes in reads:
                with contextlib.suppress(Refused), arena.read(place, nbytes) as view:
                    assert len(bytes(view)) == nbytes
        with contextlib.suppress(ArenaError):
            arena.write(1, b"y" * 10)
    finally:
        arena.close()
        os.close(arena.fd)


class Edge:
    """A good stream of numbered pictures over one edge, through whatever else goes on."""

    def __init__(self, transport: str, mode: str):
        self.folder = Path(tempfile.mkdtemp(dir="/tmp", prefix="fuzz"))
        where = "tcp://127.0.0.1:*" if transport == "tcp" else f"ipc://{self.folder}/edge"
        spec = EdgeSpec(NAME, "front", "extractor", "memory.front", where, 2, mode, NAME)
        self.context, self.strangers = zmq.Context(), zmq.Context()
        self.arena = Arena.create(NAME)
        self.inbox = Inbox(self.context, spec, SESSION, {NAME: self.arena})
        self.outbox = Outbox(self.context, spec, SESSION, {NAME: self.arena})
        self.outbox.allocate([100_000])
        self.endpoint = self.inbox.bind()
        self.outbox.connect(self.endpoint)
        self.inbox.reset(1)
        self.outbox.reset(1)
        self.seq = 0

    def exchange(self, count: int) -> None:
        """So many pictures, each compared bit for bit."""
        for _ in range(count):
            picture = np.full(100_000, self.seq % 251, np.uint8)
            wait(lambda: self.outbox.credit, self.outbox)
            self.outbox.send("features", self.seq, {"pts": 0.5}, {"image": picture})
            message = wait(self.inbox.receive, self.inbox)
            assert (message.kind, message.seq, message["pts"]) == ("features", self.seq, 0.5)
            assert self.inbox.array(message, "image").tobytes() == picture.tobytes()
            self.inbox.grant(message)
            self.seq += 1

    def stranger(self, kind: int = zmq.DEALER, identity: bytes | None = None) -> zmq.Socket[bytes]:
        made = self.strangers.socket(kind)
        made.setsockopt(zmq.LINGER, 0)
        if identity is not None:
            made.setsockopt(zmq.ROUTING_ID, identity)
        made.connect(self.endpoint)
        return made

    def raw(self) -> socket.socket:
        """A connection without ZeroMQ."""
        scheme, _, where = self.endpoint.partition("://")
        made = socket.socket(socket.AF_INET if scheme == "tcp" else socket.AF_UNIX)
        made.settimeout(5)
        host, _, port = where.rpartition(":")
        made.connect((host, int(port)) if scheme == "tcp" else where)
        return made

    def close(self) -> None:
        self.inbox.close()
        self.outbox.close()
        self.strangers.destroy(linger=0)
        self.context.destroy(linger=0)
        self.arena.close()
        os.close(self.arena.fd)
        shutil.rmtree(self.folder)


def wait(found: Callable[[], object], box: Inbox | Outbox):
    while not (answer := found()):
        assert box.socket.poll(20_000), "the good stream stands still"
    return answer


@pytest.fixture(params=[("tcp", "inline"), ("ipc", "shared")], ids=["tcp", "ipc"])
def edge(request) -> Iterator[Edge]:
    made = Edge(*request.param)
    yield made
    made.close()


def noise(generator: np.random.Generator, most: int = 200) -> bytes:
    return generator.bytes(int(generator.integers(0, most)))


def bad_parts(generator: np.random.Generator) -> list[bytes]:
    """Noise, or a right message with a wrong byte, or one that only the inbox can know to be wrong."""
    kind = generator.integers(4)
    if kind == 0:
        return [noise(generator) for _ in range(generator.integers(1, 80))]
    array = Array.of(np.zeros(10, np.uint8))
    parts = sent(Message("features", "front", 1, 5, {"pts": 1}, {"image": array}))
    if kind == 1:
        part = bytearray(parts[generator.integers(len(parts))])
        part[generator.integers(len(part))] ^= 1 << int(generator.integers(8))
        parts[generator.integers(2)] = bytes(part)
        return [b"x", *parts]  # and a part too many, so that it is never right by luck
    if kind == 2:
        return [generator.bytes(16)]  # as a message by reference, which only exists within a process
    return sent(Message("features", "back", 1, 5))


def test_noise_from_strangers_disturbs_nobody(edge):
    """ZeroMQ peers with names of all kinds: their messages are counted as `peer`, and they get no answer."""
    generator = np.random.default_rng(1)
    strangers = [edge.stranger(kind) for kind in (zmq.DEALER, zmq.REQ)]
    strangers += [edge.stranger(identity=name) for name in (b"extractor", b"\x01" * 200, b"extractor/")]
    count = 0
    for _ in range(60):
        for stranger in strangers:
            if stranger.type != zmq.REQ or count == 1:
                stranger.send_multipart(bad_parts(generator))
                count += 1
        edge.exchange(3)
    wait(lambda: edge.inbox.receive() or edge.inbox.refused["peer"] >= count, edge.inbox)
    edge.exchange(3)
    assert edge.inbox.refused == {"peer": count}
    assert not edge.outbox.refused
    assert not any(stranger.poll(0) for stranger in strangers)


def test_noise_from_the_producer_itself_is_counted_by_its_cause(edge):
    generator = np.random.default_rng(2)
    count = 0
    for _ in range(200):
        edge.outbox.socket.send_multipart(bad_parts(generator))
        count += 1
        edge.exchange(1)
    assert sum(edge.inbox.refused.values()) == count
    assert set(edge.inbox.refused) <= {
        "parts",
        "header",
        "version",
        "session",
        "stream",
        "arrays",
    }
    assert edge.inbox.refused["stream"] > 10
    assert edge.inbox.refused["parts"] > 10


def test_noise_from_the_consumer_gives_no_credit(edge):
    generator = np.random.default_rng(3)
    edge.exchange(1)  # before, the producer is not there yet, and a ROUTER drops what is for nobody
    count = 0
    for _ in range(200):
        edge.inbox.socket.send_multipart([b"extractor/" + SESSION, *bad_parts(generator)])
        count += 1
        edge.exchange(1)
    wait(lambda: edge.outbox.credit == 2 and sum(edge.outbox.refused.values()) == count, edge.outbox)


def test_bytes_without_zeromq_disturb_nobody(edge):
    """Raw connections: noise, a greeting with noise behind it, half a greeting, a frame of a terabyte."""
    generator = np.random.default_rng(4)
    greeting = b"\xff" + bytes(8) + b"\x7f" + b"\x03\x00NULL" + bytes(48)
    ready = b"\x04\x26\x05READY\x0bSocket-Type\x00\x00\x00\x06DEALER\x08Identity\x00\x00\x00\x00"
    beginnings = [
        b"",
        greeting,
        greeting[:20],
        greeting + ready,
        greeting + ready + b"\x02" + b"\x00\x00\x01" + bytes(5),
    ]
    left_open = []
    for turn in range(60):
        stranger = edge.raw()
        with contextlib.suppress(OSError):  # closed by the other end, as it may
            stranger.sendall(beginnings[turn % len(beginnings)] + noise(generator, 2000))
        if turn % 3:
            stranger.close()
        else:
            left_open.append(stranger)
        edge.exchange(2)
    for stranger in left_open:
        stranger.close()
    edge.exchange(20)
    assert set(edge.inbox.refused) <= {"peer"}
    assert not edge.outbox.refused


def test_a_message_that_is_too_large_ends_its_connection_and_takes_no_memory(edge):
    stranger = edge.raw()
    greeting = b"\xff" + bytes(8) + b"\x7f" + b"\x03\x00NULL" + bytes(48)
    body = b"\x05READY" + b"\x0bSocket-Type\x00\x00\x00\x06DEALER"
    stranger.sendall(greeting + b"\x04" + bytes([len(body)]) + body)
    before = resident()
    stranger.sendall(b"\x02" + (2**40).to_bytes(8, "big") + b"x" * 1000)
    until = time.monotonic() + 20
    try:
        while stranger.recv(4096):
            assert time.monotonic() < until
    except ConnectionResetError:
        pass
    stranger.close()
    edge.exchange(10)
    assert resident() - before < 32 * 2**20
    assert not edge.inbox.refused


def resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def test_noise_leaves_nothing_behind(edge):
    generator = np.random.default_rng(5)
    stranger = edge.stranger()

    def rounds(count: int) -> None:
        for _ in range(count):
            stranger.send_multipart(bad_parts(generator))
            edge.outbox.socket.send_multipart(bad_parts(generator))
            edge.inbox.socket.send_multipart([b"extractor/" + SESSION, *bad_parts(generator)])
            edge.exchange(1)

    rounds(200)
    descriptors, whole = len(os.listdir("/proc/self/fd")), resident()
    # 450 bad messages of a kilobyte or more on average: a tenth of them that stayed would be seen
    assert growth(lambda: rounds(300)) < 45_000
    assert len(os.listdir("/proc/self/fd")) == descriptors
    assert resident() - whole < 8 * 2**20
