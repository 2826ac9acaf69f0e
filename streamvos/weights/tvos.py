"""The layout of the TVOS authors' checkpoints, and ours.

Theirs names the children of a ResNet by position (`backbone.4.0.conv1.weight`), wrapped by
DistributedDataParallel (`module.`); ours uses torchvision's names. docs/methods.md, TVOS.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from streamvos.types import InputError
from streamvos.weights.checkpoints import plain_names

CHILDREN = {"0": "conv1", "1": "bn1", "4": "layer1", "5": "layer2", "6": "layer3", "7": "layer4"}


def is_authors_layout(names: list[str]) -> bool:
    """Whether these are the names of a published TVOS checkpoint."""
    return any(name.removeprefix("module.").startswith("backbone.0.") for name in names)


def from_authors(tensors: Mapping[str, torch.Tensor]) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """A published state dict, with or without prefix and counters, as ours.

    Returns:
        The extractor's state dict, and the options that differ from the defaults (the network).

    Raises:
        InputError: names that do not belong to any of the authors' networks.
    """
    converted = {}
    for name, value in plain_names(tensors).items():
        parts = name.split(".")
        if parts[0] == "backbone":
            if len(parts) < 3 or parts[1] not in CHILDREN:
                raise InputError(f"{name!r} is not an entry of a TVOS checkpoint")
            parts[1] = CHILDREN[parts[1]]
        converted[".".join(parts)] = value
    return converted, {"network": _network(converted)}


def _network(tensors: Mapping[str, torch.Tensor]) -> dict[str, Any]:
    """Which of the authors' networks has these entries."""
    if "backbone.layer1.0.conv3.weight" not in tensors:
        return {"depth": 18, "embedding": None}
    depth = 101 if "backbone.layer3.22.conv1.weight" in tensors else 50
    return {"depth": depth, "embedding": 256}
