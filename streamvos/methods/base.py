"""The contract that every method fulfils.

A method is three parts: an extractor that looks at frames and at nothing else, a target that is the
whole state of one stream, and a decoder that turns what the target says into probabilities. The
segmenter and the pipeline know these doors only; they know nothing of any particular method.

    features = method.extractor(frames)              # stateless, batched over streams
    target = method.target()                         # one per stream
    target.annotate(features, label_map, (1, 2))     # the given mask
    evidence = target.read(features)                 # every later frame
    probabilities = method.decoder(evidence, features.size)
    target.write(features, probabilities)

When the user adds or corrects objects while others are followed, the frame is read and decoded with the
annotation, so that given and predicted masks meet where the method lets its objects compete, and then
the target is told:

    probabilities = method.decoder(target.read(features), features.size, annotation)
    target.annotate(features, label_map, object_ids, annotation.object_ids, probabilities)

A target that learns may do so beside the stream. With `defer` it puts what is dear into lessons; somebody
else learns them, in any thread, while the target goes on with what it knows:

    target.defer = True                              # once, before the first frame
    ...
    for lesson in target.take_lessons():             # after annotate and write
        executor.submit(lesson.learn).add_done_callback(lambda _, lesson=lesson: done.put(lesson))
    ...
    target.take_over(done.get())                     # between two frames, in the stream's own thread
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from pydantic import BaseModel
from torch import nn

from streamvos.methods.parts import ExtractorPart, Part
from streamvos.types import Annotation, Evidence, Features


class Decoder(Protocol):
    """Evidence to probabilities; stateless."""

    def __call__(
        self, evidence: Evidence, size: tuple[int, int], annotation: Annotation | None = None
    ) -> torch.Tensor:
        """Probabilities of one frame.

        Args:
            evidence: what the target read from the frame; everything that is decoded is in it.
            size: (H, W) of the frame in pixels.
            annotation: objects given on this frame, new ones or ones of the evidence.

        Returns:
            (1 + K, H, W) float32, background first, summing to 1. K counts the ids of the evidence and
            those of the annotation, together, ascending; the pixels that the annotation names are
            certain.
        """


class Modes:
    """PyTorch's modes at this object's birth; they are a thread's own.

    Tensors that were made in inference mode cannot be changed in place outside of it.
    """

    def __init__(self) -> None:
        self._modes = torch.is_inference_mode_enabled(), torch.is_grad_enabled()

    @contextmanager
    def __call__(self) -> Iterator[None]:
        """A region in which they are as they were."""
        inference, gradient = self._modes
        with torch.inference_mode(inference), torch.set_grad_enabled(gradient):
            yield


class Lesson:
    """Learning that a target has put off; made by the target, learned by whoever has the time.

    It works on tensors that nobody changes as long as it is wanted, so the target may be read, written, asked
    for its state, or thrown away meanwhile. On CUDA it may run in a stream of its own
    (`with torch.cuda.stream(side): lesson.learn()`), and its caller synchronizes nothing: it begins when what
    the target's stream had queued at the lesson's birth is done, and returns when its own kernels are done.

    Args:
        object_ids: whose model learns.
        work: gives what the target then takes over.
        device: of the tensors.

    Attributes:
        object_ids: as given.
        learned: whether there is something to take over.
        mode: see `Modes`.
    """

    def __init__(self, object_ids: tuple[int, ...], work: Callable[[], Any], device: torch.device):
        self.object_ids, self.learned = object_ids, False
        self._work: Callable[[], Any] | None = work
        self._outcome: Any = None
        self.mode = Modes()
        self._device, self._made = device, None
        if device.type == "cuda":
            self._made = torch.cuda.current_stream(device).record_event()

    def learn(self) -> None:
        """Do it, once; in any thread, but in one at a time. Nothing happens if it is not wanted any more.

        What it raises concerns this lesson only: give it to `Target.take_over` all the same, and the object
        goes on with what it had learned before.
        """
        work, self._work = self._work, None
        if work is None:
            return
        with self.mode():
            if self._made is not None:
                torch.cuda.current_stream(self._device).wait_event(self._made)
            self._outcome = work()
            if self._made is not None:
                torch.cuda.current_stream(self._device).synchronize()
        self.learned = True

    def collect(self) -> Any:
        """What was learned; for the target. The lesson holds nothing afterwards."""
        outcome, self._work, self._outcome = self._outcome, None, None
        return outcome

    def drop(self) -> None:
        """It is not wanted any more; if it has begun it is learned in vain."""
        self._work = None


class Lessons:
    """Which lessons of a target are on their way: at most one for each object."""

    def __init__(self) -> None:
        self._on_their_way: dict[int, Lesson] = {}
        self._new: list[Lesson] = []

    def add(self, lesson: Lesson) -> None:
        """To be handed out; none of its objects may have one on its way."""
        self._on_their_way |= dict.fromkeys(lesson.object_ids, lesson)
        self._new.append(lesson)

    def concern(self, object_id: int) -> bool:
        """Whether this object has one on its way."""
        return object_id in self._on_their_way

    def hand_out(self) -> list[Lesson]:
        """Those that are new and still wanted, oldest first."""
        new, self._new = self._new, []
        return new

    def cancel(self, object_ids: Iterable[int]) -> None:
        """What these objects learn is not wanted any more."""
        for i in object_ids:
            lesson = self._on_their_way.pop(i, None)
            if lesson is not None and lesson not in self._on_their_way.values():
                lesson.drop()
        wanted = set(map(id, self._on_their_way.values()))
        self._new = [lesson for lesson in self._new if id(lesson) in wanted]

    def settle(self, lesson: Lesson) -> tuple[int, ...]:
        """It has come back.

        Returns:
            Those of its objects that still want what it learned; none if it learned nothing.
        """
        ids = tuple(i for i in lesson.object_ids if self._on_their_way.get(i) is lesson)
        for i in ids:
            del self._on_their_way[i]
        return ids if lesson.learned else ()


def use_on_current_stream(tensors: Iterable[torch.Tensor]) -> None:
    """Tell CUDA's allocator that tensors of a lesson's stream are used on this one from now on."""
    for tensor in tensors:
        if tensor.is_cuda:
            tensor.record_stream(torch.cuda.current_stream(tensor.device))


class Target(ABC):
    """The state of one stream. Its memory is bounded, however long the stream.

    Features are those of one frame (B = 1), on the method's device. A call that raises leaves the state
    as it was. All calls come from one thread.

    Attributes:
        defer: whether what is dear to learn becomes a `Lesson` instead of taking the time of `annotate` and
            `write`. To be set before the first frame. A target that does not learn has no lessons.
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

    def take_lessons(self) -> list[Lesson]:
        """The lessons that came up since the last call, to be learned in this order.

        There is at most one on its way for each object: what would be learned meanwhile waits, or is passed
        over. So every lesson has to be given back to `take_over`, even one that failed; those that were
        dropped because the object is gone may be. `state_dict` does not hold what they will have learned.
        """
        return []

    def take_over(self, lesson: Lesson) -> bool:
        """Use what was learned; between two frames. It takes no longer than copying it.

        Args:
            lesson: of this target or of any other; `learn` has returned or raised.

        Returns:
            Whether it changed anything: not if it learned nothing, or if its objects have been forgotten,
            annotated anew, or restored since.
        """
        return False


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

    def parts(self) -> dict[str, Part]:
        """Its networks that can be compiled, by name; the same objects in every call but the extractor."""
        return {"extractor": ExtractorPart(self.extractor), **self.inner_parts()}

    def inner_parts(self) -> dict[str, Part]:
        """Those that the method calls itself, in target or decoder: an engine takes their place there."""
        return {}

    @abstractmethod
    def target(self) -> Target:
        """A fresh state for one stream."""
