"""The extractor: frames of all streams, in batches, to features.

It takes a frame of a stream only when there is room for its features, so that no frame grows old here.
Frames of one size go together; a frame waits for company only where a batch is faster than its frames one by
one, and only for streams that have lately kept their time (docs/protocol.md, 4).
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from streamvos.pipeline.edges import Inbox, Outbox
from streamvos.pipeline.messages import Array, Message, Refused
from streamvos.pipeline.stage import Stage, StageContext, now
from streamvos.pipeline.stages.method import shared_extraction
from streamvos.pipeline.stages.parcels import array_sizes, pack_features
from streamvos.segmenter import check_frame
from streamvos.types import Features

WORTHWHILE = 0.95
"""A batch has to take less than this share of the time that its frames take one by one."""

NOMINAL_PERIOD = 0.04

Size = tuple[int, int]


@dataclass
class _Stream:
    """What the extractor knows of one stream."""

    name: str
    inbox: Inbox
    outbox: Outbox
    lossless: bool
    period: float = NOMINAL_PERIOD
    size: Size | None = None
    frame: tuple[Message, torch.Tensor, int] | None = None  # with the time it came
    owed: list[Message] = field(default_factory=list)  # frames whose credit waits for the memory
    late: bool = False  # it let the others wait in vain
    end: Message | None = None


class ExtractorStage(Stage):
    """Stateless but for frames that wait for company or credit: one of each stream."""

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
        self._batches: dict[tuple[Size, bool], tuple[int, ...]] = {}
        self.batch_sizes: dict[int, int] = {}

    def prepare(self) -> dict[str, Any]:
        self._extract = shared_extraction(self.context)
        for facts in self.context.facts.values():
            self._warm_up((int(facts["size"][0]), int(facts["size"][1])))
        return {}

    def reset(self, message: Message) -> dict[str, Any]:
        answer = super().reset(message)
        stream, facts = self._streams[message.stream], message["facts"]
        stream.frame = stream.end = None
        stream.owed.clear()
        stream.late = False
        stream.period = 1 / facts["fps"] if facts.get("fps") else NOMINAL_PERIOD
        stream.size = (int(facts["size"][0]), int(facts["size"][1]))
        features = self._warm_up(stream.size)
        if stream.outbox.spec.mode == "shared":
            arrays, _ = pack_features(features, by_reference=False)
            picture = int(np.prod(stream.size)) * 3
            stream.outbox.allocate([*array_sizes(arrays), picture])
        return answer

    def step(self) -> float | None:
        while True:
            for stream in self._streams.values():
                self._take(stream)
            batch, wait = self._next_batch()
            if not batch:
                return wait
            self._extract_batch(batch)

    def beat(self) -> dict[str, Any]:
        return {**super().beat(), "batches": {str(size): count for size, count in self.batch_sizes.items()}}

    def _take(self, stream: _Stream) -> None:
        """Give the credits that are due, and take the next frame if there is room for its features."""
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
            image = torch.from_numpy(_writable(stream.inbox.array(came, "image")))
            stream.frame = (came, check_frame(image, stream.size), now())
            stream.late = False
        except Refused as error:
            stream.inbox.refused[error.cause] += 1
            self.drops[error.cause] += 1
            stream.inbox.grant(came)

    def _next_batch(self) -> tuple[list[_Stream], float | None]:
        """Streams whose frames go now, oldest first; or none, and how long to wait for company."""
        ready = sorted((one for one in self._streams.values() if one.frame), key=_arrival)
        if not ready:
            return [], None
        shortest: float | None = None
        for first in ready:
            same = [one for one in ready if (one.size, one.lossless) == (first.size, first.lossless)]
            sizes = self._sizes(first)
            most = max(size for size in sizes if size <= len(same))
            company = [one for one in self._streams.values() if self._is_expected(one, first)]
            if most >= max(sizes) or not company or len(sizes) == 1:
                return same[:most], None
            left = first.period - (now() - _arrival(first)) * 1e-9
            if left <= 0:
                for one in company:
                    one.late = True
                return same[:most], None
            shortest = left if shortest is None else min(shortest, left)
        return [], shortest

    def _is_expected(self, other: _Stream, first: _Stream) -> bool:
        """Whether a frame of `other` may be on its way that could go with that of `first`."""
        return (
            other.frame is None
            and not other.late
            and (other.size, other.lossless) == (first.size, first.lossless)
            and not other.owed
        )

    def _sizes(self, stream: _Stream) -> tuple[int, ...]:
        assert stream.size is not None
        return self._batches.get((stream.size, stream.lossless), (1,))

    def _extract_batch(self, batch: Sequence[_Stream]) -> None:
        started = self.busy_since = now()
        frames = [one.frame for one in batch if one.frame is not None]
        features = self._extract([image for _, image, _ in frames])
        done = now()
        self.batch_sizes[len(batch)] = self.batch_sizes.get(len(batch), 0) + 1
        for k, (stream, (message, _, received)) in enumerate(zip(batch, frames, strict=True)):
            own = Features({n: value[k : k + 1] for n, value in features.maps.items()}, features.size)
            self._send(stream, message, own, [received, started, done])
            stream.frame = None
            stream.owed.append(message)
            self.frames += 1
        self.busy_since = 0

    def _send(self, stream: _Stream, message: Message, features: Features, stamps: list[int]) -> None:
        arrays, more = pack_features(features, stream.outbox.spec.mode == "reference")
        fields = {name: message.get(name) for name in ("captured", "pts", "dropped")}
        fields["stamps"] = {**message.get("stamps", {}), "extractor": stamps}
        if "mask" in message.arrays:
            arrays["mask"] = _own(stream, message, "mask")
        if self.context.config.stream(stream.name).shows_pictures:
            arrays["image"] = message.arrays["image"]
        stream.outbox.send("features", message.seq, {**fields, **more}, arrays)

    @torch.inference_mode()
    def _warm_up(self, size: Size) -> Features:
        """Run once at this size, and find out which batches are faster, and which of them round alike."""
        noise = torch.Generator().manual_seed(0)
        streams = self.context.config.streams
        largest = max(b for b in self.context.config.extractor.batches if b <= max(len(streams), 1))
        frames = [
            torch.randint(0, 256, (*size, 3), generator=noise, dtype=torch.uint8) for _ in range(largest)
        ]
        single = [self._extract([frame]) for frame in frames]
        if (size, True) in self._batches:
            return single[0]
        seconds = min(self._seconds(frames[:1]) for _ in range(2))
        worthwhile, alike = [1], [1]
        for count in self.context.config.extractor.batches[1:]:
            if count > largest:
                break
            together = self._extract(frames[:count])
            if self.context.config.extractor.measured and not (
                min(self._seconds(frames[:count]) for _ in range(2)) < WORTHWHILE * count * seconds
            ):
                continue
            worthwhile.append(count)
            if _alike(together, single[:count]):
                alike.append(count)
        self._batches[size, False], self._batches[size, True] = tuple(worthwhile), tuple(alike)
        return single[0]

    def _seconds(self, frames: Sequence[torch.Tensor]) -> float:
        started = time.perf_counter()
        self._extract(frames)
        if self._extract.device.type == "cuda":
            torch.cuda.synchronize(self._extract.device)
        return time.perf_counter() - started


def _alike(together: Features, single: Sequence[Features]) -> bool:
    return all(
        torch.equal(value[k : k + 1], one.maps[name])
        for name, value in together.maps.items()
        for k, one in enumerate(single)
    )


def _arrival(stream: _Stream) -> int:
    assert stream.frame is not None
    return stream.frame[2]


def _writable(image: np.ndarray) -> np.ndarray:
    return image if image.flags.writeable else image.copy()


def _own(stream: _Stream, message: Message, name: str) -> Array:
    """An array as one of this process, to be sent on."""
    return Array.of(stream.inbox.array(message, name))
