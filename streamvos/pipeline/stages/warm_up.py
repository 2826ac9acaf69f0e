"""What the extractor has to know of a size of frames before it can serve them well, one call at a time.

    warm_up = WarmUp(extract, (480, 854), counts=(1, 2, 4, 8), measured=True)
    warm_up.step()                      # the first call: what arrays a frame becomes
    while not warm_up.done:
        warm_up.step()                  # which batches are faster, and which round as single frames do
    warm_up.batches(lossless=True)

The extractor serves all streams in one thread. A stream whose camera opens late brings its size while the
others run, so that no more than one call may be made between their frames.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence

import torch

from streamvos.pipeline.stages.serialization import array_sizes, pack_features
from streamvos.segmenter import Extraction
from streamvos.types import Features

WORTHWHILE = 0.95
"""A batch has to take less than this share of the time that its frames take one by one."""

Size = tuple[int, int]


class WarmUp:
    """One size, run for the first time.

    Args:
        extract: the extractor.
        size: (H, W) of the frames, in pixels.
        counts: how many frames may go together, ascending from 1.
        measured: only those that prove faster than their frames one by one.

    Attributes:
        room: bytes of each array that a frame of this size becomes; known after the first step.
        done: whether there is nothing left to find out.
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
        """How many frames may go together, as far as is known: more after further steps.

        Args:
            lossless: only where the outcome is that of single frames, bit for bit.
        """
        return tuple(self._alike if lossless else self._worthwhile)

    def step(self) -> None:
        """The next call of the extractor, or the end."""
        if next(self._calls, None) is None:
            self.done = True
            self._frames.clear()

    def finish(self) -> None:
        """All steps that are left."""
        while not self.done:
            self.step()

    @torch.inference_mode()
    def _one(self, count: int) -> tuple[Features, float]:
        """One call: features of so many frames, and the seconds that they took."""
        started = time.perf_counter()
        features = self._extract(self._frames[:count])
        if self._extract.device.type == "cuda":
            torch.cuda.synchronize(self._extract.device)
        return features, time.perf_counter() - started

    @torch.inference_mode()
    def _single(self, number: int) -> Features:
        return self._extract(self._frames[number : number + 1])

    def _all_calls(self) -> Iterator[bool]:
        """Yields behind each call but the last."""
        first = self._single(0)
        arrays, _ = pack_features(first)
        self.room = array_sizes(arrays)
        if len(self._counts) == 1:
            return
        singles, seconds = [first], float("inf")
        for _ in range(2):
            yield True
            seconds = min(seconds, self._one(1)[1])
        for count in self._counts[1:]:
            yield True
            together, _ = self._one(count)
            taken = float("inf") if self._measured else 0.0
            for _ in range(2 if self._measured else 0):
                yield True
                taken = min(taken, self._one(count)[1])
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
