"""TensorFlow variables of FEELVOS as our state dict.

    tensors = read_checkpoint("model.npz").tensors          # np.savez of {variable name: value}
    state, options = from_authors(tensors)

The authors published a TensorFlow 1 checkpoint. Reading that format needs TensorFlow; dump it once, where
that is installed, with `numpy.savez(path, **{name: reader.get_tensor(name) for name in ...})`.

What is known about the names, none of which could be checked against the published file:
  - generally known from TensorFlow's deeplab: `xception_65/entry_flow/conv1_1/weights`,
    `xception_65/middle_flow/block1/unit_1/xception_module/separable_conv1_depthwise/depthwise_weights`,
    `.../shortcut/weights`, `aspp0`, `aspp1_depthwise`, `image_pooling`, `concat_projection`,
    `decoder/feature_projection0`, `decoder/decoder_conv0_depthwise`, and in `BatchNorm/` gamma, beta,
    moving_mean and moving_variance;
  - ASSUMED: everything in `embedding/` and `segmentation_head/`: `split_separable_conv2d_depthwise` and so
    on, numbered 0 to 3 in the head, and `segmentation_head/logits`. If a dump has other names there, the
    error tells which; rename them.

Kernels are height x width x inputs x outputs (depthwise: x 1) there. The head's first layer has one kernel
over 259 channels, which is cut into the features' share and that of the three maps per object.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch

from streamvos.methods.feelvos.options import RATES
from streamvos.types import InputError

BACKBONE = "xception_65/"
BRANCHES = len(RATES[8])
BLOCK = r"/xception_module/(separable|shortcut)(?:_conv)?(\d?)"
SCOPES = {
    BACKBONE + r"entry_flow/conv1_(\d)": r"extractor.backbone.conv\1",
    BACKBONE + r"entry_flow/block(\d)/unit_1" + BLOCK: r"extractor.backbone.entry.<\1>.\2\3",
    BACKBONE + r"middle_flow/block1/unit_(\d+)" + BLOCK: r"extractor.backbone.middle.<\1>.\2\3",
    BACKBONE + r"exit_flow/block(\d)/unit_1" + BLOCK: r"extractor.backbone.exit.<\1>.\2\3",
    "image_pooling": "extractor.pyramid.pooling.conv",
    "aspp0": "extractor.pyramid.point.conv",
    r"aspp(\d)": r"extractor.pyramid.dilated.<\1>",
    "concat_projection": "extractor.pyramid.projection.conv",
    "decoder/feature_projection0": "extractor.decoder.low.conv",
    "decoder/decoder_conv0": "extractor.decoder.conv1",
    "decoder/decoder_conv1": "extractor.decoder.conv2",
    "embedding/split_separable_conv2d": "extractor.embedding",
    "segmentation_head/split_separable_conv2d_0": "head.cues",
    r"segmentation_head/split_separable_conv2d_(\d)": r"head.layers.<\1>",
    "segmentation_head/logits": "head.logit",
}
"""TensorFlow's scope of a layer, without _depthwise or _pointwise -> our name; <k> stands for k - 1."""

LEAVES = {
    "weights": "weight",
    "depthwise_weights": "weight",
    "biases": "bias",
    "BatchNorm/gamma": "bn.weight",
    "BatchNorm/beta": "bn.bias",
    "BatchNorm/moving_mean": "bn.running_mean",
    "BatchNorm/moving_variance": "bn.running_var",
}


def is_authors_layout(names: list[str]) -> bool:
    """Whether these are names of TensorFlow variables of a network on Xception-65."""
    return any(name.startswith(BACKBONE) for name in names)


def from_authors(tensors: Mapping[str, torch.Tensor]) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """TensorFlow variables as our state dict.

    Args:
        tensors: name -> value; a trailing ":0" is accepted, the optimizer's slots and the step are left out.

    Returns:
        The method's state dict, and the options that follow from it: the network. The output stride does not
        follow from weights and stays the released one.

    Raises:
        InputError: names or shapes that do not belong to FEELVOS.
    """
    plain = {name.removesuffix(":0"): value for name, value in tensors.items()}
    plain = {n: v for n, v in plain.items() if n != "global_step" and not n.endswith("/Momentum")}
    names = {name: _our_name(name) for name in plain}
    unknown = sorted(name for name in plain if names[name] is None)
    if unknown:
        raise InputError(
            f"{len(unknown)} variables do not belong to FEELVOS as far as its names are known, the first are "
            f"{unknown[:3]}; rename them (streamvos/weights/feelvos.py lists the expected names), or leave "
            "them out"
        )
    state = {str(names[name]): _our_layout(name, value) for name, value in plain.items()}
    network = _network(state)
    _split_first_layer(state, network["features"])
    return state, {"network": network}


def _our_name(variable: str) -> str | None:
    """Our name of a TensorFlow variable; None if FEELVOS has no such variable."""
    parts = re.fullmatch(r"(.+?)(?:_(depthwise|pointwise))?/((?:BatchNorm/)?\w+)", variable)
    if parts is None or parts[3] not in LEAVES:
        return None
    scope, half, leaf = parts.groups()
    for theirs, ours in SCOPES.items():
        if found := re.fullmatch(theirs, scope):
            name = re.sub(r"<(\d+)>", lambda number: str(int(number[1]) - 1), found.expand(ours))
            name = f"{name}.{half}" if half else name
            if not leaf.startswith("BatchNorm/"):
                return f"{name}.{LEAVES[leaf]}"
            # x.conv has the normalization x.bn, any other layer y has y_bn
            return (name.removesuffix("conv") if name.endswith(".conv") else f"{name}_") + LEAVES[leaf]
    return None


def _our_layout(name: str, value: torch.Tensor) -> torch.Tensor:
    """(height, width, inputs, outputs) to (outputs, inputs, height, width); vectors stay as they are."""
    is_kernel, is_depthwise = name.endswith("weights"), name.endswith("depthwise_weights")
    if value.ndim != (4 if is_kernel else 1) or (is_depthwise and value.shape[3] != 1):
        expected = (
            "(height, width, channels, 1)" if is_depthwise else "of 4 axes" if is_kernel else "a vector"
        )
        raise InputError(f"{name} is {tuple(value.shape)}, expected {expected}")
    value = value.float()
    if not is_kernel:
        return value
    return value.permute((2, 3, 0, 1) if is_depthwise else (3, 2, 0, 1)).contiguous()


def _network(state: Mapping[str, torch.Tensor]) -> dict[str, Any]:
    """The shape of the network that has these entries."""

    def shape(name: str) -> torch.Size:
        if name not in state:
            raise InputError(f"the variables of the FEELVOS network are incomplete: {name} is missing")
        return state[name].shape

    def count(prefix: str) -> int:
        return len({name.removeprefix(prefix).split(".")[0] for name in state if name.startswith(prefix)})

    network: dict[str, Any] = {
        "middle": count("extractor.backbone.middle."),
        "features": shape("extractor.pyramid.projection.conv.weight")[0],
        "low_features": shape("extractor.decoder.low.conv.weight")[0],
        "embedding": shape("extractor.embedding.pointwise.weight")[0],
        "head_channels": shape("head.cues.pointwise.weight")[0],
        "head_layers": 1 + count("head.layers."),
        "head_kernel": shape("head.cues.depthwise.weight")[2],
    }
    rates = count("extractor.pyramid.dilated.")
    if rates != BRANCHES:
        raise InputError(f"the pyramid has {rates} dilated branches; FEELVOS has {BRANCHES}")
    return network


def _split_first_layer(state: dict[str, torch.Tensor], features: int) -> None:
    """Split the head's first layer, in place: the features' share goes to the stem, without the last bias.

    Its input channels are the features, then the three maps: global distance, previous probability, local
    distance.
    """
    inputs = features + 3
    depthwise, bias = state["head.cues.depthwise.weight"], state.get("head.cues.depthwise.bias")
    pointwise = state["head.cues.pointwise.weight"]
    if len(depthwise) != inputs or pointwise.shape[1] != inputs or bias is None or len(bias) != inputs:
        raise InputError(
            f"the head's first layer takes {features} features and 3 maps, {inputs} channels; got kernels "
            f"for {len(depthwise)} and {pointwise.shape[1]}"
        )
    for name, value, axis in (
        ("depthwise.weight", depthwise, 0),
        ("depthwise.bias", bias, 0),
        ("pointwise.weight", pointwise, 1),
    ):
        state[f"extractor.stem.{name}"] = value.narrow(axis, 0, features).contiguous()
        state[f"head.cues.{name}"] = value.narrow(axis, features, 3).contiguous()
