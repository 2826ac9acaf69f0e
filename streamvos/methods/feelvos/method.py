"""FEELVOS: distances in a learned embedding guide a network that segments every object.

    method = FEELVOS(FEELVOSOptions(previous="soft"))       # the authors' network, random weights
    target = method.target()

For every cell of a frame, matching computes the distance of its embedding to the nearest cell of each
object, in the annotated frame (global matching) and near its place in the previous frame (local matching).
These two maps and the object's previous mask are soft cues: a small head sees them together with the
frame's features, once per object, and the objects and the background compete in a softmax.

Source: Voigtlaender, Chai, Schroff, Adam, Leibe, Chen, FEELVOS: Fast End-to-End Embedding Learning for Video
Object Segmentation, CVPR 2019. Numbers and defaults are those of the authors' code; where the paper differs
there is an option (docs/methods.md, FEELVOS).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import nn

from streamvos.methods.base import Method
from streamvos.methods.feelvos.light import LightDecoder, LightExtractor, LightTarget
from streamvos.methods.feelvos.networks import (
    DynamicHead,
    EmbeddingLayer,
    FeatureDecoder,
    HeadLayer,
    Pyramid,
    grid_size,
    resize_bilinear,
)
from streamvos.methods.feelvos.options import RATES, FEELVOSOptions
from streamvos.methods.feelvos.target import FEELVOSTarget, head_part
from streamvos.methods.feelvos.xception import Xception65
from streamvos.methods.parts import Part
from streamvos.nn.aggregation import insert_given
from streamvos.nn.precision import in_precision
from streamvos.nn.resnet import ImageNetNormalization, resnet
from streamvos.types import Annotation, Evidence, Features


class ResNetBackbone(nn.Module):
    """A dilated ResNet in Xception's place; not in the paper."""

    def __init__(self, depth: int, planes: tuple[int, ...], output_stride: int):
        super().__init__()
        strides, dilations = (
            ((1, 2, 1, 1), (1, 1, 2, 4)) if output_stride == 8 else ((1, 2, 2, 1), (1, 1, 1, 2))
        )
        self.normalization = ImageNetNormalization()
        self.network = resnet(depth, strides, dilations, planes)
        self.channels = {"low": self.network.channels["layer1"], "high": self.network.channels["layer4"]}

    def forward(self, frames: torch.Tensor) -> dict[str, torch.Tensor]:
        """(B, 3, H, W) float RGB in 0..1 -> "low" at stride 4 and "high" at the output stride."""
        maps = self.network(self.normalization(frames))
        return {"low": maps["layer1"], "high": maps["layer4"]}


class FEELVOSExtractor(nn.Module):
    """Everything that does not depend on masks, with h = ceil(H/4), w = ceil(W/4).

    (B, 3, H, W) float RGB in 0..1 -> "embedding" (B, C, h, w) and "shared" (B, head channels, h, w), the
    features' share of the head's first layer (see `networks`), in the dtype of the frames.
    """

    def __init__(self, options: FEELVOSOptions):
        super().__init__()
        self.precision, network, stride = options.precision, options.network, options.output_stride
        self.backbone: Xception65 | ResNetBackbone
        if network.backbone == "xception65":
            self.backbone = Xception65(stride, network.middle)
        else:
            depth = int(network.backbone.removeprefix("resnet"))
            self.backbone = ResNetBackbone(depth, network.planes, stride)
        rates = RATES[stride] if options.rates is None else options.rates
        channels = self.backbone.channels
        self.pyramid = Pyramid(channels["high"], network.features, rates)
        self.decoder = FeatureDecoder(network.features, channels["low"], network.low_features)
        self.embedding = EmbeddingLayer(
            network.features, network.embedding, relu=network.embedding_activation == "authors"
        )
        self.stem = HeadLayer(
            network.features,
            network.head_channels,
            network.head_kernel,
            relu_between=network.head_activation == "authors",
            bias=False,
        )

    def forward(self, frames: torch.Tensor) -> Features:
        size = (frames.shape[-2], frames.shape[-1])
        with in_precision(self.precision, frames.device):
            maps = self.backbone(frames)
            features = self.decoder(self.pyramid(maps["high"]), maps["low"], grid_size(size))
            embedding, shared = self.embedding(features), self.stem(features)
        return Features({"embedding": embedding.to(frames.dtype), "shared": shared.to(frames.dtype)}, size)


def decode(evidence: Evidence, size: tuple[int, int], annotation: Annotation | None = None) -> torch.Tensor:
    """Logits of cells to probabilities of pixels: enlarged with aligned corners, then the softmax.

    Returns:
        (1 + K, H, W) float32.
    """
    probabilities = resize_bilinear(evidence["logits"][None], size)[0].softmax(0).float()
    return (
        probabilities if annotation is None else insert_given(probabilities, evidence.object_ids, annotation)
    )


class FEELVOS(Method):
    """Voigtlaender et al., CVPR 2019; see the head of this file."""

    name = "feelvos"
    options: FEELVOSOptions

    def __init__(self, options: FEELVOSOptions | None = None):
        super().__init__()
        self.options = options or FEELVOSOptions()
        self._new_target: Callable[[], FEELVOSTarget]
        if self.options.backbone == "efficientnet-lite0":
            self.extractor = LightExtractor(self.options)
            self.decoder = LightDecoder(self.options)
            self._part = self.decoder.part
            self._new_target = partial(LightTarget, self.options)
            return
        network = self.options.network
        self.extractor = FEELVOSExtractor(self.options)
        self.head = DynamicHead(
            network.head_channels,
            network.head_layers,
            network.head_kernel,
            relu_between=network.head_activation == "authors",
        )
        self.decoder = decode
        self._part = head_part(self.head, self.options)
        self._new_target = partial(FEELVOSTarget, self.options, self.head, self._part)

    def inner_parts(self) -> dict[str, Part]:
        return {self._part.name: self._part}

    def target(self) -> FEELVOSTarget:
        return self._new_target()
