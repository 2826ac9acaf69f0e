"""Which weights there are, and a method with weights in it.

method = load_method("tvos", weights="default", options={"top_k": 5})
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from streamvos.methods import METHODS, Method, build
from streamvos.types import InputError
from streamvos.weights import tvos
from streamvos.weights.checkpoints import read_checkpoint

FILES = Path(__file__).parent / "files"
BUNDLED = {"tvos": "tvos.safetensors"}
"""Method -> the file that `weights="default"` means. Each has a model card of the same name beside it."""

COUNTER = "num_batches_tracked"


def bundled_path(method: str) -> Path:
    """Where the bundled weights of a method lie.

    Raises:
        InputError: none are bundled.
    """
    if method not in BUNDLED:
        known = ", ".join(sorted(BUNDLED))
        raise InputError(f"no weights are bundled for {method!r} (only for: {known}); give a path, or None")
    return FILES / BUNDLED[method]


def load_method(name: str, weights: str | Path | None, options: Mapping[str, Any]) -> Method:
    """A method with weights.

    Args:
        name: a key of `METHODS`.
        weights: "default" (bundled), a path (a file of ours or a published checkpoint, told apart by
            its keys), or None (random).
        options: override those that come with the weights.

    Raises:
        InputError: see `build`, `read_checkpoint`; or weights that belong to another method or network.
    """
    if name not in METHODS:
        return build(name)  # refuses it, naming the known ones
    if weights is None:
        return build(name, options)
    path = bundled_path(name) if weights == "default" else Path(weights)
    checkpoint = read_checkpoint(path)
    if checkpoint.metadata:
        if checkpoint.metadata.get("method") != name:
            raise InputError(
                f"{path} holds weights of {checkpoint.metadata.get('method')!r}, not of {name!r}"
            )
        tensors, stored = checkpoint.tensors, checkpoint.metadata.get("options", {})
    elif name == "tvos" and tvos.is_authors_layout(list(checkpoint.tensors)):
        tensors, stored = tvos.from_authors(checkpoint.tensors)
    else:
        some = ", ".join(sorted(checkpoint.tensors)[:3])
        raise InputError(
            f"{path} is neither a streamvos file nor a known checkpoint of {name!r} (keys: {some}, ...)"
        )
    method = build(name, {**stored, **options})
    load_exactly(method, tensors, path)
    return method


def load_exactly(method: Method, tensors: Mapping[str, torch.Tensor], path: Path) -> None:
    """Load a state dict into a method's networks; every entry must find its place, counters apart.

    Raises:
        InputError: names or shapes that do not agree; the method is unchanged.
    """
    own = {n: v for n, v in method.networks.state_dict().items() if not n.endswith(COUNTER)}
    given = {n: v for n, v in tensors.items() if not n.endswith(COUNTER)}
    missing, surplus = sorted(own.keys() - given.keys()), sorted(given.keys() - own.keys())
    if missing or surplus:
        raise InputError(
            f"{path} does not fit the network: {len(missing)} entries missing {missing[:3]}, "
            f"{len(surplus)} not expected {surplus[:3]}"
        )
    for name, value in given.items():
        if value.shape != own[name].shape:
            raise InputError(
                f"{path}: {name} is {tuple(value.shape)}, the network expects {tuple(own[name].shape)}"
            )
        if not torch.isfinite(value).all():
            raise InputError(f"{path}: {name} holds NaN or infinity")
    method.networks.load_state_dict(dict(given), strict=False)
