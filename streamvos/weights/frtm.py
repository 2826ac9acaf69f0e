"""The layout of the FRTM authors' checkpoints, and ours.

Theirs hold the segmentation network only (`refiner.`), within a dictionary of training state; the backbone is
torchvision's with ImageNet weights, in a file of its own. Ours holds both. docs/methods.md, FRTM.

    state, options = from_authors(checkpoint, backbone=resnet18)
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from streamvos.nn.resnet import resnet
from streamvos.types import InputError
from streamvos.weights.checkpoints import plain_names

CLASSIFIER = ("fc.weight", "fc.bias")

THEIRS, OURS, BACKBONE = "refiner.", "decoder.refiner.", "extractor.backbone."

TELLTALE = "TSE.layer4.reduce.0.weight"
DEPTHS = {1024: 101, 256: 18}
"""Channels of the third stage -> depth of the authors' backbone."""

FILES = {18: "resnet18-5c106cde.pth", 101: "resnet101-63fe2227.pth"}
"""torchvision's names of the files (IMAGENET1K_V1)."""


def is_authors_layout(names: list[str]) -> bool:
    """Whether these are the names of a published FRTM checkpoint."""
    return any(name.removeprefix("module.") == THEIRS + TELLTALE for name in names)


def from_authors(
    tensors: Mapping[str, torch.Tensor], backbone: Mapping[str, torch.Tensor] | None = None
) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """A published state dict and torchvision's backbone as ours.

    Args:
        tensors: the entry "model" of the checkpoint, with or without prefix and counters.
        backbone: state dict of torchvision's ResNet-18 or -101; its classifier is left out.

    Returns:
        The method's state dict, and the options that follow from it (the depth of the backbone).

    Raises:
        InputError: names that do not belong to the authors' network; no backbone, or one that is not the
            network's.
    """
    converted = {}
    for name, value in plain_names(tensors).items():
        if not name.startswith(THEIRS):
            raise InputError(f"{name!r} is not an entry of an FRTM checkpoint")
        converted[OURS + name.removeprefix(THEIRS)] = value
    depth = _depth(converted)
    if backbone is None:
        raise InputError(
            "a published FRTM checkpoint leaves its backbone out; this one needs torchvision's "
            f"ResNet-{depth} with ImageNet weights ({FILES[depth]}). Make one file of both: "
            "streamvos weights convert CHECKPOINT --backbone FILE --out FILE"
        )
    converted |= {BACKBONE + name: value for name, value in _checked_backbone(backbone, depth).items()}
    return converted, {"depth": depth}


def _depth(tensors: Mapping[str, torch.Tensor]) -> int:
    """Depth of the backbone that the segmentation network was trained on."""
    if OURS + TELLTALE not in tensors:
        raise InputError(f"this is not an FRTM checkpoint: {THEIRS + TELLTALE} is missing")
    shape = tuple(tensors[OURS + TELLTALE].shape)
    if len(shape) != 4 or shape[1] not in DEPTHS:
        raise InputError(
            f"{THEIRS + TELLTALE} is {shape}; the authors' networks have {list(DEPTHS)} channels"
        )
    return DEPTHS[shape[1]]


def _checked_backbone(tensors: Mapping[str, torch.Tensor], depth: int) -> dict[str, torch.Tensor]:
    """The backbone without prefix, classifier and counters, if it is the right one."""
    given = {name: value for name, value in plain_names(tensors).items() if name not in CLASSIFIER}
    with torch.device("meta"):
        expected = plain_names(resnet(depth).state_dict())
    missing, surplus = sorted(expected.keys() - given.keys()), sorted(given.keys() - expected.keys())
    shapes = [n for n in expected if n in given and given[n].shape != expected[n].shape]
    if missing or surplus or shapes:
        some = ", ".join((missing + surplus + shapes)[:3])
        raise InputError(
            f"the backbone is not torchvision's ResNet-{depth} ({FILES[depth]}), which this checkpoint "
            f"needs: {len(missing)} entries missing, {len(surplus)} not expected, {len(shapes)} of another "
            f"shape ({some})"
        )
    return given
