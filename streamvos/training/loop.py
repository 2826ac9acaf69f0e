"""The training loop: deterministic by seed, resumable at any step, killed without loss.

A batch is a pure function of its step, so a run that was interrupted and resumed sees what an
uninterrupted one would have seen. Checkpoints are written to a temporary name and renamed.

    train(model, loss, batches, TrainingOptions(steps=1000), folder, report=print)
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import nn
from torch.utils.data import DataLoader, Dataset

from streamvos.types import InputError

Loss = Callable[[nn.Module, Mapping[str, torch.Tensor]], dict[str, torch.Tensor]]
"""(model, batch) -> named scalar losses; "total" is the one that is minimized."""

Report = Callable[[int, dict[str, float], float], None]
"""Called after every step with the step, its losses and its duration in seconds."""


class TrainingOptions(BaseModel):
    """How to train, whatever is trained.

    Attributes:
        steps: optimizer steps in all.
        batch: clips a step.
        seed: of weights, data and order.
        optimizer: "adamw" or "sgd" (momentum 0.9, Nesterov).
        learning_rate: the highest.
        final_learning_rate: where the cosine ends.
        weight_decay: on every weight.
        warmup: steps of linear warm-up.
        schedule_every: the learning rate changes every so many steps; 1 = always.
        average: decay of the exponential moving average of the weights; 0 keeps the plain ones.
        clip_gradient: largest norm of the gradient; None = any.
        checkpoint_seconds: between checkpoints.
        workers: processes that make batches; 0 makes them in the loop.
        precision: "bfloat16" trains under autocast.
        device: where.
        channels_last: memory format of the network and the frames.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    steps: int = Field(4000, ge=1)
    batch: int = Field(8, ge=1)
    seed: int = 0
    optimizer: Literal["adamw", "sgd"] = "adamw"
    learning_rate: float = Field(1.5e-3, gt=0)
    final_learning_rate: float = Field(1e-5, ge=0)
    weight_decay: float = Field(0.02, ge=0)
    warmup: int = Field(200, ge=0)
    schedule_every: int = Field(1, ge=1)
    average: float = Field(0.998, ge=0, lt=1)
    clip_gradient: float | None = 5.0
    checkpoint_seconds: float = Field(120, gt=0)
    workers: int = Field(1, ge=0)
    precision: Literal["float32", "bfloat16"] = "bfloat16"
    device: str = "cpu"
    channels_last: bool = True


class _Batches(Dataset):
    """Adapts `make(step) -> batch` to a data loader that starts anywhere."""

    def __init__(self, make: Callable[[int], dict[str, torch.Tensor]], first: int, steps: int):
        self.make, self.first, self.steps = make, first, steps

    def __len__(self) -> int:
        return self.steps - self.first

    def __getitem__(self, k: int) -> dict[str, torch.Tensor]:
        if k >= len(self):
            raise IndexError(k)
        return self.make(self.first + k)


def learning_rate_at(step: int, options: TrainingOptions) -> float:
    """Linear warm-up, then half a cosine."""
    if step < options.warmup:
        return options.learning_rate * (step + 1) / options.warmup
    step -= step % options.schedule_every
    progress = (step - options.warmup) / max(1, options.steps - options.warmup)
    cosine = 0.5 * (1 + math.cos(math.pi * max(progress, 0.0)))
    return options.final_learning_rate + (options.learning_rate - options.final_learning_rate) * cosine


def save_atomically(value: Mapping[str, Any], path: Path) -> None:
    """`torch.save` to a temporary name beside `path`, flushed to disk, then renamed."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with open(temporary, "wb") as file:
        torch.save(dict(value), file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def _optimizer(model: nn.Module, options: TrainingOptions) -> torch.optim.Optimizer:
    if options.optimizer == "sgd":
        return torch.optim.SGD(
            model.parameters(),
            options.learning_rate,
            momentum=0.9,
            nesterov=True,
            weight_decay=options.weight_decay,
        )
    return torch.optim.AdamW(model.parameters(), options.learning_rate, weight_decay=options.weight_decay)


def train(
    model: nn.Module,
    loss: Loss,
    make_batch: Callable[[int], dict[str, torch.Tensor]],
    options: TrainingOptions,
    folder: Path,
    report: Report | None = None,
    describe: Mapping[str, Any] | None = None,
) -> dict[str, torch.Tensor]:
    """Train `model`, resuming from `folder` if a run with the same options stopped there.

    Args:
        model: with weights as they should start.
        loss: see `Loss`.
        make_batch: step -> batch of tensors, a pure function of the step.
        options: see `TrainingOptions`.
        folder: receives checkpoint.pt and losses.jsonl.
        report: see `Report`.
        describe: what else identifies the run; a checkpoint with another description is refused.

    Returns:
        The trained state dict: the moving average if there is one.

    Raises:
        InputError: `folder` holds a run with other options; or the loss became NaN.
    """
    folder.mkdir(parents=True, exist_ok=True)
    checkpoint, log = folder / "checkpoint.pt", folder / "losses.jsonl"
    identity = json.dumps(
        {**options.model_dump(exclude={"workers", "checkpoint_seconds"}), **(describe or {})}
    )
    device = torch.device(options.device)
    memory_format = torch.channels_last if options.channels_last else torch.contiguous_format
    model.to(device=device, memory_format=memory_format).train()
    optimizer = _optimizer(model, options)
    average = {name: value.detach().clone() for name, value in model.state_dict().items()}
    first = 0
    if checkpoint.exists():
        saved = torch.load(checkpoint, map_location=device, weights_only=True)
        if saved["identity"] != identity:
            raise InputError(f"{folder} holds a run with other options; choose another folder or remove it")
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        average, first = saved["average"], saved["step"]
        _truncate_log(log, first)

    batches = _Batches(make_batch, first, options.steps)
    loader = DataLoader(
        batches,
        batch_size=None,
        shuffle=False,
        num_workers=options.workers,
        prefetch_factor=3 if options.workers else None,
        pin_memory=device.type == "cuda",
    )

    def save(step: int) -> None:
        state = {"identity": identity, "model": model.state_dict(), "optimizer": optimizer.state_dict()}
        save_atomically({**state, "average": average, "step": step}, checkpoint)

    saved_at = started = time.monotonic()
    with open(log, "a", buffering=1) as lines:
        for step, batch in enumerate(loader, start=first):
            batch = {name: value.to(device, non_blocking=True) for name, value in batch.items()}
            for group in optimizer.param_groups:
                group["lr"] = learning_rate_at(step, options)
            half = options.precision == "bfloat16"
            with torch.autocast(device.type, torch.bfloat16, enabled=half):
                losses = loss(model, batch)
            if not torch.isfinite(losses["total"]):
                raise InputError(
                    f"the loss became {float(losses['total'])} at step {step}; lower the learning rate"
                )
            optimizer.zero_grad(set_to_none=True)
            losses["total"].backward()
            if options.clip_gradient is not None:
                nn.utils.clip_grad_norm_(model.parameters(), options.clip_gradient)
            optimizer.step()
            _move_average(average, model, min(options.average, (step + 1) / (step + 10)))
            now = time.monotonic()
            values = {name: round(value.item(), 5) for name, value in losses.items()}
            lines.write(json.dumps({"step": step, **values}) + "\n")
            if report is not None:
                report(step, values, now - started)
            started = now
            if now - saved_at > options.checkpoint_seconds:
                save(step + 1)
                saved_at = now
    save(options.steps)
    return average if options.average else model.state_dict()


@torch.no_grad()
def _move_average(average: dict[str, torch.Tensor], model: nn.Module, decay: float) -> None:
    for name, value in model.state_dict().items():
        if value.is_floating_point():
            average[name].lerp_(value, 1 - decay)
        else:
            average[name].copy_(value)


def _truncate_log(log: Path, steps: int) -> None:
    """Drop the lines that belong to steps after the checkpoint; they will be taken again."""
    if log.exists():
        lines = log.read_text().splitlines()[:steps]
        log.write_text("".join(line + "\n" for line in lines))


def plot_losses(log: Path, picture: Path, window: int = 50) -> None:
    """Draw losses.jsonl, each loss as a running mean over `window` steps.

    Raises:
        InputError: matplotlib is not installed, or there is nothing to draw.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise InputError("the curves need matplotlib: pip install 'streamvos[train]'") from None
    rows = [json.loads(line) for line in log.read_text().splitlines()]
    if not rows:
        raise InputError(f"{log} holds no step to draw")
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    for name in rows[0].keys() - {"step"}:
        values = [row[name] for row in rows]
        means = [sum(values[max(0, k - window + 1) : k + 1]) / min(k + 1, window) for k in range(len(values))]
        axes.plot([row["step"] for row in rows], means, label=name)
    axes.set(xlabel="step", ylabel=f"loss, mean of {window} steps", yscale="log")
    axes.grid(alpha=0.3)
    axes.legend()
    temporary = picture.with_name(f".{picture.name}")
    figure.savefig(temporary, dpi=110, format="png")
    os.replace(temporary, picture)
