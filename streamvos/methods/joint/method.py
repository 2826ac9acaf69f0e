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
import torch.nn.functional as F
from torch import nn

from streamvos.methods.base import Method
from streamvos.methods.joint.crops import OUTSIDE, paste, spread
from streamvos.methods.joint.network import LEVELS, JOINTNetwork
from streamvos.methods.joint.options import JOINTOptions
from streamvos.methods.joint.target import BRANCHES, JOINTTarget
from streamvos.methods.parts import Part, Tensors
from streamvos.nn.aggregation import insert_given_channels, merge_logits
from streamvos.nn.precision import in_precision
from streamvos.types import Annotation, Evidence, Features

MEAN = (102.9801, 115.9465, 122.7717)
"""Of blue, green and red, 0..255: what Detectron's Caffe models subtract."""


class JOINTExtractor(nn.Module):
    """What is the same for every object.

    With a window per object that is the frame alone: "frame" (B, 3, H, W), BGR, 0..255, mean subtracted. With
    one window for all it is what the networks make of the resized frame: "layer1" ... "layer4" and, as
    (B, C, h, w), the "induction" and "transduction" features of the branches.
    """

    mean: torch.Tensor

    def __init__(self, network: JOINTNetwork, options: JOINTOptions):
        super().__init__()
        self.options = options
        self.register_buffer("mean", torch.tensor(MEAN).view(1, 3, 1, 1), persistent=False)
        self.network = network if options.window == "frame" else None

    def forward(self, frames: torch.Tensor) -> Features:
        size = (frames.shape[-2], frames.shape[-1])
        prepared = frames.flip(1) * 255 - self.mean
        if self.network is None:
            return Features({"frame": prepared}, size)
        resized = F.interpolate(prepared, self.options.crop_size, mode="bilinear", align_corners=False)
        with in_precision(self.options.precision, frames.device):
            view = self.network.see(resized.contiguous(memory_format=torch.channels_last))
        maps = {name: layer.to(frames.dtype) for name, layer in view.layers.items()}
        for name in BRANCHES:
            tokens: torch.Tensor = getattr(view, name)
            maps[name] = tokens.transpose(1, 2).unflatten(2, self.options.grid).contiguous()
        return Features(maps, size)


class JOINTDecoder:
    """Encodings to probabilities: segmentation network, back into the frame, competition."""

    def __init__(self, network: JOINTNetwork, options: JOINTOptions):
        self.network, self.options = network, options
        shared = options.window == "frame"  # the maps of one window serve all objects
        self.part = Part("decoder", self._scores, (network.decoder,), (0,) if shared else None)

    def __call__(
        self, evidence: Evidence, size: tuple[int, int], annotation: Annotation | None = None
    ) -> torch.Tensor:
        """See `streamvos.methods.base.Decoder`."""
        logits = self.logits(evidence, size)
        if annotation is not None:
            logits = insert_given_channels(
                logits, evidence.object_ids, annotation, low=OUTSIDE, high=-OUTSIDE
            )
        return merge_logits(logits)

    def logits(self, evidence: Evidence, size: tuple[int, int]) -> torch.Tensor:
        """(K, H, W) float32, each object for itself; -100 outside its window."""
        encoding, at_once = evidence["encoding"], self.options.objects_at_once
        shared = self.options.window == "frame"
        parts = []
        for start in range(0, len(encoding), at_once):
            chosen = slice(start, start + at_once)
            layers = [evidence[name] if shared else evidence[name][chosen] for name in LEVELS]
            (scores,) = self.part(encoding[chosen], *layers)
            parts.append(spread(scores, size) if shared else paste(scores, evidence["boxes"][chosen], size))
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
        self.network = JOINTNetwork(self.options.network)
        # what CPUs and tensor cores like; the values stay
        self.network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.extractor = JOINTExtractor(self.network, self.options)
        self.decoder: JOINTDecoder = JOINTDecoder(self.network, self.options)
        self._backbone = backbone_part(self.network, self.options)

    @property
    def networks(self) -> nn.Module:
        return self.network

    def inner_parts(self) -> dict[str, Part]:
        return {part.name: part for part in (self._backbone, self.decoder.part)}

    def target(self) -> JOINTTarget:
        return JOINTTarget(self.network, self.options, self._backbone)
