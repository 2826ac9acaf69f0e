"""XMem (Cheng and Schwing, ECCV 2022), from a checkout, with its settings for DAVIS 2017."""

from __future__ import annotations

from unittest.mock import patch

import numpy as np
import torch

from .work import Step

FILES = ("model/network.py", "inference/inference_core.py", "inference/memory_manager.py", "model/resnet.py")
PACKAGE = None

CONFIG = {
    "top_k": 30,
    "mem_every": 5,
    "deep_update_every": -1,
    "enable_long_term": True,
    "enable_long_term_count_usage": True,
    "num_prototypes": 128,
    "min_mid_term_frames": 5,
    "max_mid_term_frames": 10,
    "max_long_term_elements": 10000,
    "key_dim": 64,
    "value_dim": 512,
    "hidden_dim": 64,
    "single_object": False,
    "benchmark": False,
}


def load(root: str | None, device: str) -> Step:
    """Float32."""
    from inference.inference_core import InferenceCore
    from model.network import XMem

    with patch("model.resnet.load_weights_add_extra_dim"):
        network = XMem(dict(CONFIG)).eval().to(device)
    core = InferenceCore(network, dict(CONFIG))
    mean = torch.tensor([0.485, 0.456, 0.406], device=device)[:, None, None]
    deviation = torch.tensor([0.229, 0.224, 0.225], device=device)[:, None, None]

    @torch.inference_mode()
    def step(image: np.ndarray, mask: np.ndarray | None) -> np.ndarray:
        frame = (torch.from_numpy(image).to(device).permute(2, 0, 1).float() / 255 - mean) / deviation
        if mask is None:
            answer = core.step(frame)
        else:
            ids = np.unique(mask)[1:].tolist()
            core.set_all_labels(ids)
            given = torch.stack([torch.from_numpy(mask == one) for one in ids]).float().to(device)
            answer = core.step(frame, given, ids)
        return answer.argmax(0).byte().cpu().numpy()

    return step
