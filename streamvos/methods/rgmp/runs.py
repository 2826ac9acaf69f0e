"""What RGMP runs: the part of a frame that no mask changes, and the network for many masks.

    extractor, runs = RGMPExtractor(encoder.conv1, options), GuidedRuns(encoder, decoder, options)
    features, canvas = extractor(frames), canvas_of(size, options)
    references = runs.refer(features.maps, canvas, masks)                 # on the annotated frame
    probabilities = runs(later.maps, canvas, previous_masks, references)  # on every later one

`streamvos.methods.rgmp.method` has the method around it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import nn

from streamvos.methods.parts import Part, Tensors
from streamvos.methods.rgmp.canvas import Canvas, resize
from streamvos.methods.rgmp.network import MaskGuidedEncoder, RefinementDecoder
from streamvos.methods.rgmp.options import RGMPOptions
from streamvos.nn.precision import in_precision
from streamvos.nn.resnet import ImageNetNormalization
from streamvos.types import Features

STRIDE = 32
"""Of the encoder's last stage, in pixels."""

RUNS_AT_ONCE = 8
"""On a GPU; it bounds memory."""

PIXELS_AT_ONCE = 120_000
"""On a processor: pixels of all runs of a batch, unless one run has more (docs/results.md)."""


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
        canvas = canvas_of(size, self.options)
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


def canvas_of(size: tuple[int, int], options: RGMPOptions) -> Canvas:
    """The canvas of frames (H, W)."""
    return Canvas.around(size, STRIDE, options.padding)


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
