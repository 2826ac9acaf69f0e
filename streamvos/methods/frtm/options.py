"""The options of FRTM; docs/methods.md, FRTM, says where paper and code differ."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import torch
from pydantic import Field, model_validator

from streamvos.methods.base import MethodOptions
from streamvos.methods.frtm.augmentation import Fill
from streamvos.nn.precision import PrecisionChoice
from streamvos.nn.segmentation_network import Steps
from streamvos.nn.target_model.conjugate_gradient import Beta
from streamvos.nn.target_model.learning import LearningRule, Source
from streamvos.nn.target_model.sample_weights import SampleWeights

LEVELS = {"layer5": "layer4", "layer4": "layer3", "layer3": "layer2", "layer2": "layer1"}
"""The paper's names of the backbone's stages, deepest first -> torchvision's."""

TARGET_LEVEL = "layer4"
"""What the target model sees; stride 16."""

Iterations = Annotated[int, Field(ge=1, le=1000)]

Width = Annotated[int, Field(ge=1)]


class FRTMOptions(MethodOptions):
    """Everything about FRTM that is not a weight. The defaults are the authors'.

    Attributes:
        backbone: "resnet", or "efficientnet-lite0", for which depth, stages, planes and strides say nothing
            (`EFFICIENTNET`).
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
        widths: channels of the segmentation network at the levels, the deepest first.
        head: "two-step" enlarges by four and then to the very size; "direct" (YouTube-VOS copy) at once;
            "bilinear" decides at a quarter of the size.
        seed: of the initial weights and of the first frame's augmentation.
        objects_per_batch: objects are worked on together, at most so many, to bound memory.
        precision: "bfloat16" runs the networks under autocast; "auto" does so where the device has
            instructions for it. The target model stays float32. The authors' is "float32".
    """

    backbone: Literal["resnet", "efficientnet-lite0"] = "resnet"
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
    widths: tuple[Width, Width, Width, Width] = (64, 64, 64, 64)
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
        """Weights of a memory that holds `count` samples of the first frame; the true one counts twice."""
        # in float64, so that runs in any precision forget alike
        shares = torch.ones(count, dtype=torch.float64)
        if count > 1:
            shares[0] = 2
        return SampleWeights(self.memory_size, self.learning_rate, shares / shares.sum())


FRTM_FAST: dict[str, Any] = {"depth": 18, "init_iterations": (5, 10, 10, 10), "update_iterations": 5}
"""The paper's fast variant. The authors' code has a flag for it that changes the name of a folder only."""

EFFICIENTNET: dict[str, Any] = {
    **FRTM_FAST,
    "backbone": "efficientnet-lite0",
    "target_channels": 32,
    "update_interval": 2,
    "learning_rate": 0.05,
    "widths": (64, 64, 48, 24),
    "head": "bilinear",
    "precision": "auto",
    "uncertain_below": 0.75,
    "lost_below": 0.6,
    "largest_growth": 3.0,
    "search_margin": 0.25,
}
"""The fast variant on the backbone that the bundled weights share."""
