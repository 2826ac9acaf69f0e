"""A client of a running pipeline without streamvos: pyzmq and msgpack are enough (docs/protocol.md).

    python examples/client_bare_zmq.py ipc:///run/user/1000/streamvos/door/control.sock door

It asks for the pipeline's status, subscribes to a stream's masks, and prints the objects of ten frames.
The same can be written in every language that has ZeroMQ and MessagePack.
"""

import sys

import msgpack
import zmq


def main(control: str, stream: str) -> None:
    context = zmq.Context()
    context.setsockopt(zmq.RCVTIMEO, 10_000)  # milliseconds, for every socket
    context.setsockopt(zmq.LINGER, 0)

    with context.socket(zmq.DEALER) as requests:
        requests.connect(control)
        requests.send_multipart([b"", msgpack.packb({"v": 1, "kind": "request", "verb": "status", "id": 1})])
        _, header = requests.recv_multipart()
    status = msgpack.unpackb(header)
    if not status["ok"]:
        sys.exit(status["error"])

    with context.socket(zmq.SUB) as masks:
        masks.connect(status["publish"][stream])
        masks.subscribe(f"rle/{stream}/")
        for _ in range(10):
            _, header = masks.recv_multipart()
            message = msgpack.unpackb(header)
            for one in message.get("objects", []):  # one["rle"]: COCO's run lengths
                print(f"frame {message['seq']}: object {one['id']}, {one['state']}, box {one['box']}")


if __name__ == "__main__":
    main(*sys.argv[1:])
