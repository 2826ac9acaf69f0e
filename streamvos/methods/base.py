"""The interface that every method implements.

A method has three parts: an extractor that depends on frames only, a target that is the whole state of one
stream, and a decoder that turns the target's evidence into probabilities. The segmenter and the pipeline use
nothing else of a method.

    features = method.extractor(frames)              # stateless, batched over streams
    target = method.target()                         # one per stream
    target.annotate(features, label_map, (1, 2))     # the given mask
    evidence = target.read(features)                 # every later frame
    probabilities = method.decoder(evidence, features.size)
    target.write(features, probabilities)

When the user adds or corrects objects while others are followed, the frame is read and decoded with the
annotation, so that given and predicted masks compete as the method's objects do. Then the target learns the
outcome:

    probabilities = method.decoder(target.read(features), features.size, annotation)
    target.annotate(features, label_map, object_ids, annotation.object_ids, probabilities)

A target that trains may do so in the background, see `streamvos.methods.background`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import nn

from streamvos.methods.background import TrainingTask
from streamvos.methods.parts import ExtractorPart, Part
from streamvos.types import Annotation, Evidence, Features, InputError


class Options(BaseModel):
    """Base of a method's options; it rejects unknown names and numbers that are not finite."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class MethodOptions(Options):
    """What every method has an option for.

    Attributes:
        uncertain_below: an object whose mean probability over its own pixels is below this is "uncertain";
            it comes with the weights, since some networks are surer of themselves than others.
        lost_below: an object whose mean probability is below this is "lost": its mask is emptied.
        largest_growth: so is a mask with more than so many times the pixels that the object lately had, since
            that is usually what hides it; None: it may grow at once (`streamvos.segmenter.presence`).
        search_margin: pieces of a mask farther from the object's last box than this share of its sides are
            emptied if another piece lies nearer; None: a mask may have pieces anywhere.
    """

    uncertain_below: float = Field(0.6, ge=0, le=1)
    lost_below: float = Field(0.0, ge=0, le=1)
    largest_growth: float | None = Field(None, gt=1)
    search_margin: float | None = Field(None, gt=0)

    @property
    def limits_extents(self) -> bool:
        """Whether it matters where an object was, and how large."""
        return self.largest_growth is not None or self.search_margin is not None


class Decoder(Protocol):
    """Evidence to probabilities; stateless."""

    def __call__(
        self, evidence: Evidence, size: tuple[int, int], annotation: Annotation | None = None
    ) -> torch.Tensor:
        """Probabilities of one frame.

        Args:
            evidence: what the target read from the frame.
            size: (H, W) of the frame in pixels.
            annotation: objects given on this frame, new ones or ones of the evidence.

        Returns:
            (1 + K, H, W) float32, background first, summing to 1. The K objects are those of the evidence and
            of the annotation, by ascending id; the pixels that the annotation names are certain.
        """


class Target(ABC):
    """The state of one stream. Its memory is bounded, however long the stream.

    Features are those of one frame (B = 1), on the method's device. A call that raises leaves the state
    as it was. All calls come from one thread.

    Attributes:
        defer: whether expensive training becomes a `TrainingTask` instead of running within `annotate` and
            `write`; set before the first frame. A target that does not train has no tasks.
    """

    defer: bool = False

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
        """Take `label_map` as the truth of this frame.

        Args:
            features: the annotated frame's features, B = 1.
            label_map: (H, W) int64; 0 background, ids of `object_ids`, 255 void (unknown).
            object_ids: all objects to follow from here on, ascending; one without a pixel in `label_map` is
                followed but not visible now.
            named: the ids whose pixels the user gave on this frame, new or corrected; the pixels of the
                others are predictions. None = all of them were given.
            probabilities: (1 + K, H, W) float32, the decoder's output with the annotation, for targets that
                remember soft predictions; None on the first frame.
        """

    @abstractmethod
    def read(self, features: Features) -> Evidence:
        """What the memory says about this frame."""

    @abstractmethod
    def write(self, features: Features, probabilities: torch.Tensor) -> None:
        """Remember this frame with its prediction, (1 + K, H, W) float32 as the decoder gave it."""

    @abstractmethod
    def forget(self, object_id: int) -> None:
        """Stop following this object; its pixels count as background from here on."""

    def check_followed(self, object_id: int) -> None:
        """Raise InputError unless the object is followed."""
        if object_id not in self.object_ids:
            raise InputError(f"object {object_id} is not followed; known objects: {list(self.object_ids)}")

    def new_and_kept(
        self, object_ids: Sequence[int], named: Sequence[int] | None
    ) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Of the objects of an annotation those that are learned anew, and those that go on as they are.

        Args:
            object_ids, named: the arguments of `annotate`.

        Raises:
            InputError: there is no object, or one that is not given was not followed before.
        """
        new = tuple(i for i in object_ids if named is None or i in named)
        kept = tuple(i for i in object_ids if i not in new)
        strangers = [i for i in kept if i not in self.object_ids]
        if not object_ids or strangers:
            raise InputError(f"{strangers} have no mask yet; objects to follow: {list(object_ids)}")
        return new, kept

    @abstractmethod
    def state_dict(self) -> dict[str, torch.Tensor]:
        """Everything needed to continue elsewhere, bit-identically; tensors only."""

    @abstractmethod
    def load_state_dict(self, state: Mapping[str, torch.Tensor]) -> None:
        """Continue from a `state_dict`.

        Raises:
            InputError: something is missing or does not fit together; the state is unchanged.
        """

    def take_tasks(self) -> list[TrainingTask]:
        """The training deferred since the last call, to be run in this order.

        There is at most one unfinished task per object; training that falls due meanwhile waits or is
        skipped. So every task has to be given back to `take_over`, even one that failed, unless its object is
        gone. `state_dict` does not contain what unfinished tasks will learn.
        """
        return []

    def take_over(self, task: TrainingTask) -> bool:
        """Use the outcome of a task, between two frames; this takes no longer than copying it.

        Args:
            task: any task whose `run` has returned or raised.

        Returns:
            Whether anything changed: not if the task failed, or if its objects have been forgotten, annotated
            again, or restored since.
        """
        return False


class Origin(NamedTuple):
    """The arguments of `streamvos.weights.load_method`.

    Attributes:
        name: the method's name in `METHODS`.
        weights: "default", a path, or None (random).
        options: the options that were given.
    """

    name: str
    weights: str | None
    options: Mapping[str, Any]


class Method(nn.Module, ABC):
    """A published method: networks with weights, and the factory of its targets.

    Attributes:
        name: the method's name.
        options: everything about it that is not a weight.
        extractor: frames (B, 3, H, W) float32 RGB in 0..1 -> Features; stateless.
        decoder: see `Decoder`.
        origin: how to load it again; None if it was not loaded by `streamvos.weights.load_method`.
    """

    name: str
    options: MethodOptions
    extractor: nn.Module
    decoder: Decoder
    origin: Origin | None = None

    @property
    def loaded_as(self) -> str:
        """The name by which it was loaded, such as "frtm-fast"; its own name if it was not."""
        return self.name if self.origin is None else self.origin.name

    @property
    def networks(self) -> nn.Module:
        """The module whose state dict a weight file holds."""
        return self

    def parts(self) -> dict[str, Part]:
        """The networks that can be compiled, by name; the extractor is a new object in every call."""
        return {"extractor": ExtractorPart(self.extractor), **self.inner_parts()}

    def inner_parts(self) -> dict[str, Part]:
        """The parts that target or decoder call; there an engine can take their place."""
        return {}

    @abstractmethod
    def target(self) -> Target:
        """A fresh state for one stream."""
