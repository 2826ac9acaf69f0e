"""The consumer's end of an edge."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

import numpy as np
import zmq

from streamvos.pipeline.wire.arenas import Arena
from streamvos.pipeline.wire.messages import (
    Array,
    Buffer,
    Message,
    Place,
    Refused,
    decode,
    encode,
    tensor_over,
)
from streamvos.pipeline.wire.security import check_bind
from streamvos.pipeline.wire.spec import AT_ONCE, TOKEN, EdgeEnd, EdgeSpec, Held, read_token, references


class Inbox(EdgeEnd):
    """The consumer's end."""

    def __init__(
        self, context: zmq.Context[Any], spec: EdgeSpec, session: bytes, arenas: Mapping[str, Arena]
    ):
        super().__init__(context, zmq.ROUTER, spec, session)
        self._arenas = arenas
        self._collected: deque[Message] = deque()
        # a restarted producer may connect before the loss of its old connection is noticed
        self.socket.setsockopt(zmq.ROUTER_HANDOVER, 1)

    def bind(self) -> str:
        """Bind, and return the endpoint."""
        if self.spec.curve is not None:
            self.spec.curve.serve(self.socket)
        check_bind(self.spec.endpoint, self.spec.curve)
        self.socket.bind(self.spec.endpoint)
        return self.socket.getsockopt_string(zmq.LAST_ENDPOINT)

    def reset(self, incarnation: int) -> None:
        """Accept messages of this incarnation only."""
        self._incarnation = incarnation
        self._collected.clear()

    def collect(self) -> None:
        """Read the messages that have arrived, for `receive` to return; the next poll waits for new ones.

        Messages beyond the peer's credit stay unread.
        """
        while len(self._collected) < self.spec.window + 2 and (message := self._next()) is not None:
            self._collected.append(message)

    def receive(self) -> Message | None:
        """The next message of this incarnation; None if none has arrived."""
        if self._collected:
            return self._collected.popleft()
        return None if self.polled else self._next()

    def _next(self) -> Message | None:
        for _ in range(AT_ONCE):
            parts = self._receive()
            if parts is None:
                return None
            try:
                message = self._checked(parts)
            except Refused as error:
                self.refused[error.cause] += 1
                continue
            if message is not None:
                return message
        return None  # the socket stays readable, and other stages have their turn

    def array(self, message: Message, name: str) -> np.ndarray:
        """An array of the message, which the caller may keep and change; by reference, the object itself.

        Raises:
            Refused: the message lacks it, or its slot has been used again.
        """
        array = self._find(message, name)
        if isinstance(array.data, Held):
            held = array.data.value
            return held if isinstance(held, np.ndarray) else Array.of(held).numpy()
        if _is_own(array):
            return array.numpy()
        return self._copied(array).view(_numpy_dtype(array)).reshape(array.shape)

    def look(self, message: Message, name: str) -> np.ndarray:
        """The array in shared memory, not copied: read-only, and valid only if `check` passes later.

        Raises:
            Refused: as `array`.
        """
        array = self._find(message, name)
        if not isinstance(array.data, Place):
            return self.array(message, name)
        view = self._arena_of(array.data).look(array.data, array.nbytes)
        return np.frombuffer(view, _numpy_dtype(array)).reshape(array.shape)

    def check(self, message: Message, name: str) -> None:
        """Check that an array returned by `look` still holds what was sent.

        Raises:
            Refused: its slot has been used again.
        """
        array = self._find(message, name)
        if isinstance(array.data, Place):
            self._arena_of(array.data).check(array.data)

    def tensor(self, message: Message, name: str) -> Any:
        """A copy of an array as a tensor on the CPU; by reference, the object that was sent.

        Raises:
            Refused: as `array`.
        """
        array = self._find(message, name)
        if isinstance(array.data, Held):
            return array.data.value
        return tensor_over(self._copied(array), array.dtype, array.shape)

    def grant(self, message: Message) -> None:
        """Return one credit, and the slot that the message named, if it is in this edge's arena.

        Does nothing for an `end`, which took no credit, and for messages of an earlier incarnation.
        """
        if message.incarnation != self._incarnation or message.kind == "end":
            return
        slots = {
            one.data.slot
            for one in message.arrays.values()
            if isinstance(one.data, Place) and one.data.arena == self.spec.arena
        }
        credit = Message("credit", self.spec.stream, self._incarnation, message.seq, {"slots": sorted(slots)})
        parts = encode(credit, self._session) if self._space is None else [TOKEN.pack(self._incarnation, 0)]
        with suppress(zmq.Again):  # the producer is gone, and restarts with full credit
            self.socket.send_multipart([self._producer, *parts], zmq.NOBLOCK)

    def _checked(self, parts: Sequence[Buffer]) -> Message | None:
        """The message, checked; None if it belongs to another incarnation."""
        if parts[0] != self._producer:
            raise Refused("peer")
        if self._space is not None:
            incarnation, number = read_token(parts[1:])
            if incarnation != self._incarnation:
                return None  # the producer drops the object at its own reset
            referenced: Message = references.take(self._space, number)
            return referenced
        message = decode(parts[1:], self._session)
        if message.stream != self.spec.stream:
            raise Refused("stream")
        return message if message.incarnation == self._incarnation else None

    def _find(self, message: Message, name: str) -> Array:
        try:
            return message.arrays[name]
        except KeyError:
            raise Refused("field", f"{message.kind} lacks the array {name}") from None

    def _copied(self, array: Array) -> np.ndarray:
        """Its bytes in memory of their own, aligned: (bytes,) uint8."""
        if not isinstance(array.data, Place):
            return np.frombuffer(array.data, np.uint8).copy()
        with self._arena_of(array.data).read(array.data, array.nbytes) as view:
            return np.frombuffer(view, np.uint8).copy()

    def _arena_of(self, place: Place) -> Arena:
        arena = self._arenas.get(place.arena)
        if arena is None:
            raise Refused("arena", place.arena)
        return arena


def _numpy_dtype(array: Array) -> np.dtype[Any]:
    return np.dtype("uint16" if array.dtype == "bfloat16" else array.dtype)


def _is_own(array: Array) -> bool:
    """Whether the caller may keep the bytes: they are aligned, writable, and not shared."""
    return (
        isinstance(array.data, memoryview)
        and not array.data.readonly
        and np.frombuffer(array.data, np.uint8).ctypes.data % 8 == 0
    )
