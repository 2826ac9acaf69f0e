"""Weights: the bundled ones, files of ours, and checkpoints that the methods' authors published.

    method = load_method("tvos", weights="default", options={})

Nothing that a file contains is ever executed: safetensors, .npz, or `torch.load` restricted to tensors.
"""

from streamvos.weights.checkpoints import Checkpoint, read_checkpoint, save_weights
from streamvos.weights.registry import (
    BACKBONE,
    BUNDLED,
    as_ours,
    backbone_path,
    build_with,
    bundled_backbone,
    bundled_path,
    bundled_scores,
    check_method,
    load_method,
    method_of,
    recognize,
    selector_path,
    with_backbone,
    without_backbone,
)

__all__ = [
    "BACKBONE",
    "BUNDLED",
    "Checkpoint",
    "as_ours",
    "backbone_path",
    "build_with",
    "bundled_backbone",
    "bundled_path",
    "bundled_scores",
    "check_method",
    "load_method",
    "method_of",
    "read_checkpoint",
    "recognize",
    "save_weights",
    "selector_path",
    "with_backbone",
    "without_backbone",
]
