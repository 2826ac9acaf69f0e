"""Training in the background: tasks that a target defers, and which of them are still wanted.

target.defer = True                              # once, before the first frame
...
for task in target.take_tasks():                 # after annotate and write
    executor.submit(task.run).add_done_callback(lambda _, task=task: done.put(task))
...
target.take_over(done.get())                     # between two frames, in the stream's own thread
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch


class Modes:
    """Torch's inference and gradient modes at the time of construction, to restore them in another thread.

    Tensors that were made in inference mode cannot be changed in place outside of it.
    """

    def __init__(self) -> None:
        self._modes = torch.is_inference_mode_enabled(), torch.is_grad_enabled()

    @contextmanager
    def __call__(self) -> Iterator[None]:
        """A region with these modes."""
        inference, gradient = self._modes
        with torch.inference_mode(inference), torch.set_grad_enabled(gradient):
            yield


class TrainingTask:
    """Training that a target has deferred; any thread may run it.

    It works on tensors that do not change while it is wanted, so the target may be read, written, saved or
    discarded meanwhile. On CUDA it may run in a stream of its own (`torch.cuda.stream`)
    without further synchronization: it waits for what the target's stream had queued when the task was made,
    and returns when its own kernels are done.

    Args:
        object_ids: the objects whose model is trained.
        work: returns what the target then takes over.
        device: the device of the tensors.

    Attributes:
        succeeded: whether there is something to take over.
        mode: torch's modes in which the task was made.
    """

    def __init__(self, object_ids: tuple[int, ...], work: Callable[[], Any], device: torch.device):
        self.object_ids, self.succeeded = object_ids, False
        self._work: Callable[[], Any] | None = work
        self._outcome: Any = None
        self.mode = Modes()
        self._device, self._made = device, None
        if device.type == "cuda":
            self._made = torch.cuda.current_stream(device).record_event()

    def run(self) -> None:
        """Train, once, unless the task was cancelled.

        After an exception the task must be given to `Target.take_over` too; the object keeps its old model.
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
        self.succeeded = True

    def collect(self) -> Any:
        """The outcome, for the target; the task holds nothing afterwards."""
        outcome, self._work, self._outcome = self._outcome, None, None
        return outcome

    def cancel(self) -> None:
        """Do not run, unless it has begun."""
        self._work = None


class TrainingTasks:
    """The tasks of a target that are not finished: at most one for each object."""

    def __init__(self) -> None:
        self._running: dict[int, TrainingTask] = {}  # by object, those not handed out yet included
        self._new: list[TrainingTask] = []

    def add(self, task: TrainingTask) -> None:
        """A task to be handed out; none of its objects may have another one."""
        self._running |= dict.fromkeys(task.object_ids, task)
        self._new.append(task)

    def concern(self, object_id: int) -> bool:
        """Whether this object has a task that is not finished."""
        return object_id in self._running

    def hand_out(self) -> list[TrainingTask]:
        """The new tasks that are still wanted, oldest first."""
        new, self._new = self._new, []
        return new

    def cancel(self, object_ids: Iterable[int]) -> None:
        """Training of these objects is no longer wanted."""
        for i in object_ids:
            task = self._running.pop(i, None)
            if task is not None and task not in self._running.values():
                task.cancel()
        wanted = set(map(id, self._running.values()))
        self._new = [task for task in self._new if id(task) in wanted]

    def finish(self, task: TrainingTask) -> tuple[int, ...]:
        """Remove a task that has run.

        Returns:
            The objects that still want its outcome; none if it failed.
        """
        ids = tuple(i for i in task.object_ids if self._running.get(i) is task)
        for i in ids:
            del self._running[i]
        return ids if task.succeeded else ()


def use_on_current_stream(tensors: Iterable[torch.Tensor]) -> None:
    """Tell CUDA's allocator that tensors of another stream are used on this one from now on."""
    for tensor in tensors:
        if tensor.is_cuda:
            tensor.record_stream(torch.cuda.current_stream(tensor.device))
