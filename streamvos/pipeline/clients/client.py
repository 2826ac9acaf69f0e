"""A client of a running pipeline: its state, its masks, and commands to it (docs/protocol.md, 8 and 9).

with streamvos.Client("door") as client:
    client.annotate("front", mask)                  # ids are the values of the mask
    for one in client.masks("front"):
        print(one.seq, one.objects, one.label_map)
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import zmq

from streamvos.masks.checks import MASK_BYTES, check_label_map
from streamvos.pipeline.clients.published import End, Form, Mask
from streamvos.pipeline.clients.subscribing import Subscription
from streamvos.pipeline.wire.admission import HANDSHAKE_FAILURES, next_event
from streamvos.pipeline.wire.messages import (
    HEADER_BYTES,
    STATE_BYTES,
    Array,
    Message,
    Refused,
    RejectionCounter,
    decode,
    encode,
)
from streamvos.pipeline.wire.runtime import answers, find_control
from streamvos.pipeline.wire.security import Curve, is_refusal
from streamvos.types import InputError, StreamvosError

_OVER = ("ended", "failed")

_SLOW_SECONDS = 65.0
"""How long to wait for what may take long; the pipeline itself answers within 60 s."""


class PipelineError(StreamvosError, RuntimeError):
    """The pipeline does not answer, or rejects our keys."""


class Client:
    """Talks to a pipeline that `streamvos serve` runs. Not thread-safe: each thread needs its own.

    Every command raises InputError if the pipeline refuses it, and PipelineError if no answer comes in time;
    it may still be carried out.

    Args:
        address_or_name: the pipeline's name, or its address, ipc://... or tcp://HOST:PORT.
        secret: our NAME.key_secret, for a tcp:// address.
        server_key: the pipeline's NAME.key, or the key's 40 characters.
        timeout: seconds to wait for an answer.

    Raises:
        InputError: no such pipeline, or a file that holds no key.
    """

    def __init__(
        self,
        address_or_name: str = "default",
        *,
        secret: str | Path | None = None,
        server_key: str | Path | None = None,
        timeout: float = 10.0,
    ):
        if not timeout > 0:
            raise InputError(f"the timeout is {timeout} s; expected more than 0")
        if (secret is None) != (server_key is None):
            raise InputError(
                "CURVE needs both: secret, our NAME.key_secret, and server_key, the pipeline's NAME.key"
            )
        self.address = find_address(address_or_name)
        self._curve = None if secret is None else Curve(secret, server_key=server_key)
        self._timeout = timeout
        self._broken = 0
        self._numbers = itertools.count(1)
        self.refused = RejectionCounter("replies")
        self._context: zmq.Context[Any] = zmq.Context()
        self._socket: zmq.Socket[bytes] = self._context.socket(zmq.DEALER)
        self._socket.setsockopt(zmq.LINGER, 0)
        self._socket.setsockopt(zmq.IMMEDIATE, 1)  # a request waits here until the pipeline is connected
        self._socket.setsockopt(zmq.MAXMSGSIZE, max(HEADER_BYTES, STATE_BYTES))
        self._monitor = self._socket.get_monitor_socket(HANDSHAKE_FAILURES | zmq.EVENT_DISCONNECTED)
        self._masks: list[Subscription] = []
        try:
            if self._curve is not None:
                self._curve.connect(self._socket)
            self._socket.connect(self.address)
        except zmq.ZMQError as error:
            self.close()
            raise InputError(
                f"{address_or_name!r:.200} is no address ({error.strerror}); expected a name, ipc://PATH or tcp://HOST:PORT"
            ) from None

    def status(self) -> dict[str, Any]:
        """State of the pipeline: "streams", "workers", "publish"; docs/protocol.md, 8, names all keys."""
        fields = self._ask("status").fields
        return {name: value for name, value in fields.items() if name not in ("id", "ok")}

    def annotate(self, stream: str, mask: np.ndarray) -> int:
        """Start, add or correct objects, as `Segmenter.step(frame, mask)` does.

        Args:
            stream: name of the stream.
            mask: (H, W) of the frames' size, integers or bool: object ids; 0 leaves a pixel as it is.

        Returns:
            Number of the frame that the mask was applied to.

        Raises:
            InputError: it is not a mask, or the pipeline refused it; the stream is unchanged.
        """
        label_map = check_label_map(mask)
        if label_map.size > MASK_BYTES:
            raise InputError(f"the mask may have at most {MASK_BYTES} pixels, got {label_map.shape}")
        return self._ask("annotate", stream, arrays={"mask": Array.of(label_map)}).seq

    def forget(self, stream: str, object_id: int) -> int:
        """Forget an object, whose id may be used again; returns the number of the first frame without it."""
        return self._ask("forget", stream, object=int(object_id)).seq

    def pause(self, stream: str) -> None:
        """Stop taking frames of a stream until `resume`; a live stream drops them."""
        self._ask("pause", stream)

    def resume(self, stream: str) -> None:
        """Take frames of a stream again."""
        self._ask("resume", stream)

    def stop(self, stream: str = "") -> None:
        """End a stream, or all streams and the pipeline; returns when it has ended."""
        self._ask("stop", stream)

    def add_stream(
        self,
        name: str,
        source: str,
        *,
        method: str | Mapping[str, Any] | None = None,
        files: bool = True,
        state: tuple[int, bytes] | None = None,
        **keys: Any,
    ) -> dict[str, Any]:
        """Add a stream to the running pipeline; returns when it has begun, within 65 s.

        Args:
            name: its name, which no other stream has.
            source: where its frames come from, as in pipeline.toml. Relative paths start from the current
                folder.
            method: name of the method, or a table [method], to use instead of the pipeline's.
            files: whether the stream may name files of the pipeline's machine; a request by tcp:// may only
                if the pipeline allows it ([security] remote_files).
            state: what `snapshot` gave, perhaps of another pipeline of the same method: the stream goes on
                with the same objects, and counts its frames from there. Only for live streams, and on the
                pipeline's own machine.
            keys: further keys of [[streams]]: mask, boxes, points, policy, height, sinks, ... Without
                `sinks`, the masks are published.

        Returns:
            The stream's state, as in `status()["streams"][name]`. A live source that cannot be opened now is
            tried again, and then this is "starting".

        Raises:
            InputError: the stream cannot be added; the pipeline is unchanged.
        """
        from streamvos.pipeline.config.reading import make_stream

        table = {"name": name, "source": source, "sinks": [{"kind": "publish"}], **keys}
        own = {"name": method} if isinstance(method, str) else method
        checked, chosen = make_stream(table, own, base=Path.cwd())
        fields: dict[str, Any] = {
            "table": checked.model_dump(mode="json", exclude_unset=True),
            "files": files,
        }
        if chosen is not None:
            fields["method"] = chosen.model_dump(mode="json", exclude_unset=True)
        seq, arrays = 0, {}
        if state is not None:
            if len(state[1]) > STATE_BYTES:
                raise InputError(f"the state has {len(state[1])} bytes, at most {STATE_BYTES} can be sent")
            seq, arrays = state[0], {"snapshot": Array("uint8", (len(state[1]),), state[1])}
        timeout = max(self._timeout, _SLOW_SECONDS)
        reply = self._ask("add_stream", arrays=arrays, seq=seq, timeout=timeout, **fields)
        return dict(reply["status"])

    def remove_stream(self, name: str, *, at_once: bool = False) -> dict[str, Any]:
        """End a stream as `stop` does and forget it, so that its name and its outputs are free; within 65 s.

        Args:
            name: its name; it may have ended before.
            at_once: write no frames that are still on their way.

        Returns:
            Its last state, as in `status()["streams"][name]`: "failed", with a "reason", if its files are not
            whole, else "ended".
        """
        timeout = max(self._timeout, _SLOW_SECONDS)
        return dict(self._ask("remove_stream", name, timeout=timeout, at_once=at_once)["status"])

    def snapshot(self, stream: str) -> tuple[int, bytes]:
        """The newest saved state of a stream's memory, and the number of the frame after which it was saved.

        Raises:
            InputError: there is none yet, or it is larger than 64 MiB.
        """
        reply = self._ask("snapshot", stream)
        return reply.seq, bytes(reply.arrays["snapshot"].data)

    def masks(self, stream: str = "", form: Form = "rle", newest: bool = False) -> Iterator[Mask]:
        """Masks from now on, until the stream ends.

        The subscription starts with this call, not with the first iteration. Masks that arrive while the
        queue is full are lost. The client may be used between two masks.

        Args:
            stream: "" for all that the pipeline publishes.
            form: how masks travel; see `Subscription`.
            newest: skip masks that newer ones have overtaken, for readers slower than the stream. `Mask.seq`
                shows the gaps.

        Raises:
            InputError: no such stream, or it has no `publish` sink.
            PipelineError: the pipeline no longer answers.
        """
        addresses = publishers_in(self.status(), stream, self.address)
        subscription = Subscription(self._context, addresses.values(), stream, form, self._curve)
        self._masks.append(subscription)
        return self._each(subscription, set(addresses), newest)

    def close(self) -> None:
        """Close all sockets; iterators of masks end."""
        for one in self._masks:
            one.close()
        with suppress(zmq.ZMQError):
            self._socket.disable_monitor()
        self._monitor.close()
        self._socket.close()
        self._context.term()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _each(self, subscription: Subscription, streams: set[str], newest: bool) -> Iterator[Mask]:
        try:
            while streams:
                try:
                    one = subscription.receive(self._timeout, newest)
                except zmq.ZMQError:  # closed with its client
                    return
                if isinstance(one, Mask):
                    yield one
                elif isinstance(one, End):
                    streams.discard(one.stream)
                else:  # timeout: the stream may have ended
                    known = self.status().get("streams", {})
                    streams -= {name for name in streams if known.get(name, {}).get("state") in _OVER}
        finally:
            subscription.close()
            if subscription in self._masks:
                self._masks.remove(subscription)

    def _ask(
        self,
        verb: str,
        stream: str = "",
        arrays: Mapping[str, Array] | None = None,
        timeout: float | None = None,
        seq: int = 0,
        **fields: Any,
    ) -> Message:
        timeout = self._timeout if timeout is None else timeout
        number = next(self._numbers)
        try:
            asked = {"verb": verb, "id": number, **fields}
            request = Message("request", stream, 0, seq, asked, arrays or {})
            _, *rest = encode(request, b"")
        except Refused as error:
            raise InputError(f"{verb} cannot be sent: {error}") from None
        deadline = time.monotonic() + timeout
        while self._monitor.poll(0):  # of earlier connections
            self._explain(next_event(self._monitor)[0], asked=False)
        self._wait(zmq.POLLOUT, deadline, timeout)
        self._socket.send_multipart([b"", *rest])
        while True:
            self._wait(zmq.POLLIN, deadline, timeout, asked=True)
            try:
                reply = decode(self._socket.recv_multipart(), None)
                if reply.kind != "reply":
                    raise Refused("kind")
                if reply["id"] != number:  # a late reply to a request that timed out
                    continue
                if reply["ok"] is True:
                    return reply
                error_text = str(reply["error"])
            except Refused as error:
                self.refused.count(error.cause, error)
                continue
            if reply.get("pending") is True:
                raise PipelineError(error_text)
            raise InputError(error_text)

    def _wait(self, event: int, deadline: float, timeout: float, asked: bool = False) -> None:
        poller = zmq.Poller()
        poller.register(self._socket, event)
        poller.register(self._monitor, zmq.POLLIN)
        while (left := deadline - time.monotonic()) > 0:
            ready = dict(poller.poll(max(1, round(1000 * left))))
            if self._socket in ready:
                return
            if self._monitor in ready:
                self._explain(next_event(self._monitor)[0], asked)
        raise PipelineError(
            f"the pipeline at {self.address} does not answer within {timeout:g} s; "
            "`streamvos ctl status --at NAME` and the log of `streamvos serve` show whether it runs. The "
            "request may still be carried out when a paused or waiting stream continues"
        )

    def _explain(self, event: int, asked: bool) -> None:
        """Raise if no answer can come after what the monitor reports."""
        if event == zmq.EVENT_DISCONNECTED:
            if asked:  # the reply would come on this connection
                raise PipelineError(f"the pipeline at {self.address} ended before it answered")
            return
        self._broken += event == zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
        if not is_refusal(event, self._broken):
            return
        if event == zmq.EVENT_HANDSHAKE_FAILED_AUTH:
            raise PipelineError(
                f"the pipeline at {self.address} does not admit our key; put our NAME.key into its folder "
                "security.clients"
            )
        hint = "give secret and server_key" if self._curve is None else "is server_key its own?"
        raise PipelineError(f"the pipeline at {self.address} uses other CURVE keys than we do; {hint}")


def find_address(address_or_name: str) -> str:
    """Address of a pipeline's socket for users.

    Raises:
        InputError: there is no such pipeline on this machine.
    """
    if "://" not in address_or_name:
        return find_control(address_or_name)
    if address_or_name.startswith("ipc://") and not answers(Path(address_or_name.removeprefix("ipc://"))):
        raise InputError(
            f"no process listens at {address_or_name}; `streamvos ctl status --at NAME` finds one by its name"
        )
    return address_or_name


def publishers_in(status: Mapping[str, Any], stream: str, control: str) -> dict[str, str]:
    """Stream -> address of its masks, from a status.

    Args:
        status: result of `Client.status`.
        stream: one stream, or "" for all.
        control: address of the socket for users; a publisher at tcp://* is on the same host.

    Raises:
        InputError: no such stream, or it does not publish.
    """
    published = status.get("publish")
    published = published if isinstance(published, dict) else {}
    known = status.get("streams")
    names = sorted(known) if isinstance(known, dict) else []
    if stream and stream not in names:
        raise InputError(f"there is no stream {stream!r}; there are {', '.join(names) or 'none'}")
    wanted = [stream] if stream else sorted(published)
    missing = [name for name in wanted if not isinstance(published.get(name), str)]
    if missing or not wanted:
        raise InputError(
            f"{stream or 'no stream'} publishes {'no' if stream else 'its'} masks; "
            'add { kind = "publish" } to its sinks'
        )
    return {name: _reachable(published[name], control) for name in wanted}


def _reachable(address: str, control: str) -> str:
    host, _, port = address.removeprefix("tcp://").rpartition(":")
    if not address.startswith("tcp://") or host not in ("*", "0.0.0.0", "[::]"):
        return address
    own = control.removeprefix("tcp://").rpartition(":")[0] if control.startswith("tcp://") else "127.0.0.1"
    return f"tcp://{own}:{port}"
