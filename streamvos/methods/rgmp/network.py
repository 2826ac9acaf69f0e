"""RGMP's networks: an encoder that sees a mask, a decoder that compares two encodings, and how both are run.

Both streams use one encoder. What it sees of the mask enters through a first filter of its own, so that
everything up to there is the same for all objects of a frame and belongs to the extractor. The decoder puts
the encoding of the present frame next to that of a reference frame, looks at both with kernels that reach
across the map (global convolution), and refines the result, stage by stage, to a quarter of the frame's
size. `GuidedRuns` does that at all scales, for many masks.

    extractor, runs = RGMPExtractor(encoder.conv1, options), GuidedRuns(encoder, decoder, options)
    features, canvas = extractor(frames), Canvas(size)
    references = runs.refer(features.maps, canvas, masks)                 # on the annotated frame
    probabilities = runs(later.maps, canvas, previous_masks, references)  # on every later one

Source: Wug Oh, Lee, Sunkavalli, Kim, Fast Video Object Segmentation by Reference-Guided Mask Propagation,
CVPR 2018, section 3.1, and the authors' code; the global convolution is that of Peng et al., Large Kernel
Matters, CVPR 2017.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import nn

from streamvos.methods.parts import Part, Tensors
from streamvos.methods.rgmp.canvas import Canvas, resize
from streamvos.methods.rgmp.options import RGMPOptions
from streamvos.nn.precision import in_precision
from streamvos.nn.resnet import ImageNetNormalization, ResNet
from streamvos.types import Features

RUNS_AT_ONCE = 8
"""On a GPU; it bounds memory."""

PIXELS_AT_ONCE = 120_000
"""On a processor: pixels of all runs of a batch, unless one run has more (docs/results.md)."""

KERNEL = 7
"""Reach of the global convolution, in cells of 32 pixels."""

AUXILIARY = ("predict3", "predict4", "predict5")
"""Heads of coarser stages, for training; weight files hold them, tracking does not use them."""


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

    def __init__(self, channels: int):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, C, h, w) to the same."""
        return x + self.conv2(self.conv1(x.relu()).relu_())


class Refinement(nn.Module):
    """One step up: the coarser map, enlarged twice, meets the encoder's map of that size.

    Args:
        inputs: channels of the encoder's map.
        channels: of the coarser map and of the result.
    """

    def __init__(self, inputs: int, channels: int):
        super().__init__()
        self.skip = nn.Conv2d(inputs, channels, 3, padding=1)
        self.skip_residual = ResidualBlock(channels)
        self.merge_residual = ResidualBlock(channels)

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
    """

    def __init__(self, inputs: Mapping[str, int], channels: int = 256, align_corners: bool = True):
        super().__init__()
        self.align_corners = align_corners
        self.global_convolution = GlobalConvolution(inputs["layer4"], channels)
        self.residual = ResidualBlock(channels)
        self.refine4 = Refinement(inputs["layer3"], channels)
        self.refine3 = Refinement(inputs["layer2"], channels)
        self.refine2 = Refinement(inputs["layer1"], channels)
        self.predict2 = nn.Conv2d(channels, 2, 3, padding=1)
        for name in AUXILIARY:
            self.add_module(name, nn.Conv2d(channels, 2, 3, padding=1))

    def refer(self, reference: torch.Tensor) -> torch.Tensor:
        """What is needed of a reference frame: (B, C, h, w) "layer4" -> (B, 2 * channels, h, w)."""
        return self.global_convolution.refer(reference)

    def forward(self, maps: Mapping[str, torch.Tensor], reference: torch.Tensor) -> torch.Tensor:
        """(B, 2, H/4, W/4) logits of background and object.

        Args:
            maps: of the present frame, from the encoder.
            reference: what `refer` gave for the reference frame.
        """
        x = self.residual(self.global_convolution(maps["layer4"], reference))  # (B, channels, H/32, W/32)
        x = self.refine4(maps["layer3"], x, self.align_corners)
        x = self.refine3(maps["layer2"], x, self.align_corners)
        x = self.refine2(maps["layer1"], x, self.align_corners)  # (B, channels, H/4, W/4)
        return self.predict2(x.relu())

    def probabilities(self, logits: torch.Tensor) -> torch.Tensor:
        """(B, 2, h, w) logits to (B, 4h, 4w): the object's share after enlarging, as the authors do it.

        The paper enlarges nothing: its output is the softmax at a quarter of the size.
        """
        margin = logits[:, 1:] - logits[:, :1]  # enlarging is linear: one channel will do
        enlarged = F.interpolate(margin, scale_factor=4, mode="bilinear", align_corners=self.align_corners)
        return enlarged[:, 0].sigmoid()


class RGMPExtractor(nn.Module):
    """What does not depend on a mask.

    (B, 3, H, W) float32 RGB in 0..1 -> "frame" (B, 3, H', W'), the frame on its black canvas, from which a
    reference is made anew when an object is forgotten; and per scale k "conv1_k" (B, 64, h/2, w/2), the
    encoder's first filter.
    """

    def __init__(self, conv1: nn.Conv2d, options: RGMPOptions):
        super().__init__()
        self.conv1, self.options = conv1, options
        self.normalization = ImageNetNormalization()

    def forward(self, frames: torch.Tensor) -> Features:
        size = (frames.shape[-2], frames.shape[-1])
        canvas = Canvas(size)
        padded = canvas.pad(frames)
        return Features({"frame": padded, **self.filtered(padded, canvas)}, size)

    def filtered(self, padded: torch.Tensor, canvas: Canvas) -> dict[str, torch.Tensor]:
        """The first filter at every scale, from frames on their canvas (B, 3, H', W')."""
        maps = {}
        for k, scale in enumerate(self.options.scales):
            image = self.normalization(resize(padded, canvas.scaled(scale)))
            with in_precision(self.options.precision, image.device):
                maps[f"conv1_{k}"] = self.conv1(image).to(padded.dtype)
        return maps


class GuidedRuns(nn.Module):
    """The network's two uses, at all scales, for any number of masks at once.

    Args:
        encoder: shared by both.
        decoder: compares the two.
        options: scales, batches, precision.
    """

    def __init__(self, encoder: MaskGuidedEncoder, decoder: RefinementDecoder, options: RGMPOptions):
        super().__init__()
        self.encoder, self.decoder, self.options = encoder, decoder, options
        self.part = Part("run", self._run, (encoder, decoder), batched=(1, 2))

    def refer(
        self, maps: Mapping[str, torch.Tensor], canvas: Canvas, masks: torch.Tensor
    ) -> list[torch.Tensor]:
        """What is remembered of a reference frame.

        Args:
            maps: of the extractor, one frame.
            canvas: the frame's canvas.
            masks: (R, H', W') float, of each run.

        Returns:
            per scale (R, 2 C, h/32, w/32): what the decoder makes of it.
        """
        references = []
        with in_precision(self.options.precision, masks.device):
            for k, scale in enumerate(self.options.scales):
                scaled = resize(masks[:, None], canvas.scaled(scale))
                chunks = [
                    self.decoder.refer(self._encode(maps[f"conv1_{k}"], part)["layer4"]).to(masks.dtype)
                    for part in scaled.split(self._at_once(scaled))
                ]
                references.append(torch.cat(chunks).contiguous())
        return references

    def forward(
        self,
        maps: Mapping[str, torch.Tensor],
        canvas: Canvas,
        masks: torch.Tensor,
        references: Sequence[torch.Tensor],
    ) -> torch.Tensor:
        """(R, H', W'): of each run the object's probability, the mean over the scales.

        Args:
            maps: of the extractor, one frame.
            canvas: the frame's canvas.
            masks: (R, H', W') float, where each run's object was in the frame before.
            references: per scale, from `refer`.
        """
        total = torch.zeros_like(masks)
        # one region for all scales: the weights are converted once
        with in_precision(self.options.precision, masks.device):
            for k, scale in enumerate(self.options.scales):
                scaled = resize(masks[:, None], canvas.scaled(scale))
                at_once = self._at_once(scaled)
                pairs = zip(scaled.split(at_once), references[k].split(at_once), strict=True)
                chunks = [
                    resize(self.part(maps[f"conv1_{k}"], *pair)[0][:, None], canvas.size)[:, 0]
                    for pair in pairs
                ]
                total += torch.cat(chunks)
        return total / len(self.options.scales)

    def _at_once(self, masks: torch.Tensor) -> int:
        """How many runs (R, 1, h, w) are one batch."""
        if self.options.runs_per_batch is not None:
            return self.options.runs_per_batch
        if masks.device.type != "cpu":
            return RUNS_AT_ONCE
        pixels = masks.shape[-2] * masks.shape[-1]
        return min(RUNS_AT_ONCE, max(1, PIXELS_AT_ONCE // pixels))

    def _encode(self, image: torch.Tensor, masks: torch.Tensor) -> dict[str, torch.Tensor]:
        """In one memory format, the faster one, whichever the features came in: rounding depends on it."""
        return self.encoder(image.contiguous(memory_format=torch.channels_last), masks)

    def _run(self, image: torch.Tensor, masks: torch.Tensor, reference: torch.Tensor) -> Tensors:
        """(R, h, w) probabilities at one scale."""
        with in_precision(self.options.precision, masks.device):
            logits = self.decoder(self._encode(image, masks), reference)
            return (self.decoder.probabilities(logits.to(masks.dtype)),)
