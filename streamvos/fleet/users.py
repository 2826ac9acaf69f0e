"""What users ask a fleet for, in the protocol of a pipeline (docs/protocol.md, 8); its list of streams."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from streamvos.addresses import redact
from streamvos.fleet.config import FleetConfig, check_stream
from streamvos.fleet.controller import Controller
from streamvos.fleet.orders import Orders, answer
from streamvos.fleet.store import Entry, Order, Store, StoreError
from streamvos.masks.labelmap import read_label_map
from streamvos.pipeline.clients.control import Reply
from streamvos.pipeline.telemetry.logs import EventLog
from streamvos.types import InputError, StreamvosError

SHOWN = (
    *("state", "share", "machine", "epoch", "problem", "reason", "waiting_for", "seq", "fps", "frames"),
    *("objects", "dropped", "size", "restarts", "gone"),
)
"""What `status` tells of a stream: a message has at most 1 MiB, so that 3,000 streams fit."""


class Owner(Protocol):
    """The fleet that runs."""

    machines: dict[str, str]

    def later(self, work: Callable[[], Any], then: Callable[[Future[Any]], None]) -> Future[Any]:
        """Do something in another thread, and take over its outcome in this one."""

    def soon(self) -> None:
        """Look and decide at the next turn."""

    def end(self) -> None:
        """End the fleet."""

    def overview(self) -> dict[str, Any]:
        """Everything that is shown."""


class Users:
    """The requests of users; each raises InputError if it cannot be carried out.

    Args:
        config, store, controller, orders, log: the fleet's.
        owner: the fleet.
    """

    def __init__(
        self,
        config: FleetConfig,
        store: Store,
        controller: Controller,
        orders: Orders,
        owner: Owner,
        log: EventLog,
    ):
        self._config, self._store, self._controller, self._log = config, store, controller, log
        self._orders, self._owner = orders, owner
        self._entries: dict[str, Entry] = {}
        self._adding: dict[str, Reply] = {}  # streams that have not begun yet
        self._removing: dict[str, Reply] = {}
        self._clearing: set[str] = set()  # names whose entries in the store are being removed

    # ---- the list of streams

    def load(self) -> None:
        """Take over the streams of the store and of the file; of those, what the file says is written.

        Raises:
            InputError: a stream of the file has the name of one that was added, or the store is damaged.
            StoreError: the store cannot be used.
        """
        entries = self._store.streams()
        named = {one.name: one for one in self._config.streams}
        for name, entry in list(entries.items()):
            if entry.origin == "file" and name not in named:
                self._store.remove_stream(name)
                del entries[name]
            elif entry.origin == "user" and name in named:
                raise InputError(
                    f"fleet.toml names the stream {name!r}, and one of this name was added before; give it "
                    f"another name, or end that one with `streamvos fleet remove {name}`"
                )
        for name, stream in named.items():
            old = entries.get(name)
            table = {**stream.model_dump(mode="json", exclude_unset=True), "mask": None}
            if old is None or old.table != table:
                entry = Entry(table, "file", 0 if old is None else old.epoch)
                self._write_new(name, entry, stream.mask if old is None else None)
                entries[name] = entry
        for name, entry in entries.items():
            table = {key: value for key, value in entry.table.items() if value is not None}
            stream = check_stream(self._config, table, f"the store: {name}")
            last, epoch = max([0, *self._store.order_numbers(name)]), entry.epoch
            if states := self._store.states(name):
                last, epoch = max(last, states[0].covers), max(epoch, states[0].epoch)
            self._entries[name] = replace(entry, epoch=epoch)
            self._controller.add(name, self._config.load_of(stream), epoch)
            self._orders.add(name, last)

    def placed(self, name: str, epoch: int) -> Entry:
        """The entry of a stream that is placed now."""
        entry = self._entries[name] = replace(self._entries[name], epoch=epoch)
        return entry

    def started(self, name: str, share: str, error: BaseException | None) -> None:
        """A start has succeeded, or failed; one that a user waits for fails for good if the input is bad."""
        if error is None:
            answer(self._adding.pop(name, None), True, status={"state": "running", "share": share})
        elif name in self._adding and isinstance(error, InputError):
            reply = self._adding.pop(name)
            self._forget(name)
            answer(reply, False, error=f"stream {name} cannot be added: {error}")

    def stopped(self, name: str) -> None:
        """A stream has stopped; perhaps for good."""
        if name in self._removing and name not in self._controller.streams:
            self._removed(name)

    # ---- requests

    def status(self) -> Mapping[str, Any]:
        """The state of all streams and shares, without latencies."""
        shown = self._owner.overview()
        streams = {name: {key: one.get(key) for key in SHOWN} for name, one in shown["streams"].items()}
        return {key: one for key, one in shown.items() if key != "pipelines"} | {"streams": streams}

    def annotate(self, stream: str, mask: np.ndarray, reply: Reply) -> None:
        """Store a mask, and apply it wherever the stream runs."""
        self._orders.take(stream, Order(mask.copy()), reply)

    def forget(self, stream: str, object_id: int, reply: Reply) -> None:
        """Store that an object is to be forgotten, and do it wherever the stream runs."""
        self._orders.take(stream, Order(forget=object_id), reply)

    def pause(self, stream: str) -> None:
        """Not possible."""
        raise InputError("a fleet does not pause streams; remove it, and add it again later")

    resume = pause

    def snapshot(self, stream: str) -> tuple[int, bytes]:
        """Not possible."""
        raise InputError(f"the states of {stream} are in the store of the fleet")

    def stop(self, stream: str, reply: Reply) -> None:
        """End the fleet."""
        if stream:
            raise InputError(f"a fleet's streams are ended with `streamvos fleet remove {stream}`")
        self._owner.end()
        reply(True)

    def add_stream(
        self,
        table: Mapping[str, Any],
        method: Mapping[str, Any] | None,
        files: bool,
        reply: Reply,
        state: tuple[int, bytes] | None = None,
    ) -> None:
        """Store a stream and place it; the reply comes when it has begun, or cannot."""
        if state is not None:
            raise InputError("a fleet keeps the states of its streams itself")
        if method is not None:
            raise InputError("all streams of a fleet have the method of its fleet.toml")
        stream = check_stream(self._config, table)
        name = stream.name
        if name in self._clearing:
            raise InputError(f"the stream {name!r} is still being removed; try again in a moment")
        self._controller.add(name, self._config.load_of(stream))
        entry = Entry({**dict(table), "mask": None})
        self._controller.streams[name].retry_at = float("inf")  # not before the store has it
        self._entries[name], self._adding[name] = entry, reply
        self._orders.add(name, 0 if stream.mask is None else 1)

        def stored(done: Future[Any]) -> None:
            error = done.exception()
            waiting = self._adding.get(name) is reply
            if not waiting:  # removed meanwhile
                self._forget(name)
            elif error is not None:
                del self._adding[name]
                self._forget(name)
                answer(reply, False, error=f"stream {name} cannot be added: {error}")
            else:
                self._controller.streams[name].retry_at = 0.0
                self._log.event("stream_added", stream=name, source=redact(stream.source))
                self._owner.soon()

        self._owner.later(lambda: self._write_new(name, entry, stream.mask), stored)

    def remove_stream(self, stream: str, at_once: bool, reply: Reply) -> None:
        """End a stream, and forget it and all that the store has of it."""
        self._controller.remove(stream)
        self._removing[stream] = reply
        answer(self._adding.pop(stream, None), False, error=f"stream {stream} was removed")
        self.stopped(stream)
        self._owner.soon()

    def drain(self, machine: str, reply: Reply) -> None:
        """Move the streams of a machine elsewhere."""
        shares = self._shares_of(machine)
        for share in shares:
            self._controller.drain(share)
        self._log.event("drains", shares=shares)
        self._owner.soon()
        reply(True, shares=shares)

    def undrain(self, machine: str, reply: Reply) -> None:
        """A machine takes streams again."""
        shares = self._shares_of(machine)
        for share in shares:
            self._controller.undrain(share)
        self._owner.soon()
        reply(True, shares=shares)

    def _shares_of(self, machine: str) -> list[str]:
        """The shares that a user means: one, or all of a machine, by its name or Ray's number of it."""
        known = self._owner.machines
        node = machine[:8] if "-" not in machine else ""  # shares are called NODE-NUMBER
        found = [
            share
            for share, host in known.items()
            if machine in (share, host) or share.rpartition("-")[0] == node
        ]
        if not found:
            there = ", ".join(sorted(f"{share} on {host}" for share, host in known.items()))
            raise InputError(f"there is no machine or share {machine!r:.100}; there are: {there or 'none'}")
        return sorted(found)

    # ---- what is stored

    def _write_new(self, name: str, entry: Entry, mask: Path | None) -> None:
        """Write a stream with its first mask: all of it, or nothing."""
        try:
            if mask is not None:
                self._store.write_order(name, 1, Order(read_label_map(mask)))
            self._store.write_stream(name, entry)
        except StreamvosError:
            with contextlib.suppress(StoreError):
                self._store.remove_stream(name)
            raise

    def _forget(self, name: str, then: Callable[[BaseException | None], None] = lambda error: None) -> None:
        """Nothing is to be left of a stream, here and in the store."""
        stream = self._controller.streams.get(name)
        if stream is not None and not stream.removed:
            self._controller.remove(name)
        self._entries.pop(name, None)
        self._orders.drop(name)
        self._clearing.add(name)

        def done(call: Future[Any]) -> None:
            self._clearing.discard(name)
            then(call.exception())

        self._owner.later(lambda: self._store.remove_stream(name), done)

    def _removed(self, name: str) -> None:
        """A stream has stopped for good."""
        reply = self._removing.pop(name)
        self._log.event("stream_removed", stream=name)

        def told(error: BaseException | None) -> None:
            if error is None:
                answer(reply, True, status={"state": "ended"})
            else:
                answer(reply, False, error=f"{name} has ended, but is still in the store: {error}")

        self._forget(name, told)
