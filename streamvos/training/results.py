"""Results of a training run: a weight file for `streamvos.load`, and a picture of the losses.

plot_losses(Path("runs/tvos/losses.jsonl"), Path("runs/tvos/losses.png"))
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError

from streamvos.files import read_text
from streamvos.training.loop import OF_THE_MACHINE, Say, Trained, TrainingOptions
from streamvos.types import InputError, SinkError, StreamvosError
from streamvos.weights import save_weights

LOG_BYTES = 2**30
"""The largest log of losses; a step takes about 100 bytes."""


def digest_of(tensors: Mapping[str, torch.Tensor]) -> str:
    """Digest of names and values; a run that started with other weights is not resumed."""
    digest = hashlib.sha256()
    for name, value in sorted(tensors.items()):
        digest.update(name.encode() + value.contiguous().cpu().numpy().tobytes())
    return digest.hexdigest()[:16]


def write_results(
    folder: Path,
    method: str,
    trained: Trained,
    weights: Mapping[str, torch.Tensor],
    training: TrainingOptions,
    metadata: Mapping[str, Any],
    say: Say,
) -> Path:
    """Write METHOD.safetensors, and losses.png from losses.jsonl, unless an earlier call did.

    Args:
        weights: state dict to write, without its batch counters.
        metadata: "options" and "recipe", in JSON types.
        say: called with a message if only the picture cannot be written.

    Returns:
        Path of the weights.

    Raises:
        SinkError: the weights cannot be written.
    """
    path = folder / f"{method}.safetensors"
    if trained.first >= training.steps and path.exists():
        return path
    tensors = {n: v for n, v in weights.items() if not n.endswith("num_batches_tracked")}
    options = training.model_dump(mode="json", exclude=OF_THE_MACHINE)
    try:
        save_weights(path, tensors, method, {**metadata, "training": options, "torch": torch.__version__})
    except (OSError, SafetensorError) as error:
        raise SinkError(
            f"cannot write {path}: {error}; free some space and start again, no step is repeated"
        ) from None
    try:
        plot_losses(folder / "losses.jsonl", folder / "losses.png")
    except StreamvosError as error:
        say(f"the weights are written, the picture of the losses is not: {error}")
    return path


def plot_losses(log: Path, picture: Path) -> None:
    """Draw the running mean of each loss of a log; it covers a twentieth of the steps, at most 50.

    Args:
        log: JSON lines, each with "step" and losses.
        picture: PNG to write, whole or not at all.

    Raises:
        InputError: matplotlib is not installed, or the log cannot be read or holds no losses.
        SinkError: the picture cannot be written.
    """
    try:
        from matplotlib.figure import Figure
        from matplotlib.ticker import LogLocator, NullFormatter
    except ImportError:
        raise InputError(
            "the picture of the losses needs matplotlib: pip install 'streamvos[train]'"
        ) from None
    curves = _read(log)
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    steps = curves.pop("step")
    window = min(50, max(1, len(steps) // 20))
    for name, values in curves.items():
        axes.plot(steps, running_mean(values, window), label=name)
    axes.set(xlabel="step", ylabel=f"loss, mean of {window} steps", yscale="log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 3, 5)))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.grid(alpha=0.3)
    axes.legend()
    temporary = picture.with_name(f".{picture.name}.{os.getpid()}")
    try:
        figure.savefig(temporary, dpi=110, format="png")
        os.replace(temporary, picture)
    except OSError as error:
        raise SinkError(f"cannot write {picture}: {error.strerror or error}; make room") from None
    finally:
        temporary.unlink(missing_ok=True)


def running_mean(values: np.ndarray, window: int) -> np.ndarray:
    """Mean of each of the `values`, (N,) float64, and up to `window` - 1 before it."""
    sums = np.concatenate([[0.0], np.cumsum(values)])
    ends = np.arange(1, len(values) + 1)
    begins = np.maximum(0, ends - window)
    return (sums[ends] - sums[begins]) / (ends - begins)


def _read(log: Path) -> dict[str, np.ndarray]:
    """The log's columns: "step" and at least one loss."""
    try:
        rows = [dict(json.loads(line)) for line in read_text(log, "the log", LOG_BYTES).splitlines()]
        names = rows[0] if rows else ()
        columns = {name: np.array([row[name] for row in rows], np.float64) for name in names}
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise InputError(f"{log} is not a log of losses ({error})") from None
    if "step" not in columns or len(columns) < 2:
        raise InputError(f"{log} holds no losses of any step")
    return columns
