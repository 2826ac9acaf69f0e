"""What tests of users' sockets share: a pipeline without a pipeline behind real sockets."""

from __future__ import annotations

import shutil
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import zmq

from streamvos.pipeline.clients.control import ControlServer
from streamvos.pipeline.clients.publishing import Publisher
from streamvos.pipeline.wire.security import Curve
from streamvos.types import Frame, InputError, ObjectResult, Result

SESSION = b"sessions"
SIZE = (24, 40)


class Recorder:
    """Commands of a pipeline with the stream "front", which notes what it is told."""

    def __init__(self, publish: dict[str, str] | None = None) -> None:
        self.calls: list[tuple] = []
        self.held: list[Callable[..., None]] = []
        self.hold = False
        self.seq = 7
        self.publish = publish or {}
        self.streams = ["front", *sorted(set(self.publish) - {"front"})]
        self.state = "running"
        self.waiting: dict[str, Any] = {}
        self.last: dict[str, Any] = {"state": "ended", "reason": "", "frames": 12}  # of a removed stream

    def status(self) -> dict[str, Any]:
        self.calls.append(("status",))
        latency = {"p50": 3.0, "p95": 4.0, "p99": 5.5}
        stream = {
            "state": self.state,
            "incarnation": 1,
            "seq": self.seq,
            "fps": 24.9,
            "dropped": {"newer frame": 3},
            "objects": [1, 2],
            "size": list(SIZE),
            "latencies": {"memory": latency, "glass to mask": latency},
            "restarts": 2,
            **self.waiting,
        }
        workers = {"compute": {"state": "ready", "pid": 1, "restarts": 2}}
        return {"streams": dict.fromkeys(self.streams, stream), "workers": workers, "publish": self.publish}

    def annotate(self, stream: str, mask: np.ndarray, reply: Callable[..., None]) -> None:
        self._check(stream)
        self.calls.append(("annotate", stream, mask.copy()))
        self._reply(reply, seq=self.seq)

    def forget(self, stream: str, object_id: int, reply: Callable[..., None]) -> None:
        self._check(stream)
        self.calls.append(("forget", stream, object_id))
        self._reply(reply, seq=self.seq)

    def pause(self, stream: str) -> None:
        self._check(stream)
        self.calls.append(("pause", stream))

    def resume(self, stream: str) -> None:
        self._check(stream)
        self.calls.append(("resume", stream))

    def stop(self, stream: str, reply: Callable[..., None]) -> None:
        if stream:
            self._check(stream)
        self.calls.append(("stop", stream))
        self._reply(reply)

    def add_stream(
        self, table: Any, method: Any, files: bool, reply: Callable[..., None], state: Any = None
    ) -> None:
        if table["name"] in self.streams:
            raise InputError(f"there is a stream {table['name']!r} already")
        self.calls.append(("add_stream", table, method, files))
        self.state = state
        self._reply(reply, status={"state": "running"})

    def snapshot(self, stream: str) -> tuple[int, bytes]:
        self._check(stream)
        self.calls.append(("snapshot", stream))
        return 7, b"state"

    def remove_stream(self, stream: str, at_once: bool, reply: Callable[..., None]) -> None:
        self._check(stream)
        self.calls.append(("remove_stream", stream, at_once))
        self._reply(reply, status=self.last)

    def release(self) -> None:
        """Answer what is held, the newest first."""
        while self.held:
            self.held.pop()(True, seq=self.seq)

    def _reply(self, reply: Callable[..., None], **fields: object) -> None:
        if self.hold:
            self.held.append(reply)
        else:
            reply(True, **fields)

    def _check(self, stream: str) -> None:
        if stream not in self.streams:
            raise InputError(f"there is no stream {stream!r}; there are {', '.join(self.streams)}")


class Loop:
    """Polls a server in a thread, as a supervisor does, and makes things happen in that thread."""

    def __init__(self, server: ControlServer):
        self.server = server
        self._todo: list[tuple[Callable[[], object], threading.Event]] = []
        self._end = threading.Event()
        self.error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def do(self, action: Callable[[], object]) -> None:
        """Run in the server's thread, and wait for it."""
        done = threading.Event()
        self._todo.append((action, done))
        assert done.wait(20)

    def end(self) -> None:
        self._end.set()
        self._thread.join(20)
        assert not self._thread.is_alive()
        if self.error is not None:
            raise self.error

    def _run(self) -> None:
        poller = zmq.Poller()
        for socket in self.server.sockets():
            poller.register(socket, zmq.POLLIN)
        try:
            while not self._end.is_set():
                poller.poll(10)
                self.server.handle()
                while self._todo:
                    action, done = self._todo.pop(0)
                    action()
                    done.set()
        except BaseException as error:
            self.error = error


@contextmanager
def short_folder() -> Iterator[Path]:
    """A folder whose name leaves room for a socket's: unix sockets' paths are short."""
    folder = Path(tempfile.mkdtemp(dir="/tmp", prefix="sv"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


@contextmanager
def serving(
    address: str,
    recorder: Recorder,
    second: str | None = None,
    curve: Curve | None = None,
    remote_files: bool = False,
) -> Iterator[Loop]:
    """A server of `recorder` that runs within the block."""
    context: zmq.Context = zmq.Context()
    try:
        with ControlServer(context, address, SESSION, recorder, second, curve, remote_files) as server:
            loop = Loop(server)
            try:
                yield loop
            finally:
                loop.end()
    finally:
        context.term()


def make_frame(index: int = 0, size: tuple[int, int] = SIZE, stream: str = "front") -> Frame:
    return Frame(np.zeros((*size, 3), np.uint8), index, 1000 + index, index / 25, stream)


def make_result(mask: np.ndarray, index: int = 0) -> Result:
    ids = tuple(int(one) for one in np.unique(mask) if one)

    def objects() -> dict[int, ObjectResult]:
        found = {}
        for one in ids:
            rows, columns = np.nonzero(mask == one)
            box = (int(columns.min()), int(rows.min()), int(columns.max()) + 1, int(rows.max()) + 1)
            found[one] = ObjectResult(one, 0.75, "tracking", box, len(rows))
        return found

    def probabilities() -> np.ndarray:
        raise InputError("there are none here")

    return Result(mask, index, ids, probabilities, objects)


def make_header(seq: int, **more: object) -> dict[str, object]:
    stamps = {"source": [1, 2, 3], "decoder": [4, 5, 6]}
    header = {"seq": seq, "incarnation": 1, "captured": 1000 + seq, "pts": seq / 25, "stamps": stamps}
    return {**header, "dropped": {"newer frame": 1}, "recovered": False, **more}


def wait_for_forms(publisher: Publisher, *forms: str) -> None:
    """Until subscriptions have arrived, or gone."""
    import time

    deadline = time.monotonic() + 20
    while set(publisher.forms) != set(forms):
        assert time.monotonic() < deadline, publisher.forms
        time.sleep(0.01)
