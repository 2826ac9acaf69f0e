"""What the decoders of both forms of JOINT share: given masks, and the competition of the objects."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch

from streamvos.methods.joint.crops import OUTSIDE
from streamvos.nn.aggregation import insert_given_channels, merge_logits
from streamvos.types import Annotation, Evidence


class JOINTDecoder(ABC):
    """Encodings to probabilities; see `streamvos.methods.base.Decoder`."""

    def __call__(
        self, evidence: Evidence, size: tuple[int, int], annotation: Annotation | None = None
    ) -> torch.Tensor:
        """See `streamvos.methods.base.Decoder`."""
        logits = self.logits(evidence, size)
        if annotation is not None:
            logits = insert_given_channels(
                logits, evidence.object_ids, annotation, low=OUTSIDE, high=-OUTSIDE
            )
        return merge_logits(logits)

    @abstractmethod
    def logits(self, evidence: Evidence, size: tuple[int, int]) -> torch.Tensor:
        """(K, H, W) float32, each object for itself."""
