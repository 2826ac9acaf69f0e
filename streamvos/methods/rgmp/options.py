"""The options of RGMP; docs/methods.md, RGMP, says where paper and code differ."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from streamvos.methods.base import MethodOptions, Options
from streamvos.nn.precision import PrecisionChoice


class RGMPNetwork(Options):
    """Shape of the network. The defaults are the authors' ResNet-50.

    Attributes:
        depth: ResNet 18, 34, 50 or 101.
        planes: width of each stage.
        channels: of the decoder.
    """

    depth: Literal[18, 34, 50, 101] = 50
    planes: tuple[int, int, int, int] = (64, 128, 256, 512)
    channels: int = Field(256, ge=1)


class LightNetwork(Options):
    """Shape of what is trained on EfficientNet-Lite0.

    Attributes:
        channels: of the encoding at stride 16.
        blocks: residual blocks of the encoder.
        keys: length of the vectors by which cells of the reference are found again, and channels of what is
            moved from there (the same, since fused attention needs it).
        scores: channels that the decoder gets: those of the global convolution and the previous mask.
        widths: of the decoder's levels, the deepest first.
    """

    channels: int = Field(128, ge=1)
    blocks: int = Field(2, ge=0)
    keys: int = Field(64, ge=1)
    scores: int = Field(8, ge=2)
    widths: tuple[int, int, int, int] = (64, 64, 48, 24)


class RGMPOptions(MethodOptions):
    """Everything about RGMP that is not a weight. The defaults are the authors'.

    Attributes:
        backbone: "resnet" is the authors' network; "efficientnet-lite0" a small one on a frozen backbone
            (`light`), for which `network`, `align_corners` and `runs_per_batch` mean nothing.
        network: see `RGMPNetwork`.
        light_network: see `LightNetwork`.
        scales: of the canvas (of the frame, on EfficientNet-Lite0); the maps of all are averaged. The
            authors' three for testing.
        align_corners: how the decoder enlarges its maps. The authors' code leaves it to PyTorch, which in
            their version (0.3.1) put corner on corner; later versions put center on center (False).
        runs_per_batch: the runs of a frame (objects + 1) are one batch of at most so many, to bound memory.
            None = eight on a GPU; on a processor as many as its caches are worth at that scale, since larger
            batches are slower than smaller ones there (`PIXELS_AT_ONCE`).
        precision: "bfloat16" runs the networks under autocast; "auto" does so where the device has
            instructions for it. The authors' is "float32".
    """

    backbone: Literal["resnet", "efficientnet-lite0"] = "resnet"
    network: RGMPNetwork = RGMPNetwork()
    light_network: LightNetwork = LightNetwork()
    scales: tuple[Annotated[float, Field(ge=0.1, le=4)], ...] = Field((0.5, 0.75, 1.0), min_length=1)
    align_corners: bool = True
    runs_per_batch: int | None = Field(None, ge=1)
    precision: PrecisionChoice = "float32"


EFFICIENTNET: dict[str, Any] = {
    "backbone": "efficientnet-lite0",
    "scales": (1.0,),
    "precision": "auto",
    "largest_growth": 3.0,
    "search_margin": 0.25,
}
"""Options of the bundled weights."""
