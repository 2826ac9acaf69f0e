"""The contract that every method fulfils.

A method is three parts: an extractor that looks at frames and at nothing else, a target that is the
whole state of one stream, and a decoder that turns what the target says into probabilities. The
segmenter and the pipeline know these doors only; they know nothing of any particular method.

    features = method.extractor(frames)              # stateless, batched over streams
    target = method.target()                         # one per stream
    target.annotate(features, label_map, (1, 2))     # the given mask
    evidence = target.read(features)                 # every later frame
    probabilities = method.decoder(features, evidence)
    target.write(features, probabilities)

When the user adds or corrects objects while others are followed, the frame is read and decoded with the
annotation, so that given and predicted masks meet where the method lets its objects compete, and then
the target is told:

    probabilities = method.decoder(features, target.read(features), annotation)
    target.annotate(features, label_map, object_ids, annotation.object_ids, probabilities)
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Protocol

import torch
from pydantic import BaseModel
from torch import nn

from streamvos.types import Annotation, Evidence, Features


class Decoder(Protocol):
    """Evidence to probabilities; stateless."""

    def __call__(
        self, features: Features, evidence: Evidence, annotation: Annotation | None = None
    ) -> torch.Tensor:
        """Probabilities of one frame.

        Args:
            features: of the frame.
            evidence: what the target read.
            annotation: objects given on this frame, new ones or ones of the evidence.

        Returns:
            (1 + K, H, W) float32, background first, summing to 1. K counts the ids of the evidence and
            those of the annotation, together, ascending; the pixels that the annotation names are
            certain.
        """


class Target(ABC):
    """The state of one stream. Its memory is bounded, however long the stream.

    Features are those of one frame (B = 1), on the method's device. A call that raises leaves the state
    as it was.
    """

    @property
    @abstractmethod
    def object_ids(self) -> tuple[int, ...]:
        """The ids it follows, ascending."""

    @abstractmethod
    def annotate(
        self,
        features: Features,
        label_map: torch.Tensor,
        object_ids: tuple[int, ...],
        named: tuple[int, ...] | None = None,
        probabilities: torch.Tensor | None = None,
    ) -> None:
        """Take `label_map` for the truth of this frame.

        Args:
            features: of the annotated frame.
            label_map: (H, W) int64; 0 background, ids of `object_ids`, 255 void (unknown).
            object_ids: every object to follow from here on, ascending; one that has no pixel in
                `label_map` is followed but not visible now.
            named: the ids whose pixels the user gave on this frame, new or corrected; the pixels of the
                others are predictions. None = all of them were given.
            probabilities: (1 + K, H, W) float32 as the decoder gave them with the annotation, for
                targets that remember soft predictions; None = `label_map` is all there is (the
                first frame).
        """

    @abstractmethod
    def read(self, features: Features) -> Evidence:
        """What the memory says about this frame."""

    @abstractmethod
    def write(self, features: Features, probabilities: torch.Tensor) -> None:
        """Remember this frame with its prediction, (1 + K, H, W) float32 as the decoder gave it."""

    @abstractmethod
    def forget(self, object_id: int) -> None:
        """Follow this object no longer; its pixels count as background from here on."""

    @abstractmethod
    def state_dict(self) -> dict[str, torch.Tensor]:
        """Everything needed to continue elsewhere, bit-identically; tensors only."""

    @abstractmethod
    def load_state_dict(self, state: Mapping[str, torch.Tensor]) -> None:
        """Take over what `state_dict` gave.

        Raises:
            InputError: something is missing or does not fit together; the state is unchanged.
        """


class Method(nn.Module, ABC):
    """A published method: networks with weights, and the factory of its targets.

    Attributes:
        name: under which it is loaded.
        options: everything about it that is not a weight.
        extractor: frames (B, 3, H, W) float32 RGB in 0..1 -> Features; stateless.
        decoder: see `Decoder`; stateless.
        networks: the module whose state dict a weight file holds; the method itself unless it says
            otherwise.
    """

    name: str
    options: BaseModel
    extractor: nn.Module
    decoder: Decoder

    @property
    def networks(self) -> nn.Module:
        """The module whose state dict a weight file holds."""
        return self

    @abstractmethod
    def target(self) -> Target:
        """A fresh state for one stream."""
