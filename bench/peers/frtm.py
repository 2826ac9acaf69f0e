"""FRTM's own code (Robinson et al., CVPR 2020), from a checkout: the fast variant, a ResNet-18."""

from __future__ import annotations

import numpy as np
import torch

from .work import Step

FILES = ("evaluate.py", "model/tracker.py", "model/feature_extractor.py", "model/seg_network.py")
PACKAGE = None

CHANNELS = 256  # of layer4 of a ResNet-18, by which the code tells its networks apart


def load(root: str | None, device: str) -> Step:
    """Float32. Its optimizer needs gradients, so that they are on, as in the authors' script."""
    from evaluate import Parameters

    weights = {"refiner.TSE.layer4.reduce.0.weight": torch.zeros(64, CHANNELS, 1, 1)}
    tracker = Parameters(weights, fast=False, device=device).get_model().eval()
    tracker.targets, tracker.current_frame = {}, 0

    def step(image: np.ndarray, mask: np.ndarray | None) -> np.ndarray:
        frame = torch.from_numpy(image).to(device).permute(2, 0, 1)
        if mask is not None:
            ids = np.unique(mask)[1:].tolist()
            tracker.initialize(frame, torch.from_numpy(mask).to(device)[None], ids)
            labels = mask
        else:
            probabilities = tracker.track(frame).detach()
            best, which = probabilities[1:].max(0)
            labels = torch.where(best > 0.5, which + 1, 0).byte().cpu().numpy()
        tracker.current_frame += 1
        return labels

    return step
