"""SAM 2 (Ravi et al., 2024), tiny, from a checkout or an installed package, frame by frame.

Its predictor wants a whole video; here it gets one whose frames come when they are asked for. Features and
memories are its own, at 1024 x 1024.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any
from unittest.mock import patch

import cv2
import numpy as np
import torch

from .work import Step

FILES = ("sam2/build_sam.py", "sam2/sam2_video_predictor.py", "sam2/configs/sam2.1/sam2.1_hiera_t.yaml")
PACKAGE = "sam2"

CONFIG = "configs/sam2.1/sam2.1_hiera_t.yaml"

LENGTH = 10**6


class Frames:
    """A video of which the newest frame is known."""

    def __init__(self) -> None:
        self.newest: torch.Tensor | None = None

    def __len__(self) -> int:
        return LENGTH

    def __getitem__(self, index: int) -> torch.Tensor:
        assert self.newest is not None
        return self.newest


def load(root: str | None, device: str, config: str = CONFIG) -> Step:
    """Float32 on a processor, bfloat16 under autocast on a GPU, as its authors run it."""
    from sam2.build_sam import build_sam2_video_predictor

    predictor = build_sam2_video_predictor(config, None, device=device, apply_postprocessing=False)
    frames, side = Frames(), int(predictor.image_size)
    mean, deviation = np.array([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]], np.float32)
    results: Iterator[Any] = iter(())

    @torch.inference_mode()
    def step(image: np.ndarray, mask: np.ndarray | None) -> np.ndarray:
        nonlocal results
        pixels = cv2.resize(image, (side, side)).astype(np.float32) / 255
        frames.newest = torch.from_numpy((pixels - mean) / deviation).permute(2, 0, 1)
        with torch.autocast("cuda", dtype=torch.bfloat16, enabled=device.startswith("cuda")):
            if mask is not None:
                whole = (frames, *image.shape[:2])
                with patch("sam2.sam2_video_predictor.load_video_frames", lambda *a, **k: whole):
                    state = predictor.init_state("frames")
                for one in np.unique(mask)[1:].tolist():
                    predictor.add_new_mask(state, 0, one, torch.from_numpy(mask == one))
                results = predictor.propagate_in_video(state)
            _, ids, logits = next(results)
            return winners(ids, logits)

    return step


def winners(ids: Any, logits: torch.Tensor) -> np.ndarray:
    """(H, W) uint8 label map of (N, 1, H, W) logits; background where none is positive."""
    best, which = logits[:, 0].float().max(0)
    labels = torch.tensor([int(one) for one in ids], dtype=torch.uint8, device=logits.device)
    return torch.where(best > 0, labels[which], 0).cpu().numpy()
