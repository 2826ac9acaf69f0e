"""Every method with a network so small that a stream of thousands of frames takes seconds."""

from __future__ import annotations

from typing import Any

import torch

import streamvos
from streamvos import Segmenter

SMALL: dict[str, dict[str, Any]] = {
    "tvos": {
        "network": {"depth": 18, "stages": 2, "planes": (16, 16), "embedding": 16, "normalize": True},
        "temperature": 20.0,
        "top_k": 5,
        "keep_first": True,
        "spatial_prior": "none",
    },
}
"""Method -> options."""


def small(method: str, seed: int = 0, **options: Any) -> Segmenter:
    """A segmenter with random weights, the same ones for the same seed."""
    torch.manual_seed(seed)
    return streamvos.load(method, None, device="cpu", **{**SMALL[method], **options})
