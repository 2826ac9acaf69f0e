"""The parity gate at work: a clip is followed with eager and with an engine, and the masks are compared.

    parity = compare(method, part, engine, clip, device)

On the way every call of the part is made twice, so that the features of real frames are compared, and not
those of noise. Whoever calls brings the clip.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from streamvos.engines import Engine
from streamvos.engines.manifest import Parity
from streamvos.engines.parity import feature_error, judge, mask_overlap
from streamvos.engines.signature import Signature
from streamvos.methods import Method
from streamvos.methods.parts import Part, Tensors
from streamvos.nn.precision import resolve_precision
from streamvos.segmenter.extraction import Extractor, run_extractor
from streamvos.segmenter.segmenter import Segmenter
from streamvos.types import VOID, Features

Told = Callable[[int, int], None]
"""Frames done, frames in all."""


@dataclass(frozen=True)
class Clip:
    """Frames to compare on.

    Attributes:
        name: for the manifest.
        frames: (H, W, 3) uint8 each, of one size.
        mask: (H, W) label map of the first.
    """

    name: str
    frames: Sequence[np.ndarray]
    mask: np.ndarray

    @property
    def size(self) -> tuple[int, int]:
        """(H, W)."""
        return self.mask.shape[0], self.mask.shape[1]

    @property
    def objects(self) -> int:
        """That the mask names."""
        return len(set(np.unique(self.mask).tolist()) - {0, VOID})


def inputs_in(method: Method, part: Part, clip: Clip, device: torch.device, frames: int = 3) -> list[Tensors]:
    """What an inner part is called with while a clip is followed: one example of each signature.

    Args:
        method: with its weights.
        part: of it, not the extractor.
        clip: its mask has as many objects as are wanted.
        device: where.
        frames: of the clip that are followed.
    """
    found: dict[Signature, Tensors] = {}

    def run(*tensors: torch.Tensor) -> Tensors:
        copies = tuple(tensor.clone(memory_format=torch.preserve_format) for tensor in tensors)
        found.setdefault(Signature.of(*tensors), copies)
        return part.plain(*tensors)

    _masks(method, part, None, run, Clip(clip.name, clip.frames[:frames], clip.mask), device, lambda: None)
    return [copies for signature, copies in found.items() if Signature.of(*copies) == signature]


class _Comparison:
    """Both ways of computing a part, and the largest error so far."""

    def __init__(self) -> None:
        self.error, self.calls = 0.0, 0

    def note(self, expected: Tensors, came: Tensors) -> None:
        self.error, self.calls = max(self.error, feature_error(expected, came)), self.calls + 1


def compare(
    method: Method, part: Part, engine: Engine, clip: Clip, device: torch.device, told: Told | None = None
) -> Parity:
    """Follow a clip twice.

    Args:
        method: with its weights.
        part: of the method.
        engine: of the part, with its layout if the part is the extractor.
        clip: frames of the size that the engine is for.
        device: where.
        told: called after every frame.
    """
    comparison = _Comparison()
    every = 2 * len(clip.frames)
    steps = iter(range(1, every + 1))

    def step() -> None:
        if told is not None:
            told(next(steps), every)

    def masks(
        extractor: Callable[[Extractor], Extractor] | None, run: Callable[..., Tensors] | None
    ) -> list[np.ndarray]:
        return _masks(method, part, extractor, run, clip, device, step)

    if part.name == "extractor":
        expected = masks(_compared_extractor(engine, comparison), None)
        came = masks(lambda eager: _in_company(engine), None)
    else:
        expected = masks(None, _compared_part(part, engine, comparison))
        came = masks(None, _engine_where_it_fits(part, engine))
    precision = resolve_precision(getattr(method.options, "precision", "float32"), device)
    parity = judge(comparison.error, mask_overlap(expected, came), len(clip.frames), clip.name, precision)
    if not comparison.calls:
        reason = f"the clip never called it with {engine.signature}"
        return parity.model_copy(update={"passed": False, "reason": reason})
    return parity


def _masks(
    method: Method,
    part: Part,
    change: Callable[[Extractor], Extractor] | None,
    run: Callable[..., Tensors] | None,
    clip: Clip,
    device: torch.device,
    step: Callable[[], None],
) -> list[np.ndarray]:
    """Label maps of the clip, with the extractor changed, or with `run` in the part's place."""
    vos = Segmenter(method, device)
    if change is not None:
        vos.extraction.use(change)
    part.replace(run)
    try:
        masks = []
        for index, frame in enumerate(clip.frames):
            masks.append(vos.step(frame, clip.mask if index == 0 else None).mask)
            step()
        return masks
    finally:
        part.replace(None)


def _compared_extractor(engine: Engine, comparison: _Comparison) -> Callable[[Extractor], Extractor]:
    """Eager's features, after the engine's were compared with them."""

    def change(eager: Extractor) -> Extractor:
        theirs = _in_company(engine)

        def run(frames: torch.Tensor) -> Features:
            features = eager(frames)
            comparison.note(tuple(features.maps.values()), tuple(theirs(frames).maps.values()))
            return features

        return run

    return change


def _in_company(engine: Engine) -> Extractor:
    """An engine of batches for frames that come one by one: the frames before keep each company.

    A frame's place in the batch changes from frame to frame.
    """
    count = engine.signature.tensors[0].shape[0]
    batch: list[torch.Tensor] = []
    turn = 0

    def run(frames: torch.Tensor) -> Features:
        nonlocal turn
        if not batch:
            batch.extend([frames] * count)
        place = turn % count
        batch[place], turn = frames, turn + 1
        together = torch.cat(batch).contiguous(memory_format=torch.channels_last)
        features = run_extractor(engine, together)
        return Features({n: value[place : place + 1] for n, value in features.maps.items()}, features.size)

    return run


def _compared_part(part: Part, engine: Engine, comparison: _Comparison) -> Callable[..., Tensors]:
    """What the part itself gives, after the engine's answer was compared with it."""

    def run(*tensors: torch.Tensor) -> Tensors:
        expected = part.plain(*tensors)
        if Signature.of(*tensors) == engine.signature:
            comparison.note(expected, engine(*tensors))
        return expected

    return run


def _engine_where_it_fits(part: Part, engine: Engine) -> Callable[..., Tensors]:
    def run(*tensors: torch.Tensor) -> Tensors:
        return (engine if Signature.of(*tensors) == engine.signature else part.plain)(*tensors)

    return run
