"""Edges: a producer, a consumer, credits, and one incarnation at a time (docs/protocol.md, 2 to 5).

    inbox = Inbox(context, edge, session, arenas)
    outbox = Outbox(context, edge, session, arenas)
    outbox.connect(inbox.bind())
    for box in (inbox, outbox):
        box.reset(incarnation=1)

    if outbox.credit:
        outbox.send("frame", seq=0, arrays={"image": image})
    message = inbox.receive()                      # None: nothing there
    image = inbox.array(message, "image")          # a copy
    inbox.grant(message)                           # one credit, and its slot

Whatever comes in that breaks a rule is counted in `refused` and has no other effect.
"""

from __future__ import annotations

import struct
from collections import Counter, deque
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import zmq

from streamvos.pipeline.arenas import Arena, ArenaError, packed_bytes
from streamvos.pipeline.messages import (
    ARRAY_BYTES,
    MAX_ARRAYS,
    Array,
    Buffer,
    Message,
    Place,
    Refused,
    decode,
    encode,
    tensor_over,
)
from streamvos.pipeline.references import Held, references
from streamvos.pipeline.security import check_bind

Mode = Literal["reference", "shared", "inline"]

_HIGH_WATER = 64  # never reached under credits; bounds what a peer without manners can queue
_TOKEN = struct.Struct("<QQ")  # what travels within one process: incarnation, and number of a message
_AT_ONCE = 64  # messages looked at in one call, so that a flood of bad ones cannot hold a stage
_COPIED_BYTES = 2**16  # parts below are cheaper copied, and then aligned, than kept in ZeroMQ's memory
_INLINE_BYTES = 2**12  # arrays of a message that together are no more than this are not worth a slot


@dataclass(frozen=True, slots=True)
class EdgeSpec:
    """One edge.

    Attributes:
        name: "front/frames".
        stream: whose.
        producer, consumer: names of stages.
        endpoint: where the consumer binds; ends in ":*" for a tcp port that the system chooses.
        window: messages beyond credit.
        mode: how arrays travel.
        arena: where they lie under "shared"; it has `window` slots or more.
        curve: applies CURVE to a socket, as server or as client; None for local ones.
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


class Inbox:
    """The consumer's end; used by one thread at a time.

    Attributes:
        socket: to poll for reading.
        refused: cause -> messages that broke a rule, or came from nobody known.
        polled: whoever polls calls `collect`, and `receive` need not look at the socket.
    """

    def __init__(
        self, context: zmq.Context[Any], spec: EdgeSpec, session: bytes, arenas: Mapping[str, Arena]
    ):
        self.spec, self.refused = spec, Counter[str]()
        self._session, self._arenas = session, arenas
        self._peer = _routing_id(spec, session)
        self._space = _reference_space(context, spec)
        self._incarnation = 0
        self._collected: deque[Message] = deque()
        self.polled = False
        self.socket = _socket(context, zmq.ROUTER, spec)
        # a producer that is killed and reborn may be back before we hear that it was gone
        self.socket.setsockopt(zmq.ROUTER_HANDOVER, 1)

    def bind(self) -> str:
        """Bind, and say where."""
        if self.spec.curve is not None:
            self.spec.curve.serve(self.socket)
        check_bind(self.spec.endpoint, self.spec.curve)
        self.socket.bind(self.spec.endpoint)
        return self.socket.getsockopt_string(zmq.LAST_ENDPOINT)

    def reset(self, incarnation: int) -> None:
        """Take messages of this incarnation alone."""
        self._incarnation = incarnation
        self._collected.clear()

    def collect(self) -> None:
        """Read what has come, for `receive` to give: a poll does not wait while something is unread.

        Of a peer that sends beyond its credit, no more than that is read.
        """
        while len(self._collected) < self.spec.window + 2 and (message := self._next()) is not None:
            self._collected.append(message)

    def receive(self) -> Message | None:
        """The next message of this incarnation; None if there is none now."""
        if self._collected:
            return self._collected.popleft()
        return None if self.polled else self._next()

    def _next(self) -> Message | None:
        for _ in range(_AT_ONCE):
            parts = _receive(self.socket)
            if parts is None:
                return None
            try:
                message = self._checked(parts)
            except Refused as error:
                self.refused[error.cause] += 1
                continue
            if message is not None:
                return message
        return None  # the socket stays readable, and others have their turn

    def array(self, message: Message, name: str, out: np.ndarray | None = None) -> np.ndarray:
        """An array of the message, the caller's own to keep and change; by reference, the very same.

        Args:
            message: that `receive` gave.
            name: of the array.
            out: C-contiguous, of the same dtype and shape, to be filled and returned instead of a new one.

        Raises:
            Refused: it is missing, its time is over, or `out` is of another kind.
        """
        array = self._find(message, name)
        if isinstance(array.data, Held):
            held = array.data.value
            found = held if isinstance(held, np.ndarray) else Array.of(held).numpy()
        elif out is None and _is_own(array):
            return array.numpy()
        else:
            return self._copied(array, out)
        if out is None:
            return found
        _check_out(out, found.dtype, found.shape)
        np.copyto(out, found)
        return out

    def tensor(self, message: Message, name: str) -> Any:
        """The same as a tensor on the CPU; whatever was handed over by reference comes as it is.

        Raises:
            Refused: as `array`.
        """
        array = self._find(message, name)
        if isinstance(array.data, Held):
            return array.data.value
        return tensor_over(self._copied(array, None).reshape(-1).view(np.uint8), array.dtype, array.shape)

    def grant(self, message: Message) -> None:
        """One credit; and the slot that the message named comes back, if it was of this edge.

        Nothing for an `end`, which took no credit, and for messages of an incarnation that is over.
        """
        if message.incarnation != self._incarnation or message.kind == "end":
            return
        slots = {
            one.data.slot
            for one in message.arrays.values()
            if isinstance(one.data, Place) and one.data.arena == self.spec.arena
        }
        credit = Message("credit", self.spec.stream, self._incarnation, message.seq, {"slots": sorted(slots)})
        parts = encode(credit, self._session) if self._space is None else [_TOKEN.pack(self._incarnation, 0)]
        with suppress(zmq.Again):  # nobody takes them; its next life begins with full credit
            self.socket.send_multipart([self._peer, *parts], zmq.NOBLOCK)

    def close(self) -> None:
        """Close the socket; what was not read is gone."""
        self.socket.close(linger=0)
        if self._space is not None:
            references.forget(self._space)

    def _checked(self, parts: Sequence[Buffer]) -> Message | None:
        """A message of this edge and incarnation; None if it is of another incarnation."""
        if parts[0] != self._peer:
            raise Refused("peer")
        if self._space is not None:
            return self._dereferenced(parts[1:])
        message = decode(parts[1:], self._session)
        if message.stream != self.spec.stream:
            raise Refused("stream")
        return message if message.incarnation == self._incarnation else None

    def _dereferenced(self, parts: Sequence[Buffer]) -> Message | None:
        """A message that was handed over by reference, as a whole; None if it is of another incarnation."""
        incarnation, number = _read_token(parts)
        if incarnation != self._incarnation:
            return None  # and the producer forgets it when it is reset
        message: Message = references.take(self._space, number)
        return message

    def _find(self, message: Message, name: str) -> Array:
        try:
            return message.arrays[name]
        except KeyError:
            raise Refused("field", f"{message.kind} lacks the array {name}") from None

    def _copied(self, array: Array, out: np.ndarray | None) -> np.ndarray:
        """A copy that has a memory of its own, aligned."""
        dtype = np.dtype("uint16" if array.dtype == "bfloat16" else array.dtype)
        if out is None:
            out = np.empty(array.shape, dtype)
        _check_out(out, dtype, array.shape)
        flat = out.reshape(-1).view(np.uint8)
        if not isinstance(array.data, Place):
            flat[:] = np.frombuffer(array.data, np.uint8)
            return out
        arena = self._arenas.get(array.data.arena)
        if arena is None:
            raise Refused("arena", array.data.arena)
        with arena.read(array.data, array.nbytes) as view:
            flat[:] = np.frombuffer(view, np.uint8)
        return out


class Outbox:
    """The producer's end; used by one thread at a time.

    Attributes:
        socket: to poll for reading (credits).
        refused, polled: as of an inbox.
    """

    def __init__(
        self, context: zmq.Context[Any], spec: EdgeSpec, session: bytes, arenas: Mapping[str, Arena]
    ):
        self.spec, self.refused = spec, Counter[str]()
        self._session = session
        self._arena = arenas.get(spec.arena) if spec.arena and spec.mode == "shared" else None
        self._space = _reference_space(context, spec)
        self._incarnation, self._credit = 0, 0
        self.polled = False
        self._slots = 0  # of ours; 0 until `allocate`: an arena may be the stage's, who sends places in it
        self._free: set[int] = set()
        self._endpoint: str | None = None
        self.socket = _socket(context, zmq.DEALER, spec)
        self.socket.setsockopt(zmq.ROUTING_ID, _routing_id(spec, session))

    def connect(self, endpoint: str) -> None:
        """Connect; to the same place again, nothing happens; to another, the old one is left."""
        if endpoint == self._endpoint:
            return
        if self._endpoint is None and self.spec.curve is not None:
            self.spec.curve.connect(self.socket)
        if self._endpoint is not None:
            with suppress(zmq.ZMQError):
                self.socket.disconnect(self._endpoint)
        self.socket.connect(endpoint)
        self._endpoint = endpoint

    def allocate(self, sizes: list[int]) -> None:
        """Size this edge's arena for messages with arrays of these many bytes; nothing for other modes.

        Without it, arrays travel in the message. Where messages become larger later, the slots grow.

        Raises:
            ArenaError: there is not that much memory.
        """
        if self._arena is not None:
            self._slots = self.spec.window + 1
            self._arena.allocate(self._slots, packed_bytes(sizes))
            self._free = set(range(self._slots))

    def reset(self, incarnation: int) -> None:
        """Begin anew with the full window; what was under way is gone."""
        self._incarnation, self._credit = incarnation, self.spec.window
        self._free = set(range(self._slots))
        if self._space is not None:
            references.forget(self._space)

    @property
    def credit(self) -> int:
        """How many messages may be sent now."""
        if not self.polled:
            self.collect()
        return self._credit

    def collect(self) -> None:
        """Take the credits that have come."""
        for _ in range(_AT_ONCE):
            parts = _receive(self.socket)
            if parts is None:
                return
            try:
                self._take_credit(parts)
            except Refused as error:
                self.refused[error.cause] += 1

    def send(
        self,
        kind: str,
        seq: int,
        fields: Mapping[str, Any] | None = None,
        arrays: Mapping[str, Any] | None = None,
    ) -> None:
        """Send one message; it takes one credit, unless it is an `end`.

        Args:
            kind, seq, fields: of the message.
            arrays: NumPy arrays or tensors, which go the way of this edge and may be changed afterwards (by
                reference: any object, which may not); or `Array`s, which go as they are (a place in an arena
                that the consumer has too).

        Raises:
            Refused: the message breaks a rule, or every slot is taken (more was sent than there was credit);
                nothing is sent.
        """
        packed, slot = self._packed(arrays or {})
        message = Message(kind, self.spec.stream, self._incarnation, seq, fields or {}, packed)
        try:
            self.socket.send_multipart(self._parts(message), zmq.NOBLOCK)
        except zmq.Again:  # the peer has been away for long; its next life begins anew
            self.refused["queue full"] += 1
        self._free.discard(slot)
        if kind != "end":
            self._credit -= 1

    def close(self, linger: int = 0) -> None:
        """Close the socket, for good; what is not sent within `linger` milliseconds is gone."""
        self.socket.close(linger=linger)
        if self._space is not None:
            references.forget(self._space)

    def _parts(self, message: Message) -> list[Buffer]:
        """What travels: the message, or within one process the number under which it can be had."""
        if self._space is None:
            return encode(message, self._session)
        return [_TOKEN.pack(self._incarnation, references.put(self._space, message))]

    def _packed(self, arrays: Mapping[str, Any]) -> tuple[dict[str, Array], int]:
        """The arrays as this edge sends them, and the slot that they lie in, or -1."""
        if self._space is not None:
            held = {
                n: v if isinstance(v, Array) else Array("uint8", (0,), Held(v)) for n, v in arrays.items()
            }
            return held, -1
        made = {
            name: value if isinstance(value, Array) else Array.of(value) for name, value in arrays.items()
        }
        own = {name: one for name, one in made.items() if not isinstance(one.data, Place)}
        needed = packed_bytes(array.nbytes for array in own.values())
        if not self._slots or needed <= _INLINE_BYTES:
            return made, -1
        if not self._free:
            raise Refused(
                "no slot", f"{self.spec.name}: every slot is taken; send no more than there is credit"
            )
        assert self._arena is not None
        if not self._has_room(needed):
            return made, -1
        slot = min(self._free)
        generation, offsets = self._arena.write(slot, *(array.data for array in own.values()))
        for (name, array), offset in zip(own.items(), offsets, strict=True):
            made[name] = replace(array, data=Place(self._arena.name, slot, generation, offset))
        return made, slot

    def _has_room(self, needed: int) -> bool:
        """Whether a slot holds that much; they grow when messages do (an object more), while none is in use.

        Until then, and where there is no memory for it, messages bring their arrays with them.
        """
        assert self._arena is not None
        if needed > self._arena.slot_bytes and len(self._free) == self._slots:
            with suppress(ArenaError):  # half as much again, or else every new object would cut them anew
                self._arena.allocate(self._slots, needed + needed // 2)
        return needed <= self._arena.slot_bytes

    def _take_credit(self, parts: Sequence[Buffer]) -> None:
        if self._space is not None:
            if _read_token(parts)[0] == self._incarnation:
                self._credit = min(self._credit + 1, self.spec.window)
            return
        message = decode(parts, self._session)
        if message.kind != "credit" or message.stream != self.spec.stream:
            raise Refused("kind")
        slots = message["slots"]
        if not isinstance(slots, list) or not all(type(slot) is int for slot in slots):
            raise Refused("slots")
        if message.incarnation == self._incarnation:
            self._credit = min(self._credit + 1, self.spec.window)
            self._free |= {slot for slot in slots if 0 <= slot < self._slots}


def _read_token(parts: Sequence[Buffer]) -> tuple[int, int]:
    if len(parts) != 1 or len(parts[0]) != _TOKEN.size:
        raise Refused("reference", "no token")
    incarnation, number = _TOKEN.unpack(parts[0])
    return incarnation, number


def _receive(socket: zmq.Socket[bytes]) -> list[Buffer] | None:
    """The parts of a message, of which large ones stay where ZeroMQ has them; None if there is none.

    More parts than any message may have are read and let go.
    """
    parts: list[Buffer] = []
    more = True
    while more:
        try:
            frame = socket.recv(zmq.NOBLOCK, copy=False)
        except zmq.Again:
            return None
        more = frame.more
        if len(parts) < MAX_ARRAYS + 4:
            parts.append(frame.bytes if len(frame) < _COPIED_BYTES else frame.buffer)
    return parts


def _routing_id(spec: EdgeSpec, session: bytes) -> bytes:
    """Of the producer; with the session, so that nobody else takes its place by chance or by guessing."""
    return spec.producer.encode() + b"/" + session


def _reference_space(context: zmq.Context[Any], spec: EdgeSpec) -> Any:
    """What tells the references of an edge from those of others: as its inproc endpoint, one per context."""
    return (context.underlying, spec.name) if spec.mode == "reference" else None


def _is_own(array: Array) -> bool:
    """Whether the bytes may be given away: nobody else has them, they are aligned, and may be changed."""
    return (
        isinstance(array.data, memoryview)
        and not array.data.readonly
        and np.frombuffer(array.data, np.uint8).ctypes.data % 8 == 0
    )


def _check_out(out: np.ndarray, dtype: np.dtype[Any], shape: tuple[int, ...]) -> None:
    if out.dtype != dtype or out.shape != shape or not out.flags.c_contiguous:
        raise Refused("out", f"need a contiguous {dtype} {shape}, got {out.dtype} {out.shape}")


def _socket(context: zmq.Context[Any], kind: int, spec: EdgeSpec) -> zmq.Socket[bytes]:
    socket: zmq.Socket[bytes] = context.socket(kind)
    socket.setsockopt(zmq.LINGER, 0)
    socket.setsockopt(zmq.SNDHWM, _HIGH_WATER)
    socket.setsockopt(zmq.RCVHWM, _HIGH_WATER)
    socket.setsockopt(zmq.MAXMSGSIZE, ARRAY_BYTES)
    socket.setsockopt(zmq.RECONNECT_IVL, 20)
    socket.setsockopt(zmq.RECONNECT_IVL_MAX, 100)  # the peer is local, or was just reborn and is waited for
    if spec.endpoint.startswith("tcp://"):
        socket.setsockopt(zmq.HEARTBEAT_IVL, 1000)
        socket.setsockopt(zmq.HEARTBEAT_TIMEOUT, 3000)
        socket.setsockopt(zmq.TCP_KEEPALIVE, 1)
    return socket
