"""The producer's end of an edge."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

import zmq

from streamvos.pipeline.wire.arenas import Arena, ArenaError, packed_bytes
from streamvos.pipeline.wire.messages import Array, Buffer, Message, Place, Refused, decode, encode
from streamvos.pipeline.wire.spec import AT_ONCE, TOKEN, EdgeEnd, EdgeSpec, Held, read_token, references

_INLINE_BYTES = 2**12  # arrays of a message that together are no more than this are not worth a slot


class Outbox(EdgeEnd):
    """The producer's end; what its socket receives are credits."""

    def __init__(
        self, context: zmq.Context[Any], spec: EdgeSpec, session: bytes, arenas: Mapping[str, Arena]
    ):
        super().__init__(context, zmq.DEALER, spec, session)
        self._arena = arenas.get(spec.arena) if spec.arena and spec.mode == "shared" else None
        self._credit = 0
        self._slots = 0  # until `allocate`; a stage may also manage the arena itself and send places in it
        self._free: set[int] = set()
        self._endpoint: str | None = None
        self.socket.setsockopt(zmq.ROUTING_ID, self._producer)

    def connect(self, endpoint: str) -> None:
        """Connect, in place of an earlier endpoint."""
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
        """Size this edge's arena for messages with arrays of these sizes in bytes; no effect in other modes.

        Before the first call, arrays travel in the message. The slots grow with the messages.

        Raises:
            ArenaError: not enough memory is available.
        """
        if self._arena is not None:
            self._slots = self.spec.window + 1
            self._arena.allocate(self._slots, packed_bytes(sizes))
            self._free = set(range(self._slots))

    def reset(self, incarnation: int) -> None:
        """Start an incarnation with full credit; what was in flight is dropped."""
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
        """Read the credits that have arrived."""
        for _ in range(AT_ONCE):
            parts = self._receive()
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
            kind, seq, fields: see `Message`.
            arrays: NumPy arrays or tensors, sent in this edge's mode; the caller may change them afterwards,
                except by reference, where any object may be sent. An `Array` is sent as it is (a place in an
                arena that the consumer has too).

        Raises:
            Refused: the message breaks a rule, or every slot is taken (more was sent than there was credit);
                nothing is sent.
        """
        packed, slot = self._packed(arrays or {})
        message = Message(kind, self.spec.stream, self._incarnation, seq, fields or {}, packed)
        if self._space is None:
            parts = encode(message, self._session)
        else:
            parts = [TOKEN.pack(self._incarnation, references.put(self._space, message))]
        try:
            self.socket.send_multipart(parts, zmq.NOBLOCK)
        except zmq.Again:  # the consumer has been disconnected for long, and will restart
            self.refused["queue full"] += 1
        self._free.discard(slot)
        if kind != "end":
            self._credit -= 1

    def _packed(self, arrays: Mapping[str, Any]) -> tuple[dict[str, Array], int]:
        """The arrays as this edge sends them, and the slot that they are in, or -1."""
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
        """Whether a slot holds that much; slots grow with messages (an object more) while none is in use.

        Until then, and where memory is short, messages carry their arrays.
        """
        assert self._arena is not None
        if needed > self._arena.slot_bytes and len(self._free) == self._slots:
            with suppress(ArenaError):  # half as much again, or every new object would need a new layout
                self._arena.allocate(self._slots, needed + needed // 2)
        return needed <= self._arena.slot_bytes

    def _take_credit(self, parts: Sequence[Buffer]) -> None:
        if self._space is not None:
            if read_token(parts)[0] == self._incarnation:
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
