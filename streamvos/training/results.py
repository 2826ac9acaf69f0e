"""Results of a training run: a weight file for `streamvos.load`, and the curves of its losses."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from streamvos.training.curves import plot_losses
from streamvos.training.loop import OF_THE_MACHINE, Say, Trained, TrainingOptions
from streamvos.types import SinkError, StreamvosError
from streamvos.weights import save_weights


def digest_of(tensors: Mapping[str, torch.Tensor]) -> str:
    """Digest of names and values, so that a run that began with other weights is not resumed."""
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
    """Write METHOD.safetensors, and losses.png from losses.jsonl, unless an earlier call has done so.

    Args:
        folder: folder of the run.
        method: name of the method.
        trained: outcome of the run.
        weights: state dict to write; batch counters are left out.
        training: options of the run.
        metadata: "options", "recipe" and whatever else a reader should know, in JSON types.
        say: called with a message if only the curves fail.

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
            f"cannot write {path}: {error}; free some space and start again: no step is repeated"
        ) from None
    try:
        plot_losses(folder / "losses.jsonl", folder / "losses.png")
    except StreamvosError as error:
        say(f"the weights are written, the curves are not: {error}")
    return path
