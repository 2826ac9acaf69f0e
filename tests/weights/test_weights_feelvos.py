"""TensorFlow's variables of FEELVOS, under the names that are known or assumed, find their places."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from goldens import procedural

from streamvos.methods.feelvos import FEELVOS, FEELVOSNetwork, FEELVOSOptions
from streamvos.types import InputError
from streamvos.weights import load_method
from streamvos.weights.checkpoints import read_checkpoint
from streamvos.weights.feelvos import from_authors, is_authors_layout

SMALL = {"features": 6, "low_features": 4, "embedding": 5, "head_channels": 7, "middle": 2}


def variables(middle: int, features: int, low_features: int, embedding: int, head_channels: int):
    """Name -> shape of every variable, written down once more and independently of the converter."""
    shapes: dict[str, tuple[int, ...]] = {}

    def normalization(scope: str, channels: int) -> None:
        for leaf in ("gamma", "beta", "moving_mean", "moving_variance"):
            shapes[f"{scope}/BatchNorm/{leaf}"] = (channels,)

    def convolution(scope: str, kernel: int, inputs: int, outputs: int) -> None:
        shapes[f"{scope}/weights"] = (kernel, kernel, inputs, outputs)
        normalization(scope, outputs)

    def separable(scope: str, inputs: int, outputs: int) -> None:
        shapes[f"{scope}_depthwise/depthwise_weights"] = (3, 3, inputs, 1)
        normalization(f"{scope}_depthwise", inputs)
        convolution(f"{scope}_pointwise", 1, inputs, outputs)

    def with_biases(scope: str, kernel: int, inputs: int, outputs: int) -> None:
        shapes[f"{scope}_depthwise/depthwise_weights"] = (kernel, kernel, inputs, 1)
        shapes[f"{scope}_depthwise/biases"] = (inputs,)
        shapes[f"{scope}_pointwise/weights"] = (1, 1, inputs, outputs)
        shapes[f"{scope}_pointwise/biases"] = (outputs,)

    convolution("xception_65/entry_flow/conv1_1", 3, 3, 32)
    convolution("xception_65/entry_flow/conv1_2", 3, 32, 64)
    blocks = [
        ("entry_flow/block1/unit_1", 64, (128, 128, 128), True),
        ("entry_flow/block2/unit_1", 128, (256, 256, 256), True),
        ("entry_flow/block3/unit_1", 256, (728, 728, 728), True),
        *((f"middle_flow/block1/unit_{k + 1}", 728, (728, 728, 728), False) for k in range(middle)),
        ("exit_flow/block1/unit_1", 728, (728, 1024, 1024), True),
        ("exit_flow/block2/unit_1", 1024, (1536, 1536, 2048), False),
    ]
    for block, inputs, widths, shortcut in blocks:
        scope, before = f"xception_65/{block}/xception_module", inputs
        for k, width in enumerate(widths, start=1):
            separable(f"{scope}/separable_conv{k}", before, width)
            before = width
        if shortcut:
            convolution(f"{scope}/shortcut", 1, inputs, widths[-1])
    convolution("image_pooling", 1, 2048, features)
    convolution("aspp0", 1, 2048, features)
    for k in (1, 2, 3):
        separable(f"aspp{k}", 2048, features)
    convolution("concat_projection", 1, 5 * features, features)
    convolution("decoder/feature_projection0", 1, 256, low_features)
    separable("decoder/decoder_conv0", features + low_features, features)
    separable("decoder/decoder_conv1", features, features)
    with_biases("embedding/split_separable_conv2d", 3, features, embedding)
    for k in range(4):
        inputs = head_channels if k else features + 3
        with_biases(f"segmentation_head/split_separable_conv2d_{k}", 7, inputs, head_channels)
    shapes["segmentation_head/logits/weights"] = (1, 1, head_channels, 1)
    shapes["segmentation_head/logits/biases"] = (1,)
    return shapes


@pytest.fixture(scope="module")
def dump() -> dict[str, np.ndarray]:
    return {name: procedural(name, shape) for name, shape in variables(**SMALL).items()}


@pytest.fixture(scope="module")
def published(dump, tmp_path_factory):
    path = tmp_path_factory.mktemp("feelvos") / "model.npz"
    extra = {"global_step": np.int64(200_000), "aspp0/weights/Momentum": dump["aspp0/weights"]}
    np.savez(path, **dump, **extra)
    return path


def test_every_variable_finds_its_place_and_every_place_its_variable(published, dump):
    tensors = read_checkpoint(published).tensors
    assert is_authors_layout(list(tensors))
    state, options = from_authors(tensors)
    assert options["network"] == {**SMALL, "head_layers": 4, "head_kernel": 7}
    method = FEELVOS(FEELVOSOptions(network=FEELVOSNetwork(**options["network"])))
    own = method.networks.state_dict()
    counters = {name for name in own if name.endswith("num_batches_tracked")}
    assert set(state) == set(own) - counters
    assert all(state[name].shape == own[name].shape for name in state)
    method.networks.load_state_dict(state, strict=False)
    # nothing is lost and nothing comes twice
    assert sum(v.numel() for v in state.values()) == sum(v.size for v in dump.values())
    assert np.isclose(
        sum(v.double().sum() for v in state.values()), sum(v.sum(dtype=float) for v in dump.values())
    )


def test_a_dump_loads_by_its_path_and_takes_options_that_are_no_weights(published):
    method = load_method("feelvos", published, {"output_stride": 16, "previous": "soft"})
    state, options = from_authors(read_checkpoint(published).tensors)
    assert method.options == FEELVOSOptions(**options, output_stride=16, previous="soft")
    own = method.networks.state_dict()
    assert all(torch.equal(own[name], value) for name, value in state.items())


def test_kernels_are_turned_the_right_way(dump):
    state, _ = from_authors({f"{name}:0": torch.from_numpy(value) for name, value in dump.items()})
    theirs = dump["xception_65/exit_flow/block1/unit_1/xception_module/separable_conv2_pointwise/weights"]
    ours = state["extractor.backbone.exit.0.separable2.pointwise.weight"].numpy()
    assert np.array_equal(ours[:, :, 0, 0], theirs[0, 0].T)
    theirs = dump["aspp2_depthwise/depthwise_weights"]
    assert np.array_equal(
        state["extractor.pyramid.dilated.1.depthwise.weight"][5, 0].numpy(), theirs[:, :, 5, 0]
    )
    theirs = dump[
        "xception_65/middle_flow/block1/unit_2/xception_module/separable_conv3_depthwise/BatchNorm/gamma"
    ]
    assert np.array_equal(state["extractor.backbone.middle.1.separable3.depthwise_bn.weight"].numpy(), theirs)


def test_the_split_first_layer_computes_what_the_whole_one_does(dump):
    state, options = from_authors({name: torch.from_numpy(value) for name, value in dump.items()})
    method = FEELVOS(FEELVOSOptions(network=FEELVOSNetwork(**options["network"]))).eval()
    method.networks.load_state_dict(state, strict=False)
    features, cues = torch.rand(1, 6, 9, 11), torch.rand(2, 3, 9, 11)
    ours = method.head.cues(cues) + method.extractor.stem(features)
    inputs = torch.cat([features.expand(2, -1, -1, -1), cues], 1)
    scope = "segmentation_head/split_separable_conv2d_0"
    kernel = torch.from_numpy(dump[f"{scope}_depthwise/depthwise_weights"]).permute(2, 3, 0, 1)
    bias = torch.from_numpy(dump[f"{scope}_depthwise/biases"])
    x = torch.nn.functional.conv2d(inputs, kernel, bias, padding=3, groups=9).relu()
    expected = torch.einsum("bchw,ck->bkhw", x, torch.from_numpy(dump[f"{scope}_pointwise/weights"][0, 0]))
    expected += torch.from_numpy(dump[f"{scope}_pointwise/biases"])[:, None, None]
    assert (ours - expected).abs().max() < 1e-5  # sums of 9 x 49 products of order 1, in another order


def test_what_is_not_of_feelvos_is_refused(dump, tmp_path):
    tensors = {name: torch.from_numpy(value) for name, value in dump.items()}
    with pytest.raises(InputError, match="logits/semantic/weights"):
        from_authors({**tensors, "logits/semantic/weights": torch.zeros(1, 1, 6, 2)})
    with pytest.raises(InputError, match="aspp0/weights is"):
        from_authors({**tensors, "aspp0/weights": torch.zeros(6, 2048)})
    with pytest.raises(InputError, match="aspp1_depthwise"):
        from_authors({**tensors, "aspp1_depthwise/depthwise_weights": torch.zeros(3, 3, 2048, 2)})
    with pytest.raises(InputError, match="incomplete"):
        from_authors({n: v for n, v in tensors.items() if not n.startswith("embedding/")})
    with pytest.raises(InputError, match="branches"):
        from_authors({n: v for n, v in tensors.items() if not n.startswith("aspp3")})
    name = "segmentation_head/split_separable_conv2d_0_depthwise/depthwise_weights"
    with pytest.raises(InputError, match="first layer"):
        from_authors({**tensors, name: torch.zeros(7, 7, 6, 1)})
    assert not is_authors_layout(["backbone.0.weight", "extractor.stem.depthwise.weight"])
