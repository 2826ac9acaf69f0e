"""A share of a machine: an ordinary pipeline, whose streams come and go, and whose states are saved.

    share = Share("site", "node1-0", json.dumps(config.pipeline("site-node1-0")), store_url, 5.0)
    share.start("front", 1, json.dumps(table))      # from its last saved state, with the orders since then
    share.order("front", 7)                         # apply what the store has up to order 7
    share.stop("front", 1, keep=True)

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

from streamvos.fleet.store import Order, OverruledError, State, Store, StoreError
from streamvos.pipeline.clients.client import Client, PipelineError
from streamvos.types import InputError, StreamvosError

START_SECONDS = 30.0
"""How long the supervisor may take until it answers."""

REPORT_SECONDS = 4.0
"""How long the supervisor may take for its status."""

_LOOK_SECONDS = 0.25


@dataclass
class _Stream:
    """A stream that runs here, or begins.

    Attributes:
        epoch: of its placement.
        begun: whether the pipeline has it.
        begins_with: the orders up to this number are part of the state that it began with.
        applied: number of a later order -> its frame, or why it was refused.
        saved: the newest state in the store.
        problem: what it could not take over, or why the last order was refused.
        store_problem: why its state could not be saved last.
    """

    epoch: int
    begun: bool = False
    begins_with: int = 0
    applied: dict[int, int | str] = field(default_factory=dict)
    saved: State | None = None
    save_at: float = 0.0
    problem: str = ""
    store_problem: str = ""

    def covered(self, seq: int) -> int:
        """The orders up to which number a state after frame `seq` contains."""
        number = self.begins_with
        for one, frame in sorted(self.applied.items()):
            if isinstance(frame, int) and frame > seq:
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
        self._saves = 0
        self._closed = threading.Event()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "streamvos.fleet.child"],
            stdin=subprocess.PIPE,
            text=True,
            start_new_session=True,  # it ends with its pipe, and not by a signal to this process's group
        )
        assert self._process.stdin is not None
        with suppress(OSError):  # it has ended already, which is told below
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
            StreamvosError: a later placement of it is here; or the pipeline does not answer.
        """
        keys = placed(json.loads(table), epoch)
        with self._locks[name], self._client() as client:
            if name in self._streams and self._streams[name].epoch >= epoch:
                raise StreamvosError(f"the stream {name!r} has been placed here again since")
            stream = self._streams[name] = _Stream(epoch)
            try:
                status = self._begin(stream, keys, client)
            except BaseException:  # should the pipeline have it nevertheless, the next report says so
                del self._streams[name]
                raise
            stream.begun = True
        # a stream whose camera does not answer yet takes orders later
        threading.Thread(target=self._catch_up, args=(name,), daemon=True).start()
        return status

    def stop(self, name: str, epoch: int, keep: bool) -> None:
        """End a stream; there may be none.

        Args:
            name: its name.
            epoch: of the placement that is meant; a later one goes on.
            keep: it does not end before its state is saved.

        Raises:
            StoreError: the state could not be saved; the stream goes on.
        """
        with self._locks[name], self._client() as client:
            stream = self._streams.get(name)
            if stream is not None and stream.epoch > epoch:
                return
            if keep and stream is not None:
                with suppress(OverruledError):
                    self._save(name, stream, client)
            if name in client.status()["streams"]:
                client.remove_stream(name)
            self._streams.pop(name, None)

    def order(self, name: str, number: int) -> int:
        """Apply an order that is in the store, and all before it that were not applied yet.

        Returns:
            The frame that it was applied to; 0 if the stream began with a state that contains it.

        Raises:
            InputError: it was refused.
            StreamvosError: there is no such stream here, it does not answer, or the store does not have the
                order.
        """
        with self._locks[name]:
            stream = self._streams.get(name)
            if stream is None:
                raise StreamvosError(f"the stream {name!r} is not here")
            if number > stream.begins_with and number not in stream.applied:
                self._apply(name, stream, number)
            frame = stream.applied.get(number, 0)
            if isinstance(frame, str):
                raise InputError(frame)
            return frame

    def report(self) -> dict[str, Any]:
        """Streams, their states, and how the store is.

        A stream that the pipeline has, and that was not begun here, such as one whose start took too long,
        is reported with epoch 0.

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
        own = dict(self._streams)
        streams = {}
        for name, one in status["streams"].items():
            known = own.get(name)
            if known is None:
                streams[name] = {"epoch": 0, "problem": ""}
            elif known.begun and one["state"] != "failed":
                streams[name] = {"epoch": known.epoch, "problem": known.problem}
        return {
            "life": self.life,
            "store": self._store.number,
            "pid": self._process.pid,
            "streams": streams,
            "status": status,
            "store_problem": next((one.store_problem for one in own.values() if one.store_problem), ""),
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

    def _begin(self, stream: _Stream, keys: Mapping[str, Any], client: Client) -> dict[str, Any]:
        """Add a stream to the pipeline with its newest state that can be used, if there is one."""
        name = keys["name"]
        if name in client.status()["streams"]:  # of an earlier placement
            client.remove_stream(name, at_once=True)
        problems = []
        for state in self._store.states(name):
            try:
                status = client.add_stream(**keys, state=(state.seq, self._store.read_state(name, state)))
            except InputError as error:
                problems.append(f"its state {state.epoch}-{state.seq} cannot be used: {error}")
                continue
            stream.begins_with = state.covers
            break
        else:
            status = client.add_stream(**keys)
        stream.problem = "; ".join(problems)
        return status

    def _catch_up(self, name: str) -> None:
        """Apply the orders that its state does not have."""
        with self._locks[name]:
            stream = self._streams.get(name)
            if stream is not None:
                with suppress(StreamvosError):  # tried again with the next order, or the next saving
                    self._apply(name, stream)

    def _apply(self, name: str, stream: _Stream, also: int = 0) -> None:
        """Apply all orders of the store that were not applied yet, in their order.

        Args:
            name, stream: of the stream.
            also: an order that must be there, even if the folder's list does not have it yet: file systems
                of networks keep old lists for a while.
        """
        for number in sorted({*self._store.order_numbers(name), also}):
            if number <= stream.begins_with or number in stream.applied:
                continue
            try:
                stream.applied[number] = self._carry_out(name, self._store.read_order(name, number))
            except InputError as error:  # nobody can carry it out
                stream.applied[number] = stream.problem = str(error)
            stream.save_at = 0.0  # at once: a state that contains it needs no order

    def _carry_out(self, name: str, order: Order) -> int:
        """Apply one order; InputError if it cannot be, PipelineError if it is not known whether it was."""
        with Client(self._pipeline, timeout=65.0) as client:
            if client.status()["streams"].get(name, {}).get("size") is None:
                raise PipelineError(f"the source of {name} is not open yet")
            if order.mask is None:
                return client.forget(name, order.forget)
            return client.annotate(name, order.mask)

    def _save_often(self) -> None:
        while not self._closed.wait(_LOOK_SECONDS):
            for name, stream in list(self._streams.items()):
                due = stream.begun and time.monotonic() >= stream.save_at
                if not due or not self._locks[name].acquire(blocking=False):
                    continue
                try:
                    if self._streams.get(name) is stream:
                        with self._client() as client:
                            self._save(name, stream, client)
                except StreamvosError as error:
                    if isinstance(error, StoreError):
                        stream.store_problem = str(error)
                finally:
                    self._locks[name].release()
                stream.save_at = time.monotonic() + self._seconds

    def _save(self, name: str, stream: _Stream, client: Client) -> None:
        """Save the newest state of a stream, if it is newer than the last one.

        Raises:
            StoreError: the store cannot take it.
            OverruledError: the stream was placed elsewhere since.
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
            stream.saved = state
            self._saves += 1
        stream.store_problem = ""


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
