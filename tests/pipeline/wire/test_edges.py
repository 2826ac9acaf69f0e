"""Edges: what is sent arrives once and in order, in every mode, whoever dies, and whoever else knocks."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import zmq
from pipeline.memory_transport import MemoryContext

from streamvos.pipeline.wire.arenas import Arena
from streamvos.pipeline.wire.inbox import Inbox
from streamvos.pipeline.wire.messages import Array, Message, Place, Refused, encode
from streamvos.pipeline.wire.outbox import Outbox
from streamvos.pipeline.wire.spec import EdgeSpec

SESSION = b"8 bytes."
NAME = "front/features"
WAIT = 20.0  # seconds: nobody waits that long but a test that fails


def eventually(found: Callable[[], object], what: str = "nothing came") -> object:
    until = time.monotonic() + WAIT
    while not (answer := found()):
        assert time.monotonic() < until, what
        time.sleep(0.002)
    return answer


class Bench:
    """One edge, its arena, and what has to be closed; over ZeroMQ, or in memory for logic alone."""

    def __init__(self, context: zmq.Context | MemoryContext) -> None:
        self.folder = Path(tempfile.mkdtemp(dir="/tmp", prefix="edge"))
        self.context = context
        self.arenas = {NAME: Arena.create(NAME)}
        self.boxes: list[Inbox | Outbox] = []
        self.processes: list[subprocess.Popen[str]] = []

    def spec(self, mode: str, endpoint: str | None = None, window: int = 2) -> EdgeSpec:
        default = {"reference": "inproc://features", "inline": "tcp://127.0.0.1:*"}
        where = endpoint or default.get(mode, f"ipc://{self.folder}/features")
        return EdgeSpec(NAME, "front", "extractor", "memory.front", where, window, mode, NAME)

    def inbox(self, spec: EdgeSpec) -> Inbox:
        # its own mapping, as if in another process
        arenas = {name: Arena(name, arena.fd) for name, arena in self.arenas.items()}
        self.boxes.append(box := Inbox(self.context, spec, SESSION, arenas))
        box.reset(1)
        return box

    def outbox(
        self, spec: EdgeSpec, endpoint: str, incarnation: int = 1, sizes: list[int] | None = None
    ) -> Outbox:
        self.boxes.append(box := Outbox(self.context, spec, SESSION, self.arenas))
        if sizes is not None:
            box.allocate(sizes)
        box.connect(endpoint)
        box.reset(1)
        return box

    def pair(self, mode: str, sizes: list[int] | None = None, **more) -> tuple[Inbox, Outbox]:
        spec = self.spec(mode, **more)
        inbox = self.inbox(spec)
        return inbox, self.outbox(spec, inbox.bind(), sizes=sizes)

    def start(self, code: str, *arguments: object) -> subprocess.Popen[str]:
        fds = [arena.fd for arena in self.arenas.values()]
        command = [sys.executable, "-c", COMMON + code, str(fds[0]), *map(str, arguments)]
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stdin=subprocess.PIPE, text=True, pass_fds=fds
        )
        self.processes.append(process)
        return process

    def close(self) -> None:
        for process in self.processes:
            process.kill()
            process.wait(10)
            for pipe in (process.stdin, process.stdout):
                pipe.close()
        for box in self.boxes:
            box.close()
        self.context.destroy(linger=0)
        for arena in self.arenas.values():
            arena.close()
            os.close(arena.fd)
        shutil.rmtree(self.folder)


@pytest.fixture
def bench() -> Iterator[Bench]:
    made = Bench(zmq.Context())
    yield made
    made.close()


@pytest.fixture
def memory() -> Iterator[Bench]:
    made = Bench(MemoryContext())
    yield made
    made.close()


def next_message(inbox: Inbox) -> Message:
    return eventually(inbox.receive, f"nothing came; refused: {dict(inbox.refused)}")


def nothing_comes(inbox: Inbox) -> bool:
    for _ in range(10):
        time.sleep(0.01)
        assert inbox.receive() is None
    return True


MODES = ["shared", "inline", "inline-ipc", "shared-memory", "inline-memory", "reference", "reference-memory"]


@pytest.fixture(params=MODES)
def boxes(request) -> tuple[Inbox, Outbox]:
    """Every way of an edge; the sockets in memory that other tests use behave as ZeroMQ's do."""
    mode, _, transport = request.param.partition("-")
    bench: Bench = request.getfixturevalue("memory" if transport == "memory" else "bench")
    return bench.pair(mode, [200_000] * 2, endpoint=f"ipc://{bench.folder}/edge" if transport else None)


def arrays(seed: int) -> dict[str, np.ndarray | torch.Tensor]:
    generator = np.random.default_rng(seed)
    return {
        "image": generator.integers(0, 256, (100, 200, 3), dtype=np.uint8),
        "flag": np.array(seed % 2 == 0),
        "nothing": np.empty((0, 4), np.float32),
        "half": torch.from_numpy(generator.normal(size=(3, 1000))).to(torch.bfloat16),
        "number": torch.tensor(float("nan")),
    }


def test_messages_arrive_once_in_order_and_bit_for_bit(boxes):
    inbox, outbox = boxes
    for seq in range(20):
        eventually(lambda: outbox.credit, "no credit")
        sent = arrays(seq)
        outbox.send("features", seq, {"pts": seq / 30}, sent)
        message = next_message(inbox)
        assert (message.kind, message.stream, message.seq, message["pts"]) == (
            "features",
            "front",
            seq,
            seq / 30,
        )
        for name in ("image", "flag", "nothing"):
            np.testing.assert_array_equal(inbox.array(message, name), sent[name])
            assert inbox.array(message, name).dtype == sent[name].dtype
        for name in ("half", "number"):
            came = inbox.tensor(message, name)
            assert (came.dtype, came.shape) == (sent[name].dtype, sent[name].shape)
            assert Array.of(came).data == Array.of(sent[name]).data
        inbox.grant(message)
    assert not inbox.refused
    assert not outbox.refused


def test_the_window_holds_until_credit_comes(boxes):
    inbox, outbox = boxes
    assert outbox.credit == 2
    outbox.send("features", 0, arrays=arrays(0))
    outbox.send("features", 1, arrays=arrays(1))
    assert outbox.credit == 0
    first, second = next_message(inbox), next_message(inbox)
    inbox.grant(first)
    assert eventually(lambda: outbox.credit) == 1
    outbox.send("features", 2, arrays=arrays(2))
    np.testing.assert_array_equal(inbox.array(second, "image"), arrays(1)["image"])
    assert next_message(inbox).seq == 2
    for _ in range(5):
        inbox.grant(second)  # once too often gives no more than the window
    time.sleep(0.05)
    assert outbox.credit == 2


def test_an_end_needs_no_credit_and_gives_none(boxes):
    inbox, outbox = boxes
    outbox.send("features", 0)
    outbox.send("features", 1)
    outbox.send("end", 1, {"reason": "done"})
    messages = [next_message(inbox) for _ in range(3)]
    assert [one.kind for one in messages] == ["features", "features", "end"]
    inbox.grant(messages[2])
    time.sleep(0.05)
    assert outbox.credit == 0


# by reference both have the same object
@pytest.mark.parametrize("boxes", MODES[:5], indirect=True)
def test_what_was_sent_may_be_changed_at_once_and_what_came_too(boxes):
    inbox, outbox = boxes
    image = np.full((300, 400, 3), 7, np.uint8)
    outbox.send("features", 0, arrays={"image": image, "small": image[0, 0]})
    image[:] = 0
    message = next_message(inbox)
    for name in ("image", "small"):
        came = inbox.array(message, name)
        assert (came == 7).all()
        came[:] = 1
        assert (inbox.tensor(message, "image") == 7).all() or outbox.spec.mode == "inline"
    with pytest.raises(Refused, match="lacks the array depth"):
        inbox.array(message, "depth")


def test_messages_of_another_incarnation_are_dropped_without_a_word(boxes):
    inbox, outbox = boxes
    outbox.send("features", 0, arrays=arrays(0))
    outbox.reset(2)
    assert outbox.credit == 2
    outbox.send("features", 5, arrays=arrays(5))
    inbox.reset(2)
    message = next_message(inbox)
    assert (message.seq, message.incarnation) == (5, 2)
    inbox.reset(3)
    inbox.grant(message)  # of a time that is over: no credit
    time.sleep(0.05)
    assert outbox.credit == 1
    assert not inbox.refused
    assert not outbox.refused


def test_references_are_let_go(memory):
    """Taken, of an incarnation that is over, or never read: nothing is kept."""
    inbox, outbox = memory.pair("reference")
    thing = object()
    count = sys.getrefcount(thing)
    outbox.send("features", 0, arrays={"features": thing})
    message = next_message(inbox)
    assert inbox.tensor(message, "features") is thing
    del message
    outbox.send("features", 1, arrays={"features": thing})
    outbox.reset(2)
    inbox.reset(2)
    assert nothing_comes(inbox)
    assert sys.getrefcount(thing) == count
    outbox.send("features", 1, arrays={"features": thing})
    inbox.close()
    assert sys.getrefcount(thing) == count


def test_a_reference_whose_object_is_gone_is_refused(memory):
    inbox, outbox = memory.pair("reference")
    outbox.send("features", 0, arrays={"features": object()})
    outbox.reset(2)  # and the consumer has not heard of it yet
    eventually(lambda: inbox.receive() or inbox.refused["reference"])
    assert inbox.refused == {"reference": 1}


def test_places_of_other_arenas_pass_and_frames_come_back_with_a_release_alone(memory):
    """The edge of the frames: the stage fills the slots, and the edge sends places, and what is small."""
    frames = memory.arenas[NAME]
    frames.allocate(16, 30_000)
    inbox, outbox = memory.pair("shared")
    image = np.full((100, 100, 3), 9, np.uint8)
    for slot in range(16):
        generation, (offset,) = frames.write(slot, image)
        before = [frames.generation(one) for one in range(16)]
        placed = Array("uint8", image.shape, Place(NAME, slot, generation, offset))
        eventually(lambda: outbox.credit, "no credit")
        outbox.send("frame", slot, arrays={"image": placed, "mask": np.ones((100, 100), np.uint8)})
        message = next_message(inbox)
        assert message.arrays["image"] == placed
        assert (inbox.array(message, "image") == 9).all()
        assert inbox.array(message, "mask").sum() == 10_000
        inbox.grant(message)
        assert [frames.generation(one) for one in range(16)] == before  # the mask went into nobody's slot


def test_a_place_that_is_none_is_refused_when_it_is_read(memory):
    inbox, outbox = memory.pair("shared", [100])
    for place, cause in (
        (Place("elsewhere", 0, 0, 0), "arena"),
        (Place(NAME, 99, 0, 0), "slot"),
        (Place(NAME, 0, 99, 0), "stale slot"),
        (Place(NAME, 0, 0, 2**50), "slot"),
    ):
        outbox.send("frame", 0, arrays={"image": Array("uint8", (10,), place)})
        message = next_message(inbox)
        for read in (inbox.array, inbox.tensor):
            with pytest.raises(Refused) as error:
                read(message, "image")
            assert error.value.cause == cause
        inbox.grant(message)


def test_slots_grow_when_messages_do(memory):
    """An object more: inline while a slot is in use, in larger slots as soon as none is."""
    inbox, outbox = memory.pair("shared", [10_000])
    small, large = np.full(10_000, 1, np.uint8), np.full(50_000, 2, np.uint8)
    outbox.send("evidence", 0, arrays={"evidence": small})
    outbox.send("evidence", 1, arrays={"evidence": large})
    first, second = next_message(inbox), next_message(inbox)
    assert isinstance(first.arrays["evidence"].data, Place)
    assert not isinstance(second.arrays["evidence"].data, Place)
    assert (inbox.array(first, "evidence") == 1).all()
    assert (inbox.array(second, "evidence") == 2).all()
    inbox.grant(first)
    inbox.grant(second)
    eventually(lambda: outbox.credit == 2)
    for seq in (2, 3):
        outbox.send("evidence", seq, arrays={"evidence": large})
    for _ in range(2):
        message = next_message(inbox)
        assert isinstance(message.arrays["evidence"].data, Place)
        assert (inbox.array(message, "evidence") == 2).all()
        inbox.grant(message)


def test_slots_come_back_with_credit_only(memory):
    inbox, outbox = memory.pair("shared", [10_000])
    for seq in range(3):  # one more than the window, for the message behind the last credit
        outbox.send("features", seq, arrays={"image": np.full(10_000, seq, np.uint8)})
    with pytest.raises(Refused, match="every slot is taken"):
        outbox.send("features", 3, arrays={"image": np.zeros(10_000, np.uint8)})
    for seq in range(3):
        assert (inbox.array(next_message(inbox), "image") == seq).all()


def test_two_boxes_of_one_thread_may_be_connected_elsewhere(memory):
    """A consumer reborn at another port: what was meant for the old one does not follow."""
    spec = memory.spec("inline")
    first, second = memory.inbox(spec), memory.inbox(spec)
    outbox = memory.outbox(spec, first.bind())
    outbox.send("features", 0)
    next_message(first)
    endpoint = second.bind()
    first.close()
    outbox.connect(endpoint)
    outbox.connect(endpoint)
    outbox.reset(2)
    second.reset(2)
    for seq in range(10):
        eventually(lambda: outbox.credit, "no credit")
        outbox.send("features", seq)
        message = next_message(second)
        assert message.seq == seq
        second.grant(message)


def test_nobody_but_the_producer_is_heard(bench):
    inbox, outbox = bench.pair("inline")
    parts = encode(Message("features", "front", 1, 7), SESSION)
    for turn, identity in enumerate((b"extractor", b"extractor/8 bytes", b"", b"memory.front/8 bytes."), 1):
        stranger = bench.context.socket(zmq.DEALER)
        if identity:
            stranger.setsockopt(zmq.ROUTING_ID, identity)
        stranger.connect(inbox.socket.getsockopt_string(zmq.LAST_ENDPOINT))
        for _ in range(5):
            stranger.send_multipart(parts)
        while inbox.refused["peer"] < 5 * turn:
            assert inbox.socket.poll(1000 * WAIT)
            assert inbox.receive() is None
        inbox.grant(Message("features", "front", 1, 7))  # goes to the producer, and only there
        assert not stranger.poll(50)
    assert inbox.refused == {"peer": 20}
    outbox.send("features", 0)
    assert next_message(inbox).seq == 0


def test_a_message_of_another_stream_or_session_is_refused(memory):
    inbox, outbox = memory.pair("inline")
    outbox.socket.send_multipart(encode(Message("features", "back", 1, 0), SESSION))
    outbox.socket.send_multipart(encode(Message("features", "front", 1, 0), b"another."))
    outbox.socket.send_multipart([b"x"] * 5000)
    outbox.send("features", 3)
    assert next_message(inbox).seq == 3
    assert inbox.refused == {"stream": 1, "session": 1, "parts": 1}
    for credit in (
        Message("debit", "front", 1, 0, {"slots": []}),
        Message("credit", "back", 1, 0, {"slots": []}),
        Message("credit", "front", 1, 0),
        Message("credit", "front", 1, 0, {"slots": [1.5]}),
        Message("credit", "front", 1, 0, {"slots": 3}),
        Message("credit", "front", 2, 0, {"slots": []}),  # of a time to come: not a word
    ):
        inbox.socket.send_multipart([b"extractor/" + SESSION, *encode(credit, SESSION)])
    eventually(lambda: outbox.credit and sum(outbox.refused.values()) == 5)
    assert outbox.credit == 1
    assert outbox.refused == {"kind": 2, "field": 1, "slots": 2}


def test_a_flood_of_bad_messages_does_not_hold_the_stage(bench):
    inbox, outbox = bench.pair("inline")
    for _ in range(300):
        eventually(lambda: outbox.socket.poll(0, zmq.POLLOUT))
        outbox.socket.send(b"bad")
    outbox.send("features", 0)
    calls = 0
    while (message := inbox.receive()) is None:
        calls += 1
        assert eventually(lambda: inbox.socket.poll(100))
    assert message.seq == 0
    assert inbox.refused["parts"] == 300
    assert calls >= 4


COMMON = """
import sys, time
import numpy as np
import zmq
from streamvos.pipeline.wire.arenas import Arena
from streamvos.pipeline.wire.inbox import Inbox
from streamvos.pipeline.wire.outbox import Outbox
from streamvos.pipeline.wire.spec import EdgeSpec

context = zmq.Context()
arenas = {"front/features": Arena("front/features", int(sys.argv[1]))}
mode, endpoint, incarnation = sys.argv[2], sys.argv[3], int(sys.argv[4])
spec = EdgeSpec("front/features", "front", "extractor", "memory.front", endpoint, 2, mode, "front/features")

def image(seq):
    return np.random.default_rng(seq).integers(0, 256, (120, 160, 3), dtype=np.uint8)
"""

PRODUCER = """
box = Outbox(context, spec, b"8 bytes.", arenas)
print("ready", flush=True)
sys.stdin.readline()
box.allocate([image(0).nbytes])
box.connect(endpoint)
box.reset(incarnation)
seq = 0
while True:
    while box.credit:
        box.send("features", seq, arrays={"image": image(seq)})
        seq += 1
    box.socket.poll(10_000)
"""

CONSUMER = """
box = Inbox(context, spec, b"8 bytes.", arenas)
box.bind()
box.reset(incarnation)
print("ready", flush=True)
seq = 0
while True:
    box.socket.poll(10_000)
    while (message := box.receive()) is not None:
        assert message.incarnation == incarnation and message.seq == seq, (message, seq)
        assert (box.array(message, "image") == image(seq)).all()
        box.grant(message)
        seq += 1
        print(seq, flush=True)
"""


def image(seq: int) -> np.ndarray:
    return np.random.default_rng(seq).integers(0, 256, (120, 160, 3), dtype=np.uint8)


@pytest.mark.parametrize("mode", ["shared", "inline"])
def test_a_producer_that_is_killed_is_back_at_once(bench, mode):
    """SIGKILL at random moments; the next life connects before anybody can have missed the last one."""
    inbox = bench.inbox(bench.spec(mode, endpoint=None if mode == "shared" else "tcp://127.0.0.1:*"))
    endpoint = inbox.bind()
    generator = np.random.default_rng(5)
    lives = [bench.start(PRODUCER, mode, endpoint, life) for life in range(1, 7)]
    for producer in lives:
        assert producer.stdout.readline() == "ready\n"
    begin(lives[0])
    for life, producer in enumerate(lives, 1):
        inbox.reset(life)
        for seq in range(int(generator.integers(2, 40))):
            message = next_message(inbox)
            assert (message.incarnation, message.seq) == (life, seq)
            np.testing.assert_array_equal(inbox.array(message, "image"), image(seq))
            inbox.grant(message)
        producer.send_signal(signal.SIGKILL)
        if life < len(lives):
            begin(lives[life])
    assert set(inbox.refused) <= {"peer"}  # what a connection that was replaced had still in its queue


def begin(process: subprocess.Popen[str]) -> None:
    process.stdin.write("\n")
    process.stdin.flush()


def test_a_producer_whose_old_connection_still_stands_takes_its_place(bench):
    """As after a network that went away without a word: the consumer believes the old peer to be there."""
    spec = bench.spec("inline")
    inbox = bench.inbox(spec)
    endpoint = inbox.bind()
    old = bench.outbox(spec, endpoint)
    old.send("features", 0)
    inbox.grant(next_message(inbox))
    new = bench.outbox(spec, endpoint)
    new.reset(2)
    inbox.reset(2)
    old.socket.disconnect(endpoint)  # it does not come back
    for seq in range(10):
        eventually(lambda: new.credit, "no credit")
        new.send("features", seq)
        message = next_message(inbox)
        assert (message.incarnation, message.seq) == (2, seq)
        inbox.grant(message)


@pytest.mark.parametrize("mode", ["shared", "inline"])
def test_a_consumer_that_is_killed_is_back_at_once(bench, mode):
    """It binds the same ipc path again; the producer is told of the new incarnation, and of nothing else."""
    endpoint = f"ipc://{bench.folder}/features"
    spec = bench.spec(mode, endpoint=endpoint)
    outbox = bench.outbox(spec, endpoint, sizes=[image(0).nbytes])
    rng = np.random.default_rng(6)
    for life in range(1, 5):
        consumer = bench.start(CONSUMER, mode, endpoint, life)
        assert consumer.stdout.readline() == "ready\n"
        outbox.reset(life)
        frames = int(rng.integers(2, 40))
        for seq in range(frames):
            eventually(lambda: outbox.credit, "no credit")
            outbox.send("features", seq, arrays={"image": image(seq)})
        assert consumer.stdout.readline() == "1\n"
        if life > 2:  # not while it waits, but with messages on their way
            assert [consumer.stdout.readline() for _ in range(frames - 1)][-1] == f"{frames}\n"
        consumer.send_signal(signal.SIGKILL)
        consumer.wait(10)
    assert not outbox.refused


def test_ten_thousand_messages_leave_nothing_behind(bench):
    inbox, outbox = bench.pair("shared", [20_000])
    frame, small = np.zeros(20_000, np.uint8), np.zeros(10, np.uint8)

    def exchange(count: int) -> None:
        for seq in range(count):
            while not outbox.credit:
                assert outbox.socket.poll(1000 * WAIT), "no credit"
            outbox.send("features", seq, {"pts": 0.1}, {"image": frame, "mask": small})
            while (message := inbox.receive()) is None:
                assert inbox.socket.poll(1000 * WAIT), "nothing came"
            inbox.array(message, "image")
            inbox.grant(message)

    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    exchange(1000)
    descriptors, memory = len(os.listdir("/proc/self/fd")), resident()
    exchange(10_000)
    assert len(os.listdir("/proc/self/fd")) == descriptors
    assert resident() - memory < 4 * 2**20  # 400 bytes a message that stays would be as much
