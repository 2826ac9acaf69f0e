"""A method that costs next to nothing, and fails when told to, for tests of what is around it.

    [method]
    name = "stub_methods:drift"            # PYTHONPATH=tests
    options = { extract_ms = 1.0 }

Its objects drift to the right by one pixel with every frame that it remembers: a frame that is lost or comes
twice shows in every later mask.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from streamvos.methods import Method, MethodOptions
from streamvos.methods.base import Target
from streamvos.nn.aggregation import insert_given
from streamvos.types import Annotation, Evidence, Features


class DriftOptions(MethodOptions):
    """Milliseconds that each part sleeps; and at which count the read fails or hangs.

    With `fail_objects`, only the read of a target with so many objects fails.

    `pixels` is how far the objects drift with every frame; with 0 they stand, and reading costs nothing.
    `calls` is a file that gets a line for each call of the extractor: frames, height, width, 1 for noise.
    """

    pixels: int = 1
    extract_ms: float = 0.0
    read_ms: float = 0.0
    decode_ms: float = 0.0
    fail_at: int | None = None
    fail_objects: int | None = None
    hang_at: int | None = None
    calls: str | None = None


class _Extractor(nn.Module):
    def __init__(self, milliseconds: float, calls: str | None):
        super().__init__()
        self.milliseconds, self.calls = milliseconds, calls

    def forward(self, frames: torch.Tensor) -> Features:
        if self.calls is not None:
            # neighbors in noise differ by a third of the whole range, those in a picture hardly
            is_noise = bool((frames[:, :, :, 1:] - frames[:, :, :, :-1]).abs().mean() > 0.3)
            with open(self.calls, "a") as file:
                file.write(f"{len(frames)} {frames.shape[2]} {frames.shape[3]} {int(is_noise)}\n")
        _sleep(self.milliseconds)
        return Features({"corner": frames[:, :, :2, :2].contiguous()}, (frames.shape[2], frames.shape[3]))


class _Decoder:
    def __init__(self, milliseconds: float):
        self.milliseconds = milliseconds

    def __call__(
        self, evidence: Evidence, size: tuple[int, int], annotation: Annotation | None = None
    ) -> torch.Tensor:
        _sleep(self.milliseconds)
        predicted = evidence["probabilities"]
        return predicted if annotation is None else insert_given(predicted, evidence.object_ids, annotation)


class _Target(Target):
    def __init__(self, options: DriftOptions):
        self.options = options
        self.ids: tuple[int, ...] = ()
        self.probabilities = torch.zeros(0)
        self.count = 0

    @property
    def object_ids(self) -> tuple[int, ...]:
        return self.ids

    def annotate(self, features, label_map, object_ids, named=None, probabilities=None) -> None:
        masks = torch.stack([(label_map == i).float() for i in object_ids])
        self.probabilities = torch.cat([1 - masks.sum(0, keepdim=True), masks])
        self.ids = tuple(object_ids)
        self.count += 1

    def read(self, features: Features) -> Evidence:
        _sleep(self.options.read_ms)
        fails = self.options.fail_objects in (None, len(self.ids))
        if fails and self.count == self.options.fail_at:
            raise RuntimeError("told to fail")
        if self.count == self.options.hang_at:
            time.sleep(3600)
        drifted = (
            self.probabilities.roll(self.options.pixels, 2) if self.options.pixels else self.probabilities
        )
        return Evidence({"probabilities": drifted}, self.ids)

    def write(self, features: Features, probabilities: torch.Tensor) -> None:
        self.probabilities = probabilities
        self.count += 1

    def forget(self, object_id: int) -> None:
        keep = [0, *(k for k, i in enumerate(self.ids, 1) if i != object_id)]
        self.probabilities = self.probabilities[keep].clone()
        self.probabilities[0] = 1 - self.probabilities[1:].sum(0)
        self.ids = tuple(i for i in self.ids if i != object_id)

    def state_dict(self) -> dict[str, torch.Tensor]:
        return {
            "ids": torch.tensor(self.ids, dtype=torch.int64),
            "probabilities": self.probabilities,
            "count": torch.tensor(self.count),
        }

    def load_state_dict(self, state: Mapping[str, torch.Tensor]) -> None:
        self.ids = tuple(int(i) for i in state["ids"])
        self.probabilities, self.count = state["probabilities"].clone(), int(state["count"])


class Drift(Method):
    """See above."""

    name = "drift"

    def __init__(self, options: DriftOptions):
        super().__init__()
        self.options = options
        self.extractor = _Extractor(options.extract_ms, options.calls)
        self.decoder = _Decoder(options.decode_ms)

    def target(self) -> _Target:
        return _Target(self.options)


def drift(**options: Any) -> Drift:
    """The method with these options."""
    return Drift(DriftOptions(**options))


def _sleep(milliseconds: float) -> None:
    if milliseconds:
        time.sleep(milliseconds / 1000)
