"""FRTM: a small model of each object, learned on the spot, and a network that sharpens what it says.

    method = FRTM(FRTMOptions())            # the authors' settings, random weights
    target = method.target()

The backbone knows nothing of the object. On its first frame two convolutions are fitted to tell it from its
surroundings, by Gauss-Newton steps on that frame and some synthetic ones; they are refitted every few frames
from a memory of past frames. Their coarse scores guide a segmentation network that was trained offline once
for all objects.

Source: Robinson, Lawin, Danelljan, Khan, Felsberg, Learning Fast and Robust Target Models for Video Object
Segmentation, CVPR 2020. Numbers and defaults are those of the authors' code; where the paper, or the second
copy of the code that was used for YouTube-VOS, differs there is an option (docs/methods.md, FRTM).
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import nn

from streamvos.methods.base import Method
from streamvos.methods.frtm.options import LEVELS, TARGET_LEVEL, FRTMOptions
from streamvos.methods.frtm.target import FRTMTarget, InitialWeights
from streamvos.methods.parts import Part, Tensors, outline
from streamvos.nn.aggregation import insert_given_channels, odds_softmax, shares_of_odds, winners_of_odds
from streamvos.nn.efficientnet import EfficientNetLite0
from streamvos.nn.precision import in_precision
from streamvos.nn.resnet import ImageNetNormalization, resnet
from streamvos.nn.segmentation_network import SegmentationNetwork
from streamvos.nn.target_model.learning import TargetWeights, draw_weights
from streamvos.types import Annotation, Evidence, Features

SCALE = 0.05
"""Maps of EfficientNet-Lite0 are not rectified and deviate by about 5.5 from zero. Target models on them find
most of the later frames' objects with this factor (docs/methods.md)."""


class FRTMExtractor(nn.Module):
    """Frames to the backbone's maps.

    (B, 3, H, W) float32 RGB in 0..1 -> "layer2" ... "layer5" (B, C, h, w), strides 4 to 32, and "frame", the
    frames themselves, of which an object's first samples are made.
    """

    def __init__(self, options: FRTMOptions):
        super().__init__()
        self.precision = options.precision
        self.backbone = resnet(
            options.depth, strides=options.strides, planes=options.planes, stages=options.stages
        )
        self.levels = {ours: theirs for ours, theirs in LEVELS.items() if theirs in self.backbone.names}
        self.channels = {ours: self.backbone.channels[theirs] for ours, theirs in self.levels.items()}
        self.normalization = ImageNetNormalization()

    def forward(self, frames: torch.Tensor) -> Features:
        x = self.normalization(frames)
        with in_precision(self.precision, x.device):
            maps = self.backbone(x)
        named = {ours: maps[theirs] for ours, theirs in self.levels.items()}
        return Features({"frame": frames, **named}, (frames.shape[-2], frames.shape[-1]))

    def target_features(self, frames: torch.Tensor) -> torch.Tensor:
        """What the target model sees of frames (B, 3, H, W): (B, C, h, w), without the deepest stage."""
        backbone, x = self.backbone, self.normalization(frames)
        with in_precision(self.precision, x.device):
            x = backbone.maxpool(backbone.relu(backbone.bn1(backbone.conv1(x))))
            for name in backbone.names[: 1 + backbone.names.index(LEVELS[TARGET_LEVEL])]:
                x = getattr(backbone, name)(x)
        return x


class EfficientNetExtractor(nn.Module):
    """Frames to the maps of EfficientNet-Lite0, by the names that `FRTMExtractor` gives them.

    The maps at strides 16 and 32 are seen together at stride 16, by the target model too.
    """

    def __init__(self, options: FRTMOptions):
        super().__init__()
        self.precision = options.precision
        self.backbone = EfficientNetLite0(stages=6)
        c = self.backbone.channels
        together = c["stage4"] + c["stage5"] + c["stage6"]
        self.channels = {
            "layer5": c["stage6"],
            "layer4": together,
            "layer3": c["stage3"],
            "layer2": c["stage2"],
        }

    def forward(self, frames: torch.Tensor) -> Features:
        with in_precision(self.precision, frames.device):
            levels = levels_of(self.backbone(frames))
        return Features({"frame": frames, **levels}, (frames.shape[-2], frames.shape[-1]))

    def target_features(self, frames: torch.Tensor) -> torch.Tensor:
        """See `FRTMExtractor.target_features`."""
        return self(frames)[TARGET_LEVEL]


def levels_of(maps: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Maps of EfficientNet-Lite0's stages (B, C, h, w) to those of FRTM's levels, the deepest first."""
    near = maps["stage5"].shape[-2:]
    deepest = F.interpolate(maps["stage6"], near, mode="bilinear", align_corners=False)
    together = torch.cat([maps["stage4"], maps["stage5"], deepest], dim=1)
    return {
        "layer5": SCALE * maps["stage6"],
        "layer4": SCALE * together,
        "layer3": SCALE * maps["stage3"],
        "layer2": SCALE * maps["stage2"],
    }


class FRTMDecoder(nn.Module):
    """Scores to probabilities.

    Args:
        channels: level -> channels of the extractor's map.
        options: the method's options.
    """

    def __init__(self, channels: Mapping[str, int], options: FRTMOptions):
        super().__init__()
        self.options = options
        self.refiner = SegmentationNetwork(channels, options.widths[: len(channels)], head=options.head)
        self.part = Part("refiner", self._refine, (self.refiner,), batched=(0,))

    def forward(
        self, evidence: Evidence, size: tuple[int, int], annotation: Annotation | None = None
    ) -> torch.Tensor:
        """See `streamvos.methods.base.Decoder`."""
        objects = self.logits(evidence, size).sigmoid()  # (K, H, W)
        if annotation is not None:
            objects = insert_given_channels(objects, evidence.object_ids, annotation)
        return self._compete(objects)

    def logits(self, evidence: Evidence, size: tuple[int, int]) -> torch.Tensor:
        """(K, H, W) of each object for itself; H and W are `size`."""
        maps = [evidence[level] for level in self.refiner.levels]
        scores = evidence["scores"]  # (K, h, w)
        shape = outline(size, scores)
        return torch.cat(
            [self.part(some, shape, *maps)[0] for some in scores.split(self.options.objects_per_batch)]
        )

    def _refine(self, scores: torch.Tensor, size: torch.Tensor, *maps: torch.Tensor) -> Tensors:
        """(K, H, W) logits from scores (K, h, w), the size (`outline`) and the maps of the levels."""
        levels = dict(zip(self.refiner.levels, maps, strict=True))
        with in_precision(self.options.precision, scores.device):
            logits = self.refiner(scores[:, None], levels, (size.shape[0], size.shape[1]))
        return (logits.to(scores.dtype),)

    def _compete(self, objects: torch.Tensor) -> torch.Tensor:
        """(K, H, W) independent probabilities to (1 + K, H, W) that sum to one."""
        if self.options.aggregation == "paper":
            return odds_softmax(torch.cat([(1 - objects).prod(0, keepdim=True), objects]))
        if self.options.aggregation == "youtube":
            return shares_of_odds(objects)
        # The authors compete a second time for the label map. That makes a winner below one half background,
        # and so does giving the background what the winner leaves.
        winners = winners_of_odds(objects)[1:]
        return torch.cat([1 - winners.sum(0, keepdim=True), winners])


class FRTM(Method):
    """Robinson et al., CVPR 2020; see the head of this file.

    Args:
        options: the defaults are the authors'.
        initial_weights: where the learning of an object starts; None = `draw_weights` with the option's
            seed, the same for every object.
    """

    name = "frtm"
    options: FRTMOptions
    extractor: FRTMExtractor | EfficientNetExtractor
    decoder: FRTMDecoder

    def __init__(self, options: FRTMOptions | None = None, initial_weights: InitialWeights | None = None):
        super().__init__()
        self.options = options or FRTMOptions()
        is_resnet = self.options.backbone == "resnet"
        self.extractor = (FRTMExtractor if is_resnet else EfficientNetExtractor)(self.options)
        self.decoder = FRTMDecoder(self.extractor.channels, self.options)
        # the layout in which the extractor's maps arrive; float32 decodes in four fifths of the time
        self.decoder.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.initial_weights = initial_weights or self._draw_weights

    def inner_parts(self) -> dict[str, Part]:
        return {self.decoder.part.name: self.decoder.part}

    def target(self) -> FRTMTarget:
        return FRTMTarget(self.options, self.extractor.target_features, self.initial_weights)

    def _draw_weights(self, object_id: int, inputs: int, channels: int) -> TargetWeights:
        return draw_weights(inputs, channels, self.options.seed)
