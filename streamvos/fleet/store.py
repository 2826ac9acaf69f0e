"""What outlives a machine: streams, the orders that users gave, and saved states, in a folder or a bucket.

    store = Store("/mnt/shared/site")             # or s3://bucket/site and whatever else fsspec opens
    store.write_stream("front", Entry({"name": "front", "source": "rtsp://..."}))
    store.write_order("front", 1, Order(mask=label_map))
    store.write_state("front", State(epoch=1, seq=410, covers=1), blob)

| path | content |
|---|---|
| `streams/NAME.json` | the stream's table, and how often it was placed |
| `orders/NAME/NUMBER.json` | a mask as run lengths, or an object to forget |
| `states/NAME/EPOCH-SEQ-COVERS` | the state of its memory after frame SEQ, with the orders up to COVERS |
| `.streamvos-fleet` | the store's number, by which machines see that they use the same one |
| `.controller` | the number of the one process that decides |

An object is written whole or not at all. Every placement of a stream has a higher epoch, and only the newest
one may save states: a machine that was cut off and still runs the stream is refused.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np

from streamvos.addresses import redact
from streamvos.masks.checks import label_areas
from streamvos.masks.rle import decode_rle, encode_rles
from streamvos.pipeline.wire.endpoints import check_name
from streamvos.types import InputError, StreamvosError

KEPT_STATES = 2
"""Saved states of a stream: the newest, and the one before, in case the newest cannot be read."""


_MARK, _CONTROLLER = ".streamvos-fleet", ".controller"

_UNREADABLE = (
    *(ValueError, KeyError, TypeError, AttributeError, IndexError),
    *(RecursionError, OverflowError, MemoryError),
)
"""What reading a damaged object may raise."""


class StoreError(StreamvosError):
    """The store cannot be used now: it is full, gone, or refuses us."""


class OverruledError(StreamvosError):
    """The stream was removed, or placed again since; what this placement would save is out of date."""


@dataclass(frozen=True)
class Entry:
    """A stream.

    Attributes:
        table: as in [[streams]] of a pipeline.toml.
        origin: "file" if fleet.toml names it, "user" if it was added at run time.
        epoch: number of its last placement; 0 = it has never been placed.
    """

    table: dict[str, Any]
    origin: Literal["file", "user"] = "user"
    epoch: int = 0


@dataclass(frozen=True)
class Order:
    """What a user wants of a stream's objects: a mask, or an object to forget.

    Attributes:
        mask: (H, W) uint8 label map, as for `Client.annotate`; None = forget.
        forget: the object's id.
    """

    mask: np.ndarray | None = None
    forget: int = 0

    def to_json(self) -> str:
        """As text."""
        if self.mask is None:
            return json.dumps({"forget": self.forget})
        ids = sorted(label_areas(self.mask) | ({255: 1} if (self.mask == 255).any() else {}))
        rles = {str(number): rle for number, rle in encode_rles(self.mask, ids).items()}
        return json.dumps({"size": list(self.mask.shape), "objects": rles})

    @classmethod
    def from_json(cls, text: str) -> Order:
        """From text.

        Raises:
            InputError: it is no order.
        """
        try:
            values = json.loads(text)
            if "forget" in values:
                return cls(forget=int(values["forget"]))
            mask = np.zeros(tuple(map(int, values["size"])), np.uint8)
            for number, rle in values["objects"].items():
                mask[decode_rle(rle) > 0] = int(number)
            return cls(mask)
        except _UNREADABLE as error:
            raise InputError(f"it is no order of a user: {type(error).__name__}: {error}") from None


class State(NamedTuple):
    """Which state was saved: of which placement, after which frame, with the orders up to which number."""

    epoch: int
    seq: int
    covers: int


class Store:
    """A folder or a bucket. A fleet has one controller, and each stream one machine that saves it.

    Args:
        url: a folder, or an address that fsspec opens, such as s3://bucket/path.
        begin: whether it may be a new one. Otherwise it must have been begun before: a folder that is not
            mounted on this machine is another, empty one.

    Attributes:
        number: of this store; another one, by the same address on another machine, has another.

    Raises:
        InputError: there is no such kind of address, or its package is missing.
        StoreError: it cannot be written, or is none.
    """

    def __init__(self, url: str, begin: bool = False):
        try:
            import fsspec
        except ImportError:
            raise InputError("a fleet's store needs fsspec; pip install 'streamvos[fleet]'") from None
        self.url = redact(url)
        try:
            # other processes write here, so what was listed before says nothing
            self._files, root = fsspec.core.url_to_fs(url, use_listings_cache=False)
        except Exception as error:  # each kind of address has errors of its own
            raise InputError(f"the store {self.url}: {_first_line(error)}") from None
        self._root = str(root).rstrip("/")
        self._local = isinstance(self._files, fsspec.implementations.local.LocalFileSystem)
        self._mark = f"{self._root}/{_MARK}"
        self._token = b""
        with self._errors():
            if begin and self._local:
                os.makedirs(self._root, mode=0o700, exist_ok=True)  # addresses of cameras have passwords
            found = bytes(self._files.cat_file(self._mark)) if self._files.exists(self._mark) else None
            if found is None and not begin:
                raise StoreError(
                    f"there is no store of a fleet at {self.url}; is it mounted on this machine?"
                )
            number = re.search(rb"[0-9a-f]{16}", found or b"")
            self.number = number[0].decode() if number else secrets.token_hex(8)
        if begin and number is None:
            self._write(self._mark, f"the store of a fleet of streamvos: {self.number}\n".encode())
        if begin:
            self.check()

    def check(self) -> None:
        """Write something; StoreError if it is full, gone, or refuses us."""
        self._write(f"{self._root}/.check", b"")

    def take_over(self) -> None:
        """Become the process that decides; the one before ends when `is_ours` tells it."""
        self._token = secrets.token_hex(8).encode()
        self._write(f"{self._root}/{_CONTROLLER}", self._token)

    def is_ours(self) -> bool:
        """Whether nobody else has taken over since."""
        return self._read(f"{self._root}/{_CONTROLLER}") == self._token

    # ---- streams

    def streams(self) -> dict[str, Entry]:
        """All streams by name; InputError if one is no stream's entry."""
        found = {}
        for path in self._list(f"{self._root}/streams"):
            name, _, ending = path.rpartition("/")[2].rpartition(".")
            if ending == "json":
                found[check_name(name)] = self._entry(path)
        return found

    def write_stream(self, name: str, entry: Entry) -> None:
        """Write a stream's entry, new or changed."""
        text = json.dumps({"table": entry.table, "origin": entry.origin, "epoch": entry.epoch})
        self._write(f"{self._root}/streams/{check_name(name)}.json", text.encode())

    def remove_entry(self, name: str) -> None:
        """Remove a stream's entry: from now on it is none, whatever is left of it."""
        self._remove(f"{self._root}/streams/{name}.json")

    def remove_stream(self, name: str) -> None:
        """Remove all of a stream, or what is left of one."""
        self.remove_entry(name)
        for kind in ("orders", "states"):
            for path in self._list(f"{self._root}/{kind}/{name}"):
                self._remove(path)

    # ---- orders

    def write_order(self, name: str, number: int, order: Order) -> None:
        """Write an order of a user; numbers ascend."""
        self._write(self._order(name, number), order.to_json().encode())

    def remove_order(self, name: str, number: int) -> None:
        """Remove an order, which was refused or is part of a saved state."""
        self._remove(self._order(name, number))

    def order_numbers(self, name: str) -> list[int]:
        """The numbers of a stream's orders, ascending."""
        names = (path.rpartition("/")[2] for path in self._list(f"{self._root}/orders/{name}"))
        return sorted(int(found[1]) for one in names if (found := re.fullmatch(r"(\d+)\.json", one)))

    def read_order(self, name: str, number: int) -> Order:
        """An order; InputError if it is none."""
        return Order.from_json(self._read(self._order(name, number)).decode(errors="replace"))

    # ---- states

    def write_state(self, name: str, state: State, blob: bytes) -> None:
        """Save a state, and remove those and the orders that are not needed any more.

        Raises:
            OverruledError: the stream was removed or placed again; nothing has changed.
        """
        if self._epoch(name) != state.epoch:
            raise OverruledError(f"the stream {name!r} was removed, or has been placed again")
        self._write(self._state(name, state), blob)
        for path in self._list(f"{self._root}/states/{name}"):
            if path.endswith(".partial"):  # of a machine that died while it wrote
                self._remove(path)
        states = self.states(name)
        for old in states[KEPT_STATES:]:
            self._remove(self._state(name, old))
        kept = states[:KEPT_STATES]
        if len(kept) == KEPT_STATES:
            for number in self.order_numbers(name):
                if number <= min(one.covers for one in kept):
                    self.remove_order(name, number)

    def states(self, name: str) -> list[State]:
        """The saved states of a stream, the newest first."""
        names = (path.rpartition("/")[2] for path in self._list(f"{self._root}/states/{name}"))
        parts = (re.fullmatch(r"(\d+)-(\d+)-(\d+)", one) for one in names)
        return sorted((State(*map(int, one.groups())) for one in parts if one), reverse=True)

    def read_state(self, name: str, state: State) -> bytes:
        """The blob of a saved state."""
        return self._read(self._state(name, state))

    # ---- files

    def _order(self, name: str, number: int) -> str:
        return f"{self._root}/orders/{name}/{number:08}.json"

    def _epoch(self, name: str) -> int | None:
        """The number of a stream's last placement; None = there is no such stream."""
        path = f"{self._root}/streams/{check_name(name)}.json"
        with self._errors():
            if not self._files.exists(path):
                self._check_folder()
                return None
        return self._entry(path).epoch

    def _entry(self, path: str) -> Entry:
        text = self._read(path)
        try:
            entry = Entry(**json.loads(text))
            if not isinstance(entry.table, dict) or type(entry.epoch) is not int or entry.epoch < 0:
                raise ValueError("expected a table, its origin and an epoch")
            if entry.origin not in ("file", "user"):
                raise ValueError(f"its origin is {entry.origin!r:.40}")
        except _UNREADABLE as error:
            raise InputError(f"the store {self.url}: {path} is no stream: {error}") from None
        return entry

    def _state(self, name: str, state: State) -> str:
        return f"{self._root}/states/{name}/{state.epoch:08}-{state.seq:012}-{state.covers:08}"

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        """Whatever a file system or a bucket raises, as one line."""
        try:
            yield
        except StreamvosError:
            raise
        except Exception as error:
            raise StoreError(f"the store {self.url}: {_first_line(error)}") from None

    def _check_folder(self) -> None:
        """A folder that is not mounted any more is not empty, and nothing may be written where it was."""
        if self._local and not os.path.exists(self._mark):
            raise FileNotFoundError("its folder is gone; is it mounted on this machine?")

    def _write(self, path: str, content: bytes) -> None:
        with self._errors():
            if not self._local:  # buckets write an object whole
                self._files.pipe_file(path, content)
                return
            partial = f"{path}.{secrets.token_hex(4)}.partial"
            if path != self._mark:
                self._check_folder()
            os.makedirs(os.path.dirname(path), exist_ok=True)
            try:
                with open(partial, "xb") as file:
                    file.write(content)
                    file.flush()
                    os.fsync(file.fileno())
                os.replace(partial, path)
            except BaseException:
                with contextlib.suppress(OSError):
                    os.unlink(partial)
                raise
            _sync_folder(os.path.dirname(path))

    def _read(self, path: str) -> bytes:
        with self._errors():
            return bytes(self._files.cat_file(path))

    def _list(self, folder: str) -> list[str]:
        with self._errors():
            try:
                return [str(path) for path in self._files.ls(folder, detail=False)]
            except FileNotFoundError:
                self._check_folder()
                return []

    def _remove(self, path: str) -> None:
        with self._errors():
            try:
                self._files.rm_file(path)
            except FileNotFoundError:
                self._check_folder()


def _sync_folder(folder: str) -> None:
    """A new name outlives a power cut once its folder is on the disk; not every file system can do that."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _first_line(error: BaseException) -> str:
    text = getattr(error, "strerror", None) or str(error).strip() or type(error).__name__
    return str(text).splitlines()[0]
