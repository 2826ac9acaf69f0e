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
from typing import Annotated, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import nn

from streamvos.methods.base import Method
from streamvos.methods.frtm.augmentation import Fill
from streamvos.methods.frtm.target import TARGET_LEVEL, FRTMTarget, InitialWeights
from streamvos.methods.parts import Part, Tensors, outline
from streamvos.nn.aggregation import insert_given_channels, odds_softmax, shares_of_odds, winners_of_odds
from streamvos.nn.images import ImageNetNormalization
from streamvos.nn.precision import PrecisionChoice, in_precision
from streamvos.nn.resnet import resnet
from streamvos.nn.segmentation_network import SegmentationNetwork, Steps
from streamvos.nn.target_model.conjugate_gradient import Beta
from streamvos.nn.target_model.sample_weights import SampleWeights
from streamvos.nn.target_model.target_model import LearningRule, Source, TargetWeights, draw_weights
from streamvos.types import Annotation, Evidence, Features

LEVELS = {"layer5": "layer4", "layer4": "layer3", "layer3": "layer2", "layer2": "layer1"}
"""The paper's names of the backbone's stages, deepest first -> torchvision's."""

Iterations = Annotated[int, Field(ge=1, le=1000)]


class FRTMOptions(BaseModel):
    """Everything about FRTM that is not a weight. The defaults are the authors'.

    Attributes:
        depth: of the ResNet; the authors have 101, and 18 for speed.
        stages: how many of its four stages there are; the authors have all.
        planes, strides: of each stage, see `streamvos.nn.resnet`; the authors' are torchvision's.
        target_channels: c, between the two convolutions of the target model.
        init_iterations: of conjugate gradient, for each Gauss-Newton step on the first frame.
        update_iterations: N_u, of conjugate gradient, in an update.
        last_init_step: "authors" runs an update on the first frame too, "paper" does not.
        augmentations: K, samples made of the first frame, itself included.
        fill: what is behind an object that was moved: "inpaint", or "grey" (YouTube-VOS copy).
        update_interval: t_s, frames between updates.
        memory_size: K_max, samples.
        learning_rate: eta, of the samples' weights.
        min_pixels: a prediction smaller than this is not learned from.
        least_share: kappa_min, targets that cover less of the frame count as if they covered so much.
        pixel_weights: "authors" weighs squared errors once, "paper" reads equations 2 and 4 to the letter.
        regularization: lambda of the two convolutions; also the preconditioner.
        regularization_form: "authors" multiplies weights in the residual by lambda, "paper" by its root.
        beta: "polak-ribiere", or "fletcher-reeves" (YouTube-VOS copy).
        forgetting: frames' worth of forgetting between runs of conjugate gradient; None = every run starts
            afresh, as it does in effect with the authors' 750. Their training has 75.
        aggregation: how objects compete. "authors": a softmax of the odds, where a winner below one half
            becomes background; "youtube" lets every winner win (YouTube-VOS copy); "paper": odds over the
            sum of all odds, as it cites RGMP.
        head: "two-step" enlarges by four and then to the very size; "direct" (YouTube-VOS copy) at once.
        seed: of the initial weights and of the first frame's augmentation.
        objects_per_batch: objects are worked on together, at most so many, to bound memory.
        precision: "bfloat16" runs the networks under autocast; "auto" does so where the device has
            instructions for it. The target model stays float32. The authors' is "float32".
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    depth: Literal[18, 34, 50, 101] = 101
    stages: Literal[3, 4] = 4
    planes: tuple[int, int, int, int] = (64, 128, 256, 512)
    strides: tuple[int, int, int, int] = (1, 2, 2, 2)
    target_channels: int = Field(96, ge=1)
    init_iterations: tuple[Iterations, ...] = Field((5, 10, 10, 10, 10), min_length=1)
    update_iterations: Iterations = 10
    last_init_step: Source = "authors"
    augmentations: int = Field(5, ge=1, le=100)
    fill: Fill = "inpaint"
    update_interval: int = Field(8, ge=1)
    memory_size: int = Field(80, ge=1)
    learning_rate: float = Field(0.1, gt=0, lt=1)
    min_pixels: int = Field(10, ge=1)
    least_share: float = Field(0.1, gt=0, lt=1)
    pixel_weights: Source = "authors"
    regularization: tuple[Annotated[float, Field(gt=0)], Annotated[float, Field(gt=0)]] = (1e-4, 1e-2)
    regularization_form: Source = "authors"
    beta: Beta = "polak-ribiere"
    forgetting: int | None = Field(None, ge=0)
    aggregation: Literal["authors", "youtube", "paper"] = "authors"
    head: Steps = "two-step"
    seed: int = Field(0, ge=0, lt=2**32)
    objects_per_batch: int = Field(8, ge=1)
    precision: PrecisionChoice = "float32"

    @model_validator(mode="after")
    def _first_frame_must_fit(self) -> FRTMOptions:
        if self.augmentations > self.memory_size:
            raise ValueError(f"memory_size must be at least augmentations, which is {self.augmentations}")
        return self

    @property
    def rule(self) -> LearningRule:
        """The part that concerns the optimization."""
        return LearningRule(self.regularization, self.regularization_form, self.beta, self.forgetting)

    def first_importance(self, count: int) -> SampleWeights:
        """Of a memory that holds `count` samples of the first frame; the true one counts twice."""
        # in float64, so that runs in any precision forget alike
        shares = torch.ones(count, dtype=torch.float64)
        if count > 1:
            shares[0] = 2
        return SampleWeights(self.memory_size, self.learning_rate, shares / shares.sum())


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


class FRTMDecoder(nn.Module):
    """Scores to probabilities.

    Args:
        channels: of the extractor's maps.
        options: of the method.
    """

    def __init__(self, channels: Mapping[str, int], options: FRTMOptions):
        super().__init__()
        self.options = options
        self.refiner = SegmentationNetwork(channels, head=options.head, widths=(64,) * len(channels))
        self.part = Part("refiner", self._refine, (self.refiner,), batched=(0,))

    def forward(
        self, evidence: Evidence, size: tuple[int, int], annotation: Annotation | None = None
    ) -> torch.Tensor:
        """See `streamvos.methods.base.Decoder`."""
        objects = self.logits(evidence, size).sigmoid()
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
    extractor: FRTMExtractor
    decoder: FRTMDecoder

    def __init__(self, options: FRTMOptions | None = None, initial_weights: InitialWeights | None = None):
        super().__init__()
        self.options = options or FRTMOptions()
        self.extractor = FRTMExtractor(self.options)
        self.decoder = FRTMDecoder(self.extractor.channels, self.options)
        # the layout in which the extractor's maps arrive; float32 decodes in four fifths of the time
        self.decoder.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.initial_weights = initial_weights or self._draw_weights

    def inner_parts(self) -> dict[str, Part]:
        return {self.decoder.part.name: self.decoder.part}

    def target(self) -> FRTMTarget:
        return FRTMTarget(self.options, self.extractor, self.initial_weights)

    def _draw_weights(self, object_id: int, inputs: int, channels: int) -> TargetWeights:
        return draw_weights(inputs, channels, self.options.seed)


FRTM_FAST = {"depth": 18, "init_iterations": (5, 10, 10, 10), "update_iterations": 5}
"""The paper's fast variant. The authors' code has a flag for it that changes the name of a folder only."""

__all__ = ["FRTM", "FRTM_FAST", "TARGET_LEVEL", "FRTMDecoder", "FRTMExtractor", "FRTMOptions", "FRTMTarget"]
