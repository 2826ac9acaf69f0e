"""Training in the background: what a target puts off, and which of it is still wanted."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch


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
