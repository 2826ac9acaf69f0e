"""A client that knows docs/protocol.md and nothing of streamvos: pyzmq, msgpack, NumPy, and Pillow for PNG.

with RawClient("ipc:///run/user/1000/streamvos/door/control.sock") as client:
    client.request("annotate", "front", mask=mask)
with RawSubscriber("ipc:///run/user/1000/streamvos/door/masks-front.sock", "rle", "front") as masks:
    header, label_map = masks.receive()
"""

from __future__ import annotations

import io
import math

import msgpack
import numpy as np
import zmq
from PIL import Image

SIZES = {"bool": 1, "uint8": 1, "int8": 1, "uint16": 2, "int16": 2, "int32": 4, "int64": 8, "float32": 4}


class RawClient:
    """Sends requests and gets replies: section 8.

    Args:
        address: of the socket for users.
        seconds: to wait for a reply.
        curve: our public and secret key and the server's public one, Z85; None for ipc.
    """

    def __init__(self, address: str, seconds: float = 10, curve: tuple[bytes, bytes, bytes] | None = None):
        self.context = zmq.Context()
        self.socket = self.context.socket(zmq.DEALER)
        self.socket.linger = 0
        _encrypt(self.socket, curve)
        self.socket.connect(address)
        self.milliseconds = round(1000 * seconds)
        self.number = 0

    def send(self, verb: str, stream: str = "", mask: np.ndarray | None = None, **more: object) -> int:
        """Send a request; returns its id."""
        self.number += 1
        header = {"v": 1, "kind": "request", "verb": verb, "id": self.number, "stream": stream, **more}
        buffers = []
        if mask is not None:
            header["arrays"] = {"mask": ["uint8", list(mask.shape), 0]}
            buffers.append(np.ascontiguousarray(mask, np.uint8).tobytes())
        self.socket.send_multipart([b"", msgpack.packb(header), *buffers])
        return self.number

    def receive(self) -> dict:
        """The next reply's header.

        Raises:
            TimeoutError: none came.
        """
        if not self.socket.poll(self.milliseconds):
            raise TimeoutError("no reply")
        empty, packed, *_ = self.socket.recv_multipart()
        header = msgpack.unpackb(packed)
        assert (empty, header["v"], header["kind"]) == (b"", 1, "reply")
        return header

    def request(self, verb: str, stream: str = "", mask: np.ndarray | None = None, **more: object) -> dict:
        """Send a request and wait for its reply."""
        number = self.send(verb, stream, mask, **more)
        while (reply := self.receive())["id"] != number:
            pass
        return reply

    def close(self) -> None:
        self.socket.close()
        self.context.term()

    def __enter__(self) -> RawClient:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class RawSubscriber:
    """Gets masks: section 9.

    Args:
        address: of the socket for subscribers.
        form: "rle", "png" or "raw".
        stream: "" for all.
        seconds: to wait for a message.
        curve: as of `RawClient`.
    """

    def __init__(
        self,
        address: str,
        form: str,
        stream: str = "",
        seconds: float = 10,
        curve: tuple[bytes, bytes, bytes] | None = None,
    ):
        self.form = form
        self.context = zmq.Context()
        self.socket = self.context.socket(zmq.SUB)
        self.socket.linger = 0
        _encrypt(self.socket, curve)
        self.socket.connect(address)
        self.socket.subscribe(f"{form}/{stream}/" if stream else f"{form}/")
        self.milliseconds = round(1000 * seconds)

    def receive(self) -> tuple[dict, np.ndarray | None]:
        """The next header, and the label map (H, W) uint8; None with the last message of a stream.

        Raises:
            TimeoutError: none came.
        """
        if not self.socket.poll(self.milliseconds):
            raise TimeoutError("no message")
        topic, packed, *buffers = self.socket.recv_multipart()
        header = msgpack.unpackb(packed)
        assert topic.decode() == f"{self.form}/{header['stream']}/"
        assert header["v"] == 1
        for dtype, shape, where in header["arrays"].values():
            assert len(buffers[where]) == math.prod(shape) * SIZES[dtype]
        if header["kind"] == "end":
            return header, None
        assert header["kind"] == "mask"
        return header, self._label_map(header, buffers)

    def _label_map(self, header: dict, buffers: list[bytes]) -> np.ndarray:
        height, width = header["size"]
        if self.form == "rle":
            label_map = np.zeros(height * width, np.uint8)
            for one in header["objects"]:
                assert one["rle"]["size"] == [height, width]
                value = start = 0
                for run in unpack_counts(one["rle"]["counts"]):
                    label_map[start : start + run] += value * one["id"]
                    start, value = start + run, 1 - value
                assert start == height * width
            return label_map.reshape((height, width), order="F")
        buffer = buffers[header["arrays"]["mask"][2]]
        if self.form == "png":
            picture = Image.open(io.BytesIO(buffer))
            assert (picture.format, picture.mode) == ("PNG", "P")
            return np.array(picture)
        assert header["arrays"]["mask"][:2] == ["uint8", [height, width]]
        return np.frombuffer(buffer, np.uint8).reshape(height, width)

    def close(self) -> None:
        self.socket.close()
        self.context.term()

    def __enter__(self) -> RawSubscriber:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def unpack_counts(text: str) -> list[int]:
    """Run lengths from COCO's packed form: groups of five bits, lowest first, as characters from "0" on.

    A sixth bit says that more groups follow; the highest of the five in the last group is the sign; from the
    fourth count on, the difference to the last but one is packed.
    """
    counts: list[int] = []
    position = 0
    while position < len(text):
        value = shift = 0
        more = True
        while more:
            group = ord(text[position]) - 48
            position += 1
            value |= (group & 31) << shift
            shift += 5
            more = bool(group & 32)
        if group & 16:
            value -= 1 << shift
        counts.append(value + counts[-2] if len(counts) > 2 else value)
    return counts


def _encrypt(socket: zmq.Socket, curve: tuple[bytes, bytes, bytes] | None) -> None:
    if curve is not None:
        socket.curve_publickey, socket.curve_secretkey, socket.curve_serverkey = curve
