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

An object is written whole or not at all, and nothing but a state is ever replaced by something older. Every
placement of a stream has a higher epoch, so a machine that was cut off and still writes is overruled.
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


_MARK = ".streamvos-fleet"


class StoreError(StreamvosError):
    """The store cannot be used now: it is full, gone, or refuses us."""


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
        except (ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError) as error:
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
            self._files, root = fsspec.core.url_to_fs(url)
        except (ValueError, ImportError) as error:
            raise InputError(f"the store {self.url}: {error}") from None
        self._root = str(root).rstrip("/")
        self._local = isinstance(self._files, fsspec.implementations.local.LocalFileSystem)
        mark = f"{self._root}/{_MARK}"
        with self._errors():
            if begin:
                if self._local:
                    os.makedirs(self._root, exist_ok=True)
                self._write(mark, b"the store of a fleet of streamvos\n")
            elif not self._files.exists(mark):
                raise StoreError(
                    f"there is no store of a fleet at {self.url}; is it mounted on this machine?"
                )

    # ---- streams

    def streams(self) -> dict[str, Entry]:
        """All streams by name; InputError if one is no stream's entry."""
        found = {}
        for path in self._list(f"{self._root}/streams"):
            name, _, ending = path.rpartition("/")[2].rpartition(".")
            if ending == "json":
                try:
                    found[check_name(name)] = Entry(**json.loads(self._read(path)))
                except (ValueError, TypeError, RecursionError) as error:
                    raise InputError(f"the store {self.url}: {path} is no stream: {error}") from None
        return found

    def write_stream(self, name: str, entry: Entry) -> None:
        """Write a stream's entry, new or changed."""
        text = json.dumps({"table": entry.table, "origin": entry.origin, "epoch": entry.epoch})
        self._write(f"{self._root}/streams/{check_name(name)}.json", text.encode())

    def remove_stream(self, name: str) -> None:
        """Remove all of a stream; its entry first, so that what is left is never taken for a stream."""
        self._remove(f"{self._root}/streams/{name}.json")
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
        """Save a state, and remove those and the orders that are not needed any more."""
        self._write(self._state(name, state), blob)
        kept = self.states(name)[:KEPT_STATES]
        for old in self.states(name)[KEPT_STATES:]:
            self._remove(self._state(name, old))
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
            text = getattr(error, "strerror", None) or str(error).strip() or type(error).__name__
            raise StoreError(f"the store {self.url}: {text.splitlines()[0]}") from None

    def _write(self, path: str, content: bytes) -> None:
        with self._errors():
            if not self._local:  # buckets write an object whole
                self._files.pipe_file(path, content)
                return
            partial = f"{path}.{secrets.token_hex(4)}.partial"
            if not os.path.isdir(self._root):  # not mounted any more; a new one would hide the old one
                raise FileNotFoundError("its folder is gone")
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

    def _read(self, path: str) -> bytes:
        with self._errors():
            return bytes(self._files.cat_file(path))

    def _list(self, folder: str) -> list[str]:
        with self._errors():
            try:
                self._files.invalidate_cache()  # other processes write here
                return [str(path) for path in self._files.ls(folder, detail=False)]
            except FileNotFoundError:
                if self._local and not os.path.isdir(self._root):  # not mounted is not empty
                    raise
                return []

    def _remove(self, path: str) -> None:
        with self._errors(), contextlib.suppress(FileNotFoundError):
            self._files.rm_file(path)
