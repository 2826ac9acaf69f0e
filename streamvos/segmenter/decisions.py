"""What a frame shows: the stateless half of a step, from what the target says to label map and probabilities.

    decision = decide(method, question)
    decision.shown()                                # probabilities of the result

A segmenter does it in one process; in a pipeline the question comes from the memory stage and the decision is
made in the decoder stage, by this same function.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from streamvos.methods import Method
from streamvos.nn.aggregation import all_ids, insert_given
from streamvos.segmenter.results import label_map_of
from streamvos.types import VOID, Annotation, Evidence


@dataclass(frozen=True, slots=True)
class Question:
    """What is known about a frame before it is decoded.

    Attributes:
        size: (H, W) of the frame in pixels.
        evidence: of the objects that are followed; None while there are none.
        annotation: what the user says about the frame.
        first: nothing was ever followed before; void stays void, as there is no prediction.
    """

    size: tuple[int, int]
    evidence: Evidence | None
    annotation: Annotation | None
    first: bool

    @property
    def object_ids(self) -> tuple[int, ...]:
        """Those followed and those annotated, ascending."""
        followed = () if self.evidence is None else self.evidence.object_ids
        return all_ids(followed, self.annotation)


@dataclass(frozen=True, slots=True)
class Decision:
    """What a frame shows.

    Attributes:
        object_ids: K.
        predicted: (1 + K, H, W) float32, as decoded with the annotation.
        label_map: (H, W) int64, given pixels and elsewhere the prediction; None without annotation.
    """

    object_ids: tuple[int, ...]
    predicted: torch.Tensor
    label_map: torch.Tensor | None

    def shown(self) -> torch.Tensor:
        """(1 + K, H, W) float32 of the result: a given label map is certain."""
        return (
            self.predicted if self.label_map is None else _as_probabilities(self.label_map, self.object_ids)
        )


@torch.inference_mode()
def decide(method: Method, question: Question) -> Decision:
    """Decode one frame.

    Args:
        method: whose decoder it is.
        question: what is known about it.
    """
    annotation, ids = question.annotation, question.object_ids
    predicted = _predict(method, question)
    if annotation is None:
        return Decision(ids, predicted, None)
    given = annotation.label_map
    if question.first:
        return Decision(ids, predicted, given)
    untold = (given == 0) | (given == VOID)
    return Decision(ids, predicted, torch.where(untold, label_map_of(predicted, ids).long(), given))


def _predict(method: Method, question: Question) -> torch.Tensor:
    """(1 + K, H, W) float32; all background while no object is followed."""
    annotation = question.annotation
    if question.evidence is not None:
        return method.decoder(question.evidence, question.size, annotation)
    if annotation is None:
        return torch.ones((1, *question.size))
    background = torch.ones((1, *question.size), device=annotation.label_map.device)
    return insert_given(background, (), annotation)


def _as_probabilities(label_map: torch.Tensor, object_ids: tuple[int, ...]) -> torch.Tensor:
    """A given label map as certainty; void, which is no object, counts as background."""
    ids = torch.tensor(object_ids, device=label_map.device)
    objects = (label_map[None] == ids[:, None, None]).float()
    return torch.cat([1 - objects.sum(0, keepdim=True), objects])
