"""The options of FEELVOS; docs/methods.md, FEELVOS, says where paper and code differ."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from streamvos.methods.base import MethodOptions, Options
from streamvos.nn.precision import PrecisionChoice

RATES = {8: (12, 24, 36), 16: (6, 12, 18)}
"""Output stride -> dilations of the pyramid (released inference; the authors' training demo)."""

Positive = Annotated[int, Field(ge=1)]

EFFICIENTNET: dict[str, Any] = {
    "backbone": "efficientnet-lite0",
    "network": {"embedding": 128},
    "window": 10,
    "previous": "soft",
    "recent": 2,
    "precision": "auto",
    "uncertain_below": 0.7,
    "largest_growth": 3.0,
    "search_margin": 0.25,
}
"""The small form, as its weights expect it."""


class FEELVOSNetwork(Options):
    """Shape of the networks; `embedding` is of both forms. The defaults are those of the released model.

    Attributes:
        backbone: "xception65" (the authors) or a ResNet, for machines on which that is too slow.
        planes: width of each stage of a ResNet.
        middle: blocks in the middle of Xception.
        features: channels of pyramid and decoder.
        low_features: channels to which the backbone's low-level map is reduced.
        embedding: channels of the space in which cells are compared.
        embedding_activation: "authors" has a ReLU after both halves of the embedding layer, "paper" none.
        head_channels, head_layers, head_kernel: of the dynamic segmentation head.
        head_activation: "authors" has a ReLU between the halves of each layer too, "paper" after it only.
    """

    backbone: Literal["xception65", "resnet18", "resnet34", "resnet50", "resnet101"] = "xception65"
    planes: tuple[Positive, Positive, Positive, Positive] = (64, 128, 256, 512)
    middle: int = Field(16, ge=0, le=64)
    features: Positive = 256
    low_features: Positive = 48
    embedding: Positive = 100
    embedding_activation: Literal["authors", "paper"] = "authors"
    head_channels: Positive = 256
    head_layers: int = Field(4, ge=1, le=32)
    head_kernel: int = Field(7, ge=1, le=31)
    head_activation: Literal["authors", "paper"] = "authors"

    @field_validator("head_kernel")
    @classmethod
    def _odd(cls, value: int) -> int:
        if value % 2 == 0:
            raise ValueError("must be odd")
        return value


class FEELVOSOptions(MethodOptions):
    """Everything about FEELVOS that is not a weight. The defaults are the authors'.

    Attributes:
        backbone: "deeplab" is the authors' DeepLabv3+ as `network` describes it; "efficientnet-lite0" the
            small form (see `light`), whose cells are eight pixels.
        network: see `FEELVOSNetwork`.
        output_stride: of the backbone; 16 has a third of the products of 8 (the released inference).
        rates: dilations of the pyramid's three branches; None = those of `RATES`.
        window: k, a radius: local matching looks at 2k + 1 rows and columns of the previous frame, cells of
            four pixels (eight in the small form).
        previous: the head's third map. "hard" is the label map of the previous frame as ones and zeros (the
            released inference, and what training feeds), "soft" the probabilities themselves (the paper).
        recent: small form: how many predicted frames are matched besides the annotated and the previous one.
        recent_every: of how many frames one is remembered for that.
        recent_window: radius of matching with them.
        certain: only cells of at least this probability count in them.
        precision: "bfloat16" runs the networks under autocast, "auto" where the device has instructions for
            it; matching is in float32 always. The authors' is "float32".
    """

    backbone: Literal["deeplab", "efficientnet-lite0"] = "deeplab"
    network: FEELVOSNetwork = FEELVOSNetwork()
    output_stride: Literal[8, 16] = 8
    rates: tuple[Positive, Positive, Positive] | None = None
    window: int = Field(15, ge=0)
    previous: Literal["hard", "soft"] = "hard"
    recent: int = Field(0, ge=0, le=16)
    recent_every: Positive = 5
    recent_window: int = Field(24, ge=0)
    certain: float = Field(0.8, ge=0, le=1)
    precision: PrecisionChoice = "float32"
