"""Unwanted bytes at every socket of a running pipeline: no process dies, no memory grows.

In the placement split, which has all the sockets that there are; fused has five of the eight.
"""

from __future__ import annotations

import json
import os
import random
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import zmq
from pipeline.raw_client import RawClient, RawSubscriber
from serving import Serving, label_maps, serving

from streamvos.pipeline.wire.messages import Array, Message, Place, encode
from streamvos.sources import open_source

SOURCE = "synthetic:seed=6,objects=2,size=48x64,leave=0,length=100000"
KINDS = ("frame", "features", "evidence", "prediction", "result", "credit", "end", "hello", "ready", "beat")
KINDS += ("failed", "dying", "ack", "snapshot", "applied", "ended", "request", "reset", "start", "exit")
SECONDS = 6.0
GROWTH = 40 * 2**20
"""Bytes by which a worker may grow meanwhile: buffers of ZeroMQ that are used for the first time."""


def configuration(folder: Path) -> dict[str, Any]:
    sinks = [{"kind": "labels", "path": str(folder / "labels")}, {"kind": "publish"}]
    return {
        "name": "fuzz",
        "placement": "split",
        "method": {"name": "stub_methods:drift", "device": "cpu", "threads": 1, "options": {"read_ms": 8.0}},
        "streams": [{"name": "s", "source": SOURCE, "policy": "lossless", "sinks": sinks}],
        "supervision": {"standby": False},
    }


class Noise:
    """Messages of all degrees of badness."""

    def __init__(self, seed: int, session: bytes):
        self.chance, self.session = random.Random(seed), session

    def message(self) -> list[bytes]:
        make = self.chance.choice((self.parts, self.claims, self.mutated, self.mutated, self.valid))
        return make()

    def bytes(self, most: int = 300) -> bytes:
        return self.chance.randbytes(self.chance.randint(0, most))

    def parts(self) -> list[bytes]:
        return [self.bytes() for _ in range(self.chance.randint(1, 6))]

    def valid(self) -> list[bytes]:
        """Right in itself, from somebody who has no business here."""
        image = np.zeros((48, 64, 3), np.uint8)
        arrays = {
            "image": self.chance.choice(
                (Array.of(image), Array("uint8", image.shape, Place("s/frames", 0, 1, 0)))
            )
        }
        fields = {"number": 1, "stage": "memory.s", "slots": [0], "verb": "status", "id": 1, "error": "x"}
        if self.chance.random() < 0.5:
            arrays = {}
        seq = self.chance.randint(0, 10**6)
        parts = encode(
            Message(self.chance.choice(KINDS), "s", self.chance.randint(0, 3), seq, fields, arrays),
            self.session,
        )
        return [bytes(one) for one in parts]

    def mutated(self) -> list[bytes]:
        """A valid one with some bytes changed, parts dropped, doubled or cut."""
        parts = self.valid()
        for _ in range(self.chance.randint(1, 4)):
            at = self.chance.randrange(len(parts))
            one = bytearray(parts[at])
            if one and self.chance.random() < 0.7:
                one[self.chance.randrange(len(one))] ^= 1 << self.chance.randrange(8)
            elif self.chance.random() < 0.5:
                one = one[: self.chance.randint(0, len(one))]
            else:
                parts.append(bytes(one))
            parts[at] = bytes(one)
        return parts

    def claims(self) -> list[bytes]:
        """Headers that say things that cannot be."""
        absurd = self.chance.choice(
            (-1, 2**62, 2**70 % 2**64, 1.5, None, "x", [], {}, b"", [2**40] * 6, True)
        )
        header: dict[str, Any] = {
            "v": 1,
            "kind": self.chance.choice(KINDS),
            "session": self.session,
            "stream": "s",
            "incarnation": 1,
            "seq": 0,
            "id": 3,
            "verb": self.chance.choice(("annotate", "forget", "nonsense")),
            "arrays": {"mask": ["uint8", [48, 64], 0]},
        }
        header[self.chance.choice(list(header))] = absurd
        if self.chance.random() < 0.5:
            header["arrays"] = {"mask": ["float64", [2**20, 2**20], 0]}
        stream = self.chance.choice((b"s", b""))
        return [stream, msgpack.packb(header), self.bytes(3000)]


@contextmanager
def attackers(context: zmq.Context[Any], places: list[Path], session: bytes) -> Iterator[list[zmq.Socket]]:
    """A few at each place, under names of others as well."""
    names = [None, b"memory.s#0", b"compute#0", b"remote memory.s#1", b"s/source", b"source.s/" + bytes(8)]
    with ExitStack() as stack:
        found = []
        for place in places:
            for name in names:
                publishes = place.name.startswith("masks")
                one = stack.enter_context(context.socket(zmq.XSUB if publishes else zmq.DEALER))
                one.linger = 0
                one.sndhwm = 100
                if name is not None and not publishes:
                    one.routing_id = name
                one.connect(f"ipc://{place}")
                found.append(one)
        yield found


def garble(place: Path, chance: random.Random) -> None:
    """Bytes that are no ZMTP, or begin as if they were."""
    with socket.socket(socket.AF_UNIX) as one, suppress(OSError):
        one.settimeout(0.2)
        one.connect(str(place))
        greeting = b"\xff" + bytes(8) + b"\x7f\x03\x01NULL" + bytes(48)
        one.sendall(greeting[: chance.randint(0, 64)] + chance.randbytes(chance.randint(0, 2000)))


def resident(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def test_noise_at_every_socket_changes_nothing(tmp_path):
    with serving(configuration(tmp_path), tmp_path / "run") as pipeline:
        folder = Path(pipeline.runtime) / "streamvos" / "fuzz"
        pipeline.wait_for(lambda: len(list((tmp_path / "labels").glob("*.png"))) > 20)
        session = (pipeline.folder / "summary.json.session").read_bytes()  # somebody has found it out
        with RawSubscriber(f"ipc://{folder / 'masks-s.sock'}", "rle", "s") as masks:
            assert masks.receive()[0]["session"] != session  # not in this way
        for pid in pipeline.pids().values():
            for told in ("cmdline", "environ"):
                assert session.hex().encode() not in Path(f"/proc/{pid}/{told}").read_bytes()
        places = sorted(one for one in folder.iterdir() if one.is_socket())
        assert len(places) == 9
        before = {pid: resident(pid) for pid in [pipeline.process.pid, *pipeline.pids().values()]}
        sent = shout(places, session)
        assert sent > 1000
        status = refused_by_all(pipeline, folder)
        assert status["streams"]["s"]["incarnation"] == 1
        for pid, size in before.items():
            assert resident(pid) < size + GROWTH
        with RawClient(f"ipc://{folder / 'control.sock'}") as client:
            last = client.request("status")["streams"]["s"]["frames"]
            pipeline.wait_for(lambda: client.request("status")["streams"]["s"]["frames"] > last + 20)
        pipeline.signal()
        assert pipeline.wait(20) == 0, pipeline.log.read_text()[-3000:]
    assert not pipeline.events("died")
    for line in pipeline.log.read_text().splitlines():
        assert isinstance(json.loads(line), dict), line  # what was asked for: a log of JSON
    assert len(pipeline.events("message_refused")) < 20 * (SECONDS + 10)  # each cause once a second, at most
    with open_source(SOURCE) as source:
        first = source.label_map(0)
    for t, mask in enumerate(label_maps(tmp_path / "labels").values()):
        assert np.array_equal(mask, np.roll(first, t, 1)), f"frame {t}"


def shout(places: list[Path], session: bytes) -> int:
    """Noise for some seconds; how many messages."""
    noise, context, sent = Noise(1, session), zmq.Context(), 0
    try:
        with attackers(context, places, session) as sockets:
            until = time.monotonic() + SECONDS
            while time.monotonic() < until:
                for one in sockets:
                    with suppress(zmq.Again):
                        one.send_multipart(noise.message(), zmq.NOBLOCK)
                        sent += 1
                garble(noise.chance.choice(places), noise.chance)
    finally:
        context.destroy(linger=0)
    return sent


def refused_by_all(pipeline: Serving, folder: Path) -> dict[str, Any]:
    """The status, when every socket has told of what it refused."""
    wanted = {"supervisor", "control", "extractor", "sinks.s", "memory.s", "decoder.s"}
    with RawClient(f"ipc://{folder / 'control.sock'}") as client:

        def told() -> dict[str, Any] | None:
            assert not pipeline.events("died"), pipeline.events("died")
            status = client.request("status")
            return status if wanted <= set(status["refused"]) else None

        found: dict[str, Any] = pipeline.wait_for(told, 20)
    assert all(sum(found["refused"][one].values()) > 20 for one in wanted - {"sinks.s"}), found["refused"]
    return found
