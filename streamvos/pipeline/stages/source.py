"""The stage that reads a stream's frames.

Under policy "latest" frames are dropped here and in the mailbox. Frames that were sent are stored until the
supervisor releases them, since a restarted consumer may need them again (policy "lossless");
docs/protocol.md, 4 and 5.

    stage = SourceStage("source.front", context)
    stage.prepare()                     # {"size": [480, 854], "fps": 24.0, ...}
    stage.connect({"front/frames": endpoint})
    stage.control(Message("start", "front", 1, 0, {"next": 0, "fresh": True}))
    stage.step()
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import zmq

from streamvos.addresses import redact
from streamvos.masks.pointing import Pointing
from streamvos.pipeline.clients.publishing import FramePublisher
from streamvos.pipeline.stages.mailbox import Arrival, FrameReader, FrameStore, Mailbox, StoredFrame
from streamvos.pipeline.stages.stage import Stage, StageContext, now
from streamvos.pipeline.wire.endpoints import frames_address
from streamvos.pipeline.wire.messages import Message, Refused, public_session
from streamvos.pipeline.wire.waker import Waker
from streamvos.selection.objects import Selects, make_selector
from streamvos.sources import Source, open_source
from streamvos.sources.first_frame import first_label_map, given_label_map
from streamvos.types import Frame, InputError, SourceError, StreamvosError

_STEMS_BYTES = 2**18
"""Limit for the names of a folder's pictures in the facts; longer lists are left out."""

_LONG = 0.5  # share of `stall_timeout` after which a read is reported as slow

_LOOK_SECONDS = 1.0

_HELD_NS = 5_000_000_000
"""After such a gap between two looks this process itself was stopped, and the source gets its time anew."""


class SourceStage(Stage):
    """Reads frames, numbers them, and sends them when there is credit.

    Files are paced by their time stamps if the stream says `realtime`, and under "latest", where reading
    faster would only drop frames.
    """

    def __init__(self, name: str, context: StageContext):
        super().__init__(name, context)
        self._config = context.config.stream(self.stream)
        self._latest = self._config.effective_policy == "latest"
        self._outbox = self.outboxes[f"{self.stream}/frames"]
        self._waker = Waker()
        self._mailbox = Mailbox(self._latest, self._waker.wake)
        self._reader: FrameReader | None = None
        self._opened: Source | None = None  # by `prepare`, until the reader takes it
        self._pointing = Pointing.parse(self._config.boxes, self._config.points)
        self._selector: Selects | None = None
        self._given: np.ndarray | None = None
        self._size = (0, 0)
        self._store: FrameStore  # made by `prepare`, which knows the size of the frames
        self._incarnation = 0
        self._next, self._last = 0, -1  # the frame to send, and the highest one sent
        self._pending: Counter[str] = Counter()  # drops not yet reported in a header
        self._origin: int | None = None  # monotonic ns at which a live stream's time stamps are 0
        self._pts_base: float | None = None  # seconds added to the time stamps of the current reader
        self._written = 0  # frames before this one have reached the sinks
        self._stall_ns = round(self._config.effective_stall_timeout * 1e9)
        self._waited_from = 0  # monotonic ns; the time that a read took before it does not count
        self._looked_at = 0
        self._begun = self._fresh = self._paused = self._stopping = self._end_sent = False
        self._frames: FramePublisher | None = None  # for viewers; made by `prepare`

    # ---- the worker's calls

    def prepare(self) -> dict[str, Any]:
        source = self._opened = self._open()
        self._size = source.size
        self._given = given_label_map(source, self._config.mask, self._pointing, self._config.first_frame)
        if self._pointing.ids:  # before the first frame of a live stream comes
            chosen = self.context.config.selection
            self._selector = make_selector(chosen.by, chosen.sam_encoder, chosen.sam_decoder, "cpu")
        self._first_frame, self._identity = source.first_frame, dict(source.identity())
        spec = self._outbox.spec
        arena = self.context.arenas[f"{self.stream}/frames"] if spec.mode == "shared" else None
        slots = self.context.config.frame_slots(self.stream, source.size[0] * source.size[1] * 3)
        self._store = FrameStore(arena, slots, source.size)
        if self.name not in self.context.config.remote:
            address = frames_address(Path(self.context.shared["runtime"]), self.stream)
            session = public_session(self.context.session)
            self._frames = FramePublisher(self.context.zmq, address, self.stream, session)
        facts = {
            "size": list(source.size),
            "native_size": list(source.native_size),
            "fps": source.fps,
            "length": source.length,
            "label": label_of(self._config.source),
            "live": self._config.live,
            "numbers": [] if self._config.live else [source.first_frame, source.stride],
            "identity": self._identity,
        }
        stems = "" if self._latest else _stems(source)
        return {**facts, "stems": stems} if stems else facts

    def sockets(self) -> list[zmq.Socket[bytes] | int]:
        return [*super().sockets(), self._waker.descriptor]

    def control(self, message: Message) -> None:
        if message.kind == "start":
            self._start(message)
        elif message.kind == "release":
            self._store.release(message.seq)
        elif message.kind == "pause":
            self._paused = True
            self._mailbox.pause()
        elif message.kind == "resume":
            self._paused, self._waited_from = False, now()
            self._mailbox.resume()
        elif message.kind == "stop":
            self._stopping = True
            self._count(self._mailbox.take_drops())
            if self._reader is not None:
                self._reader.stop(wait=False)

    def step(self) -> float | None:
        self._waker.clear()
        self._count(self._mailbox.take_drops())
        while self._outbox.credit and self._begun and (frame := self._upcoming()) is not None:
            self._send(frame)
            self.busy_since = 0
        if self._begun and self._next > self._last:
            self._conclude()
        if self._frames is not None:
            self._frames.repeat()
        return self._look_at_reader()

    def beat(self) -> dict[str, Any]:
        return {**super().beat(), "sent": self._last, "queues": {"frames kept": len(self._store.numbers)}}

    def close(self) -> None:
        if self._reader is not None:
            self._reader.stop()
        if self._opened is not None:
            self._opened.close()
        self._outbox.close(linger=1000)  # an `end` may not have left yet
        if self._frames is not None:
            self._frames.close()
        super().close()
        self._waker.close()

    @property
    def ended(self) -> bool:
        return self._end_sent

    # ---- beginnings

    def _start(self, message: Message) -> None:
        number = message["next"]
        if not isinstance(number, int) or number < 0:
            raise Refused("field", f"start: next is a number >= 0, got {number!r}")
        if self._opened is not None and not self._config.live:
            self._refuse_changed(message.get("identity") or {}, self._opened, number)
        self._outbox.reset(message.incarnation)
        self._incarnation = message.incarnation
        self._fresh, self._begun, self._end_sent = bool(message.get("fresh")), True, False
        self._written = message.get("written", 0)
        if self._origin is None:
            self._origin = message.get("origin")
        if self._latest:
            self._give_up(number)
            if self._reader is None:
                self._read_from(number)
        elif self._reader is not None and (number == self._last + 1 or number in self._store.numbers):
            self._store.release(number - 1)
        else:  # it is no longer stored, and is read again
            self._store.clear()
            self._last = number - 1
            self._read_from(number)
        self._next = number

    def _give_up(self, number: int) -> None:
        """Count the frames that the sinks lack, and the drops in their headers; forget all frames."""
        for seq in self._store.numbers:
            stored = self._store.get(seq)
            if seq >= self._written and stored is not None:
                self._pending.update(stored.dropped)
                self._pending["recovery"] += 1
                self.drops["recovery"] += 1
        self._store.clear()
        self._last = number - 1

    def _read_from(self, number: int) -> None:
        """Begin to read at a frame; a live source has no earlier frames to skip."""
        if self._reader is not None:
            self._reader.stop()
            self._count(self._mailbox.take_drops())
            self._mailbox = Mailbox(self._latest, self._waker.wake)
            if self._paused:
                self._mailbox.pause()
        live, self._pts_base = self._config.live, None
        opened, self._opened = self._opened, None
        self._reader = FrameReader(
            self._reopen if opened is None else lambda: opened,
            self._mailbox,
            skip=0 if live else number,
            paced=not live and (self._config.realtime or self._latest),
            hide=self._without_credentials,
        )
        if self._stopping:
            self._reader.stop(wait=False)
        self._reader.start()

    def _open(self) -> Source:
        config = self._config
        return open_source(
            config.source,
            name=config.name,
            height=config.height,
            stride=config.stride,
            max_frames=config.max_frames,
            first_frame=config.first_frame or 0,
            fps=config.fps,
            finite=not config.live,  # as the supervisor has decided
            policy=config.effective_policy if config.live else None,
            topic=config.topic,
            allow_truncated=config.allow_truncated,
            open_timeout=config.open_timeout,
            stall_timeout=config.effective_stall_timeout,
        )

    def _reopen(self) -> Source:
        source = self._open()
        if source.size == self._size:
            if not self._config.live:
                source.begin_at(self._first_frame)
                self._refuse_changed(self._identity, source, self._last + 1)
            return source
        source.close()
        (height, width), (new_height, new_width) = self._size, source.size
        raise InputError(
            f"{source.name} was {width}x{height} pixels and is {new_width}x{new_height} after it was opened "
            "again; restart the pipeline"
        )

    def _refuse_changed(self, identity: Mapping[str, Any], source: Source, given: int) -> None:
        """Raise `InputError` if a source that is opened again is not the one that was opened first."""
        changed = source.changes(identity, given)
        if changed:
            source.close()
            raise InputError(
                f"{label_of(self._config.source)} has changed while it was read, so its frames may be other "
                f"ones: {'; '.join(changed)}; run it again from the beginning"
            )

    def _without_credentials(self, text: str) -> str:
        source = self._config.source
        for secret in (source, source.removeprefix("camera:")):
            text = text.replace(secret, label_of(source))
        return text

    def _look_at_reader(self) -> float | None:
        """Check how long the current read takes; returns seconds until the next look.

        Time counts only while a frame is needed: not in a pause, while earlier frames wait for credit, or
        before the frame is due.

        Raises:
            SourceError: the read takes too long; only the end of this process can end it. Live sources have
                their own timeouts.
        """
        reader, since, at = self._reader, 0, now()
        if at - self._looked_at > min(_HELD_NS, self._stall_ns // 2):  # looks are at most half of that apart
            self._waited_from = at
        self._looked_at = at
        if reader is None or self._stopping:
            self.waiting_for, self.waiting_since = "", 0
            return None
        if not self._paused and self._mailbox.empty:
            since = reader.reading_since
        waited = at - max(since, self._waited_from) if since else 0
        limit = self._stall_ns
        if reader.opening:
            limit = max(limit, round(self.context.config.supervision.start_timeout * 1e9))
        if waited > limit and not self._config.live:
            raise SourceError(
                f"{label_of(self._config.source)} gave no frame within {limit * 1e-9:g} s (stall_timeout): a "
                "read does not return; check the disk or network that the source is on"
            )
        is_long = waited > limit * _LONG
        self.waiting_for = "the source gives no frame" if is_long else ""
        self.waiting_since = at - waited if is_long else 0
        return min(limit * 1e-9 * _LONG / 2, _LOOK_SECONDS)

    # ---- frames

    def _upcoming(self) -> StoredFrame | None:
        """The frame to send now, a stored or a new one; None if there is none."""
        if self._next <= self._last:
            return self._store.get(self._next)
        if self._stopping or (self._paused and not self._latest) or (self._store.full and not self._latest):
            return None
        arrival = self._mailbox.take()
        # drops before this frame, without those that its successors cause
        self._count(self._mailbox.take_drops())
        if arrival is None:
            return None
        arrival = self._timed(arrival)
        if self._store.full:
            self._count(Counter({"no slot": 1}))
            return None
        self.busy_since = now()
        stored = self._store.put(self._next, arrival, dict(self._pending))
        self._pending.clear()
        return stored

    def _timed(self, arrival: Arrival) -> Arrival:
        """Continue a live source's time stamps where the source was opened again."""
        if not self._config.live:
            return arrival
        frame = arrival.frame
        if self._origin is None:
            self._origin = frame.captured_ns - round(frame.pts * 1e9)
            self.tell("origin", origin=self._origin)  # for the next worker
        if self._pts_base is None:
            self._pts_base = (frame.captured_ns - self._origin) * 1e-9 - frame.pts
        return replace(arrival, frame=replace(frame, pts=frame.pts + self._pts_base))

    def _send(self, stored: StoredFrame) -> None:
        started = self.busy_since = self.busy_since or now()
        arrays = {"image": stored.image}
        if self._fresh and (mask := self._first_mask(stored)) is not None:
            arrays["mask"] = self._store.sendable_mask(mask)
        fields = {
            "captured": stored.captured,
            "pts": stored.pts,
            "dropped": dict(stored.dropped),
            "stamps": {"source": [stored.received, started, now()]},
        }
        self._outbox.send("frame", stored.seq, fields, arrays)
        if self._frames is not None:
            carried = {name: fields[name] for name in ("captured", "pts")}
            header = {"seq": stored.seq, "incarnation": self._incarnation, **carried}
            # a stored frame's slot is not written to before the next frame is sent
            self._frames.offer(lambda: self._store.picture(stored), header)
        self._fresh = False
        self._last = max(self._last, stored.seq)
        self._next = stored.seq + 1
        self.frames += 1

    def _first_mask(self, stored: StoredFrame) -> np.ndarray | None:
        if self._given is None and not self._pointing.ids:
            return None
        frame = Frame(self._store.picture(stored), stored.seq, stored.captured, stored.pts, self.stream)
        label_map = first_label_map(frame, self._given, self._pointing, self._selector)
        return np.ascontiguousarray(label_map, np.uint8)

    def _conclude(self) -> None:
        """End the stream after its last frame, or raise the reader's error."""
        error: StreamvosError | None = None if self._stopping else self._mailbox.error
        if error is None and self._mailbox.over and self._config.reopens and not self._stopping:
            error = SourceError(
                f"{label_of(self._config.source)} ended; it is opened again, as cameras are (reopen = false: "
                "the stream ends too)"
            )
        if not (self._stopping or self._mailbox.over or (error is not None and self._latest)):
            return
        # a file that is damaged in the middle ends there; a camera that fails is opened again
        if not self._end_sent and (error is None or isinstance(error, InputError)):
            self._outbox.send("end", self._next)
            self._end_sent = True
        if error is not None:
            raise error

    def _count(self, drops: Counter[str]) -> None:
        self._pending.update(drops)
        self.drops.update(drops)


def label_of(source: str) -> str:
    """A source's name without credentials.

    >>> label_of("camera:rtsp://user:secret@10.0.0.5/stream")
    'camera:rtsp://***@10.0.0.5/stream'
    """
    prefix = "camera:" if source.startswith("camera:") else ""
    return prefix + redact(source.removeprefix(prefix))


def _stems(source: Source) -> str:
    """Names of the frames' label maps, separated by zeros, as headers limit lists; "" if they are numbers."""
    if source.length is None or source.length * 5 > _STEMS_BYTES:
        return ""
    stems = [source.stem(index) for index in range(source.length)]
    own = any(stem != f"{source.first_frame + index * source.stride:05d}" for index, stem in enumerate(stems))
    return "\0".join(stems) if own and sum(map(len, stems)) <= _STEMS_BYTES else ""
