"""Results of a training run: a weight file for `streamvos.load`, and the curves of its losses."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from streamvos.training.curves import plot_losses
from streamvos.training.loop import Say
from streamvos.types import SinkError, StreamvosError
from streamvos.weights import save_weights


def digest_of(tensors: Mapping[str, torch.Tensor]) -> str:
    """Digest of names and values, so that a run that began with other weights is not resumed."""
    digest = hashlib.sha256()
    for name, value in sorted(tensors.items()):
        digest.update(name.encode() + value.contiguous().cpu().numpy().tobytes())
    return digest.hexdigest()[:16]


def write_results(
    path: Path, weights: Mapping[str, torch.Tensor], method: str, metadata: Mapping[str, Any], say: Say
) -> None:
    """Write the weights to `path` and losses.png beside it, from the losses.jsonl there.

    Args:
        path: the weight file, in the folder of the run.
        weights: a state dict; batch counters are left out.
        method: name of the method.
        metadata: "options" and whatever else a reader should know, in JSON types.
        say: called with a message if only the curves fail.

    Raises:
        SinkError: the weights cannot be written.
    """
    tensors = {n: v for n, v in weights.items() if not n.endswith("num_batches_tracked")}
    try:
        save_weights(path, tensors, method, {**metadata, "torch": torch.__version__})
    except (OSError, SafetensorError) as error:
        raise SinkError(
            f"cannot write {path}: {error}; free some space and start again: no step is repeated"
        ) from None
    try:
        plot_losses(path.parent / "losses.jsonl", path.parent / "losses.png")
    except StreamvosError as error:
        say(f"the weights are written, the curves are not: {error}")
