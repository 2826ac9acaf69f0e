"""JOINT: filters that were fitted to the object and attention to past frames, decoded together.

    method = JOINT(JOINTOptions())          # the authors' network and settings, random weights
    target = method.target()

Every object is looked for in a window of its own, about five times its size. There, a few filters that
learned the object (induction) and attention to remembered windows (transduction) each put out an encoding
of its mask; a segmentation network turns their sum into a mask, and the objects compete for the pixels.
Every few frames a window and its mask are remembered, the filters learn on, and the remembered windows are
encoded anew; between these refreshes nothing about the memory is computed twice.

Source: Mao, Wang, Zhou, Li, Joint Inductive and Transductive Learning for Video Object Segmentation, ICCV
2021. Numbers and defaults are those of the authors' code with its DAVIS configuration; where the paper
differs there is an option (docs/methods.md, JOINT).
"""

from __future__ import annotations

from functools import partial

import torch
from torch import nn

from streamvos.methods.base import Method, Target
from streamvos.methods.joint.crops import paste
from streamvos.methods.joint.decoder import JOINTDecoder
from streamvos.methods.joint.light import LightDecoder, LightExtractor, LightNetwork
from streamvos.methods.joint.light_target import LightTarget
from streamvos.methods.joint.network import LEVELS, JOINTNetwork
from streamvos.methods.joint.options import JOINTOptions
from streamvos.methods.joint.target import JOINTTarget
from streamvos.methods.parts import Part, Tensors
from streamvos.nn.precision import in_precision
from streamvos.types import Evidence, Features

MEAN = (102.9801, 115.9465, 122.7717)
"""Of blue, green and red, 0..255: what Detectron's Caffe models subtract."""


class WindowExtractor(nn.Module):
    """What is the same for every object: "frame" (B, 3, H, W), BGR, 0..255, mean subtracted."""

    mean: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(MEAN).view(1, 3, 1, 1), persistent=False)

    def forward(self, frames: torch.Tensor) -> Features:
        return Features({"frame": frames.flip(1) * 255 - self.mean}, (frames.shape[-2], frames.shape[-1]))


class WindowDecoder(JOINTDecoder):
    """Segmentation network on windows, and back into the frame."""

    def __init__(self, network: JOINTNetwork, options: JOINTOptions):
        self.network, self.options = network, options
        self.part = Part("decoder", self._scores, (network.decoder,))

    def logits(self, evidence: Evidence, size: tuple[int, int]) -> torch.Tensor:
        """(K, H, W) float32, each object for itself; -100 outside its window."""
        encoding, at_once, parts = evidence["encoding"], self.options.objects_at_once, []
        for start in range(0, len(encoding), at_once):
            chosen = slice(start, start + at_once)
            (scores,) = self.part(encoding[chosen], *(evidence[name][chosen] for name in LEVELS))
            parts.append(paste(scores, evidence["boxes"][chosen], size))
        return torch.cat(parts)

    def _scores(self, encoding: torch.Tensor, *layers: torch.Tensor) -> Tensors:
        """(K, h, w) float32 logits of windows, from encodings (K, D, ...) and the maps of `LEVELS`."""
        named = dict(zip(LEVELS, layers, strict=True))
        with in_precision(self.options.precision, encoding.device):
            return (self.network.decoder(encoding, named, self.options.crop_size).float(),)


def backbone_part(network: JOINTNetwork, options: JOINTOptions) -> Part:
    """What looks at windows: pictures (B, 3, h, w) to layer1 ... layer4 and the branches' features."""

    modules = (network.backbone, network.learner, network.transformer)
    return Part("backbone", partial(_see, network, options), modules)


def _see(network: JOINTNetwork, options: JOINTOptions, crops: torch.Tensor) -> Tensors:
    with in_precision(options.precision, crops.device):
        view = network.see(crops.contiguous(memory_format=torch.channels_last))
    return (*view.layers.values(), view.induction, view.transduction)


class JOINT(Method):
    """Mao et al., ICCV 2021; see the head of this file."""

    name = "joint"
    options: JOINTOptions

    def __init__(self, options: JOINTOptions | None = None):
        super().__init__()
        self.options = options or JOINTOptions()
        self.network: JOINTNetwork | LightNetwork
        self.extractor: nn.Module
        self.decoder: WindowDecoder | LightDecoder
        if self.options.backbone == "efficientnet-lite0":
            self.network = light = LightNetwork(self.options.network)
            self.extractor, self.decoder = (
                LightExtractor(light, self.options),
                LightDecoder(light, self.options),
            )
        else:
            self.network = network = JOINTNetwork(self.options.network)
            self.extractor, self.decoder = WindowExtractor(), WindowDecoder(network, self.options)
            self._backbone = backbone_part(network, self.options)
        # what CPUs and tensor cores like; the values stay
        self.network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    @property
    def networks(self) -> nn.Module:
        return self.network

    def inner_parts(self) -> dict[str, Part]:
        parts = (
            [self.decoder.part]
            if isinstance(self.network, LightNetwork)
            else [self._backbone, self.decoder.part]
        )
        return {part.name: part for part in parts}

    def target(self) -> Target:
        if isinstance(self.network, LightNetwork):
            return LightTarget(self.network.head, self.options)
        return JOINTTarget(self.network, self.options, self._backbone)
