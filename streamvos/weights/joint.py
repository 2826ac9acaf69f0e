"""The layout of the JOINT authors' checkpoints, and ours.

Theirs (entry "net", written without DataParallel's prefix) keeps the one self-attention twice, under the
encoder and under the decoder, and a value layer with every attention that is never used. Both are left out
here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from streamvos.types import InputError
from streamvos.weights.checkpoints import plain_names

PREFIXES = {
    "feature_extractor.": "backbone.",
    "transformer.feature_adjustor.0.": "transformer.adjust.",
    "transformer.encoder.self_attn.WK.": "transformer.self_attention.",
    "transformer.decoder.cross_attn.WK.": "transformer.cross_attention.",
    "target_model.feature_extractor.0.": "learner.adjust.",
    "target_model.filter_optimizer.residual_module.": "learner.",
    "label_encoder.conv_block.0.": "label_encoder.stem.",
    "label_encoder.res1_tm.": "label_encoder.induction.0.",
    "label_encoder.res2_tm.": "label_encoder.induction.1.",
    "label_encoder.res1_tr.": "label_encoder.transduction.0.",
    "label_encoder.res2_tr.": "label_encoder.transduction.1.",
    "label_encoder.label_pred_tm.0.": "label_encoder.induction_label.",
    "label_encoder.samp_w_pred.": "label_encoder.induction_importance.",
    "label_encoder.label_pred_tr.0.": "label_encoder.transduction_label.",
    "decoder.": "decoder.",
}
"""Beginning of a name in a published checkpoint -> in ours."""

TWICE = ("transformer.decoder.self_attn.", "transformer.encoder.self_attn.")
"""The same layer under two names: the copy, and the one that is read."""

DEPTHS = {(3, True): 50, (2, False): 18, (3, False): 34}
"""(blocks of the first stage, whether they are bottlenecks) -> layers, except for ResNet-101."""


def is_authors_layout(names: list[str]) -> bool:
    """Whether these are the names of a published JOINT checkpoint."""
    plain = {name.removeprefix("module.") for name in names}
    return {"transformer.feature_adjustor.0.weight", "feature_extractor.conv1.weight"} <= plain


def from_authors(tensors: Mapping[str, torch.Tensor]) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """A published state dict, with or without prefix and counters, as ours.

    Returns:
        The state dict of `JOINT.networks`, and the options that follow from it (the network's widths).

    Raises:
        InputError: names that do not belong to a JOINT checkpoint, missing ones, or two copies of the
            shared layer that differ.
    """
    plain = plain_names(tensors)
    converted: dict[str, torch.Tensor] = {}
    for name, value in plain.items():
        if ".WV." in name:
            continue
        if name.startswith(TWICE[0]):
            other = plain.get(TWICE[1] + name.removeprefix(TWICE[0]))
            if other is None or not torch.equal(value, other):
                raise InputError(f"{name!r} should be a copy of the encoder's layer, and is not")
            continue
        theirs = next((prefix for prefix in PREFIXES if name.startswith(prefix)), None)
        if theirs is None:
            raise InputError(f"{name!r} is not an entry of a JOINT checkpoint")
        converted[PREFIXES[theirs] + name.removeprefix(theirs)] = value
    return converted, {"network": _network(converted)}


def _network(tensors: Mapping[str, torch.Tensor]) -> dict[str, Any]:
    """The widths of the network that has these entries."""
    levels = [f"layer{number}" for number in (1, 2, 3, 4)]
    try:
        bottleneck = "backbone.layer1.0.conv3.weight" in tensors
        blocks = sum(f"backbone.layer1.{k}.conv1.weight" in tensors for k in range(3))
        deep = "backbone.layer3.22.conv1.weight" in tensors
        return {
            "depth": 101 if deep else DEPTHS[blocks, bottleneck],
            "planes": [len(tensors[f"backbone.{level}.0.conv1.weight"]) for level in levels],
            "channels": len(tensors["transformer.adjust.weight"]),
            "keys": len(tensors["transformer.self_attention.weight"]),
            "labels": len(tensors["label_encoder.induction_label.weight"]),
            "label_widths": [
                len(tensors["label_encoder.stem.weight"]),
                len(tensors["label_encoder.induction.0.conv1.weight"]),
                len(tensors["label_encoder.induction.1.conv1.weight"]),
            ],
            "widths": [len(tensors[f"decoder.RRB1.{level}.conv1x1.weight"]) for level in reversed(levels)],
        }
    except KeyError as error:
        raise InputError(f"the JOINT checkpoint lacks {error.args[0]!r}") from None
