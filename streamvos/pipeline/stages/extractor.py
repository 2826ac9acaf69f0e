"""The extractor turns frames of all streams into features, in batches.

It takes a frame of a stream only when there is room for its features, so that no frame grows old here.
Frames of one size form a batch; a frame waits for others only where a batch is faster than its frames one by
one, and only for streams whose frames have lately been regular (docs/protocol.md, 4).
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
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
    size: Size | None = None
    frame: tuple[Message, torch.Tensor, int] | None = None  # with its picture, and when it arrived (ns)
    owed: list[Message] = field(default_factory=list)  # frames whose credit waits for the memory
    arrived: int = 0  # when its last frame arrived
    interval: int = 0  # ns between its last two frames; 0 = not known yet
    end: Message | None = None

    def note_arrival(self, at: int) -> None:
        self.interval = at - self.arrived if self.arrived else 0
        self.arrived = at

    def is_due(self, within: int) -> bool:
        """Whether its next frame is expected within so many ns, by the interval of the last two."""
        wait = self.arrived + self.interval - now()
        return self.interval > 0 and -within <= wait <= within


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
        self.batch_sizes: dict[int, int] = {}

    def prepare(self) -> dict[str, Any]:
        self._extract = shared_extraction(self.context)
        for facts in self.context.facts.values():
            self._warm_up((int(facts["size"][0]), int(facts["size"][1]))).finish()
        return {}

    def reset(self, message: Message) -> dict[str, Any]:
        answer = super().reset(message)
        stream, facts = self._streams[message.stream], message["facts"]
        stream.frame = stream.end = None
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
        return {
            **super().beat(),
            "batches": {str(size): count for size, count in dict(self.batch_sizes).items()},
        }

    def _take(self, stream: _Stream) -> None:
        """Grant the credits that are due, and take the next frame if there is room for its features."""
        room = stream.outbox.credit
        if room and stream.owed:
            for message in stream.owed:
                stream.inbox.grant(message)
            stream.owed.clear()
        if stream.end is not None and stream.frame is None:
            stream.outbox.send("end", stream.end.seq)
            stream.end = None
        if stream.frame is not None or not room:
            return
        came = stream.inbox.receive()
        if came is None:
            return
        if came.kind == "end":
            stream.end = came
            self._take(stream)
            return
        try:
            # the source keeps it until the sinks have its mask, so that it can be looked at where it lies
            image = torch.from_numpy(_writable(stream.inbox.look(came, "image")))
            stream.frame = (came, check_frame(image, stream.size), now())
            stream.note_arrival(stream.frame[2])
        except Refused as error:
            self._refuse(stream, came, error)
        except InputError as error:  # of one stream, and no reason to end the others
            self._refuse(stream, came, Refused("frame", str(error)))

    def _refuse(self, stream: _Stream, message: Message, error: Refused) -> None:
        stream.inbox.refused[error.cause] += 1
        self.drops[error.cause] += 1
        stream.inbox.grant(message)

    def _next_batch(self) -> tuple[list[_Stream], float | None]:
        """Streams whose frames go now, oldest first; or none, and how long to wait for company."""
        ready = sorted((one for one in self._streams.values() if one.frame), key=_arrival)
        if not ready:
            return [], None
        shortest: int | None = None
        for first in ready:
            same = [one for one in ready if (one.size, one.lossless) == (first.size, first.lossless)]
            sizes = self._sizes(first)
            most = max(size for size in sizes if size <= len(same))
            if most >= max(sizes):
                return same[:most], None
            patience = self._patience(first)
            left = patience - (now() - _arrival(first))
            if left <= 0 or not any(
                self._is_expected(one, first, patience) for one in self._streams.values()
            ):
                return same[:most], None
            shortest = left if shortest is None else min(shortest, left)
        return [], None if shortest is None else shortest * 1e-9

    def _patience(self, stream: _Stream) -> int:
        """How many ns a frame may wait for company: no longer than one batch takes, nor than one period."""
        return min(round(stream.period * 1e9), self._batch_ns)

    def _is_expected(self, other: _Stream, first: _Stream, patience: int) -> bool:
        """Whether a frame of `other` is on its way that could go with that of `first`."""
        return (
            other.frame is None
            and (other.size, other.lossless) == (first.size, first.lossless)
            and not other.owed
            and other.is_due(patience)
        )

    def _sizes(self, stream: _Stream) -> tuple[int, ...]:
        assert stream.size is not None
        return self._warm_ups[stream.size].batches(stream.lossless)

    def _extract_batch(self, batch: Sequence[_Stream]) -> None:
        started = self.busy_since = now()
        frames = [one.frame for one in batch if one.frame is not None]
        features = self._extract([image for _, image, _ in frames])
        done = now()
        self._batch_ns = done - started
        self.batch_sizes[len(batch)] = self.batch_sizes.get(len(batch), 0) + 1
        for k, (stream, (message, _, received)) in enumerate(zip(batch, frames, strict=True)):
            stream.frame = None
            try:
                stream.inbox.check(message, "image")
            except Refused as error:  # it was another frame's by then: the stream begins anew
                self._refuse(stream, message, error)
                continue
            own = Features({n: value[k : k + 1] for n, value in features.maps.items()}, features.size)
            self._send(stream, message, own, [received, started, done])
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
        """What is known of a size; of a new one, by one call, as much as a stream needs to begin."""
        if size not in self._warm_ups:
            config = self.context.config
            counts = [count for count in config.extractor.batches if count <= len(config.streams)]
            self._warm_ups[size] = WarmUp(self._extract, size, counts, config.extractor.measured)
            self._call(self._warm_ups[size])
        return self._warm_ups[size]

    def _call(self, warm_up: WarmUp) -> None:
        """One call; a frame that could not be sent meanwhile has a moment to come before the next."""
        warm_up.step()
        self._call_after = now() + MOMENT_NS


def _arrival(stream: _Stream) -> int:
    assert stream.frame is not None
    return stream.frame[2]


def _writable(image: np.ndarray) -> np.ndarray:
    return image if image.flags.writeable else image.copy()


def _own(stream: _Stream, message: Message, name: str) -> Array:
    """An array as one of this process, to be sent on."""
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
