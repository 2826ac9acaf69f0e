"""What RGMP runs: the options, the part of a frame that no mask changes, and the network for many masks.

    extractor, runs = RGMPExtractor(encoder.conv1, options), GuidedRuns(encoder, decoder, options)
    features, canvas = extractor(frames), canvas_of(size, options)
    references = runs.refer(features.maps, canvas, masks)                 # on the annotated frame
    probabilities = runs(later.maps, canvas, previous_masks, references)  # on every later one

`streamvos.methods.rgmp.method` has the method around it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import nn

from streamvos.methods.parts import Part, Tensors
from streamvos.methods.rgmp.canvas import Canvas, Growth, resize
from streamvos.methods.rgmp.network import MaskGuidedEncoder, RefinementDecoder
from streamvos.nn.images import ImageNetNormalization
from streamvos.nn.precision import PrecisionChoice, in_precision
from streamvos.nn.winograd import Tile
from streamvos.types import Features

STRIDE = 32
"""Of the encoder's last stage, in pixels."""

RUNS_AT_ONCE = 8
"""On a GPU; it bounds memory."""

PIXELS_AT_ONCE = 120_000
"""On a processor: pixels of all runs of a batch, unless one run has more (docs/results.md)."""


class RGMPNetwork(BaseModel):
    """Shape of the network. The defaults are the authors' ResNet-50.

    Attributes:
        depth: ResNet 18, 34, 50 or 101.
        planes: width of each stage.
        channels: of the decoder.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    depth: Literal[18, 34, 50, 101] = 50
    planes: tuple[int, int, int, int] = (64, 128, 256, 512)
    channels: int = Field(256, ge=1)


class RGMPOptions(BaseModel):
    """Everything about RGMP that is not a weight. The defaults are the authors'.

    Attributes:
        network: see `RGMPNetwork`.
        scales: of the canvas; the maps of all are averaged. The authors' three for testing.
        padding: "authors" grows a side to the next multiple of 32 even where it is one already, of the frame
            and of every scale but 1; "least" leaves those. The paper is silent.
        align_corners: how the decoder enlarges its maps. The authors' code leaves it to PyTorch, which in
            their version (0.3.1) put corner on corner; later versions put center on center (False).
        runs_per_batch: the runs of a frame (objects + 1) are one batch of at most so many, to bound memory.
            None = eight on a GPU; on a processor as many as its caches are worth at that scale, since larger
            batches are slower than smaller ones there (`PIXELS_AT_ONCE`).
        winograd: side of the tiles in which the decoder's 3x3 convolutions are computed on a processor, with
            fewer multiplications and more rounding (`streamvos.nn.winograd`); 0 = directly.
        precision: "bfloat16" runs the networks under autocast; "auto" does so where the device has
            instructions for it. The authors' is "float32".
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    network: RGMPNetwork = RGMPNetwork()
    scales: tuple[Annotated[float, Field(ge=0.1, le=4)], ...] = Field((0.5, 0.75, 1.0), min_length=1)
    padding: Growth = "authors"
    align_corners: bool = True
    runs_per_batch: int | None = Field(None, ge=1)
    winograd: Tile = 0
    precision: PrecisionChoice = "float32"


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
            canvas: of the frame.
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
            canvas: of the frame.
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
