"""EdgeTAM (Zhou et al., CVPR 2025): SAM 2's interface with another configuration."""

from __future__ import annotations

from typing import Any
from unittest.mock import patch

from . import sam2
from .work import Step

FILES = ("sam2/build_sam.py", "sam2/sam2_video_predictor.py", "sam2/configs/edgetam.yaml")
PACKAGE = None  # its module is called sam2; name it with --peer


def load(root: str | None, device: str) -> Step:
    """As `sam2.load`; timm would download the weights of the backbone."""
    import timm

    def make(*arguments: Any, **named: Any) -> Any:
        return create(*arguments, **{**named, "pretrained": False})

    create = timm.create_model
    with patch("timm.create_model", make), patch("timm.models.create_model", make):
        return sam2.load(root, device, "configs/edgetam.yaml")
