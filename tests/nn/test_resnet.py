"""Networks have torchvision's names and the shapes that their arguments say."""

from __future__ import annotations

import pytest
import torch

from streamvos.nn.resnet import resnet
from streamvos.types import InputError


@pytest.mark.parametrize(
    ("depth", "parameters"),
    # parameters of torchvision's networks less their classifier of 512 or 2048 x 1000 + 1000
    [
        (18, 11_689_512 - 513_000),
        (34, 21_797_672 - 513_000),
        (50, 25_557_032 - 2_049_000),
        (101, 44_549_160 - 2_049_000),
    ],
)
def test_the_standard_networks_have_as_many_parameters_as_torchvisions(depth, parameters):
    assert sum(p.numel() for p in resnet(depth).parameters()) == parameters


def test_names_are_torchvisions():
    names = set(resnet(50).state_dict())
    assert {
        "conv1.weight",
        "bn1.running_var",
        "layer1.0.downsample.0.weight",
        "layer1.0.downsample.1.weight",
        "layer3.5.bn3.bias",
        "layer4.2.conv2.weight",
    } <= names
    assert len(names) == 318  # torchvision's 320 less fc.weight and fc.bias


def test_the_stride_of_a_bottleneck_sits_in_its_3x3_convolution():
    network = resnet(50)
    block = network.get_submodule("layer2.0")
    assert block.conv1.stride == (1, 1)
    assert block.conv2.stride == (2, 2)


@pytest.mark.parametrize("size", [(64, 64), (33, 47), (61, 17)])
def test_strides_and_dilations_give_the_size_they_promise(size):
    height, width = size
    network = resnet(18, strides=(1, 2, 1, 1), dilations=(1, 1, 2, 4)).eval()
    maps = network(torch.zeros(1, 3, height, width))
    for name, stride in (("layer1", 4), ("layer2", 8), ("layer3", 8), ("layer4", 8)):
        assert maps[name].shape[-2:] == (-(-height // stride), -(-width // stride))


def test_dilation_widens_the_view_without_changing_the_weights():
    plain, dilated = (
        resnet(18, stages=3, strides=(1, 2, 1)),
        resnet(18, stages=3, strides=(1, 2, 1), dilations=(1, 1, 2)),
    )
    dilated.load_state_dict(plain.state_dict())
    dot = torch.zeros(1, 3, 257, 257)
    dot[..., 128, 128] = 10.0

    def reach(network: torch.nn.Module) -> int:
        maps = network.eval()
        changed = (maps(dot)["layer3"] - maps(torch.zeros_like(dot))["layer3"]).abs().amax(1)[0] > 0
        return int(changed.any(0).sum())

    with torch.inference_mode():
        assert reach(dilated) > reach(plain)


def test_bad_arguments_are_refused():
    with pytest.raises(InputError, match="depth 19"):
        resnet(19)
    with pytest.raises(InputError, match="strides"):
        resnet(18, strides=(1, 2))
    with pytest.raises(InputError, match="stages"):
        resnet(18, stages=5)
