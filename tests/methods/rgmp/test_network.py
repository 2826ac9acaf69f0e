"""The networks of RGMP against a plain formulation; the authors' numbers are in tests/methods."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from streamvos.methods.rgmp.network import (
    AUXILIARY,
    GlobalConvolution,
    MaskGuidedEncoder,
    Refinement,
    RefinementDecoder,
)
from streamvos.nn.resnet import resnet


def small_encoder() -> MaskGuidedEncoder:
    return MaskGuidedEncoder(resnet(18, planes=(8, 8, 16, 16))).double().eval()


def test_the_mask_filter_makes_a_four_channel_input():
    encoder = small_encoder()
    torch.nn.init.normal_(encoder.conv1_p.bias)
    image, mask = torch.randn(2, 3, 64, 96).double(), torch.rand(2, 1, 64, 96).double()
    weight = torch.cat([encoder.conv1.weight, encoder.conv1_p.weight], dim=1)
    together = F.conv2d(torch.cat([image, mask], 1), weight, encoder.conv1_p.bias, stride=2, padding=3)
    expected = encoder.backbone.after_conv1(together)
    got = encoder(encoder.conv1(image), mask)
    for name, value in got.items():
        assert torch.allclose(value, expected[name], rtol=0, atol=1e-10)
    assert [tuple(value.shape[1:]) for value in got.values()] == [
        (8, 16, 24),
        (8, 8, 12),
        (16, 4, 6),
        (16, 2, 3),
    ]


def test_many_masks_share_one_image():
    encoder = small_encoder()
    image, masks = torch.randn(1, 3, 64, 64).double(), torch.rand(3, 1, 64, 64).double()
    together = encoder(encoder.conv1(image), masks)
    for k in range(3):
        alone = encoder(encoder.conv1(image), masks[k : k + 1])
        assert torch.allclose(together["layer4"][k : k + 1], alone["layer4"], rtol=0, atol=1e-10)


def test_the_references_share_of_a_global_convolution_may_be_computed_apart():
    block = GlobalConvolution(6, 5).double()
    target, reference = torch.randn(2, 6, 9, 11).double(), torch.randn(2, 6, 9, 11).double()
    both = torch.cat([target, reference], dim=1)  # the authors' order
    expected = block.left2(block.left1(both)) + block.right2(block.right1(both))
    got = block(target, block.refer(reference))
    assert torch.allclose(got, expected, rtol=0, atol=1e-10)
    assert block.left1.weight.shape == (5, 12, 7, 1)
    assert block.right1.weight.shape == (5, 12, 1, 7)


@pytest.mark.parametrize("align_corners", [True, False])
def test_a_refinement_is_what_the_note_says(align_corners):
    block = Refinement(3, 4).double()
    skip, coarse = torch.randn(2, 3, 12, 16).double(), torch.randn(2, 4, 6, 8).double()
    s = block.skip(skip)
    s = s + block.skip_residual.conv2(block.skip_residual.conv1(s.relu()).relu())
    m = s + F.interpolate(coarse, (12, 16), mode="bilinear", align_corners=align_corners)
    m = m + block.merge_residual.conv2(block.merge_residual.conv1(m.relu()).relu())
    assert torch.allclose(block(skip, coarse, align_corners), m, rtol=0, atol=1e-12)


@pytest.mark.parametrize("align_corners", [True, False])
def test_probabilities_are_the_softmax_of_enlarged_logits(align_corners):
    decoder = RefinementDecoder(small_encoder().channels, 4, align_corners)
    logits = torch.randn(3, 2, 5, 7).double()
    enlarged = F.interpolate(logits, (20, 28), mode="bilinear", align_corners=align_corners)
    assert torch.allclose(decoder.probabilities(logits), enlarged.softmax(1)[:, 1], rtol=0, atol=1e-12)


def test_every_weight_that_a_frame_needs_gets_a_gradient():
    encoder = small_encoder()
    decoder = RefinementDecoder(encoder.channels, 16).double()
    frame, mask = torch.randn(1, 3, 64, 64).double(), torch.rand(1, 1, 64, 64).double()
    image = encoder.conv1(frame)
    reference = decoder.refer(encoder(image, mask)["layer4"])
    decoder(encoder(image, mask), reference).square().sum().backward()
    missing = {n for m in (encoder, decoder) for n, p in m.named_parameters() if p.grad is None}
    assert missing == {f"{head}.{kind}" for head in AUXILIARY for kind in ("weight", "bias")}
    # a change in the reference's mask must reach the logits: the two streams are one graph
    mask.requires_grad_(True)
    still = image.detach()
    reference = decoder.refer(encoder(still, mask)["layer4"])
    decoder(encoder(still, torch.zeros_like(mask)), reference)[0, 1].sum().backward()
    assert mask.grad.abs().max() > 0


def test_it_has_the_authors_number_of_parameters():
    with torch.device("meta"):
        encoder = MaskGuidedEncoder(resnet(50))
        decoder = RefinementDecoder(encoder.channels)
    count = {m: sum(p.numel() for p in m.parameters()) for m in (encoder, decoder)}
    assert round(sum(count.values()) / 1e6, 2) == 51.52
    assert round(count[decoder] / 1e6, 1) == 28.0
