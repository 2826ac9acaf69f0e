"""What an edge is, and what both of its ends need: names, sockets, and objects handed over by reference.

Within one process nothing is copied: the producer puts a message into `references`, a number travels, and
the consumer takes it out, once. A number is valid only on the edge that the message was put on, so no message
from outside can reach an object.

    number = references.put(edge, message)
    message = references.take(edge, number)
"""

from __future__ import annotations

import itertools
import struct
import threading
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import zmq

from streamvos.pipeline.wire.messages import ARRAY_BYTES, MAX_ARRAYS, Buffer, Refused

Mode = Literal["reference", "shared", "inline"]

TOKEN = struct.Struct("<QQ")
"""Represents a message within one process: its incarnation, and its number in `references`."""

AT_ONCE = 64
"""Messages read in one call, so that a flood of bad ones cannot block a stage."""

_HIGH_WATER = 64  # never reached under credits; bounds what a misbehaving peer can queue
_COPIED_BYTES = 2**16  # smaller parts are cheaper to copy, which also aligns them


@dataclass(frozen=True, slots=True)
class EdgeSpec:
    """One edge.

    Attributes:
        name: "front/frames".
        stream: name of the stream.
        producer, consumer: names of the stages.
        endpoint: where the consumer binds; ":*" lets the system choose a tcp port.
        window: credits at the start.
        mode: how arrays travel.
        arena: name of the arena in mode "shared"; it has more than `window` slots.
        curve: the `Curve` of a tcp:// edge; None for local edges.
    """

    name: str
    stream: str
    producer: str
    consumer: str
    endpoint: str
    window: int
    mode: Mode
    arena: str | None = None
    curve: Any = None


def read_token(parts: Sequence[Buffer]) -> tuple[int, int]:
    """Incarnation and number.

    Raises:
        Refused: it is no token.
    """
    if len(parts) != 1 or len(parts[0]) != TOKEN.size:
        raise Refused("reference", "no token")
    incarnation, number = TOKEN.unpack(parts[0])
    return incarnation, number


class EdgeEnd:
    """What both ends of an edge share; used by one thread at a time.

    Attributes:
        spec: the edge.
        socket: to poll for reading.
        refused: cause -> messages that broke a rule, or came from an unknown peer.
        polled: True if `collect` is called after each poll, so that other calls need not read the socket.
    """

    def __init__(self, context: zmq.Context[Any], kind: int, spec: EdgeSpec, session: bytes):
        self.spec, self.refused, self.polled = spec, Counter[str](), False
        self._session, self._incarnation = session, 0
        # contains the session, so no other peer can take the producer's place
        self._producer = spec.producer.encode() + b"/" + session
        # a reference is valid on one edge of one context, like an inproc endpoint
        self._space = (context.underlying, spec.name) if spec.mode == "reference" else None
        self.socket: zmq.Socket[bytes] = context.socket(kind)
        self.socket.setsockopt(zmq.LINGER, 0)
        self.socket.setsockopt(zmq.SNDHWM, _HIGH_WATER)
        self.socket.setsockopt(zmq.RCVHWM, _HIGH_WATER)
        self.socket.setsockopt(zmq.MAXMSGSIZE, ARRAY_BYTES)
        self.socket.setsockopt(zmq.RECONNECT_IVL, 20)
        self.socket.setsockopt(zmq.RECONNECT_IVL_MAX, 100)  # the peer is local, or restarting
        if spec.endpoint.startswith("tcp://"):
            self.socket.setsockopt(zmq.HEARTBEAT_IVL, 1000)
            self.socket.setsockopt(zmq.HEARTBEAT_TIMEOUT, 3000)
            self.socket.setsockopt(zmq.TCP_KEEPALIVE, 1)

    def close(self, linger: int = 0) -> None:
        """Close the socket; what is not sent within `linger` milliseconds, or was not read, is lost."""
        self.socket.close(linger=linger)
        if self._space is not None:
            references.forget(self._space)

    def _receive(self) -> list[Buffer] | None:
        """The parts of a message, large ones in ZeroMQ's own memory; None if none has arrived.

        Parts beyond those that a message may have are discarded.
        """
        parts: list[Buffer] = []
        more = True
        while more:
            try:
                frame = self.socket.recv(zmq.NOBLOCK, copy=False)
            except zmq.Again:
                return None
            more = frame.more
            if len(parts) < MAX_ARRAYS + 4:
                parts.append(frame.bytes if len(frame) < _COPIED_BYTES else frame.buffer)
        return parts


class References:
    """Objects handed over within one process: by number, and only on the edge that they were put on."""

    def __init__(self) -> None:
        self._objects: dict[int, tuple[Any, Any]] = {}
        self._numbers = itertools.count(1)
        self._lock = threading.Lock()

    def put(self, edge: Any, value: Any) -> int:
        with self._lock:
            number = next(self._numbers)
            self._objects[number] = edge, value
            return number

    def take(self, edge: Any, number: int) -> Any:
        """Remove and return an object.

        Raises:
            Refused: this edge has no object of that number.
        """
        with self._lock:
            if self._objects.get(number, (None,))[0] != edge:
                raise Refused("reference", f"no object {number}")
            return self._objects.pop(number)[1]

    def forget(self, edge: Any) -> None:
        """Drop the objects that were put on an edge and not taken."""
        with self._lock:
            for number in [one for one, (put_on, _) in self._objects.items() if put_on == edge]:
                del self._objects[number]


@dataclass(frozen=True, slots=True)
class Held:
    """An object sent by reference."""

    value: Any


references = References()
"""The references of this process."""
