"""A method that costs next to nothing, to measure what is around it.

    [method]
    name = "bench.stub_method:drift"
    options = { read_ms = 0.5 }

Its objects drift to the right by `pixels` with every frame that it remembers: a frame that is lost or comes
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

NAME = f"{__name__}:drift"
"""As a pipeline names it."""


class DriftOptions(MethodOptions):
    """How far objects drift with every frame, and milliseconds that extractor and memory sleep."""

    pixels: int = 1
    extract_ms: float = 0.0
    read_ms: float = 0.0


class _Extractor(nn.Module):
    def __init__(self, milliseconds: float) -> None:
        super().__init__()
        self.milliseconds = milliseconds

    def forward(self, frames: torch.Tensor) -> Features:
        time.sleep(self.milliseconds / 1000)
        return Features({"corner": frames[:, :, :2, :2].contiguous()}, (frames.shape[2], frames.shape[3]))


class _Target(Target):
    def __init__(self, options: DriftOptions) -> None:
        self.options = options
        self.ids: tuple[int, ...] = ()
        self.probabilities = torch.zeros(0)

    @property
    def object_ids(self) -> tuple[int, ...]:
        return self.ids

    def annotate(
        self,
        features: Features,
        label_map: torch.Tensor,
        object_ids: tuple[int, ...],
        named: tuple[int, ...] | None = None,
        probabilities: torch.Tensor | None = None,
    ) -> None:
        masks = torch.stack([(label_map == i).float() for i in object_ids])
        self.probabilities = torch.cat([1 - masks.sum(0, keepdim=True), masks])
        self.ids = tuple(object_ids)

    def read(self, features: Features) -> Evidence:
        time.sleep(self.options.read_ms / 1000)
        pixels = self.options.pixels
        return Evidence(
            {"probabilities": self.probabilities.roll(pixels, 2) if pixels else self.probabilities}, self.ids
        )

    def write(self, features: Features, probabilities: torch.Tensor) -> None:
        self.probabilities = probabilities

    def forget(self, object_id: int) -> None:
        keep = [0, *(k for k, i in enumerate(self.ids, 1) if i != object_id)]
        self.probabilities = self.probabilities[keep].clone()
        self.probabilities[0] = 1 - self.probabilities[1:].sum(0)
        self.ids = tuple(i for i in self.ids if i != object_id)

    def state_dict(self) -> dict[str, torch.Tensor]:
        return {"ids": torch.tensor(self.ids, dtype=torch.int64), "probabilities": self.probabilities}

    def load_state_dict(self, state: Mapping[str, torch.Tensor]) -> None:
        self.ids = tuple(int(i) for i in state["ids"])
        self.probabilities = state["probabilities"].clone()


def _decode(evidence: Evidence, size: tuple[int, int], annotation: Annotation | None = None) -> torch.Tensor:
    predicted = evidence["probabilities"]
    return predicted if annotation is None else insert_given(predicted, evidence.object_ids, annotation)


class Drift(Method):
    """See above."""

    name = "drift"
    options: DriftOptions

    def __init__(self, options: DriftOptions) -> None:
        super().__init__()
        self.options = options
        self.extractor = _Extractor(options.extract_ms)
        self.decoder = _decode

    def target(self) -> _Target:
        """The state of a new stream."""
        return _Target(self.options)


def drift(**options: Any) -> Drift:
    """The method with these options."""
    return Drift(DriftOptions(**options))
