"""The options of RGMP; docs/methods.md, RGMP, says where paper and code differ."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from streamvos.methods.base import Options
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


class RGMPOptions(Options):
    """Everything about RGMP that is not a weight. The defaults are the authors'.

    Attributes:
        network: see `RGMPNetwork`.
        scales: of the canvas; the maps of all are averaged. The authors' three for testing.
        align_corners: how the decoder enlarges its maps. The authors' code leaves it to PyTorch, which in
            their version (0.3.1) put corner on corner; later versions put center on center (False).
        runs_per_batch: the runs of a frame (objects + 1) are one batch of at most so many, to bound memory.
            None = eight on a GPU; on a processor as many as its caches are worth at that scale, since larger
            batches are slower than smaller ones there (`PIXELS_AT_ONCE`).
        precision: "bfloat16" runs the networks under autocast; "auto" does so where the device has
            instructions for it. The authors' is "float32".
    """

    network: RGMPNetwork = RGMPNetwork()
    scales: tuple[Annotated[float, Field(ge=0.1, le=4)], ...] = Field((0.5, 0.75, 1.0), min_length=1)
    align_corners: bool = True
    runs_per_batch: int | None = Field(None, ge=1)
    precision: PrecisionChoice = "float32"
