"""Arrays in shared memory: memfds cut into slots (docs/protocol.md, 3).

    arena = Arena.create("front/frames")         # the supervisor; `arena.fd` is inherited
    arena.allocate(slots=16, slot_bytes=640 * 480 * 3)           # the producer, before READY
    generation, (offset,) = arena.write(3, image)                # the producer
    with arena.read(Place("front/frames", 3, generation, offset), image.nbytes) as view: ...    # the consumer

A memfd has no name; the kernel frees it when the last process closes it. It never shrinks, so that a reader
of an older layout never gets a bus error.

    file head    magic, slots, bytes of a slot, layout (how often it was allocated)
    slot 0       generation, then at 64 bytes the data
    slot 1       ...
"""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
import struct
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from streamvos.pipeline.wire.messages import Buffer, Place, Refused
from streamvos.types import StreamvosError

HEAD = 64
"""Bytes before a slot's data, of which the first eight are its generation; a cache line."""

ALIGNMENT = 64

_GENERATION = struct.Struct("<Q")
_LAYOUT_SHIFT = 32  # generations of a later layout are above all of an earlier one
_FILE_HEAD = struct.Struct("<8sQQQ")
_MAGIC = b"svosmem1"
_USABLE = 0.9  # fraction of the available memory; the rest is for other processes


class ArenaError(StreamvosError, RuntimeError):
    """Shared memory is not available, or the request does not fit its layout."""


class Arena:
    """One memfd in one process; one thread at a time.

    Attributes:
        name: name of the arena in messages.
        fd: descriptor of the memfd.
        slots, slot_bytes: 0 until the arena is allocated or attached.
    """

    def __init__(self, name: str, fd: int):
        self.name, self.fd = name, fd
        self.slots = self.slot_bytes = 0
        self._stride = 0
        self._head = b""
        self._map: mmap.mmap | None = None
        self._view = memoryview(b"")

    @classmethod
    def create(cls, name: str) -> Arena:
        """An empty arena, whose descriptor child processes may inherit.

        Raises:
            ArenaError: the system has no memfd, or no descriptors left.
        """
        try:
            return cls(name, os.memfd_create(f"streamvos {name}"[:200], 0))
        except (OSError, AttributeError) as error:
            raise ArenaError(f"cannot make shared memory for {name}: {error}") from None

    def allocate(self, slots: int, slot_bytes: int) -> None:
        """Allocate slots; earlier contents are lost unless the sizes are the same.

        Reading a place of an earlier layout raises `Refused`.

        Raises:
            ArenaError: there is not that much memory.
        """
        if slots < 1 or slot_bytes < 0:
            raise ArenaError(f"{self.name} needs one slot or more, got {slots} of {slot_bytes} bytes")
        if self.attach() and (self.slots, self.slot_bytes) == (slots, slot_bytes):
            return
        size = HEAD + slots * (HEAD + _rounded(slot_bytes))
        try:
            # a memfd has no limit: if it needs too much, the kernel kills a process instead of refusing
            available = available_memory()
            if size - os.fstat(self.fd).st_blocks * 512 > _USABLE * available:
                raise MemoryError(f"{available / 2**20:.0f} MiB are available")
            os.posix_fallocate(self.fd, 0, size)
            self._remap()
        except (OSError, MemoryError) as error:
            raise ArenaError(
                f"{self.name} needs {size / 2**20:.0f} MiB of shared memory ({slots} slots of "
                f"{slot_bytes / 2**20:.1f} MiB): {getattr(error, 'strerror', error)}; use smaller frames or "
                "fewer streams"
            ) from None
        self._format(slots, slot_bytes)

    def attach(self) -> bool:
        """Map the producer's current layout; False if there is none."""
        try:
            size = os.fstat(self.fd).st_size
            if size >= HEAD and size != self._view.nbytes:
                self._remap()
        except OSError as error:
            raise ArenaError(f"cannot map {self.name}: {error.strerror}") from None
        if size < HEAD:
            return False
        head = bytes(self._view[: _FILE_HEAD.size])
        magic, slots, slot_bytes, _ = _FILE_HEAD.unpack(head)
        stride = HEAD + _rounded(slot_bytes)
        if magic != _MAGIC or not slots or HEAD + slots * stride > size:
            self.slots = self.slot_bytes = 0
            return False
        self._head, self.slots, self.slot_bytes, self._stride = head, slots, slot_bytes, stride
        return True

    def write(self, slot: int, *buffers: Buffer | np.ndarray) -> tuple[int, list[int]]:
        """Fill a slot, one buffer after the other; arrays need not be contiguous.

        Returns:
            The slot's new generation, and the offset of each buffer.

        Raises:
            ArenaError: there is no such slot, or not that much room; nothing is written.
        """
        start = self._start(slot)
        offsets, end = [], 0
        for buffer in buffers:
            offsets.append(_rounded(end))
            end = offsets[-1] + (buffer if isinstance(buffer, np.ndarray) else memoryview(buffer)).nbytes
        if end > self.slot_bytes:
            raise ArenaError(f"{self.name} has slots of {self.slot_bytes} bytes, got {end}")
        # before the data, so that a reader of the old data finds out when it is done
        generation = (_GENERATION.unpack_from(self._view, start)[0] + 1) % 2**63
        _GENERATION.pack_into(self._view, start, generation)
        for buffer, offset in zip(buffers, offsets, strict=True):
            self._fill(start + HEAD + offset, buffer)
        return generation, offsets

    @contextmanager
    def read(self, place: Place, nbytes: int) -> Iterator[memoryview]:
        """A read-only view of a place; copy it within the block.

        Raises:
            Refused: there is no such place, or its slot is used again before the block ends.
        """
        with self.look(place, nbytes) as writable, writable.toreadonly() as view:
            yield view
        self.check(place)

    def look(self, place: Place, nbytes: int) -> memoryview:
        """A view of a place: not to be written to, and valid only if `check` passes afterwards.

        Raises:
            Refused: there is no such place, or its slot has been used again.
        """
        if self._view[: len(self._head)] != self._head or not self.slots:
            self.attach()
        if place.slot >= self.slots or place.offset + nbytes > self.slot_bytes:
            raise Refused(
                "slot",
                f"{self.name} has {self.slots} slots of {self.slot_bytes} bytes, got {place} + {nbytes}",
            )
        self.check(place)
        first = HEAD + place.slot * self._stride + HEAD + place.offset
        return self._view[first : first + nbytes]

    def check(self, place: Place) -> None:
        """Check that a place still holds the contents that it names.

        Raises:
            Refused: its slot has been used again.
        """
        same = place.slot < self.slots and self.generation(place.slot) == place.generation
        if not same or self._view[: len(self._head)] != self._head:
            raise Refused("stale slot", f"{self.name} {place.slot}")

    def free(self) -> None:
        """Free the memory while others have it mapped: they read zeros, which no place matches."""
        # FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE: if the file shrank, readers would get a bus error
        size = ctypes.c_int64(os.fstat(self.fd).st_size)
        ctypes.CDLL(None).fallocate(self.fd, 3, ctypes.c_int64(0), size)

    def generation(self, slot: int) -> int:
        """A slot's generation, which only ever rises; a slot that was never used has one too.

        Raises:
            ArenaError: there is no such slot.
        """
        return int(_GENERATION.unpack_from(self._view, self._start(slot))[0])

    def close(self) -> None:
        """Unmap the memory; the descriptor stays open."""
        self.slots = self.slot_bytes = 0
        with contextlib.suppress(BufferError):  # a view still exists; the map is freed with it
            self._view.release()
            if self._map is not None:
                self._map.close()
        self._view, self._map = memoryview(b""), None

    def _start(self, slot: int) -> int:
        if not 0 <= slot < self.slots:
            raise ArenaError(f"{self.name} has {self.slots} slots, got slot {slot}")
        return HEAD + slot * self._stride

    def _fill(self, first: int, buffer: Buffer | np.ndarray) -> None:
        if isinstance(buffer, np.ndarray):
            there = np.frombuffer(self._view[first : first + buffer.nbytes], buffer.dtype)
            np.copyto(there.reshape(buffer.shape), buffer)
        elif size := memoryview(buffer).nbytes:
            self._view[first : first + size] = memoryview(buffer).cast("B")

    def _format(self, slots: int, slot_bytes: int) -> None:
        """Write the heads, in an order that leaves no valid layout if the process dies in between."""
        magic, *_, layout = _FILE_HEAD.unpack_from(self._view)
        layout = (layout + 1) % 2**30 if magic == _MAGIC else 0  # generations stay below 2**63
        _FILE_HEAD.pack_into(self._view, 0, _MAGIC, 0, 0, layout)
        stride = HEAD + _rounded(slot_bytes)
        for slot in range(slots):
            _GENERATION.pack_into(self._view, HEAD + slot * stride, layout << _LAYOUT_SHIFT)
        _FILE_HEAD.pack_into(self._view, 0, _MAGIC, slots, slot_bytes, layout)
        self.attach()

    def _remap(self) -> None:
        self.close()
        self._map = mmap.mmap(self.fd, 0)
        self._view = memoryview(self._map)


def available_memory() -> int:
    """Bytes that this process may still allocate, by the machine and its control group (version 2)."""
    machine = _fields(Path("/proc/meminfo").read_text()).get("MemAvailable:", 2**63 // 1024) * 1024
    try:
        group = Path("/proc/self/cgroup").read_text().rpartition("0::/")[2].strip()
        folder = Path("/sys/fs/cgroup") / group
        limit, used = (int((folder / name).read_text()) for name in ("memory.max", "memory.current"))
        reclaimable = _fields((folder / "memory.stat").read_text()).get("inactive_file", 0)
    except (OSError, ValueError):  # none, or "max"
        return machine
    return min(machine, max(limit - used + reclaimable, 0))


def _fields(text: str) -> dict[str, int]:
    return {words[0]: int(words[1]) for words in map(str.split, text.splitlines()) if len(words) > 1}


def packed_bytes(sizes: Iterable[int]) -> int:
    """Bytes of a slot that holds buffers of these sizes, one after the other."""
    return sum(_rounded(size) for size in sizes)


def _rounded(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT
