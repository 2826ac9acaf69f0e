"""The forks of SAM 2 for cameras (segment-anything-2-real-time and its kin), tiny, from a checkout."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from .sam2 import winners
from .work import Step

FILES = ("sam2/build_sam.py", "sam2/sam2_camera_predictor.py")
PACKAGE = None

CONFIGS = ("configs/sam2.1/sam2.1_hiera_t.yaml", "configs/sam2/sam2_hiera_t.yaml", "sam2_hiera_t.yaml")


def load(root: str | None, device: str) -> Step:
    """As `sam2.load`; the forks put their state on a GPU unless told otherwise."""
    from sam2.build_sam import build_sam2_camera_predictor

    places = [Path(root or ".") / folder for folder in ("sam2", "sam2_configs", ".")]
    known = [one for one in CONFIGS if any((place / one).is_file() for place in places)]
    predictor = build_sam2_camera_predictor(
        (known or CONFIGS)[0], None, device=device, apply_postprocessing=False
    )
    init = predictor._init_state

    def init_here(*arguments: Any, **named: Any) -> Any:
        state = init(*arguments, **named)
        state["device"] = state["storage_device"] = torch.device(device)
        return state

    predictor._init_state = init_here

    @torch.inference_mode()
    def step(image: np.ndarray, mask: np.ndarray | None) -> np.ndarray:
        with torch.autocast("cuda", dtype=torch.bfloat16, enabled=device.startswith("cuda")):
            if mask is None:
                ids, logits = predictor.track(image)
            else:
                predictor.load_first_frame(image)
                for one in np.unique(mask)[1:].tolist():
                    _, ids, logits = predictor.add_new_mask(0, one, torch.from_numpy(mask == one))
            return winners(ids, logits)

    return step
