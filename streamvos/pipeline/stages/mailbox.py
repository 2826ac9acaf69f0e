"""The frames of a source: the thread that reads them, those that wait, and those that were sent.

A read may block for any time, so it has its own thread. Under policy "latest" the mailbox holds one frame and
a newer one replaces it; under "lossless" it holds two and the reader waits.

    mailbox = Mailbox(newest=True, wake=waker.wake)
    reader = FrameReader(lambda: open_source("camera:0"), mailbox)
    reader.start()
    arrival = mailbox.take()            # None: no frame yet
    mailbox.take_drops()                # {"newer frame": 3}

    store = FrameStore(arena, slots=16, size=(480, 854))
    stored = store.put(7, arrival, dropped={})
    outbox.send("frame", 7, arrays={"image": stored.image})
    store.release(7)                    # frames up to 7 are no longer needed
"""

from __future__ import annotations

import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np

from streamvos.pipeline.wire.arenas import Arena
from streamvos.pipeline.wire.messages import Array, Place
from streamvos.sources import LiveSource, Source
from streamvos.types import Frame, SourceError, StreamvosError

LOSSLESS_FRAMES = 2
"""Frames that may wait under "lossless"; the reader holds one more."""

_JOIN_SECONDS = 2.0


@dataclass(frozen=True, slots=True)
class Arrival:
    """A frame, and when it was read (monotonic ns)."""

    frame: Frame
    received: int


class Mailbox:
    """Frames between the reader's thread and the stage's.

    Args:
        newest: whether to hold the newest frame only (policy "latest").
        wake: called when the stage has something to look at.
    """

    def __init__(self, newest: bool, wake: Callable[[], None]):
        self._newest, self._wake = newest, wake
        self._changed = threading.Condition()
        self._frames: deque[Arrival] = deque()
        self._drops: Counter[str] = Counter()
        self._paused_at: int | None = None
        self._paused_ns = 0
        self._closed = self._over = False
        self._error: StreamvosError | None = None

    # ---- the reader's side

    def put(self, frame: Frame, dropped_before: int = 0) -> bool:
        """Put the next frame; waits for room under "lossless". Returns False if the mailbox is closed.

        Args:
            frame: the next frame.
            dropped_before: number of frames that the source itself dropped before it.
        """
        received = time.monotonic_ns()
        with self._changed:
            self._drop("newer frame", dropped_before)
            if self._newest:
                self._drop("newer frame", len(self._frames))
                self._frames.clear()
            paused = self._newest and self._paused_at is not None
            if paused:
                self._drop("paused", 1)
            while not (self._newest or self._closed) and len(self._frames) >= LOSSLESS_FRAMES:
                self._changed.wait()
            if self._closed:
                return False
            if not paused:
                self._frames.append(Arrival(frame, received))
        self._wake()  # for a drop too, which the heartbeat reports
        return True

    def wait_until(self, due: float) -> bool:
        """Wait until `due` (monotonic ns; "lossless": plus all pauses). Returns False if closed meanwhile."""
        with self._changed:
            while not self._closed:
                held = self._paused_at is not None and not self._newest
                remaining = due + (0 if self._newest else self._paused_ns) - time.monotonic_ns()
                if remaining <= 0 and not held:
                    return True
                self._changed.wait(None if held else remaining * 1e-9)
            return False

    def finish(self, error: StreamvosError | None) -> None:
        """Note that no frame will follow, and the reader's error, if any."""
        with self._changed:
            self._over, self._error = True, error
        self._wake()

    # ---- the stage's side

    def take(self) -> Arrival | None:
        """Take the next frame; None if there is none now."""
        with self._changed:
            if not self._frames:
                return None
            self._changed.notify_all()
            return self._frames.popleft()

    def take_drops(self) -> Counter[str]:
        """Frames dropped since the last call, by cause."""
        with self._changed:
            drops, self._drops = self._drops, Counter()
            return drops

    @property
    def empty(self) -> bool:
        """Whether no frame waits."""
        return not self._frames

    @property
    def over(self) -> bool:
        """Whether no frame waits and none will follow."""
        with self._changed:
            return self._over and not self._frames

    @property
    def error(self) -> StreamvosError | None:
        """The reader's error, if any."""
        return self._error

    def pause(self) -> None:
        """Drop all frames under "latest"; stop the clock of `wait_until` under "lossless"."""
        with self._changed:
            if self._paused_at is None:
                self._paused_at = time.monotonic_ns()
            if self._newest:
                self._drop("paused", len(self._frames))
                self._frames.clear()

    def resume(self) -> None:
        """End a pause."""
        with self._changed:
            if self._paused_at is not None:
                self._paused_ns += time.monotonic_ns() - self._paused_at
                self._paused_at = None
                self._changed.notify_all()

    def close(self) -> None:
        """Drop all frames and accept no more."""
        with self._changed:
            self._closed = True
            self._frames.clear()
            self._changed.notify_all()

    def _drop(self, cause: str, count: int) -> None:
        if count:
            self._drops[cause] += count


class FrameReader:
    """Reads a source to its end, in a thread of its own, and closes it.

    Args:
        make_source: opens the source; may raise.
        mailbox: receives the frames.
        skip: number of frames to skip at the beginning, which an earlier worker has sent.
        paced: put each frame at its time stamp, counted from the first.
        hide: removes secrets from the text of an unforeseen error.

    Attributes:
        opening: whether the source is not open yet.
    """

    def __init__(
        self,
        make_source: Callable[[], Source],
        mailbox: Mailbox,
        *,
        skip: int = 0,
        paced: bool = False,
        hide: Callable[[str], str] = str,
    ):
        self._make_source, self._mailbox = make_source, mailbox
        self._skip, self._paced, self._hide = skip, paced, hide
        self._stopped = False
        self._source: Source | None = None
        self._since = 0  # when the current read began
        self.opening = True
        # a daemon: a thread that hangs in a driver must not keep the process
        self._thread = threading.Thread(target=self._run, name="frame reader", daemon=True)

    def start(self) -> None:
        """Begin to read."""
        self._thread.start()

    @property
    def reading_since(self) -> int:
        """When a read that has not returned began, or last showed a sign of life, monotonic ns; 0 = none."""
        since, source = self._since, self._source
        return max(since, source.alive_ns) if since and source is not None else since

    def stop(self, wait: bool = True) -> None:
        """End the thread; with `wait`, wait for it for a limited time."""
        self._stopped = True
        self._mailbox.close()
        if wait:
            if isinstance(self._source, LiveSource):
                self._source.close()  # it has its own thread, and this ends a wait for it
            self._thread.join(_JOIN_SECONDS)

    def _run(self) -> None:
        try:
            self._since = time.monotonic_ns()
            self._source = self._make_source()
            self.opening = False
            with self._source as source:
                self._read(source)
        except StreamvosError as error:
            if not self._stopped:
                self._mailbox.finish(error)
        except Exception as error:  # from a library; its text may contain a password
            text = self._hide(" ".join(str(error).split()))
            self._mailbox.finish(SourceError(f"the source failed: {type(error).__name__}: {text}"))
        else:
            self._mailbox.finish(None)
        finally:
            self._since = 0
            self._source = None

    def _read(self, source: Source) -> None:
        self._since = time.monotonic_ns()
        source.pass_over(self._skip)  # in one call: a file may be able to seek
        seen, start = 0, 0.0
        while True:
            self._since = time.monotonic_ns()
            frame = next(source, None)
            self._since = 0
            if frame is None:
                return
            if self._paced:
                start = start or time.monotonic_ns() - frame.pts * 1e9
                if not self._mailbox.wait_until(start + frame.pts * 1e9):
                    return
                frame = replace(frame, captured_ns=time.monotonic_ns())
            dropped = source.dropped if isinstance(source, LiveSource) else 0
            if not self._mailbox.put(frame, dropped - seen) or self._stopped:
                return
            seen = dropped


@dataclass(frozen=True, slots=True)
class StoredFrame:
    """One frame of a `FrameStore`.

    Attributes:
        seq: its number.
        slot: its slot in the arena.
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
    """Frames that were sent and may have to be sent again (docs/protocol.md, 5).

    Args:
        arena: shared memory for the pictures; None: they stay here, as the extractor is on another host.
        slots: capacity in frames; the arena gets one more slot, for the first label map.
        size: (H, W) of the frames.

    Raises:
        ArenaError: there is not enough shared memory.
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
        """A stored frame's picture, (H, W, 3) uint8."""
        if isinstance(stored.image, np.ndarray):
            return stored.image
        assert self._arena is not None
        assert isinstance(stored.image.data, Place)
        with self._arena.read(stored.image.data, stored.image.nbytes) as view:
            return np.frombuffer(bytes(view), np.uint8).reshape(stored.image.shape)

    def sendable_mask(self, label_map: np.ndarray) -> Array | np.ndarray:
        """The first label map, (H, W) uint8, in its own slot, as an outbox takes it."""
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
