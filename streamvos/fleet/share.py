"""A share of a machine: an ordinary pipeline, whose streams come and go, and whose states are saved.

    share = Share("site", "node1-0", json.dumps(config.pipeline("site-node1-0")), store_url, 5.0)
    share.start("front", 1, json.dumps(table))      # from its last saved state, with the orders since then
    share.order("front", 7)                         # apply what the store has up to order 7
    share.stop("front", keep=True)

Frames and states stay on this machine and in the store. The methods may be called by several threads.
"""

from __future__ import annotations

import json
import secrets
import subprocess
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import PurePath
from typing import Any

from streamvos.fleet.store import State, Store, StoreError
from streamvos.pipeline.clients.client import Client, PipelineError
from streamvos.types import InputError, StreamvosError

START_SECONDS = 30.0
"""How long the supervisor may take until it answers."""

REPORT_SECONDS = 4.0
"""How long the supervisor may take for its status."""

_LOOK_SECONDS = 0.25


@dataclass
class _Stream:
    """A stream that runs here.

    Attributes:
        epoch: of its placement.
        begins_with: the orders up to this number are part of the state that it began with.
        applied: number of a later order -> frame; None = the pipeline refused it.
        saved: the newest state in the store.
    """

    epoch: int
    begins_with: int = 0
    applied: dict[int, int | None] = field(default_factory=dict)
    saved: State | None = None
    save_at: float = 0.0
    problem: str = ""

    def covered(self, seq: int) -> int:
        """The orders up to which number a state after frame `seq` contains."""
        number = self.begins_with
        for one, frame in sorted(self.applied.items()):
            if frame is not None and frame > seq:
                break
            number = one
        return number


class Share:
    """One share.

    Args:
        pipeline: the name of its pipeline on this machine.
        config: of the pipeline, as JSON.
        store: the fleet's.
        snapshot_seconds: how often states are saved.

    Raises:
        InputError, StoreError: the store cannot be used.
        StreamvosError: the pipeline cannot begin.
    """

    def __init__(self, pipeline: str, config: str, store: str, snapshot_seconds: float):
        self.life = secrets.token_hex(4)
        self._pipeline, self._seconds = pipeline, snapshot_seconds
        self._store = Store(store)
        self._streams: dict[str, _Stream] = {}
        self._locks: dict[str, threading.RLock] = defaultdict(threading.RLock)
        self._store_problem = ""
        self._saves = 0
        self._closed = threading.Event()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "streamvos.fleet.child"],
            stdin=subprocess.PIPE,
            text=True,
            start_new_session=True,  # it ends with its pipe, and not by a signal to this process's group
        )
        assert self._process.stdin is not None
        self._process.stdin.write(config.replace("\n", " ") + "\n")
        self._process.stdin.flush()
        try:
            self._wait_until_it_answers()
        except BaseException:
            self.close()
            raise
        self._thread = threading.Thread(target=self._save_often, name="states", daemon=True)
        self._thread.start()

    # ---- what the controller asks for

    def start(self, name: str, epoch: int, table: str) -> dict[str, Any]:
        """Begin a stream, from its last state that can be used.

        Returns:
            Its status, as `Client.add_stream`.

        Raises:
            InputError: it cannot begin; nothing of it is left.
            StoreError: its state and its orders cannot be read.
        """
        keys = placed(json.loads(table), epoch)
        with self._locks[name], self._client() as client:
            if name in client.status()["streams"]:  # of an earlier placement
                client.remove_stream(name, at_once=True)
            problems = []
            states: list[State | None] = [*self._store.states(name), None]
            for state in states:
                begun = None if state is None else (state.seq, self._store.read_state(name, state))
                try:
                    status = client.add_stream(**keys, state=begun)
                    break
                except InputError as error:
                    if state is None:
                        raise
                    problems.append(f"its state {state.epoch}-{state.seq} cannot be used: {error}")
            stream = _Stream(epoch, 0 if state is None else state.covers, problem="; ".join(problems))
            self._streams[name] = stream
        # a stream whose camera does not answer yet takes orders later
        threading.Thread(target=self._catch_up, args=(name,), daemon=True).start()
        return status

    def stop(self, name: str, keep: bool) -> None:
        """End a stream; there may be none. `keep`: not before its state is saved.

        Raises:
            StoreError: the state could not be saved; the stream goes on.
        """
        with self._locks[name], self._client() as client:
            stream = self._streams.get(name)
            if keep and stream is not None:
                self._save(name, stream, client)
            if name in client.status()["streams"]:
                client.remove_stream(name)
            self._streams.pop(name, None)

    def order(self, name: str, number: int) -> int:
        """Apply an order that is in the store, and all before it that were not applied yet.

        Returns:
            The frame that it was applied to.

        Raises:
            InputError: the pipeline refused it.
            StreamvosError: there is no such stream here, or it does not answer.
        """
        with self._locks[name]:
            stream = self._streams.get(name)
            if stream is None:
                raise StreamvosError(f"the stream {name!r} is not here")
            if number > stream.begins_with and number not in stream.applied:
                self._apply(name, stream)
            frame = stream.applied.get(number, 0)
            if frame is None:
                raise InputError(stream.problem)
            return frame

    def report(self) -> dict[str, Any]:
        """Streams, their states, and how the store is.

        Raises:
            StreamvosError: the pipeline has ended, or does not answer.
        """
        try:
            with Client(self._pipeline, timeout=REPORT_SECONDS) as client:
                status = client.status()
        except StreamvosError:
            if self._process.poll() is not None:
                raise StreamvosError(
                    f"its supervisor has ended with code {self._process.returncode}"
                ) from None
            raise
        streams = {
            name: {"epoch": one.epoch, "problem": one.problem, "saved": one.saved and one.saved.seq}
            for name, one in list(self._streams.items())
            if status["streams"].get(name, {"state": "failed"})["state"] != "failed"
        }
        return {
            "life": self.life,
            "pid": self._process.pid,
            "streams": streams,
            "status": status,
            "store_problem": self._store_problem,
            "saves": self._saves,
        }

    def close(self) -> None:
        """End the pipeline in order."""
        self._closed.set()
        assert self._process.stdin is not None
        with suppress(OSError):
            self._process.stdin.close()
        try:
            self._process.wait(15)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    # ---- inside

    def _client(self) -> Client:
        return Client(self._pipeline, timeout=20.0)

    def _wait_until_it_answers(self) -> None:
        limit = time.monotonic() + START_SECONDS
        while True:
            if self._process.poll() is not None:
                raise StreamvosError(f"its pipeline ended at once, with code {self._process.returncode}")
            try:
                with self._client() as client:
                    client.status()
                return
            except StreamvosError as error:
                if time.monotonic() > limit:
                    raise StreamvosError(f"its pipeline does not begin: {error}") from None
            time.sleep(0.05)

    def _catch_up(self, name: str) -> None:
        """Apply the orders that its state does not have."""
        with self._locks[name]:
            stream = self._streams.get(name)
            if stream is not None:
                with suppress(StreamvosError):  # tried again with the next order, or the next saving
                    self._apply(name, stream)

    def _apply(self, name: str, stream: _Stream) -> None:
        """Apply all orders of the store that were not applied yet, in their order."""
        for number in self._store.order_numbers(name):
            if number <= stream.begins_with or number in stream.applied:
                continue
            order = self._store.read_order(name, number)
            with Client(self._pipeline, timeout=65.0) as client:
                if client.status()["streams"].get(name, {}).get("size") is None:
                    raise PipelineError(f"the source of {name} is not open yet")
                try:
                    if order.mask is None:
                        stream.applied[number] = client.forget(name, order.forget)
                    else:
                        stream.applied[number] = client.annotate(name, order.mask)
                except PipelineError:  # not known whether it was applied; the stream may not run yet
                    raise
                except InputError as error:
                    stream.applied[number], stream.problem = None, str(error)
            stream.save_at = 0.0  # at once: a state that contains it needs no order

    def _save_often(self) -> None:
        while not self._closed.wait(_LOOK_SECONDS):
            for name, stream in list(self._streams.items()):
                if time.monotonic() < stream.save_at or not self._locks[name].acquire(blocking=False):
                    continue
                try:
                    if self._streams.get(name) is stream:
                        with self._client() as client:
                            self._save(name, stream, client)
                except StreamvosError as error:
                    if isinstance(error, StoreError):
                        self._store_problem = str(error)
                finally:
                    self._locks[name].release()
                stream.save_at = time.monotonic() + self._seconds

    def _save(self, name: str, stream: _Stream, client: Client) -> None:
        """Save the newest state of a stream, if it is newer than the last one.

        Raises:
            StoreError: the store cannot take it.
        """
        with suppress(PipelineError):  # such as a camera that does not answer
            self._apply(name, stream)
        try:
            seq, blob = client.snapshot(name)
        except InputError:  # there is no state yet
            return
        state = State(stream.epoch, seq, stream.covered(seq))
        if state != stream.saved:
            self._store.write_state(name, state, blob)
            stream.saved, self._store_problem = state, ""
            self._saves += 1


def placed(table: Mapping[str, Any], epoch: int) -> dict[str, Any]:
    """A stream's table for one placement: what its files are called, so that none is ever replaced.

    `out/front.jsonl` becomes `out/front.3.jsonl` for the third placement, the folder `labels` `labels.3`.
    """
    sinks = []
    for sink in table.get("sinks", [{"kind": "publish"}]):
        if sink.get("path") is not None:
            path = PurePath(sink["path"])
            sink = {**sink, "path": str(path.with_name(f"{path.stem}.{epoch}{path.suffix}"))}
        sinks.append(sink)
    return {**table, "sinks": sinks}
