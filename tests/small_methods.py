"""Every method with a network so small that a stream of thousands of frames takes seconds."""

from __future__ import annotations

from typing import Any

import torch

import streamvos
from streamvos import Segmenter
from streamvos.methods.tvos import EFFICIENTNET as TVOS

FRTM: dict[str, Any] = {
    "depth": 18,
    "planes": (8, 8, 16, 16),
    "target_channels": 8,
    "init_iterations": (2, 3, 3),
    "update_iterations": 3,
    "memory_size": 12,
}

SMALL: dict[str, dict[str, Any]] = {
    "tvos": {
        "network": {"depth": 18, "stages": 2, "planes": (16, 16), "embedding": 16, "normalize": True},
        "temperature": 20.0,
        "top_k": 5,
        "keep_first": True,
        "spatial_prior": "none",
    },
    "rgmp": {
        "network": {"depth": 18, "planes": (8, 8, 8, 8), "channels": 8},
        "scales": (0.5, 1.0),
    },
    "frtm": FRTM,
    "frtm-fast": {**FRTM, "init_iterations": (3, 3)},
    "joint": {
        "network": {
            "depth": 18,
            "planes": (8, 8, 8, 8),
            "channels": 16,
            "keys": 8,
            "labels": 4,
            "label_widths": (4, 4, 8),
            "widths": (16, 8, 8, 8),
        },
        "crop_size": (96, 128),
        "memory_size": 6,
        "init_iterations": 4,
        "visible": 20.0,
    },
    "feelvos": {
        "network": {
            "backbone": "resnet18",
            "planes": (8, 8, 8, 8),
            "features": 16,
            "low_features": 8,
            "embedding": 12,
            "head_channels": 16,
            "head_layers": 2,
        },
        "output_stride": 16,
        "window": 6,
    },
}
"""Method -> options."""

VARIANTS: dict[str, dict[str, Any]] = {
    "frtm-fast/efficientnet": {
        **FRTM,
        "backbone": "efficientnet-lite0",
        "widths": (8, 8, 6, 4),
        "head": "bilinear",
    },
    "rgmp/light": {
        "backbone": "efficientnet-lite0",
        "light_network": {"channels": 16, "blocks": 1, "keys": 8, "scores": 4, "widths": (8, 8, 8, 8)},
        "scales": (0.75, 1.0),
    },
    "feelvos/efficientnet": {
        "backbone": "efficientnet-lite0",
        "network": {"embedding": 12},
        "window": 4,
        "previous": "soft",
        "recent": 2,
        "recent_every": 2,
        "certain": 0.3,
    },
    "tvos/efficientnet": {**TVOS, "network": {"embedding": 16}, "refiner": (8, 8, 4), "references": 5},
    "joint/efficientnet": {
        "backbone": "efficientnet-lite0",
        "network": {
            "channels": 16,
            "keys": 8,
            "labels": 4,
            "label_widths": (4, 4, 8),
            "widths": (16, 8, 8, 8),
        },
        "memory_size": 4,
        "init_iterations": 8,
    },
}
"""Other forms of the methods: "METHOD/variant" -> options."""


def small(method: str, seed: int = 0, **options: Any) -> Segmenter:
    """A segmenter with random weights, the same ones for the same seed; `method` may be a variant."""
    torch.manual_seed(seed)
    own = {**SMALL, **VARIANTS}[method]
    return streamvos.load(method.partition("/")[0], None, device="cpu", **{**own, **options})
