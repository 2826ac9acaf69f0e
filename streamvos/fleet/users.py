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
from streamvos.fleet.cluster import Place
from streamvos.fleet.config import FleetConfig, check_stream
from streamvos.fleet.controller import Controller
from streamvos.fleet.orders import Orders, answer
from streamvos.fleet.store import Entry, Order, Store, StoreError
from streamvos.masks.labelmap import read_label_map
from streamvos.pipeline.clients.control import Reply
from streamvos.pipeline.config.streams import StreamConfig
from streamvos.pipeline.telemetry.logs import EventLog
from streamvos.types import InputError, StreamvosError

SHOWN = (
    *("state", "share", "machine", "epoch", "problem", "reason", "waiting_for", "seq", "fps", "frames"),
    *("objects", "dropped", "size", "restarts", "gone"),
)
"""What `status` tells of a stream: a message has at most 1 MiB, so that 3,000 streams fit."""


class Owner(Protocol):
    """The fleet that runs."""

    @property
    def machines(self) -> Mapping[str, Place]:
        """Where the shares are."""

    def later(self, work: Callable[[], Any], then: Callable[[Future[Any]], None]) -> Future[Any]:
        """Do something in another thread, and take over its outcome in this one."""

    def soon(self) -> None:
        """Look and decide at the next turn."""

    def end(self) -> None:
        """End the fleet."""

    def forget(self, stream: str) -> None:
        """Forget what was counted of a stream."""

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
        self._removing: dict[str, Reply] = {}  # streams that have not stopped yet
        self._changing: set[str] = set()  # names whose entries in the store are being written or removed

    # ---- the list of streams

    def load(self) -> None:
        """Take over the streams of the store and of the file; of those, what the file says is written.

        Raises:
            InputError: a stream of the file has the name of one that was added, or the store is damaged;
                nothing was written.
            StoreError: the store cannot be used.
        """
        entries = self._store.streams()
        named = {one.name: one for one in self._config.streams}
        for name, entry in entries.items():
            if entry.origin == "user" and name in named:
                raise InputError(
                    f"fleet.toml names the stream {name!r}, and one of this name was added before; give it "
                    f"another name, or end that one with `streamvos fleet remove {name}`"
                )
            if entry.origin == "user":
                named[name] = self._checked(name, entry)
        for name in sorted(entries.keys() - named.keys()):
            self._log.event("stream_removed", stream=name, reason="fleet.toml does not name it any more")
            self._store.remove_stream(name)
        for name, stream in named.items():
            old = entries.get(name)
            entry = old if old is not None and old.origin == "user" else self._write(stream, old)
            last, epoch = max([0, *self._store.order_numbers(name)]), entry.epoch
            if states := self._store.states(name):
                last, epoch = max(last, states[0].covers), max(epoch, states[0].epoch)
            self._entries[name] = replace(entry, epoch=epoch)
            self._controller.add(name, self._config.loads_of(stream), epoch)
            self._orders.add(name, last)

    def _checked(self, name: str, entry: Entry) -> StreamConfig:
        table = {key: value for key, value in entry.table.items() if value is not None}
        return check_stream(self._config, table, f"the store: {name}")

    def _write(self, stream: StreamConfig, old: Entry | None) -> Entry:
        """What the file says of a stream, as it is now in the store."""
        table = {**stream.model_dump(mode="json", exclude_unset=True), "mask": None}
        if old is None:
            entry = Entry(table, "file")
            self._write_new(stream.name, entry, stream.mask)
        elif old.table != table:  # another epoch, so that what runs by the old one is replaced
            entry = replace(old, table=table, epoch=old.epoch + 1)
            self._store.write_stream(stream.name, entry)
        else:
            entry = old
        return entry

    def placed(self, name: str, epoch: int) -> Entry:
        """The entry of a stream that is placed now."""
        entry = self._entries[name] = replace(self._entries[name], epoch=epoch)
        return entry

    def failed(self, name: str, error: BaseException) -> None:
        """A start has failed; for good, if a user waits for it and the input is bad."""
        if name in self._adding and isinstance(error, InputError):
            reply = self._adding.pop(name)
            self._controller.remove(name)
            self._forget(name)
            answer(reply, False, error=f"stream {name} cannot be added: {error}")

    def settle(self) -> None:
        """Answer those whose streams have begun, wait for room, or have stopped for good."""
        streams = self._controller.streams
        for name in [one for one in self._removing if one not in streams]:
            self._log.event("stream_removed", stream=name)
            self._forget(name, self._removing.pop(name))
        for name in [one for one in self._adding if one not in self._changing]:
            one = streams[name]
            if one.phase == "running":
                answer(self._adding.pop(name), True, status={"state": "running", "share": one.share})
            elif one.phase == "waiting" and one.problem and not one.failures:
                status = {"state": "waiting", "share": "", "problem": one.problem}
                answer(self._adding.pop(name), True, status=status)

    # ---- requests

    def status(self) -> Mapping[str, Any]:
        """The state of all streams and shares, without latencies."""
        shown = self._owner.overview()
        streams = {name: {key: one.get(key) for key in SHOWN} for name, one in shown["streams"].items()}
        return {key: one for key, one in shown.items() if key != "pipelines"} | {"streams": streams}

    def annotate(self, stream: str, mask: np.ndarray, reply: Reply) -> None:
        """Store a mask, and apply it wherever the stream runs."""
        self._check_settled(stream)
        self._orders.take(stream, Order(mask.copy()), reply)

    def forget(self, stream: str, object_id: int, reply: Reply) -> None:
        """Store that an object is to be forgotten, and do it wherever the stream runs."""
        self._check_settled(stream)
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
        """Store a stream and place it; the reply comes when it has begun, has no room, or cannot begin."""
        if state is not None:
            raise InputError("a fleet keeps the states of its streams itself")
        if method is not None:
            raise InputError("all streams of a fleet have the method of its fleet.toml")
        stream = check_stream(self._config, table)
        name = stream.name
        self._check_settled(name)
        self._controller.add(name, self._config.loads_of(stream))
        entry = Entry({**dict(table), "mask": None})
        self._controller.streams[name].retry_at = float("inf")  # not before the store has it
        self._entries[name], self._adding[name] = entry, reply
        self._orders.add(name, 0 if stream.mask is None else 1)
        self._changing.add(name)

        def stored(done: Future[Any]) -> None:
            self._changing.discard(name)
            if (error := done.exception()) is None:
                self._controller.streams[name].retry_at = 0.0
                self._log.event("stream_added", stream=name, source=redact(stream.source))
                self._owner.soon()
                return
            del self._adding[name]
            self._controller.remove(name)
            self._forget(name)
            answer(reply, False, error=f"stream {name} cannot be added: {error}")

        self._owner.later(lambda: self._write_new(name, entry, stream.mask), stored)

    def remove_stream(self, stream: str, at_once: bool, reply: Reply) -> None:
        """End a stream, and forget it and all that the store has of it.

        The store does not have it any more before it ends: whatever dies, it does not come back.
        """
        self._check_settled(stream)
        self._controller.known(stream)
        self._changing.add(stream)

        def removed(done: Future[Any]) -> None:
            self._changing.discard(stream)
            if (error := done.exception()) is not None:
                answer(reply, False, error=f"stream {stream} is not removed: {error}")
                return
            self._removing[stream] = reply
            answer(self._adding.pop(stream, None), False, error=f"stream {stream} was removed")
            if stream in self._controller.streams:
                self._controller.remove(stream)
            self.settle()
            self._owner.soon()

        self._owner.later(lambda: self._store.remove_entry(stream), removed)

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
            for share, place in known.items()
            if machine in (share, place.machine) or share.rpartition("-")[0] == node
        ]
        if not found:
            there = ", ".join(sorted(f"{share} on {place.machine}" for share, place in known.items()))
            raise InputError(f"there is no machine or share {machine!r:.100}; there are: {there or 'none'}")
        return sorted(found)

    # ---- what is stored

    def _check_settled(self, name: str) -> None:
        if name in self._changing:
            raise InputError(f"the stream {name!r} is just being added or removed; try again in a moment")

    def _write_new(self, name: str, entry: Entry, mask: Path | None) -> None:
        """Write a stream with its first mask: all of it, or nothing."""
        first = None if mask is None else Order(read_label_map(mask))
        self._store.remove_stream(name)  # what may be left of an earlier one
        try:
            if first is not None:
                self._store.write_order(name, 1, first)
            self._store.write_stream(name, entry)
        except StreamvosError:
            with contextlib.suppress(StoreError):
                self._store.remove_stream(name)
            raise

    def _forget(self, name: str, reply: Reply | None = None) -> None:
        """Forget a stream that has stopped for good, here and in the store; then answer."""
        self._entries.pop(name, None)
        self._owner.forget(name)
        self._orders.drop(name)
        self._changing.add(name)

        def done(call: Future[Any]) -> None:
            self._changing.discard(name)
            if (error := call.exception()) is not None:  # the next stream of this name clears it away
                self._log.event("not_cleared", "warning", stream=name, error=str(error))
            answer(reply, True, status={"state": "ended"})

        self._owner.later(lambda: self._store.remove_stream(name), done)
