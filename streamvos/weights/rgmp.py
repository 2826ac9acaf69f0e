"""The layout of the RGMP authors' checkpoint, and ours.

Theirs is a bare state dict wrapped by DataParallel (`module.`), with `Encoder` and `Decoder` beneath, the
stages of the ResNet named `res2` to `res5`, and the normalization of the frames among the entries.
docs/methods.md, RGMP.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch

from streamvos.nn.resnet import IMAGE_DEVIATION, IMAGE_MEAN
from streamvos.types import InputError
from streamvos.weights.checkpoints import plain_names

NORMALIZATION = {"Encoder.mean": IMAGE_MEAN, "Encoder.std": IMAGE_DEVIATION}
RENAMED = [
    (re.compile(r"^Encoder\.(conv1|bn1)\."), r"encoder.backbone.\1."),
    (re.compile(r"^Encoder\.conv1_p\."), "encoder.conv1_p."),
    (re.compile(r"^Encoder\.res2\."), "encoder.backbone.layer1."),
    (re.compile(r"^Encoder\.res3\."), "encoder.backbone.layer2."),
    (re.compile(r"^Encoder\.res4\."), "encoder.backbone.layer3."),
    (re.compile(r"^Encoder\.res5\."), "encoder.backbone.layer4."),
    (re.compile(r"^Decoder\.GC\.conv_l([12])\."), r"decoder.global_convolution.left\1."),
    (re.compile(r"^Decoder\.GC\.conv_r([12])\."), r"decoder.global_convolution.right\1."),
    (re.compile(r"^Decoder\.convG([12])\."), r"decoder.residual.conv\1."),
    (re.compile(r"^Decoder\.RF([234])\.convFS1\."), r"decoder.refine\1.skip."),
    (re.compile(r"^Decoder\.RF([234])\.convFS2\."), r"decoder.refine\1.skip_residual.conv1."),
    (re.compile(r"^Decoder\.RF([234])\.convFS3\."), r"decoder.refine\1.skip_residual.conv2."),
    (re.compile(r"^Decoder\.RF([234])\.convMM([12])\."), r"decoder.refine\1.merge_residual.conv\2."),
    (re.compile(r"^Decoder\.pred([2345])\."), r"decoder.predict\1."),
]
"""Theirs -> ours, by the beginning of the name."""

DEPTHS = {22: 101, 5: 50}
"""The last block of the third stage -> the depth of the ResNet."""


def is_authors_layout(names: list[str]) -> bool:
    """Whether these are the names of the published RGMP checkpoint."""
    plain = {name.removeprefix("module.") for name in names}
    return any(name.startswith("Encoder.conv1_p.") for name in plain) and any(
        name.startswith("Decoder.GC.") for name in plain
    )


def from_authors(tensors: Mapping[str, torch.Tensor]) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """A published state dict, with or without prefix and counters, as ours.

    Returns:
        The state dict of the method's networks, and the options that follow from it (the network).

    Raises:
        InputError: names that the authors' network does not have, or frames normalized by other numbers.
    """
    converted = {}
    for name, value in plain_names(tensors).items():
        if name in NORMALIZATION:
            _check_normalization(name, value)
        else:
            converted[_renamed(name)] = value
    return converted, {"network": _network(converted)}


def _renamed(name: str) -> str:
    for theirs, ours in RENAMED:
        new, count = theirs.subn(ours, name)
        if count:
            return new
    raise InputError(f"{name!r} is not an entry of an RGMP checkpoint")


def _check_normalization(name: str, value: torch.Tensor) -> None:
    """Ours is a constant; a checkpoint that was made with another would give wrong masks silently."""
    expected = torch.tensor(NORMALIZATION[name])
    if value.numel() != 3 or not torch.allclose(value.flatten().float(), expected, rtol=0, atol=1e-6):
        raise InputError(f"{name} is {value.flatten().tolist()[:4]}, expected {expected.tolist()} (ImageNet)")


def _network(tensors: Mapping[str, torch.Tensor]) -> dict[str, Any]:
    """Depth and widths, from what is there."""
    try:
        blocks = [int(name.split(".")[3]) for name in tensors if name.startswith("encoder.backbone.layer3.")]
        depth = DEPTHS[max(blocks)]
        planes = tuple(
            int(tensors[f"encoder.backbone.layer{k}.0.conv1.weight"].shape[0]) for k in (1, 2, 3, 4)
        )
        channels = int(tensors["decoder.predict2.weight"].shape[1])
    except (KeyError, ValueError, IndexError) as error:
        raise InputError(f"an RGMP checkpoint has a ResNet-50 and a decoder; missing: {error}") from None
    return {"depth": depth, "planes": planes, "channels": channels}
