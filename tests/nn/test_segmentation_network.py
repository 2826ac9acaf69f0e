"""The network that FRTM and JOINT share, against both authors' code."""

from __future__ import annotations

import zlib

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from goldens import procedural
from torch import nn

from streamvos import InputError
from streamvos.nn.segmentation_network import SegmentationNetwork, double, resize_then_convolve

FRTM = ("layer5", "layer4", "layer3", "layer2")

# The notes call 1e-6 of the largest logit honest. The golden logits themselves lie 1.1e-6 from a
# computation in float64, so that no other order of additions can be held to less than twice that.
TOLERANCE = 2.2e-6


def draw(name: str, shape: tuple[int, ...]) -> torch.Tensor:
    draws = np.random.Generator(np.random.PCG64(zlib.crc32(name.encode())))
    return torch.from_numpy(draws.standard_normal(shape).astype(np.float32))


def with_procedural_weights(network: SegmentationNetwork, prefix: str) -> SegmentationNetwork:
    state = network.state_dict()
    network.load_state_dict(
        {n: torch.from_numpy(np.asarray(procedural(prefix + n, tuple(v.shape)))) for n, v in state.items()}
    )
    return network.eval()


def remember_output(module: torch.nn.Module, key: str, seen: dict[str, torch.Tensor]) -> None:
    module.register_forward_hook(
        lambda _module, _inputs, out: seen.update({key: out[0] if isinstance(out, tuple) else out})
    )


def frtm_case(tag: str) -> tuple[SegmentationNetwork, dict[str, torch.Tensor], tuple[int, int]]:
    channels = (2048, 1024, 512, 256) if tag.startswith("rn101") else (512, 256, 128, 64)
    size = (96, 160) if tag.startswith("rn101") else (100, 171)
    network = with_procedural_weights(SegmentationNetwork(dict(zip(FRTM, channels, strict=True))), "refiner.")
    features = {}
    for name, count in zip(FRTM, channels, strict=True):
        h, w = size
        for _ in range(int(name[-1])):
            h, w = -(-h // 2), -(-w // 2)
        features[name] = draw(f"frtm.seg.{tag}.{name}", (1, count, h, w)).clamp_min(0)
    return network, features, size


@pytest.mark.parametrize("tag", ["rn101_96x160", "rn18_100x171"])
@torch.inference_mode()
def test_logits_are_those_of_frtm(shared, tag):
    golden = np.load(shared / "goldens" / "frtm_segnet.npz")
    network, features, size = frtm_case(tag)
    expected = golden[f"{tag}/logits"][:, 0]
    logits = network(torch.from_numpy(golden[f"{tag}/score"]), features, size).numpy()
    assert np.abs(logits - expected).max() < TOLERANCE * np.abs(expected).max()


@pytest.mark.parametrize("tag", ["rn101_96x160", "rn18_100x171"])
@torch.inference_mode()
def test_every_level_is_that_of_frtm(shared, tag):
    """The stored levels come from a pass with a score of zero."""
    golden = np.load(shared / "goldens" / "frtm_segnet.npz")
    network, features, size = frtm_case(tag)
    seen: dict[str, torch.Tensor] = {}
    for part in ("TSE", "CAB", "RRB2"):
        for name, module in getattr(network, part).items():
            remember_output(module, f"{part.lower()}_{name}", seen)
    network(torch.zeros(1, 1, 6, 10), features, size)
    for key, value in seen.items():
        expected = golden[f"{tag}/{key}"]
        got = value[:, :: 1 if key.startswith("rrb2") else 8].numpy()
        assert np.abs(got - expected).max() < TOLERANCE * np.abs(expected).max(), key


@torch.inference_mode()
def test_logits_and_levels_are_those_of_joint(shared):
    golden = np.load(shared / "goldens" / "joint_decoder.npz")
    shapes = {
        "layer4": (2048, 3, 5),
        "layer3": (1024, 6, 10),
        "layer2": (512, 12, 20),
        "layer1": (256, 24, 40),
    }
    network = SegmentationNetwork({n: s[0] for n, s in shapes.items()}, (256, 128, 128, 64), 16, "direct")
    network = with_procedural_weights(network, "decoder.")
    features = {n: draw(f"joint.dec.{n}", (1, *s)).clamp_min(0) for n, s in shapes.items()}
    seen: dict[str, torch.Tensor] = {}
    for name, module in network.RRB2.items():
        remember_output(module, f"{name}_dec", seen)
    logits = network(torch.from_numpy(golden["score"][0]), features, (96, 160))
    for got, expected in [(logits, golden["logits"][0]), *((seen[k], golden[k]) for k in seen)]:
        assert np.abs(got.numpy() - expected).max() < TOLERANCE * np.abs(expected).max()


@torch.inference_mode()
def test_objects_together_are_objects_alone():
    network = with_procedural_weights(SegmentationNetwork({"deep": 6, "fine": 4}, (8, 8), 2), "x.").double()
    features = {"deep": torch.rand(1, 6, 5, 7), "fine": torch.rand(1, 4, 10, 13)}
    features = {n: v.double() for n, v in features.items()}
    scores = torch.randn(3, 2, 5, 7, dtype=torch.float64)
    together = network(scores, features, (40, 51))
    alone = torch.cat([network(scores[k : k + 1], features, (40, 51)) for k in range(3)])
    own = {n: v.expand(3, -1, -1, -1) for n, v in features.items()}  # a frame for each, as in JOINT
    assert torch.allclose(together, alone)
    assert torch.allclose(together, network(scores, own, (40, 51)))


def test_levels_and_widths_must_agree():
    with pytest.raises(InputError, match="2 levels need as many widths"):
        SegmentationNetwork({"deep": 6, "fine": 4}, (8, 8, 8))


@pytest.mark.parametrize("size", [(40, 56), (37, 55), (41, 60), (12, 9)])
@pytest.mark.parametrize("twice_first", [False, True])
def test_the_order_of_two_linear_maps_does_not_matter(size, twice_first):
    x = torch.randn(2, 8, 20, 28, dtype=torch.float64)
    convolution = nn.Conv2d(8, 1, 3, padding=1).double()
    options = {"mode": "bicubic", "align_corners": False}
    large = F.interpolate(x, (40, 56), **options) if twice_first else F.interpolate(x, size, **options)
    if twice_first:
        large = F.interpolate(large, size, mode="bilinear", align_corners=False)
    with torch.no_grad():
        assert torch.allclose(resize_then_convolve(x, convolution, size, twice_first), convolution(large))


@pytest.mark.parametrize("size", [(20, 28), (1, 5), (3, 2)])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.bfloat16, 2**-6)])
def test_doubling_is_bicubic(size, dtype, tolerance):
    x = torch.randn(2, 3, *size).to(dtype)
    expected = F.interpolate(x.double(), scale_factor=2, mode="bicubic", align_corners=False)
    # bfloat16 has 8 bits, and rounds between the rows and the columns
    assert (double(x).double() - expected).abs().max() < tolerance * x.abs().max()


def test_a_convolution_of_another_kind_is_refused():
    with pytest.raises(InputError, match="3x3 convolution to one channel"):
        resize_then_convolve(torch.zeros(1, 4, 8, 8), nn.Conv2d(4, 2, 3, padding=1), (16, 16))
