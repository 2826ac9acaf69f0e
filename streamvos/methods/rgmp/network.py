"""RGMP's networks: an encoder that is shown a mask, and a decoder that compares two encodings.

Both streams use one encoder. What it sees of the mask enters through a first filter of its own, so that
everything up to there is the same for all objects of a frame. The decoder puts the encoding of the present
frame beside that of a reference frame, looks at both with kernels that reach across the map (global
convolution), and brings the result back to a quarter of the frame's size, stage by stage.

    encoder, decoder = MaskGuidedEncoder(resnet(50)), RefinementDecoder(encoder.channels)
    reference = decoder.refer(encoder(encoder.conv1(first), first_mask)["layer4"])
    logits = decoder(encoder(encoder.conv1(frame), previous_mask), reference)   # (B, 2, H/4, W/4)

Source: Wug Oh, Lee, Sunkavalli, Kim, Fast Video Object Segmentation by Reference-Guided Mask Propagation,
CVPR 2018, section 3.1, and the authors' code; the global convolution is that of Peng et al., Large Kernel
Matters, CVPR 2017.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import nn

from streamvos.methods.rgmp.winograd import Convolution3x3, Tile
from streamvos.nn.resnet import ResNet

KERNEL = 7
"""Reach of the global convolution, in cells of 32 pixels."""

AUXILIARY = ("predict3", "predict4", "predict5")
"""Heads that supervise coarser stages in training and are not used otherwise."""


class MaskGuidedEncoder(nn.Module):
    """A residual network that sees an image and a mask.

    The mask has its own 7x7 filter, with a bias, whose output is added to that of the image before the
    first normalization: the paper's four-channel input, up to that bias.

    Args:
        backbone: four stages with strides 4, 8, 16 and 32.

    Attributes:
        channels: of each stage.
    """

    def __init__(self, backbone: ResNet):
        super().__init__()
        self.backbone = backbone
        self.channels = dict(backbone.channels)
        self.conv1_p = nn.Conv2d(1, backbone.conv1.out_channels, 7, 2, padding=3)
        nn.init.kaiming_normal_(self.conv1_p.weight, mode="fan_out", nonlinearity="relu")
        nn.init.zeros_(self.conv1_p.bias)  # type: ignore[arg-type]

    @property
    def conv1(self) -> nn.Conv2d:
        """The first filter of the image: (B, 3, H, W) normalized RGB -> (B, 64, H/2, W/2)."""
        return self.backbone.conv1

    def forward(self, image: torch.Tensor, masks: torch.Tensor) -> dict[str, torch.Tensor]:
        """Maps of every stage.

        Args:
            image: (B, 64, H/2, W/2) float, the output of `conv1`; B = 1 is shared by all masks.
            masks: (B, 1, H, W) float in 0..1, not normalized.

        Returns:
            "layer1" (the paper's res2) to "layer4" (res5) -> (B, C, h, w), strides 4 to 32.
        """
        masked = self.conv1_p(masks)
        return self.backbone.after_conv1(masked + image.to(masked.dtype))


class GlobalConvolution(nn.Module):
    """A large kernel as the sum of two separable ones: 7x1 then 1x7, and 1x7 then 7x1; nothing in between.

    The input is two maps. The first convolutions are linear, so what they make of the reference, which
    stays the same from frame to frame, is computed apart (`refer`), once.

    Args:
        inputs: channels of either map.
        outputs: channels of the result.
    """

    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        tall, wide = (KERNEL, 1), (1, KERNEL)
        self.inputs = inputs
        self.left1 = nn.Conv2d(2 * inputs, outputs, tall, padding=(KERNEL // 2, 0))
        self.left2 = nn.Conv2d(outputs, outputs, wide, padding=(0, KERNEL // 2))
        self.right1 = nn.Conv2d(2 * inputs, outputs, wide, padding=(0, KERNEL // 2))
        self.right2 = nn.Conv2d(outputs, outputs, tall, padding=(KERNEL // 2, 0))

    def refer(self, reference: torch.Tensor) -> torch.Tensor:
        """The reference's share in the first convolutions, their biases included.

        Args:
            reference: (B, inputs, h, w).

        Returns:
            (B, 2 * outputs, h, w), left before right.
        """
        shares = [
            F.conv2d(reference, first.weight[:, self.inputs :], first.bias, padding=first.padding)
            for first in (self.left1, self.right1)
        ]
        return torch.cat(shares, dim=1)

    def forward(self, target: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
        """(B, outputs, h, w) from the present frame (B, inputs, h, w) and what `refer` gave."""
        left, right = (
            F.conv2d(target, first.weight[:, : self.inputs], padding=first.padding) + share
            for first, share in zip((self.left1, self.right1), reference.chunk(2, dim=1), strict=True)
        )
        return self.left2(left) + self.right2(right)


class ResidualBlock(nn.Module):
    """x + conv(relu(conv(relu(x)))), without normalization."""

    def __init__(self, channels: int, tile: Tile = 0):
        super().__init__()
        self.conv1 = Convolution3x3(channels, channels, tile)
        self.conv2 = Convolution3x3(channels, channels, tile)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, C, h, w) to the same."""
        return x + self.conv2(self.conv1(x.relu()).relu_())


class Refinement(nn.Module):
    """One step up: the coarser map, enlarged twice, meets the encoder's map of that size.

    Args:
        inputs: channels of the encoder's map.
        channels: of the coarser map and of the result.
        tile: how it convolves, see `streamvos.methods.rgmp.winograd`.
    """

    def __init__(self, inputs: int, channels: int, tile: Tile = 0):
        super().__init__()
        self.skip = Convolution3x3(inputs, channels, tile)
        self.skip_residual = ResidualBlock(channels, tile)
        self.merge_residual = ResidualBlock(channels, tile)

    def forward(self, skip: torch.Tensor, coarse: torch.Tensor, align_corners: bool) -> torch.Tensor:
        """(B, channels, 2h, 2w) from (B, inputs, 2h, 2w) and (B, channels, h, w)."""
        enlarged = F.interpolate(coarse, scale_factor=2, mode="bilinear", align_corners=align_corners)
        return self.merge_residual(self.skip_residual(self.skip(skip)) + enlarged)


class RefinementDecoder(nn.Module):
    """Two encodings to the logits of background and object.

    Args:
        inputs: channels of the encoder's stages "layer1" to "layer4".
        channels: of every map in here (the authors' 256).
        align_corners: how maps are enlarged: corner on corner, or center on center.
        tile: how the refinements convolve, see `streamvos.methods.rgmp.winograd`.
    """

    def __init__(
        self, inputs: Mapping[str, int], channels: int = 256, align_corners: bool = True, tile: Tile = 0
    ):
        super().__init__()
        self.align_corners = align_corners
        self.global_convolution = GlobalConvolution(inputs["layer4"], channels)
        self.residual = ResidualBlock(channels)
        self.refine4 = Refinement(inputs["layer3"], channels, tile)
        self.refine3 = Refinement(inputs["layer2"], channels, tile)
        self.refine2 = Refinement(inputs["layer1"], channels, tile)
        for name in (*AUXILIARY, "predict2"):
            self.add_module(name, nn.Conv2d(channels, 2, 3, padding=1))

    def refer(self, reference: torch.Tensor) -> torch.Tensor:
        """What is needed of a reference frame: (B, C, h, w) "layer4" -> (B, 2 * channels, h, w)."""
        return self.global_convolution.refer(reference)

    def stages(self, maps: Mapping[str, torch.Tensor], reference: torch.Tensor) -> dict[str, torch.Tensor]:
        """The refined maps, "m5" (stride 32) to "m2" (stride 4), each (B, channels, h, w).

        Args:
            maps: of the present frame, from the encoder.
            reference: what `refer` gave for the reference frame.
        """
        refined = {"m5": self.residual(self.global_convolution(maps["layer4"], reference))}
        refined["m4"] = self.refine4(maps["layer3"], refined["m5"], self.align_corners)
        refined["m3"] = self.refine3(maps["layer2"], refined["m4"], self.align_corners)
        refined["m2"] = self.refine2(maps["layer1"], refined["m3"], self.align_corners)
        return refined

    def predict(self, refined: Mapping[str, torch.Tensor], stage: int = 2) -> torch.Tensor:
        """(B, 2, h, w) logits of background and object from one stage of `stages`; 3 to 5 are auxiliary."""
        head: nn.Module = getattr(self, f"predict{stage}")
        logits: torch.Tensor = head(refined[f"m{stage}"].relu())
        return logits

    def forward(self, maps: Mapping[str, torch.Tensor], reference: torch.Tensor) -> torch.Tensor:
        """(B, 2, H/4, W/4) logits of background and object; the arguments of `stages`."""
        return self.predict(self.stages(maps, reference))

    def probabilities(self, logits: torch.Tensor) -> torch.Tensor:
        """(B, 2, h, w) logits to (B, 4h, 4w): the object's share after enlarging, as the authors do it.

        The paper enlarges nothing: its output is the softmax at a quarter of the size.
        """
        margin = logits[:, 1:] - logits[:, :1]  # enlarging is linear: one channel will do
        enlarged = F.interpolate(margin, scale_factor=4, mode="bilinear", align_corners=self.align_corners)
        return enlarged[:, 0].sigmoid()
