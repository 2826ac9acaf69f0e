"""The frames that a source has sent and must still keep (docs/protocol.md, 5).

    store = FrameStore(arena, slots=16, size=(480, 854))
    kept = store.keep(7, arrival, dropped={})
    outbox.send("frame", 7, arrays={"image": store.sendable(kept)})
    store.release(7)                    # frames up to 7 are needed no more

With an arena they lie in shared memory; without one (the extractor is on another host) in this process.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from streamvos.pipeline.stages.mailbox import Arrival
from streamvos.pipeline.wire.arenas import Arena
from streamvos.pipeline.wire.messages import Array, Place


@dataclass(frozen=True, slots=True)
class StoredFrame:
    """One frame that was sent.

    Attributes:
        seq: its number.
        slot, place: where it lies in the arena; place None: in `image`.
        captured: monotonic ns; pts: s; received: monotonic ns.
        dropped: cause -> frames dropped before it.
    """

    seq: int
    slot: int
    place: Place | None
    image: np.ndarray | None
    captured: int
    pts: float
    received: int
    dropped: Mapping[str, int]


class FrameStore:
    """So many frames by their numbers, ascending.

    Args:
        arena: where they lie, or None.
        slots: how many; the arena gets one more, for the first label map.
        size: (H, W) of the frames.

    Raises:
        ArenaError: there is not that much shared memory.
    """

    def __init__(self, arena: Arena | None, slots: int, size: tuple[int, int]):
        self._arena, self._size = arena, size
        self._mask_slot = slots
        self._free = list(range(slots))
        self._kept: dict[int, StoredFrame] = {}
        if arena is not None:
            arena.allocate(slots + 1, size[0] * size[1] * 3)

    @property
    def full(self) -> bool:
        """Whether no slot is free."""
        return not self._free

    @property
    def numbers(self) -> list[int]:
        """Of the frames that are kept, ascending."""
        return list(self._kept)

    def get(self, seq: int) -> StoredFrame | None:
        """A frame that is kept."""
        return self._kept.get(seq)

    def keep(self, seq: int, arrival: Arrival, dropped: Mapping[str, int]) -> StoredFrame:
        """Put a frame into a free slot."""
        frame, slot = arrival.frame, self._free.pop()
        place = None if self._arena is None else self._written(self._arena, slot, frame.image)
        image = frame.image if place is None else None
        kept = StoredFrame(seq, slot, place, image, frame.captured_ns, frame.pts, arrival.received, dropped)
        self._kept[seq] = kept
        return kept

    def sendable(self, kept: StoredFrame) -> Any:
        """What an outbox takes for the frame's picture, (H, W, 3) uint8."""
        return kept.image if kept.place is None else Array("uint8", (*self._size, 3), kept.place)

    def picture(self, kept: StoredFrame) -> np.ndarray:
        """The frame's picture, (H, W, 3) uint8, to be looked at."""
        if kept.place is None or self._arena is None:
            assert kept.image is not None
            return kept.image
        shape = (*self._size, 3)
        with self._arena.read(kept.place, int(np.prod(shape))) as view:
            return np.frombuffer(bytes(view), np.uint8).reshape(shape)

    def sendable_mask(self, label_map: np.ndarray) -> Any:
        """What an outbox takes for the first label map, (H, W) uint8; it has a slot of its own."""
        if self._arena is None:
            return label_map
        return Array("uint8", label_map.shape, self._written(self._arena, self._mask_slot, label_map))

    def release(self, seq: int) -> None:
        """Let go of all frames up to this one."""
        for number in [number for number in self._kept if number <= seq]:
            self._free.append(self._kept.pop(number).slot)

    def clear(self) -> None:
        """Let go of all."""
        self._free += [kept.slot for kept in self._kept.values()]
        self._kept.clear()

    @staticmethod
    def _written(arena: Arena, slot: int, array: np.ndarray) -> Place:
        generation, offsets = arena.write(slot, Array.of(array).data)
        return Place(arena.name, slot, generation, offsets[0])
