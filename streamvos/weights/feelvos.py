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
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from streamvos.methods.feelvos.options import RATES
from streamvos.types import InputError

BACKBONE = "xception_65/"
BRANCHES = len(RATES[8])
EMBEDDING = "embedding/split_separable_conv2d"
HEAD = "segmentation_head/"
STATISTICS = {
    "gamma": "weight",
    "beta": "bias",
    "moving_mean": "running_mean",
    "moving_variance": "running_var",
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
    names = _our_names(plain)
    unknown = sorted(set(plain) - set(names))
    if unknown:
        raise InputError(
            f"{len(unknown)} variables do not belong to FEELVOS as far as its names are known, the first are "
            f"{unknown[:3]}; rename them (streamvos/weights/feelvos.py lists the expected names), or leave "
            "them out"
        )
    state = {names[name]: _our_layout(name, value) for name, value in plain.items()}
    network = _network(state)
    _split_first_layer(state, network["features"])
    return state, {"network": network}


@dataclass(frozen=True)
class Layer:
    """A convolution: TensorFlow's scope, our name, and our name of the normalization if there is one."""

    scope: str
    name: str
    normalization: str | None = None

    def variables(self) -> Iterator[tuple[str, str]]:
        """TensorFlow's name and ours of everything in it."""
        weights = "depthwise_weights" if self.scope.endswith("_depthwise") else "weights"
        yield f"{self.scope}/{weights}", f"{self.name}.weight"
        if self.normalization is None:
            yield f"{self.scope}/biases", f"{self.name}.bias"
            return
        for theirs, ours in STATISTICS.items():
            yield f"{self.scope}/BatchNorm/{theirs}", f"{self.normalization}.{ours}"


def _separable(scope: str, name: str, normalized: bool = True) -> Iterator[Layer]:
    for half in ("depthwise", "pointwise"):
        ours = f"{name}.{half}"
        yield Layer(f"{scope}_{half}", ours, f"{ours}_bn" if normalized else None)


def _block(scope: str, name: str, shortcut: bool) -> Iterator[Layer]:
    """A block of Xception."""
    for k in (1, 2, 3):
        yield from _separable(f"{scope}/xception_module/separable_conv{k}", f"{name}.separable{k}")
    if shortcut:
        yield Layer(f"{scope}/xception_module/shortcut", f"{name}.shortcut", f"{name}.shortcut_bn")


def _backbone(middle: int) -> Iterator[Layer]:
    for k in (1, 2):
        name = f"extractor.backbone.conv{k}"
        yield Layer(f"{BACKBONE}entry_flow/conv1_{k}", name, f"{name}_bn")
    for k in range(3):
        yield from _block(f"{BACKBONE}entry_flow/block{k + 1}/unit_1", f"extractor.backbone.entry.{k}", True)
    for k in range(middle):
        yield from _block(
            f"{BACKBONE}middle_flow/block1/unit_{k + 1}", f"extractor.backbone.middle.{k}", False
        )
    for k in range(2):
        scope, name = f"{BACKBONE}exit_flow/block{k + 1}/unit_1", f"extractor.backbone.exit.{k}"
        yield from _block(scope, name, shortcut=k == 0)


def _after_backbone(rates: int, head_layers: int) -> Iterator[Layer]:
    for scope, name in (
        ("image_pooling", "pyramid.pooling"),
        ("aspp0", "pyramid.point"),
        ("concat_projection", "pyramid.projection"),
        ("decoder/feature_projection0", "decoder.low"),
    ):
        yield Layer(scope, f"extractor.{name}.conv", f"extractor.{name}.bn")
    for k in range(rates):
        yield from _separable(f"aspp{k + 1}", f"extractor.pyramid.dilated.{k}")
    for k in (0, 1):
        yield from _separable(f"decoder/decoder_conv{k}", f"extractor.decoder.conv{k + 1}")
    yield from _separable(EMBEDDING, "extractor.embedding", normalized=False)
    for k in range(head_layers):
        name = f"head.layers.{k - 1}" if k else "head.cues"
        yield from _separable(f"{HEAD}split_separable_conv2d_{k}", name, normalized=False)
    yield Layer(f"{HEAD}logits", "head.logit")


def _our_names(names: Iterable[str]) -> dict[str, str]:
    """TensorFlow's name -> ours, for a network with the blocks, rates and layers that occur in the names."""

    def count(pattern: str) -> int:
        found = (re.match(pattern, name) for name in names)
        return len({match[1] for match in found if match})

    middle = count(rf"{BACKBONE}middle_flow/block1/unit_(\d+)/")
    rates = count(r"aspp([1-9]\d*)_")
    head_layers = count(rf"{HEAD}split_separable_conv2d_(\d+)_")
    layers = [*_backbone(middle), *_after_backbone(rates, head_layers)]
    return dict(pair for layer in layers for pair in layer.variables())


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
