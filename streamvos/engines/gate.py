"""The parity gate: does an engine give eager's answers?

    parity = compare(method, part, engine, clip, device, follow)

A clip is followed twice, with eager and with the engine. On the way every call of the part is made by both,
so that the features of real frames are compared, not those of noise; then the masks of the whole clip are
compared, since small differences may grow while predictions feed back. Whoever calls brings the function that
follows a clip: `streamvos.segmenter.follow`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import cycle

import numpy as np
import torch

from streamvos.engines.engines import Engine
from streamvos.engines.manifest import Parity
from streamvos.engines.signature import Signature, TensorSpec
from streamvos.methods import Method
from streamvos.methods.parts import ExtractorPart, Part, Run, Size, Tensors, assemble
from streamvos.nn.precision import resolve_precision
from streamvos.synthetic.synthetic import SyntheticOptions, SyntheticVideo
from streamvos.types import VOID, Features

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
    """Frames to compare on.

    Attributes:
        name: for the manifest.
        frames: (H, W, 3) uint8 each, of one size.
        mask: (H, W) label map of the first frame.
    """

    name: str
    frames: Sequence[np.ndarray]
    mask: np.ndarray

    @property
    def size(self) -> Size:
        """(H, W)."""
        return self.mask.shape[0], self.mask.shape[1]

    @property
    def objects(self) -> int:
        """Number of objects in the mask."""
        return len(set(np.unique(self.mask).tolist()) - {0, VOID})


@lru_cache(maxsize=2)
def synthetic_clip(size: Size, frames: int = CLIP_FRAMES, objects: int = 2) -> Clip:
    """A synthetic video with its true first label map.

    Args:
        size: (H, W) in pixels.
        frames: length.
        objects: how many are in the mask.
    """
    video = SyntheticVideo(SEED, SyntheticOptions(size=size, length=frames, objects=objects))
    name = f"synthetic:seed={SEED},size={size[0]}x{size[1]},length={frames},objects={objects}"
    return Clip(name, [frame.image for frame in video], video[0].label_map)


Follow = Callable[..., Iterator[np.ndarray]]
"""`follow(method, device, frames, mask, extract=None)` yields the label map of every frame of a clip.

`extract`, where given, replaces the extractor: frames (1, 3, H, W) float32 in channels_last -> features.
"""


def inputs_in(
    method: Method, part: Part, clip: Clip, device: torch.device, follow: Follow, frames: int = 3
) -> list[Tensors]:
    """What an inner part is called with while a clip is followed: one example of each signature.

    Args:
        method: with its weights.
        part: one of its parts, not the extractor.
        clip: its mask has as many objects as are wanted.
        device: where the method runs.
        follow: see `Follow`.
        frames: number of frames that are followed.
    """
    found: dict[Signature, Tensors] = {}

    def run(*tensors: torch.Tensor) -> Tensors:
        copies = tuple(tensor.clone(memory_format=torch.preserve_format) for tensor in tensors)
        found.setdefault(Signature.of(*tensors), copies)
        return part.plain(*tensors)

    list(_masks(method, part, run, Clip(clip.name, clip.frames[:frames], clip.mask), device, follow))
    return [copies for signature, copies in found.items() if Signature.of(*copies) == signature]


def compare(
    method: Method,
    part: Part,
    engine: Engine,
    clip: Clip,
    device: torch.device,
    follow: Follow,
    progress: Callable[[int, int], None] = lambda done, of: None,
) -> Parity:
    """Follow a clip with eager and with an engine.

    Args:
        method: with its weights.
        part: one of its parts.
        engine: an engine of the part.
        clip: frames of the size that the engine is for.
        device: where the method runs.
        follow: see `Follow`.
        progress: called after every frame with the number done and the number of all.
    """
    batches = _Batches(part, engine)
    masks: list[list[np.ndarray]] = [[], []]
    for k, run in enumerate((batches.eager, batches.engine)):
        for mask in _masks(method, part, run, clip, device, follow):
            masks[k].append(mask)
            progress(len(masks[0]) + len(masks[1]), 2 * len(clip.frames))
    precision = resolve_precision(getattr(method.options, "precision", "float32"), device)
    parity = judge(batches.error, mask_overlap(*masks), len(clip.frames), clip.name, precision)
    if not batches.calls:
        reason = f"the clip never called it with {engine.signature}"
        return parity.model_copy(update={"passed": False, "reason": reason})
    return parity


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


class _Batches:
    """Calls an engine in the batches that it takes, with the rows of real calls.

    Where the engine takes another batch than the call has, the call is cut, or filled up with rows of itself
    and of the call before. Rows change places, so that mixing up a batch shows. An engine of any batch gets
    the call's own two times of three, and others in between, which are only compared.
    """

    def __init__(self, part: Part, engine: Engine):
        self._part, self._engine = part, engine
        self._others = cycle(range(2, engine.signature.most + 1))
        self._before: Tensors | None = None
        self.error, self.calls = 0.0, 0

    def eager(self, *tensors: torch.Tensor) -> Tensors:
        """The part's own answer, after the engine's was compared with it."""
        self._run(tensors, compared=True)
        return self._part.plain(*tensors)

    def engine(self, *tensors: torch.Tensor) -> Tensors:
        """The engine's answer, or the part's own where the engine does not fit."""
        outputs = self._run(tensors, compared=False)
        return self._part.plain(*tensors) if outputs is None else outputs

    def _run(self, tensors: Tensors, compared: bool) -> Tensors | None:
        expected, part = self._engine.signature, self._part
        count = Signature.of(*tensors).batch(part)
        if expected.most:
            size = next(self._others) if compared and self.calls % 3 == 1 else min(count, expected.most)
        else:
            size = expected.batch(part)
        pool = self._pool(tensors)
        rows = Signature.of(*pool).batch(part)
        answers: list[Tensors] = []
        for start in range(0, count, size):
            place = 0 if size == count else self.calls % size
            index = ((torch.arange(size) + start) % rows).roll(place).to(tensors[0].device)
            some = tuple(_rows(t, index) if part.is_batched(k) else t for k, t in enumerate(pool))
            if not expected.fits(some):
                return None
            outputs = self._engine(*some)
            if compared:
                self.error = max(self.error, feature_error(part.plain(*some), outputs))
            answers.append(tuple(value.roll(-place, 0) for value in outputs) if place else outputs)
            self.calls += 1
        if len(answers) == 1:
            return tuple(value[:count] for value in answers[0])
        return tuple(torch.cat(values)[:count] for values in zip(*answers, strict=True))

    def _pool(self, tensors: Tensors) -> Tensors:
        """The call's rows, and behind them those of the call before where all inputs are batched."""
        pool, before = tensors, self._before
        if self._part.batched is None:
            self._before = tensors
            alike = before is not None and [t.shape[1:] for t in before] == [t.shape[1:] for t in tensors]
            if before is not None and alike:
                pool = tuple(torch.cat(both) for both in zip(tensors, before, strict=True))
        return pool


def resized(part: Part, tensors: Tensors, count: int) -> Tensors:
    """The same inputs of a part for `count` frames or objects; rows repeat where there are too few."""
    own = Signature.of(*tensors).batch(part)
    index = (torch.arange(count) % own).to(tensors[0].device)
    return tuple(_rows(value, index) if part.is_batched(k) else value for k, value in enumerate(tensors))


def _rows(tensor: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """Rows of a batch, each in the tensor's own memory format, one directly behind the other."""
    shape, strides = (len(index), *tensor.shape[1:]), (tensor[0].numel(), *tensor.stride()[1:])
    rows = torch.empty_strided(shape, strides, dtype=tensor.dtype, device=tensor.device)
    return rows.copy_(tensor[index])


def feature_error(expected: Sequence[torch.Tensor], came: Sequence[torch.Tensor]) -> float:
    """The largest relative error of any output: norm of the difference over eager's norm.

    Infinite where number, shape, dtype or strides differ, or something is not finite: strides too, since
    what comes after an engine would round otherwise with them.
    """
    if len(expected) != len(came):
        return float("inf")
    worst = 0.0
    for ours, theirs in zip(expected, came, strict=True):
        if TensorSpec.of(ours) != TensorSpec.of(theirs):
            return float("inf")
        reference = ours.double()
        difference = float((theirs.double() - reference).norm())
        scale = float(reference.norm())
        error = difference / scale if scale else float(difference > 0)
        if not np.isfinite(error):
            return float("inf")
        worst = max(worst, error)
    return worst


def mask_overlap(expected: Sequence[np.ndarray], came: Sequence[np.ndarray]) -> tuple[float, float]:
    """J of every object in every frame, between two sequences of label maps (H, W).

    Returns:
        Mean and least; an object that is in neither label map does not count, and with none at all both
        are 1.
    """
    overlaps = []
    for ours, theirs in zip(expected, came, strict=True):
        for i in set(np.unique(ours)) | set(np.unique(theirs)):
            if i != 0:
                both, either = (ours == i) & (theirs == i), (ours == i) | (theirs == i)
                overlaps.append(float(both.sum() / either.sum()))
    return (float(np.mean(overlaps)), float(np.min(overlaps))) if overlaps else (1.0, 1.0)


def judge(
    error: float, overlap: tuple[float, float], frames: int, clip: str, arithmetic: str = "float32"
) -> Parity:
    """Whether an engine may be used.

    Args:
        error: relative error of the features, the largest over the clip.
        overlap: mean and least J.
        frames: length of the clip.
        clip: its name.
        arithmetic: "float32" or "bfloat16", of the method.
    """
    reasons = []
    if not error <= MOST_ERROR[arithmetic]:
        reasons.append(f"feature error {error:.2g} is above {MOST_ERROR[arithmetic]:.2g} ({arithmetic})")
    if not overlap[0] >= LEAST_OVERLAP:
        reasons.append(f"J with eager's masks {overlap[0]:.4f} is below {LEAST_OVERLAP}")
    finite = error if np.isfinite(error) else 1e9  # JSON has no infinity
    return Parity(
        passed=not reasons,
        feature_error=finite,
        mask_overlap=overlap[0],
        worst_overlap=overlap[1],
        frames=frames,
        clip=clip,
        reason=" and ".join(reasons),
    )
