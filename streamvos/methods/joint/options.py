"""The options of JOINT; docs/methods.md, JOINT, says where paper and code differ."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from streamvos.methods.base import MethodOptions, Options
from streamvos.methods.joint.crops import STRIDE
from streamvos.nn.precision import PrecisionChoice


class JOINTNetworkOptions(Options):
    """Shape of the networks. The defaults are the authors'.

    Attributes:
        depth: ResNet 18, 34, 50 or 101, in the Detectron layout (stride in the first 1x1 convolution).
        planes: width of its stages.
        channels: C, of the features of both branches.
        keys: channels of queries and keys.
        labels: D, channels of an encoded mask.
        label_widths: channels of the label encoder's stages.
        widths: of the segmentation network, the deepest level first.
    """

    depth: Literal[18, 34, 50, 101] = 50
    planes: tuple[int, int, int, int] = (64, 128, 256, 512)
    channels: int = Field(512, ge=1)
    keys: int = Field(128, ge=1)
    labels: int = Field(16, ge=1)
    label_widths: tuple[int, int, int] = (16, 32, 64)
    widths: tuple[int, int, int, int] = (256, 128, 128, 64)


class JOINTOptions(MethodOptions):
    """Everything about JOINT that is not a weight. The defaults are the authors', for DAVIS.

    Attributes:
        backbone: "resnet" is the authors' method; "efficientnet-lite0" the one of
            `streamvos.methods.joint.light`, to which the options of windows do not apply.
        network: see `JOINTNetworkOptions`.
        crop_size: (h, w) to which windows are resized; multiples of 16.
        search_factor: side of a window in those of the object.
        scale_limits: by how much the size of an object may change from frame to frame.
        visible: a prediction of fewer pixels (the sum of its probabilities) does not move the window.
        update_interval: T, every so many frames one is remembered. The authors: 3 for DAVIS, 5 for
            YouTube-VOS (and in the paper).
        memory_size: N, how many frames are remembered; the first always, then the most recent.
        learning_rate: weight of the first sample that is added for the learner.
        first_weight_floor: the least weight of the first frame for the learner (not in the paper).
        init_iterations: steps of the learner on the first frame.
        update_iterations: steps on every frame that is remembered.
        objects_at_once: how many windows pass the networks together.
        precision: "bfloat16" runs backbone, feature layers and decoder under autocast and rounds what the
            self-attention sums up; similarities, the attention that carries labels, and the learner stay
            float32. "auto" does so where the device has instructions for it. The authors' is "float32".
    """

    backbone: Literal["resnet", "efficientnet-lite0"] = "resnet"
    network: JOINTNetworkOptions = JOINTNetworkOptions()
    crop_size: tuple[int, int] = (480, 832)
    search_factor: float = Field(5.0, gt=0)
    scale_limits: tuple[float, float] = (0.95, 1.1)
    visible: float = Field(100.0, ge=0)
    update_interval: int = Field(3, ge=1)
    memory_size: int = Field(20, ge=2, le=254)
    learning_rate: float = Field(0.1, gt=0, lt=1)
    first_weight_floor: float = Field(0.25, ge=0, lt=1)
    init_iterations: int = Field(20, ge=1)
    update_iterations: int = Field(3, ge=0)
    objects_at_once: int = Field(4, ge=1)
    precision: PrecisionChoice = "float32"

    @model_validator(mode="after")
    def _numbers_must_make_sense(self) -> JOINTOptions:
        if min(self.crop_size) < 2 * STRIDE or any(side % STRIDE for side in self.crop_size):
            raise ValueError(f"crop_size must be two multiples of {STRIDE}, at least {2 * STRIDE}")
        if not 0 < self.scale_limits[0] <= 1 <= self.scale_limits[1]:
            raise ValueError("scale_limits must be 0 < least <= 1 <= most")
        return self

    @property
    def grid(self) -> tuple[int, int]:
        """(h, w): cells of a crop."""
        return self.crop_size[0] // STRIDE, self.crop_size[1] // STRIDE


EFFICIENTNET: dict[str, Any] = {
    "backbone": "efficientnet-lite0",
    "network": {"channels": 128, "keys": 64, "widths": (64, 64, 48, 32)},
    "update_interval": 5,
    "memory_size": 8,
    "precision": "auto",
    "uncertain_below": 0.8,
    "largest_growth": 3.0,
    "search_margin": 0.25,
}
"""The options that differ from the authors' in the bundled weights."""
