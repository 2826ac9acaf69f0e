"""Publish masks, and frames as JPEG, in the forms that have subscribers (docs/protocol.md, 9).

with Publisher(context, runtime.masks("front"), "front", session) as publisher:
    publisher.publish(frame, result, header)        # never blocks; slow subscribers lose messages
    publisher.end({"seq": 99})
"""

from __future__ import annotations

import io
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any

import numpy as np
import zmq
from PIL import Image

from streamvos.masks.labelmap import davis_palette
from streamvos.masks.rle import encode_rles
from streamvos.pipeline.clients.published import FORMS, JPEG
from streamvos.pipeline.clients.subscribing import QUEUE
from streamvos.pipeline.wire.messages import Array, Message, Refused, RejectionCounter, encode
from streamvos.pipeline.wire.security import Curve, bind
from streamvos.types import Frame, InputError, Result

SILENT_SECONDS = 0.5
"""After so long without a frame, viewers that come are shown the last one."""

_PEER_BYTES = 1024  # the longest topic has 70; the handshake of CURVE needs some hundred
_BUDGET = 4096  # subscriptions taken per message
_LINGER_MS = 250  # so that `end` still leaves when the socket is closed
_PALETTE = davis_palette().tobytes()
_JPEG_QUALITY = 88


class Publisher:
    """Sends the masks of one stream.

    Args:
        context: ZeroMQ context of the socket.
        address: ipc:// or tcp://; see `security.check_bind`.
        stream: name of the stream.
        session: the public session, 8 bytes.
        curve: keys and list of clients, for tcp://.
        forms: what can be subscribed to.

    Attributes:
        endpoint: where it is bound, with port.
        socket: to poll for subscriptions.
        refused: cause -> subscriptions that match no topic, messages that cannot be sent, and connections
            for which there was no room.

    Raises:
        InputError: the address cannot be bound, or is not safe.
    """

    def __init__(
        self,
        context: zmq.Context[Any],
        address: str,
        stream: str,
        session: bytes,
        curve: Curve | None = None,
        forms: Sequence[str] = FORMS,
    ):
        self.stream = stream
        self.refused = RejectionCounter(f"subscribers of {stream}")
        self._session = session
        self._topics: dict[str, bytes] = {form: f"{form}/{stream}/".encode() for form in forms}
        # ZeroMQ reports each subscription to a topic and the end of the last one, so a set is enough;
        # it stays small, since only prefixes of the topics enter it
        self._wanted: set[bytes] = set()
        self._came: set[bytes] = set()  # subscribed to since the last message
        self.socket: zmq.Socket[bytes] = context.socket(zmq.XPUB)
        self.socket.setsockopt(zmq.LINGER, _LINGER_MS)
        self.socket.setsockopt(zmq.XPUB_VERBOSE, 1)  # also tells of a topic's second subscriber
        self.socket.setsockopt(zmq.SNDHWM, QUEUE)
        self.socket.setsockopt(zmq.MAXMSGSIZE, _PEER_BYTES)  # of what subscribers send
        self.socket.setsockopt(zmq.HEARTBEAT_IVL, 5000)  # drops subscribers that were unplugged
        self.socket.setsockopt(zmq.HEARTBEAT_TIMEOUT, 15000)
        try:
            self.endpoint = bind(self.socket, address, curve, self.refused)
        except InputError:
            self.socket.close(linger=0)
            raise

    @property
    def forms(self) -> tuple[str, ...]:
        """The forms that have subscribers."""
        self._take_subscriptions()
        return self._forms_of(self._wanted)

    def take_late(self) -> tuple[str, ...]:
        """The forms that have got subscribers since the last message; each is told once."""
        self._take_subscriptions()
        came, self._came = self._came, set()
        return self._forms_of(came & self._wanted)

    def publish(self, frame: Frame, result: Result, header: Mapping[str, Any]) -> None:
        """Send one frame's masks in the forms that have subscribers.

        Args:
            frame: the frame of the result.
            result: its label map and its objects.
            header: seq, incarnation, captured (ns), pts (s), dropped, recovered, stamps.
        """
        self._publish(self.forms, result, header)

    def repeat(self, result: Result, header: Mapping[str, Any]) -> None:
        """Send the last masks again if somebody has subscribed since; arguments as for `publish`."""
        self._publish(self.take_late(), result, {**header, "repeated": True})

    def _publish(self, forms: Sequence[str], result: Result, header: Mapping[str, Any]) -> None:
        if not forms:
            return
        objects = [
            {
                "id": int(key),
                "score": float(one.score),
                "state": one.state,
                "box": None if one.box is None else [int(edge) for edge in one.box],
                "area": int(one.area),
            }
            for key, one in sorted(result.objects.items())
        ]
        fields = {**header, "size": [int(n) for n in result.mask.shape], "objects": objects}
        for form in forms:
            self.send(form, "mask", *_encoded(form, result.mask, fields))

    def end(self, header: Mapping[str, Any]) -> None:
        """Tell all subscribers that the stream has ended; `header`: seq of the last frame, incarnation."""
        for form in self.forms:
            self.send(form, "end", header, {})

    def close(self) -> None:
        """Close the socket, within 0.25 s, in which queued messages are still sent."""
        self.socket.close(linger=_LINGER_MS)

    def __enter__(self) -> Publisher:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def send(self, form: str, kind: str, header: Mapping[str, Any], arrays: Mapping[str, Array]) -> None:
        """Send one message in one form; its fields, with seq and incarnation, and its arrays."""
        fields = dict(header)
        seq, incarnation = int(fields.pop("seq", 0)), int(fields.pop("incarnation", 0))
        try:
            _, *rest = encode(Message(kind, self.stream, incarnation, seq, fields, arrays), self._session)
        except Refused as error:  # the run lengths of a noisy mask can exceed the largest header
            self.refused.count(error.cause, error)
            return
        # never blocks: XPUB drops messages for subscribers whose queue is full
        self.socket.send_multipart([self._topics[form], *rest], zmq.NOBLOCK)
        self._came.clear()

    def _forms_of(self, topics: set[bytes]) -> tuple[str, ...]:
        return tuple(
            form for form, topic in self._topics.items() if any(topic.startswith(one) for one in topics)
        )

    def _take_subscriptions(self) -> None:
        for _ in range(_BUDGET):
            try:
                parts = self.socket.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return
            topic = parts[0][1:]
            # a topic without a form, such as the empty one, requests no form
            known = b"/" in topic and any(one.startswith(topic) for one in self._topics.values())
            if len(parts) != 1 or parts[0][:1] not in (b"\0", b"\1") or not known:
                self.refused.count("subscription", parts[0])
            elif parts[0][0] == 1:
                self._wanted.add(topic)
                self._came.add(topic)
            else:
                self._wanted.discard(topic)


class FramePublisher:
    """Sends a stream's frames as JPEG while somebody is subscribed to them; the newest frame wins.

    Frames are encoded in a thread of their own, which starts with the first subscriber. Without subscribers
    a frame costs one look at the socket.

    Args:
        context, address, stream, session: as for `Publisher`.

    Raises:
        InputError: the address cannot be bound.
    """

    def __init__(self, context: zmq.Context[Any], address: str, stream: str, session: bytes):
        self._publisher = Publisher(context, address, stream, session, forms=(JPEG,))
        self.socket, self.refused = self._publisher.socket, self._publisher.refused
        self._changed = threading.Condition()  # held for whatever touches the socket
        self._newest: tuple[np.ndarray, Mapping[str, Any]] | None = None
        self._last: tuple[Callable[[], np.ndarray], Mapping[str, Any]] | None = None
        self._offered_at = 0.0
        self._thread: threading.Thread | None = None
        self._over = False

    @property
    def wanted(self) -> bool:
        """Whether somebody is subscribed."""
        with self._changed:
            return bool(self._publisher.forms)

    def offer(self, picture: Callable[[], np.ndarray], header: Mapping[str, Any]) -> None:
        """Send a frame if somebody wants it; it replaces one that still waits.

        Args:
            picture: gives the frame, (H, W, 3) uint8 RGB, which is copied; called only if it is wanted, now
                or in `repeat`, until the next frame is offered.
            header: seq, incarnation, captured (ns), pts (s).
        """
        self._last, self._offered_at = (picture, header), time.monotonic()
        if self.wanted:
            self._give(picture, header)

    def repeat(self) -> None:
        """Send the last frame to who has subscribed since, if none came for `SILENT_SECONDS`.

        For a stream that gives no frame now, since it is paused or its camera is silent.
        """
        if self._last is None or time.monotonic() - self._offered_at < SILENT_SECONDS:
            return
        with self._changed:
            late = self._publisher.take_late()
        if late:
            self._give(*self._last)

    def _give(self, picture: Callable[[], np.ndarray], header: Mapping[str, Any]) -> None:
        image = np.array(picture())
        with self._changed:
            self._newest = (image, header)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="frames", daemon=True)
                self._thread.start()
            self._changed.notify_all()

    def close(self) -> None:
        """Close the socket."""
        with self._changed:
            self._over = True
            self._changed.notify_all()
            self.socket.close(linger=0)

    def _run(self) -> None:
        while True:
            with self._changed:
                while self._newest is None and not self._over:
                    self._changed.wait()
                if self._over or self._newest is None:
                    return
                (image, header), self._newest = self._newest, None
            buffer = io.BytesIO()
            Image.fromarray(image).save(buffer, format="JPEG", quality=_JPEG_QUALITY)
            jpeg = Array.of(np.frombuffer(buffer.getvalue(), np.uint8))
            fields = {**header, "size": [int(n) for n in image.shape[:2]]}
            with self._changed:
                if self._over:
                    return
                with suppress(zmq.ZMQError):
                    self._publisher.send(JPEG, "frame", fields, {"image": jpeg})


def _encoded(
    form: str, mask: np.ndarray, fields: Mapping[str, Any]
) -> tuple[Mapping[str, Any], dict[str, Array]]:
    """The header's fields and the arrays of one form."""
    if form == "raw":
        return fields, {"mask": Array.of(mask)}
    if form == "png":
        picture = Image.fromarray(np.ascontiguousarray(mask))
        picture.putpalette(_PALETTE)
        buffer = io.BytesIO()
        picture.save(buffer, format="PNG", compress_level=1)  # fast; masks are small at any level
        return fields, {"mask": Array.of(np.frombuffer(buffer.getvalue(), np.uint8))}
    runs = encode_rles(mask, [one["id"] for one in fields["objects"]])
    objects = [{**one, "rle": dict(runs[one["id"]])} for one in fields["objects"]]
    return {**fields, "objects": objects}, {}
