"""TVOS: labels travel from past frames to the present one along feature similarity.

    method = TVOS(TVOSOptions())            # the authors' network and settings, random weights
    target = method.target()

There is no target model: every cell of the present frame takes the mean of the labels of cells in a few past
frames, weighted by their similarity. All objects are propagated together, as channels, so the cost hardly
depends on their number.

Source: Zhang, Wu, Peng, Lin, A Transductive Approach for Video Object Segmentation, CVPR 2020. Numbers
and defaults are those of the authors' code; where the paper differs there is an option
(docs/methods.md, TVOS).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from streamvos.methods.base import Decoder, Method
from streamvos.methods.parts import Part
from streamvos.methods.tvos.light import LightExtractor, LightTarget, RefiningDecoder
from streamvos.methods.tvos.options import TVOSNetwork, TVOSOptions
from streamvos.methods.tvos.target import TVOSTarget
from streamvos.nn.aggregation import insert_given
from streamvos.nn.labels import resize_probabilities
from streamvos.nn.precision import PrecisionChoice, in_precision
from streamvos.nn.resnet import ImageNetNormalization, resnet
from streamvos.types import Annotation, Evidence, Features


class TVOSExtractor(nn.Module):
    """Frames to embeddings: (B, 3, H, W) float32 RGB in 0..1 -> "embedding" (B, C, ceil(H/8), ceil(W/8))."""

    def __init__(self, network: TVOSNetwork, precision: PrecisionChoice = "float32"):
        super().__init__()
        self.normalize, self.precision = network.normalize, precision
        self.backbone = resnet(
            network.depth, strides=(1, 2, 1, 1), planes=network.planes, stages=network.stages
        )
        self.last = self.backbone.names[-1]
        self.channels = self.backbone.channels[self.last]
        self.adjust_dim: nn.Module = nn.Identity()
        self.bn256: nn.Module = nn.Identity()
        if network.embedding is not None:
            self.adjust_dim = nn.Conv2d(self.channels, network.embedding, 1, bias=False)
            self.bn256 = nn.BatchNorm2d(network.embedding)
            self.channels = network.embedding
        self.normalization = ImageNetNormalization()

    def forward(self, frames: torch.Tensor) -> Features:
        x = self.normalization(frames)
        with in_precision(self.precision, x.device):
            x = self._embed(x).to(frames.dtype)
        if self.normalize:
            x = F.normalize(x.float(), dim=1)
        return Features({"embedding": x}, (frames.shape[-2], frames.shape[-1]))

    def _embed(self, x: torch.Tensor) -> torch.Tensor:
        return self.bn256(self.adjust_dim(self.backbone(x)[self.last]))


def decode(evidence: Evidence, size: tuple[int, int], annotation: Annotation | None = None) -> torch.Tensor:
    """Cells to pixels: bilinear, then every pixel's labels are made to sum to one.

    A pixel that no label reached is background.

    Returns:
        (1 + K, H, W) float32.
    """
    probabilities = resize_probabilities(evidence["labels"], size)
    return (
        probabilities if annotation is None else insert_given(probabilities, evidence.object_ids, annotation)
    )


class TVOS(Method):
    """Zhang et al., CVPR 2020; see the head of this file."""

    name = "tvos"
    options: TVOSOptions

    def __init__(self, options: TVOSOptions | None = None):
        super().__init__()
        self.options = options or TVOSOptions()
        self.extractor: nn.Module
        if self.options.backbone == "resnet":
            self.extractor = TVOSExtractor(self.options.network, self.options.precision)
        else:
            self.extractor = LightExtractor(self.options)
        if self.options.refiner is None:
            self.decoder: Decoder = decode
        else:
            self.decoder = RefiningDecoder(self.options).to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    @property
    def networks(self) -> nn.Module:
        return self.extractor if self.options.refiner is None else self

    def inner_parts(self) -> dict[str, Part]:
        return (
            {self.decoder.part.name: self.decoder.part} if isinstance(self.decoder, RefiningDecoder) else {}
        )

    def target(self) -> TVOSTarget:
        return TVOSTarget(self.options) if self.options.backbone == "resnet" else LightTarget(self.options)
