"""The training loop: deterministic by seed, resumable at any step, safe against kills.

A batch is a pure function of its step, and so is everything random in a step. A run that was interrupted and
resumed therefore sees the same data as an uninterrupted one and ends with the same bits (on the same CPU with
the same number of threads; a GPU repeats itself up to rounding).

    trained = train(model, loss, make_batch, TrainingOptions(steps=1000), Path("runs/mine"))
    trained.weights                     # the moving average of the state dict
"""

from __future__ import annotations

import logging
import math
import signal
import threading
import time
import zlib
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import cv2
import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import nn
from torch.utils.data import DataLoader, Dataset

from streamvos.engines.eager import choose_device
from streamvos.training.run_folder import RunFolder
from streamvos.types import InputError, SourceError, StreamvosError

Batch = dict[str, torch.Tensor]

MakeBatch = Callable[[int], Batch]
"""Step -> batch, a pure function. Worker processes get a copy of it, so it must be picklable where processes
are not forked: a bound method or a `functools.partial` of one, not a lambda."""

Loss = Callable[[nn.Module, Mapping[str, torch.Tensor]], dict[str, torch.Tensor]]
"""(model, batch) -> named scalar losses, of which "total" is minimized."""

Report = Callable[[int, dict[str, float], float], None]
"""Called after every step with the step, its losses and its duration in seconds."""

Say = Callable[[str], None]
"""Called with messages for the user, such as "resuming the run"."""

say_in_log: Say = logging.getLogger(__name__).warning

OF_THE_MACHINE = {"workers", "checkpoint_seconds", "device"}
"""Options that may change when a run is resumed."""


class TrainingOptions(BaseModel):
    """Options of the training loop, the same for every method.

    Attributes:
        steps: number of optimizer steps.
        batch: clips per step.
        parts: number of equal parts of a batch that go through the network one after the other; their
            gradients are averaged. It saves memory, and batch norm sees one part, as with a part per GPU.
        seed: seed of weights, data and order.
        optimizer: "adamw" or "sgd" (momentum 0.9, Nesterov).
        learning_rate: the highest learning rate.
        final_learning_rate: the learning rate at the end of the cosine.
        weight_decay: weight decay of all weights.
        warmup: steps of linear warm-up.
        schedule_every: steps between changes of the learning rate.
        average: decay of the exponential moving average of the weights; 0 uses the plain weights.
        clip_gradient: largest norm of the gradient; None does not limit it.
        checkpoint_seconds: seconds between checkpoints.
        workers: processes that make batches; 0 makes them in the loop. A CPU needs one, a GPU about 8. The
            batches do not depend on it.
        precision: "bfloat16" trains under autocast.
        device: "auto", "cpu", "cuda", "cuda:1", ...
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    steps: int = Field(default=4000, ge=1)
    batch: int = Field(default=8, ge=1)
    parts: int = Field(default=1, ge=1)
    seed: int = Field(default=0, ge=0, lt=2**31)
    optimizer: Literal["adamw", "sgd"] = "adamw"
    learning_rate: float = Field(default=1.5e-3, gt=0)
    final_learning_rate: float = Field(default=1e-5, ge=0)
    weight_decay: float = Field(default=0.02, ge=0)
    warmup: int = Field(default=200, ge=0)
    schedule_every: int = Field(default=1, ge=1)
    average: float = Field(default=0.998, ge=0, lt=1)
    clip_gradient: float | None = Field(default=5.0, gt=0)
    checkpoint_seconds: float = Field(default=120, ge=0)
    workers: int = Field(default=1, ge=0)
    precision: Literal["float32", "bfloat16"] = "bfloat16"
    device: str = "cpu"

    @model_validator(mode="after")
    def _parts_must_be_equal(self) -> TrainingOptions:
        if self.batch % self.parts:
            raise ValueError(f"parts must divide the batch of {self.batch}")
        return self


@dataclass(frozen=True)
class Trained:
    """The outcome of a run.

    Attributes:
        weights: state dict; the moving average if there is one.
        first: the first step of this call; the number of steps if the run was complete before.
    """

    weights: dict[str, torch.Tensor]
    first: int


def learning_rate_at(step: int, options: TrainingOptions) -> float:
    """Linear warm-up, then half a cosine."""
    if step < options.warmup:
        return options.learning_rate * (step + 1) / options.warmup
    step -= step % options.schedule_every
    progress = (step - options.warmup) / max(1, options.steps - options.warmup)
    cosine = 0.5 * (1 + math.cos(math.pi * max(progress, 0.0)))
    return options.final_learning_rate + (options.learning_rate - options.final_learning_rate) * cosine


def train(
    model: nn.Module,
    loss: Loss,
    make_batch: MakeBatch,
    options: TrainingOptions,
    folder: Path,
    report: Report | None = None,
    describe: Mapping[str, Any] | None = None,
    say: Say = say_in_log,
) -> Trained:
    """Train `model`, resuming from `folder` if a run with the same options stopped there.

    After any error the last checkpoint is unchanged.

    Args:
        model: the network with its initial weights; it is moved to the device and trained in place.
        folder: receives checkpoint.pt and losses.jsonl.
        describe: data, network and whatever else identifies the run, in JSON types.

    Raises:
        InputError: `folder` holds a run with other options (all but `OF_THE_MACHINE` count) or another
            description, its checkpoint is damaged, or another process trains there; there is no such
            device; `make_batch` refuses its input; the loss or its gradient became NaN or infinite.
        SourceError: a process that makes batches died.
        SinkError: checkpoint or log cannot be written.
    """
    device = choose_device(options.device)
    identity = {**options.model_dump(mode="json", exclude=OF_THE_MACHINE), **(describe or {})}
    own_generators = torch.random.fork_rng(devices=[device] if device.type == "cuda" else [])
    with RunFolder(folder, identity) as run, own_generators:
        model.to(device=device, memory_format=torch.channels_last).train()  # type: ignore[call-overload]
        trainer = _Trainer(model, options, device, run)
        first = trainer.resume()
        if first >= options.steps:
            say(f"nothing to do: the run in {folder} has done its {options.steps} steps")
        else:
            if first:
                say(f"resuming the run in {folder} at step {first} of {options.steps}")
            trainer.train(first, loss, make_batch, report)
        return Trained(trainer.average if options.average else model.state_dict(), first)


class _Trainer:
    def __init__(self, model: nn.Module, options: TrainingOptions, device: torch.device, run: RunFolder):
        self.model, self.options, self.device, self.run = model, options, device, run
        self.optimizer = _optimizer(model, options)
        self.average = {name: value.detach().clone() for name, value in model.state_dict().items()}

    def resume(self) -> int:
        """Load the folder's checkpoint; returns the step to continue with."""
        saved = self.run.read()
        if saved is None:
            self.run.begin(0)
            return 0
        state = self.model.state_dict()
        try:
            if {n: v.shape for n, v in saved["average"].items()} != {n: v.shape for n, v in state.items()}:
                raise ValueError("the moving average has other entries than the network")
            self.model.load_state_dict(saved["model"])
            self.optimizer.load_state_dict(saved["optimizer"])
        except (RuntimeError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise self.run.damaged(_one_line(error)[:200]) from None
        self.average = {name: value.to(self.device) for name, value in saved["average"].items()}
        self.run.begin(saved["step"])
        return int(saved["step"])

    def train(self, first: int, loss: Loss, make_batch: MakeBatch, report: Report | None) -> None:
        options = self.options
        saved_at = started = time.monotonic()
        with closing(self._batches(first, make_batch)) as batches:
            for step, batch in enumerate(batches, start=first):
                losses = self._step(step, batch, loss)
                now = time.monotonic()
                self.run.log(step, losses)
                if report is not None:
                    report(step, losses, now - started)
                started = now
                if step + 1 == options.steps or now - saved_at >= options.checkpoint_seconds:
                    self._save(step + 1)
                    saved_at = time.monotonic()

    def _batches(self, first: int, make_batch: MakeBatch) -> Generator[Batch, None, None]:
        """The batches of all steps from `first` on, on the device."""
        on_gpu = self.device.type == "cuda"
        loader = DataLoader(
            _Batches(make_batch, first, self.options.steps),
            batch_size=None,
            shuffle=False,
            num_workers=self.options.workers,
            prefetch_factor=3 if self.options.workers else None,
            pin_memory=on_gpu,
            worker_init_fn=_begin_worker,
        )
        with _sigchld_kept(), _one_opencv_thread():
            batches = iter(loader)
        while True:
            try:
                batch = next(batches)
            except StopIteration:
                return
            except (RuntimeError, OSError, EOFError) as error:
                # the queue reports that a worker is gone, or fails in one of many ways before
                if not self.options.workers or str(error).startswith("Caught"):
                    raise
                raise SourceError(
                    f"a process that makes batches ended ({_one_line(error)}); if memory ran out, use fewer "
                    "workers"
                ) from None
            if isinstance(batch, StreamvosError):
                raise batch
            yield {name: value.to(self.device, non_blocking=on_gpu) for name, value in batch.items()}

    def _step(self, step: int, batch: Batch, loss: Loss) -> dict[str, float]:
        """One step of the optimizer; returns the losses, averaged over the parts and rounded for the log."""
        options = self.options
        # random numbers in a loss or a network (such as dropout) depend on the step alone; a hash, since
        # torch's generator uses only 32 bits of the seed
        torch.manual_seed(zlib.crc32(f"{options.seed} {step}".encode()))
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate_at(step, options)
        self.optimizer.zero_grad(set_to_none=True)
        half = options.precision == "bfloat16"
        rows = []
        for part in _parts(batch, options.parts):
            with torch.autocast(self.device.type, torch.bfloat16, enabled=half):
                losses = loss(self.model, part)
            (losses["total"] / options.parts).backward()
            rows.append(torch.stack([value.detach().float() for value in losses.values()]))
        gradients = [p.grad for p in self.model.parameters() if p.grad is not None]
        norm = nn.utils.get_total_norm(gradients)
        # a single wait for the GPU per step; only finite values may reach the weights
        *means, length = torch.cat([torch.stack(rows).mean(0), norm.float()[None]]).tolist()
        values = dict(zip(losses, means, strict=True))
        if not all(map(math.isfinite, (*means, length))):
            raise InputError(
                f"training diverged at step {step}: the loss is {values['total']}, the norm of its gradient "
                f"{length}. Start again in another folder with a learning_rate below "
                f"{options.learning_rate:g}, more warmup, or a smaller clip_gradient; the checkpoint in "
                f"{self.run.folder} is older"
            )
        if options.clip_gradient is not None:
            nn.utils.clip_grads_with_norm_(self.model.parameters(), options.clip_gradient, norm)
        self.optimizer.step()
        if options.average:
            _move_average(self.average, self.model, min(options.average, (step + 1) / (step + 10)))
        return {name: round(value, 5) for name, value in values.items()}

    def _save(self, step: int) -> None:
        model = self.model.state_dict()
        average = self.average if self.options.average else model
        self.run.save(step, {"model": model, "optimizer": self.optimizer.state_dict(), "average": average})


class _Batches(Dataset):
    """Adapts `make(step) -> batch` to a data loader that starts anywhere."""

    def __init__(self, make: MakeBatch, first: int, steps: int):
        self.make, self.first, self.steps = make, first, steps

    def __len__(self) -> int:
        return self.steps - self.first

    def __getitem__(self, k: int) -> Batch | StreamvosError:
        try:
            return self.make(self.first + k)
        except StreamvosError as error:
            return error  # raised in a worker, its text would become the whole traceback


def _begin_worker(_: int) -> None:
    """Give a worker process one OpenCV thread, and leave Ctrl-C to the process that trains."""
    if cv2.getNumThreads() != 1:  # a process that was not forked; see _one_opencv_thread
        cv2.setNumThreads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)


@contextmanager
def _one_opencv_thread() -> Iterator[None]:
    """Let OpenCV end its threads before workers are forked.

    A forked process has none of its parent's threads, but OpenCV expects them and waits forever when their
    number changes or when it gives them work.
    """
    before = cv2.getNumThreads()
    cv2.setNumThreads(1)
    try:
        yield
    finally:
        cv2.setNumThreads(before)


@contextmanager
def _sigchld_kept() -> Iterator[None]:
    """Restore the handler of SIGCHLD that a data loader replaces.

    torch's handler raises in the main thread at any place, even in the middle of a save, when a worker dies.
    Without it the death is noticed at the next batch, within five seconds.
    """
    in_main_thread = threading.current_thread() is threading.main_thread()
    before = signal.getsignal(signal.SIGCHLD)
    try:
        yield
    finally:
        if in_main_thread and before is not None:  # other threads may not set handlers
            signal.signal(signal.SIGCHLD, before)


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _parts(batch: Batch, count: int) -> Iterator[Batch]:
    """The batch cut into `count` equal parts."""
    pieces = [value.chunk(count) for value in batch.values()]
    return (dict(zip(batch, part, strict=True)) for part in zip(*pieces, strict=True))


def _optimizer(model: nn.Module, options: TrainingOptions) -> torch.optim.Optimizer:
    weights, rate, decay = model.parameters(), options.learning_rate, options.weight_decay
    if options.optimizer == "sgd":
        return torch.optim.SGD(weights, rate, momentum=0.9, nesterov=True, weight_decay=decay)
    return torch.optim.AdamW(weights, rate, weight_decay=decay)


@torch.no_grad()
def _move_average(average: dict[str, torch.Tensor], model: nn.Module, decay: float) -> None:
    for name, value in model.state_dict().items():
        if value.is_floating_point():
            average[name].lerp_(value, 1 - decay)
        else:
            average[name].copy_(value)
