"""The frames that a source has sent and may have to send again (docs/protocol.md, 5).

    store = FrameStore(arena, slots=16, size=(480, 854))
    frame = store.put(7, arrival, dropped={})
    outbox.send("frame", 7, arrays={"image": frame.image})
    store.release(7)                    # frames up to 7 are no longer needed

With an arena, pictures lie in shared memory, without one (the extractor is on another host) in this process.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from streamvos.pipeline.stages.mailbox import Arrival
from streamvos.pipeline.wire.arenas import Arena
from streamvos.pipeline.wire.messages import Array, Place


@dataclass(frozen=True, slots=True)
class StoredFrame:
    """One frame that was sent.

    Attributes:
        seq: its number.
        slot: its slot of the arena.
        image: the picture, (H, W, 3) uint8, as an outbox takes it: in shared memory, or as an array.
        captured: monotonic ns; pts: s; received: monotonic ns.
        dropped: cause -> frames dropped before it.
    """

    seq: int
    slot: int
    image: Array | np.ndarray
    captured: int
    pts: float
    received: int
    dropped: Mapping[str, int]


class FrameStore:
    """A number of frames, by their numbers, ascending.

    Args:
        arena: where the pictures lie, or None.
        slots: how many frames fit; the arena gets one more slot, for the first label map.
        size: (H, W) of the frames.

    Raises:
        ArenaError: there is not that much shared memory.
    """

    def __init__(self, arena: Arena | None, slots: int, size: tuple[int, int]):
        self._arena, self._mask_slot = arena, slots
        self._free = list(range(slots))
        self._frames: dict[int, StoredFrame] = {}
        if arena is not None:
            arena.allocate(slots + 1, size[0] * size[1] * 3)

    @property
    def full(self) -> bool:
        """Whether no slot is free."""
        return not self._free

    @property
    def numbers(self) -> list[int]:
        """Numbers of the stored frames, ascending."""
        return list(self._frames)

    def get(self, seq: int) -> StoredFrame | None:
        """A frame by its number."""
        return self._frames.get(seq)

    def put(self, seq: int, arrival: Arrival, dropped: Mapping[str, int]) -> StoredFrame:
        """Store a frame in a free slot."""
        frame, slot = arrival.frame, self._free.pop()
        image = self._placed(slot, frame.image)
        stored = StoredFrame(seq, slot, image, frame.captured_ns, frame.pts, arrival.received, dropped)
        self._frames[seq] = stored
        return stored

    def picture(self, stored: StoredFrame) -> np.ndarray:
        """A stored frame's picture, (H, W, 3) uint8, to look at."""
        if isinstance(stored.image, np.ndarray):
            return stored.image
        assert self._arena is not None
        assert isinstance(stored.image.data, Place)
        with self._arena.read(stored.image.data, stored.image.nbytes) as view:
            return np.frombuffer(bytes(view), np.uint8).reshape(stored.image.shape)

    def sendable_mask(self, label_map: np.ndarray) -> Array | np.ndarray:
        """The first label map, (H, W) uint8, as an outbox takes it; it has a slot of its own."""
        return self._placed(self._mask_slot, label_map)

    def release(self, seq: int) -> None:
        """Forget all frames up to this one."""
        for number in [number for number in self._frames if number <= seq]:
            self._free.append(self._frames.pop(number).slot)

    def clear(self) -> None:
        """Forget all frames."""
        self.release(max(self._frames, default=-1))

    def _placed(self, slot: int, array: np.ndarray) -> Array | np.ndarray:
        if self._arena is None:
            return array
        generation, offsets = self._arena.write(slot, Array.of(array).data)
        return Array("uint8", array.shape, Place(self._arena.name, slot, generation, offsets[0]))
