"""What it costs to hand a frame to another process, against one memcpy and against ZeroMQ alone.

    make bench                                   # pytest-benchmark's table
    python bench/test_handover.py                # p50, p99 and ratios as a table, and one line of JSON last
    python bench/test_handover.py --size 2160 3840 --rounds 500

All ways are measured in turn, round by round, within one run, so that a busy moment touches all alike. A
time is from before the sender does anything to the moment the other process has the frame, by the monotonic
clock, which processes of one host share. "memcpy" copies the frame once within one process. "ours" is an edge
of mode "shared": the frame is copied into its slot, the message is sent, received and checked; "and read"
adds the copy of the reader. ZeroMQ alone sends the frame as one part: "copy" as `send` does, "zero-copy"
with `copy=False` at both ends; the reader has the bytes and checks nothing.

Small messages go around: send, receive, grant, credit; without arrays, within one thread for "thread" and
between two processes otherwise.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import zmq

from streamvos.pipeline.wire.arenas import Arena
from streamvos.pipeline.wire.inbox import Inbox
from streamvos.pipeline.wire.outbox import Outbox
from streamvos.pipeline.wire.spec import EdgeSpec

SIZE, ROUNDS, WARM_UP = (1080, 1920), 300, 20
SESSION, ARENA = b"a bench!", "bench/frames"
FRAME_WAYS = ("memcpy", "ours", "ours and read", "inline, ipc", "ipc zero-copy", "ipc copy", "tcp copy")
MESSAGE_WAYS = ("reference, thread", "shared", "inline, ipc", "inline, tcp")
EDGE_OF = {
    "ours": "shared",
    "ours and read": "shared",
    "inline, ipc": "inline",
    "shared": "shared",
    "inline, tcp": "inline",
}


def spec_of(way: str, endpoint: str) -> EdgeSpec:
    mode: Any = EDGE_OF.get(way, "reference")
    return EdgeSpec(ARENA, "bench", "producer", "consumer", endpoint, 1, mode, ARENA)


def address(way: str, folder: str) -> str:
    if way.startswith("reference"):
        return f"inproc://{way}"
    return "tcp://127.0.0.1:*" if "tcp" in way else f"ipc://{folder}/{way.replace(' ', '-')}"


class EdgeReader:
    """The consumer of an edge: takes a message, copies the frame if it should, and gives the credit."""

    def __init__(self, context: zmq.Context[Any], way: str, folder: str, arena: Arena):
        self.inbox = Inbox(context, spec_of(way, address(way, folder)), SESSION, {ARENA: arena})
        self.endpoint, self.way = self.inbox.bind(), way
        self.inbox.reset(1)
        self.out: np.ndarray | None = None

    def take(self) -> int:
        while (message := self.inbox.receive()) is None:
            self.inbox.socket.poll()
        if message.arrays and self.way != "ours":
            shape = message.arrays["image"].shape
            if self.out is None:
                self.out = np.empty(shape, np.uint8)
            self.inbox.array(message, "image", out=self.out if self.way == "ours and read" else None)
        done = time.monotonic_ns()
        self.inbox.grant(message)
        return done

    def close(self) -> None:
        self.inbox.close()


class PlainReader:
    """One part of ZeroMQ and no more."""

    def __init__(self, context: zmq.Context[Any], way: str, folder: str):
        self.socket = context.socket(zmq.PAIR)
        self.socket.bind(address(way, folder))
        self.endpoint, self.copy = self.socket.getsockopt_string(zmq.LAST_ENDPOINT), "zero" not in way

    def take(self) -> int:
        self.socket.recv(copy=self.copy)
        return time.monotonic_ns()

    def close(self) -> None:
        self.socket.close(linger=0)


class EdgeWriter:
    """The producer of an edge."""

    def __init__(self, context: zmq.Context[Any], way: str, endpoint: str, arena: Arena, nbytes: int):
        self.outbox = Outbox(context, spec_of(way, endpoint), SESSION, {ARENA: arena})
        self.outbox.allocate([nbytes])
        self.outbox.connect(endpoint)
        self.outbox.reset(1)
        self.seq = 0

    def put(self, frame: np.ndarray | None) -> None:
        self.outbox.send("frame", self.seq, {"pts": 0.1}, {} if frame is None else {"image": frame})
        self.seq += 1

    def settle(self) -> None:
        """Until the credit is back."""
        while not self.outbox.credit:
            self.outbox.socket.poll()

    def close(self) -> None:
        self.outbox.close()


class PlainWriter:
    def __init__(self, context: zmq.Context[Any], way: str, endpoint: str):
        self.socket, self.copy = context.socket(zmq.PAIR), "zero" not in way
        self.socket.connect(endpoint)

    def put(self, frame: np.ndarray | None) -> None:
        self.socket.send(frame, copy=self.copy)

    def settle(self) -> None:
        pass

    def close(self) -> None:
        self.socket.close(linger=0)


def reader_of(context: zmq.Context[Any], way: str, folder: str, arena: Arena) -> EdgeReader | PlainReader:
    if way in EDGE_OF or way.startswith("reference"):
        return EdgeReader(context, way, folder, arena)
    return PlainReader(context, way, folder)


def read_for_ever(folder: str, fds: list[int], ways: list[str]) -> None:
    """The other process: says where each way goes, then takes one of each that it is told, and says when."""
    context = zmq.Context()
    readers = {
        way: reader_of(context, way, folder, Arena(ARENA, fd)) for way, fd in zip(ways, fds, strict=True)
    }
    print(json.dumps({way: one.endpoint for way, one in readers.items()}), flush=True)
    for line in sys.stdin:
        print(readers[line.strip()].take(), flush=True)
    for one in readers.values():
        one.close()
    context.term()


class Handover:
    """Two processes and all ways between them."""

    def __init__(self, ways: tuple[str, ...], nbytes: int):
        self.folder = tempfile.mkdtemp(dir="/tmp", prefix="handover")
        self.context = zmq.Context()
        self.arenas = {way: Arena.create(ARENA) for way in ways}
        fds = [arena.fd for arena in self.arenas.values()]
        command = [sys.executable, __file__, "--reader", json.dumps([self.folder, fds, list(ways)])]
        self.reader = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, pass_fds=fds
        )
        self.writers = {
            way: EdgeWriter(self.context, way, endpoint, self.arenas[way], nbytes)
            if way in EDGE_OF
            else PlainWriter(self.context, way, endpoint)
            for way, endpoint in json.loads(self.answer()).items()
        }

    def answer(self) -> str:
        assert self.reader.stdout is not None
        return self.reader.stdout.readline()

    def once(self, way: str, frame: np.ndarray | None) -> float:
        """Milliseconds until the other process has it."""
        assert self.reader.stdin is not None
        self.reader.stdin.write(way + "\n")
        self.reader.stdin.flush()
        time.sleep(0.001)  # the reader waits at its socket by then, as in a pipeline that keeps up
        started = time.monotonic_ns()
        self.writers[way].put(frame)
        done = int(self.answer())
        self.writers[way].settle()
        return (done - started) / 1e6

    def around(self, way: str) -> float:
        """Milliseconds of a small message until its credit is back."""
        assert self.reader.stdin is not None
        self.reader.stdin.write(way + "\n")
        self.reader.stdin.flush()
        time.sleep(0.001)
        started = time.perf_counter()
        self.writers[way].put(None)
        self.writers[way].settle()
        taken = 1e3 * (time.perf_counter() - started)
        self.answer()
        return taken

    def close(self) -> None:
        for writer in self.writers.values():
            writer.close()
        self.context.destroy(linger=0)
        for pipe in (self.reader.stdin, self.reader.stdout):
            assert pipe is not None
            pipe.close()
        try:
            self.reader.wait(5)
        except subprocess.TimeoutExpired:
            self.reader.kill()
            self.reader.wait()
        for arena in self.arenas.values():
            arena.close()
            os.close(arena.fd)
        shutil.rmtree(self.folder)


@contextmanager
def handover(ways: tuple[str, ...], nbytes: int) -> Iterator[Handover]:
    made = Handover(ways, nbytes)
    try:
        yield made
    finally:
        made.close()


class Local:
    """A reference edge within one process; both ends in one thread, so that no switch of threads is in it."""

    def __init__(self) -> None:
        self.context = zmq.Context()
        spec = spec_of("reference", "inproc://bench")
        self.inbox, self.outbox = (
            Inbox(self.context, spec, SESSION, {}),
            Outbox(self.context, spec, SESSION, {}),
        )
        self.outbox.connect(self.inbox.bind())
        self.inbox.reset(1)
        self.outbox.reset(1)

    def around(self, frame: np.ndarray) -> float:
        started = time.perf_counter()
        self.outbox.send("frame", 0, {"pts": 0.1}, {"image": frame})
        while (message := self.inbox.receive()) is None:
            self.inbox.socket.poll()
        self.inbox.tensor(message, "image")
        self.inbox.grant(message)
        while not self.outbox.credit:
            self.outbox.socket.poll()
        return 1e3 * (time.perf_counter() - started)

    def close(self) -> None:
        self.inbox.close()
        self.outbox.close()
        self.context.term()


def make_frame(size: tuple[int, int]) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)


def copy_once(frame: np.ndarray, out: np.ndarray) -> float:
    started = time.perf_counter()
    np.copyto(out, frame)
    return 1e3 * (time.perf_counter() - started)


@pytest.mark.parametrize("way", FRAME_WAYS)
@pytest.mark.benchmark(group="hand-over of a 1080p frame")
def test_handover(benchmark, way):
    frame = make_frame(SIZE)
    if way == "memcpy":
        benchmark.pedantic(np.copyto, (np.empty_like(frame), frame), rounds=50, warmup_rounds=5)
        return
    with handover((way,), frame.nbytes) as bench:
        benchmark.pedantic(bench.once, (way, frame), rounds=50, warmup_rounds=5)


def measure_frames(size: tuple[int, int], rounds: int) -> dict[str, list[float]]:
    frame = make_frame(size)
    out = np.empty_like(frame)
    times: dict[str, list[float]] = {way: [] for way in FRAME_WAYS}
    with handover(FRAME_WAYS[1:], frame.nbytes) as bench:
        for _ in range(rounds + WARM_UP):
            for way in FRAME_WAYS:
                time.sleep(0.001)
                times[way].append(copy_once(frame, out) if way == "memcpy" else bench.once(way, frame))
    return {way: values[WARM_UP:] for way, values in times.items()}


def measure_messages(rounds: int) -> dict[str, list[float]]:
    ways = tuple(way for way in MESSAGE_WAYS if not way.startswith("reference"))
    times: dict[str, list[float]] = {way: [] for way in MESSAGE_WAYS}
    local, frame = Local(), np.zeros(10, np.uint8)
    try:
        with handover(ways, 1) as bench:
            for _ in range(rounds + WARM_UP):
                times["reference, thread"].append(local.around(frame))
                for way in ways:
                    times[way].append(bench.around(way))
    finally:
        local.close()
    return {way: values[WARM_UP:] for way, values in times.items()}


def summary(times: dict[str, list[float]]) -> dict[str, dict[str, float]]:
    return {
        way: {
            "p50_ms": statistics.median(values),
            "p99_ms": statistics.quantiles(values, n=100)[98],
            "best_ms": min(values),
        }
        for way, values in times.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", nargs=2, type=int, default=SIZE, metavar=("H", "W"), help="pixels")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--reader", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.reader:
        read_for_ever(*json.loads(given.reader))
        return
    size = (given.size[0], given.size[1])
    frames = summary(measure_frames(size, given.rounds))
    copied, rival = frames["memcpy"]["p50_ms"], frames["ipc copy"]["p50_ms"]
    print(
        f"{'a frame of ' + 'x'.join(map(str, size)):22}      p50       p99      best   of memcpy  of ipc copy"
    )
    for way, row in frames.items():
        row |= {"of_memcpy": row["p50_ms"] / copied, "of_ipc_copy": row["p50_ms"] / rival}
        cells = "".join(f"{row[key]:>8.3f}ms" for key in ("p50_ms", "p99_ms", "best_ms"))
        print(f"{way:22}{cells}{row['of_memcpy']:>11.2f}x{row['of_ipc_copy']:>12.2f}x")
    messages = summary(measure_messages(given.rounds))
    print(f"\n{'a message and credit':22}      p50       p99      best")
    for way, row in messages.items():
        print(f"{way:22}" + "".join(f"{row[key]:>8.3f}ms" for key in ("p50_ms", "p99_ms", "best_ms")))
    about = {"size": size, "rounds": given.rounds, "zmq": zmq.zmq_version(), "cores": os.cpu_count()}
    machine = platform.processor() or platform.machine()
    print(
        json.dumps(
            {"benchmark": "handover", **about, "machine": machine, "frames": frames, "messages": messages}
        )
    )


if __name__ == "__main__":
    main()
