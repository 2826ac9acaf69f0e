"""The eager backend: the plain module in channels_last; the reference that every engine is compared with.

run = eager_run(method.extractor, torch.device("cpu"))
features = run(frames)

It needs nothing and builds nothing. Recorded as a CUDA graph it is a backend of its own
(`streamvos.engines.cuda_graphs`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn


def prepare(module: nn.Module, device: torch.device) -> nn.Module:
    """The module itself, on the device, for inference, its kernels in channels_last."""
    module = module.eval().requires_grad_(False).to(device)
    return module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def eager_run(module: nn.Module, device: torch.device) -> Callable[..., Any]:
    """Make `module` ready to run on `device`.

    Args:
        module: frames (B, 3, H, W) float32 -> anything; it is moved to the device and set to evaluation.
        device: where.
    """
    module = prepare(module, device)

    def run(frames: torch.Tensor) -> Any:
        with torch.inference_mode():
            return module(frames.contiguous(memory_format=torch.channels_last))

    return run
