"""The parity gate: does an engine give eager's answers?

    parity = compare(method, part, engine, clip, device, follow)

A clip is followed twice, with eager and with the engine. During the first pass every call of the part is
made by both, so that the features of real frames are compared, not those of noise. Then the masks of the
whole clip are compared, since small differences may grow while predictions feed back.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import cycle

import numpy as np
import torch

from streamvos.engines.engines import Engine
from streamvos.engines.exporting import copied
from streamvos.engines.manifest import Parity
from streamvos.engines.signature import Signature, TensorSpec
from streamvos.methods import Method
from streamvos.methods.parts import ExtractorPart, Part, Run, Size, Tensors, assemble
from streamvos.nn.precision import resolve_precision
from streamvos.synthetic.synthetic import SyntheticOptions, SyntheticVideo
from streamvos.types import Features

LEAST_OVERLAP = 0.99
"""J between the two sets of masks."""

CLIP_FRAMES, SEED = 50, 7
"""Of the synthetic clip."""

MOST_ERROR = {"float32": 2e-3, "bfloat16": 5e-2}
"""Relative error of an output, by the arithmetic of the method.

float32: sums in another order leave 1e-6 to 1e-5 after a hundred layers, TF32 and Winograd some 1e-4.
bfloat16: one rounding is 4e-3 at most, and both sides round after most layers but not after the same ones;
the bundled networks differ by 0.5 to 1 %. A wrong stride, dilation or weight makes errors near 1.
"""


@dataclass(frozen=True)
class Clip:
    """Frames to compare on, (H, W, 3) uint8 each, and the (H, W) label map of the first."""

    frames: Sequence[np.ndarray]
    mask: np.ndarray

    @property
    def size(self) -> Size:
        return self.mask.shape[0], self.mask.shape[1]


@lru_cache(maxsize=2)
def synthetic_clip(size: Size, frames: int = CLIP_FRAMES, objects: int = 2) -> Clip:
    """A synthetic video (H, W) with the true label map of its first frame."""
    video = SyntheticVideo(SEED, SyntheticOptions(size=size, length=frames, objects=objects))
    return Clip([frame.image for frame in video], video[0].label_map)


Follow = Callable[..., Iterator[np.ndarray]]
"""`streamvos.segmenter.follow(method, device, frames, mask, extract=None)` yields the frames' label maps.

`extract`, where given, replaces the extractor: frames (1, 3, H, W) float32 in channels_last -> features.
"""


def inputs_in(
    method: Method, part: Part, clip: Clip, device: torch.device, follow: Follow, frames: int = 3
) -> list[Tensors]:
    """The inputs of an inner part while `frames` frames of a clip are followed: one example per signature."""
    found: dict[Signature, Tensors] = {}

    def run(*tensors: torch.Tensor) -> Tensors:
        found.setdefault(Signature.of(*tensors), tuple(copied(tensor) for tensor in tensors))
        return part.plain(*tensors)

    list(_masks(method, part, run, Clip(clip.frames[:frames], clip.mask), device, follow))
    return list(found.values())


def compare(
    method: Method, part: Part, engine: Engine, clip: Clip, device: torch.device, follow: Follow
) -> Parity:
    """Follow a clip with eager and with an engine of a part; the method is on the device."""
    comparison = _Comparison(part, engine)
    expected, masks = (
        list(_masks(method, part, run, clip, device, follow)) for run in (comparison.eager, comparison.engine)
    )
    precision = resolve_precision(getattr(method.options, "precision", "float32"), device)
    parity = judge(comparison.error, mask_overlap(expected, masks), len(clip.frames), precision)
    if comparison.calls:
        return parity
    return parity.model_copy(update={"reason": f"the clip never called it with {engine.signature}"})


def _masks(
    method: Method, part: Part, run: Run, clip: Clip, device: torch.device, follow: Follow
) -> Iterator[np.ndarray]:
    """Label maps of the clip, with `run` in the part's place."""
    if isinstance(part, ExtractorPart):
        layout: list[tuple[str, bool]] = []

        def extract(frames: torch.Tensor) -> Features:
            layout[:] = layout or part.layout(frames)
            return assemble(layout, frames, run(frames))

        yield from follow(method, device, clip.frames, clip.mask, extract)
        return
    part.replace(run)
    try:
        yield from follow(method, device, clip.frames, clip.mask)
    finally:
        part.replace(None)


class _Comparison:
    """Calls of a part, by eager and by an engine; `error` is the largest relative error so far.

    Every third call is also compared in another batch, in which every second row is of the call before, so
    that an engine that mixes up the rows of a batch shows.
    """

    def __init__(self, part: Part, engine: Engine):
        self._part, self._engine = part, engine
        self._other_batches = cycle(range(2, engine.signature.most + 1))
        self._before: Tensors | None = None
        self.error, self.calls = 0.0, 0

    def eager(self, *tensors: torch.Tensor) -> Tensors:
        """The part's own answer, after the engine's was compared with it."""
        expected = self._part.plain(*tensors)
        if self._fits(tensors):
            self.error = max(self.error, feature_error(expected, self._engine(*tensors)))
            if self.calls % 3 == 1 and self._fits(other := self._other_batch(tensors)):
                self.error = max(self.error, feature_error(self._part.plain(*other), self._engine(*other)))
            self.calls, self._before = self.calls + 1, tensors
        return expected

    def engine(self, *tensors: torch.Tensor) -> Tensors:
        """The engine's answer, or the part's own where the engine does not fit."""
        return self._engine(*tensors) if self._fits(tensors) else self._part.plain(*tensors)

    def _fits(self, tensors: Tensors) -> bool:
        call, most = Signature.of(*tensors), self._engine.signature.most
        fits = call.of_any_batch(self._part, most) == self._engine.signature
        return fits and call.batch(self._part) <= most

    def _other_batch(self, tensors: Tensors) -> Tensors:
        rows = resized(self._part, tensors, next(self._other_batches))
        before = self._before if self._part.batched is None else None
        if before and [value.shape[1:] for value in before] == [value.shape[1:] for value in tensors]:
            for ours, theirs in zip(rows, before, strict=True):
                ours[1::2] = theirs[0]
        return rows


def resized(part: Part, tensors: Tensors, count: int) -> Tensors:
    """The same inputs of a part for `count` frames or objects; rows repeat where there are too few.

    Each row keeps its memory format, and begins directly behind the row before.
    """
    index = (torch.arange(count) % Signature.of(*tensors).batch(part)).to(tensors[0].device)

    def rows(value: torch.Tensor) -> torch.Tensor:
        strides = (value[0].numel(), *value.stride()[1:])
        return value.new_empty_strided((count, *value.shape[1:]), strides).copy_(value[index])

    return tuple(rows(value) if part.is_batched(k) else value for k, value in enumerate(tensors))


def feature_error(expected: Sequence[torch.Tensor], outputs: Sequence[torch.Tensor]) -> float:
    """The largest relative error of any output: norm of the difference over eager's norm.

    Infinite where number, shape, dtype or strides (with others, later computations would round differently)
    differ, or a value is not finite.
    """
    if [TensorSpec.of(one) for one in expected] != [TensorSpec.of(one) for one in outputs]:
        return float("inf")
    worst = 0.0
    for ours, theirs in zip(expected, outputs, strict=True):
        reference = ours.double()
        difference, scale = float((theirs.double() - reference).norm()), float(reference.norm())
        error = difference / scale if scale else float(difference > 0)
        worst = max(worst, error if np.isfinite(error) else float("inf"))
    return worst


def mask_overlap(expected: Sequence[np.ndarray], masks: Sequence[np.ndarray]) -> float:
    """J between two sequences of label maps (H, W), mean over the objects of every frame.

    An object that is in neither label map does not count; 1 where there is no object at all.
    """
    overlaps = []
    for ours, theirs in zip(expected, masks, strict=True):
        for i in {*np.unique(ours), *np.unique(theirs)} - {0}:
            both, either = (ours == i) & (theirs == i), (ours == i) | (theirs == i)
            overlaps.append(float(both.sum() / either.sum()))
    return float(np.mean(overlaps)) if overlaps else 1.0


def judge(error: float, overlap: float, frames: int, arithmetic: str = "float32") -> Parity:
    """Whether an engine may be used, by `feature_error` and `mask_overlap`; arithmetic as in `MOST_ERROR`."""
    reasons = []
    if not error <= MOST_ERROR[arithmetic]:
        reasons.append(f"feature error {error:.2g} is above {MOST_ERROR[arithmetic]:.2g} ({arithmetic})")
    if not overlap >= LEAST_OVERLAP:
        reasons.append(f"J with eager's masks {overlap:.4f} is below {LEAST_OVERLAP}")
    finite = error if np.isfinite(error) else 1e9  # JSON has no infinity
    return Parity(feature_error=finite, mask_overlap=overlap, frames=frames, reason=" and ".join(reasons))
