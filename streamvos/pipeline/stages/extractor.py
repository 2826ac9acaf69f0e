"""The extractor turns frames of all streams into features, in batches.

It takes a frame of a stream only when there is room for its features, so that no frame grows old here.
Frames of one size form a batch; a frame waits for others only where a batch is faster than its frames one by
one, and only for streams whose frames have lately been regular (docs/protocol.md, 4).
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from operator import attrgetter
from typing import Any

import numpy as np
import torch

from streamvos.pipeline.stages.method import shared_extraction
from streamvos.pipeline.stages.serialization import array_sizes, pack_features
from streamvos.pipeline.stages.stage import Stage, StageContext, carried, now
from streamvos.pipeline.wire.arenas import ArenaError
from streamvos.pipeline.wire.inbox import Inbox
from streamvos.pipeline.wire.messages import Array, Message, Refused
from streamvos.pipeline.wire.outbox import Outbox
from streamvos.segmenter import Extraction, check_frame
from streamvos.types import Features, InputError

NOMINAL_PERIOD = 0.04

MOMENT_NS = 10_000_000
"""Longer than it takes from a credit to the frame that it allows."""

WORTHWHILE = 0.95
"""A batch has to take less than this share of the time that its frames take one by one."""

Size = tuple[int, int]


@dataclass
class _Stream:
    name: str
    inbox: Inbox
    outbox: Outbox
    lossless: bool
    period: float = NOMINAL_PERIOD
    size: Size = (0, 0)
    frame: tuple[Message, torch.Tensor] | None = None  # with its picture
    owed: list[Message] = field(default_factory=list)  # frames whose credit waits for the memory
    arrived: int = 0  # when its last frame arrived
    interval: int = 0  # ns between its last two frames; 0 = not known yet

    def note_arrival(self) -> None:
        at = now()
        self.interval = at - self.arrived if self.arrived else 0
        self.arrived = at

    def expects_frame(self, within: int) -> bool:
        """Whether its next frame should arrive within so many ns, by the interval of the last two."""
        is_idle = self.frame is None and not self.owed and self.interval > 0
        return is_idle and abs(self.arrived + self.interval - now()) <= within

    def goes_with(self, other: _Stream) -> bool:
        """Whether frames of both may form a batch."""
        return (self.size, self.lossless) == (other.size, other.lossless)


class ExtractorStage(Stage):
    """Holds at most one frame of each stream, which waits for a batch or for credit."""

    def __init__(self, name: str, context: StageContext):
        super().__init__(name, context)
        config = context.config
        self._streams = {
            one.name: _Stream(
                one.name,
                self.inboxes[f"{one.name}/frames"],
                self.outboxes[f"{one.name}/features"],
                one.effective_policy == "lossless",
            )
            for one in config.streams
        }
        self._warm_ups: dict[Size, WarmUp] = {}
        self._call_after = 0  # when a warm-up goes on though no frame has arrived
        self._batch_ns = 0  # duration of the last batch
        self._batch_sizes: Counter[str] = Counter()

    def prepare(self) -> dict[str, Any]:
        self._extract = shared_extraction(self.context)
        for facts in self.context.facts.values():
            self._warm_up((int(facts["size"][0]), int(facts["size"][1]))).finish()
        return {}

    def reset(self, message: Message) -> dict[str, Any]:
        answer = super().reset(message)
        stream, facts = self._streams[message.stream], message["facts"]
        stream.frame = None
        stream.owed.clear()
        stream.arrived = stream.interval = 0
        stream.period = 1 / facts["fps"] if facts.get("fps") else NOMINAL_PERIOD
        stream.size = (int(facts["size"][0]), int(facts["size"][1]))
        try:
            stream.outbox.allocate(self._warm_up(stream.size).room)
        except ArenaError as error:  # features travel in the messages then; the other streams have theirs
            self.tell("event", stream.name, event="no_shared_memory", level="warning", error=str(error))
        return answer

    def step(self) -> float | None:
        while True:
            for stream in self._streams.values():
                self._take(stream)
            batch, wait = self._next_batch()
            if batch:
                self._extract_batch(batch)
            unfinished = next((one for one in self._warm_ups.values() if not one.done), None)
            if unfinished is not None:
                left = 0.0 if batch else (self._call_after - now()) * 1e-9
                if left > 0:
                    return left if wait is None else min(left, wait)
                self._call(unfinished)
                return 0.0  # frames that have arrived meanwhile go first
            if not batch:
                return wait

    def beat(self) -> dict[str, Any]:
        return {**super().beat(), "batches": dict(self._batch_sizes)}

    def _take(self, stream: _Stream) -> None:
        """Grant the credits that are due, and take the next frame if there is room for its features."""
        if not stream.outbox.credit:
            return
        while stream.owed:
            stream.inbox.grant(stream.owed.pop(0))
        if stream.frame is not None or (message := stream.inbox.receive()) is None:
            return
        if message.kind == "end":
            stream.outbox.send("end", message.seq)
            return
        try:
            # the source stores it until the sinks have its mask, so it need not be copied
            image = np.require(stream.inbox.look(message, "image"), requirements="W")
            stream.frame = (message, check_frame(torch.from_numpy(image), stream.size))
            stream.note_arrival()
        except Refused as error:
            self._refuse(stream, message, error)
        except InputError as error:  # it concerns this stream only
            self._refuse(stream, message, Refused("frame", str(error)))

    def _refuse(self, stream: _Stream, message: Message, error: Refused) -> None:
        stream.inbox.refused[error.cause] += 1
        self.drops[error.cause] += 1
        stream.inbox.grant(message)

    def _next_batch(self) -> tuple[list[_Stream], float | None]:
        """Streams whose frames are extracted now, oldest first; or none, and seconds to wait for others."""
        ready = sorted((one for one in self._streams.values() if one.frame), key=attrgetter("arrived"))
        waits: list[int] = []
        for first in ready:
            same = [one for one in ready if one.goes_with(first)]
            sizes = self._warm_ups[first.size].batches(first.lossless)
            most = max(size for size in sizes if size <= len(same))
            # a frame waits for others no longer than one batch takes, nor than one period
            patience = min(round(first.period * 1e9), self._batch_ns)
            waits.append(first.arrived + patience - now())
            others = (one for one in self._streams.values() if one.goes_with(first))
            is_worth_it = most < max(sizes) and any(one.expects_frame(patience) for one in others)
            if waits[-1] <= 0 or not is_worth_it:
                return same[:most], None
        return [], min(waits) * 1e-9 if waits else None

    def _extract_batch(self, batch: Sequence[_Stream]) -> None:
        started = self.busy_since = now()
        frames = [one.frame for one in batch if one.frame is not None]
        features = self._extract([image for _, image in frames])
        done = now()
        self._batch_ns = done - started
        self._batch_sizes[str(len(batch))] += 1
        for k, (stream, (message, _)) in enumerate(zip(batch, frames, strict=True)):
            stream.frame = None
            try:
                stream.inbox.check(message, "image")
            except Refused as error:  # the source has overwritten it, as the stream is restarting
                self._refuse(stream, message, error)
                continue
            own = Features({n: value[k : k + 1] for n, value in features.maps.items()}, features.size)
            self._send(stream, message, own, [stream.arrived, started, done])
            stream.owed.append(message)
            self.frames += 1
        self.busy_since = 0

    def _send(self, stream: _Stream, message: Message, features: Features, stamps: list[int]) -> None:
        arrays, more = pack_features(features)
        fields = carried(message, "extractor", stamps)
        if "mask" in message.arrays:
            arrays["mask"] = _own(stream, message, "mask")
        if self.context.config.stream(stream.name).shows_pictures:
            remote = f"sinks.{stream.name}" in self.context.config.remote  # which do not share our memory
            arrays["image"] = _own(stream, message, "image") if remote else message.arrays["image"]
        stream.outbox.send("features", message.seq, {**fields, **more}, arrays)

    def _warm_up(self, size: Size) -> WarmUp:
        """The warm-up of a size, with its first call made, which is all that a stream needs to begin."""
        if size not in self._warm_ups:
            config = self.context.config
            counts = [count for count in config.extractor.batches if count <= len(config.streams)]
            self._warm_ups[size] = WarmUp(self._extract, size, counts, config.extractor.measured)
            self._call(self._warm_ups[size])
        return self._warm_ups[size]

    def _call(self, warm_up: WarmUp) -> None:
        """Make one call; frames that could not be sent meanwhile have a moment to arrive before the next."""
        warm_up.step()
        self._call_after = now() + MOMENT_NS


def _own(stream: _Stream, message: Message, name: str) -> Array:
    """A copy of an array, to be sent on."""
    return Array.of(stream.inbox.array(message, name))


class WarmUp:
    """The first calls with frames of one size: how large their features are, and which batches pay off.

    The extractor serves all streams in one thread. A stream whose camera opens late brings its size while the
    others run, so that `step` makes one call only, between their frames.

    Args:
        extract: the extractor.
        size: (H, W) of the frames, in pixels.
        counts: batch sizes to consider, ascending from 1.
        measured: admit only batches that prove faster than their frames one by one.

    Attributes:
        room: bytes of each array of a frame's features; known after the first step.
        done: whether all calls have been made.
    """

    def __init__(self, extract: Extraction, size: Size, counts: Sequence[int], measured: bool):
        self._extract, self._counts, self._measured = extract, counts, measured
        noise = torch.Generator().manual_seed(0)
        self._frames = [
            torch.randint(0, 256, (*size, 3), generator=noise, dtype=torch.uint8) for _ in range(max(counts))
        ]
        self._worthwhile, self._alike = [1], [1]
        self.room: list[int] = []
        self.done = False
        self._calls = self._all_calls()

    def batches(self, lossless: bool) -> tuple[int, ...]:
        """Batch sizes found so far; `lossless`: only those that give the bits of single frames."""
        return tuple(self._alike if lossless else self._worthwhile)

    def step(self) -> None:
        """Make the next call of the extractor, or finish."""
        if next(self._calls, None) is None:
            self.done = True
            self._frames.clear()

    def finish(self) -> None:
        """Make all calls that are left."""
        while not self.done:
            self.step()

    @torch.inference_mode()
    def _timed(self, count: int) -> tuple[Features, float]:
        """Features of the first `count` frames, and the seconds that they took."""
        started = time.perf_counter()
        features = self._extract(self._frames[:count])
        if self._extract.device.type == "cuda":
            torch.cuda.synchronize(self._extract.device)
        return features, time.perf_counter() - started

    @torch.inference_mode()
    def _single(self, number: int) -> Features:
        return self._extract(self._frames[number : number + 1])

    def _all_calls(self) -> Iterator[bool]:
        """Yields after each call but the last."""
        first = self._single(0)
        self.room = array_sizes(pack_features(first)[0])
        if len(self._counts) == 1:
            return
        singles, seconds = [first], float("inf")
        for _ in range(2):
            yield True
            seconds = min(seconds, self._timed(1)[1])
        for count in self._counts[1:]:
            yield True
            together, _ = self._timed(count)
            taken = float("inf") if self._measured else 0.0
            for _ in range(2 if self._measured else 0):
                yield True
                taken = min(taken, self._timed(count)[1])
            if taken >= WORTHWHILE * count * seconds:
                continue
            self._worthwhile.append(count)
            while len(singles) < count:
                yield True
                singles.append(self._single(len(singles)))
            if _alike(together, singles[:count]):
                self._alike.append(count)


def _alike(together: Features, single: Sequence[Features]) -> bool:
    return all(
        torch.equal(value[k : k + 1], one.maps[name])
        for name, value in together.maps.items()
        for k, one in enumerate(single)
    )
