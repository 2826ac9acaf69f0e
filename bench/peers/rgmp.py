"""RGMP's own networks (Oh et al., CVPR 2018), from a checkout, at the authors' three scales.

Its script reads whole videos; scales, padding and the aggregation of several objects are done here as there.
"""

from __future__ import annotations

import cv2
import numpy as np
import torch

from .work import Step

FILES = ("model.py", "utils.py", "run.py")
PACKAGE = None

SCALES = (0.5, 0.75, 1.0)


def load(root: str | None, device: str) -> Step:
    """Float32; M + 1 runs for M > 1 objects."""
    from model import RGMP

    network = RGMP().eval().to(device)
    references: list[dict[float, torch.Tensor]] = []
    previous: list[np.ndarray] = []

    def encode(image: np.ndarray, mask: np.ndarray, scale: float) -> tuple[torch.Tensor, ...]:
        size = image.shape[:2] if scale == 1 else tuple(padded(int(side * scale)) for side in image.shape[:2])
        frame = torch.from_numpy(cv2.resize(image, size[::-1])).permute(2, 0, 1)[None].to(device)
        return network.Encoder(frame, torch.from_numpy(cv2.resize(mask, size[::-1]))[None].to(device))

    def follow(image: np.ndarray, mask: np.ndarray, reference: dict[float, torch.Tensor]) -> np.ndarray:
        total = np.zeros(image.shape[:2], np.float32)
        for scale in SCALES:
            r5, r4, r3, r2 = encode(image, mask, scale)
            logits = network.Decoder(r5, reference[scale], r4, r3, r2)[0]
            object_map = torch.softmax(logits[0], 0)[1].cpu().numpy()
            total += cv2.resize(object_map, total.shape[::-1])
        return total / len(SCALES)

    @torch.inference_mode()
    def step(image: np.ndarray, mask: np.ndarray | None) -> np.ndarray:
        height, width = image.shape[:2]
        whole = np.zeros((padded(height), padded(width), 3), np.float32)
        whole[:height, :width] = image / np.float32(255)
        if mask is not None:
            ids = np.unique(mask)[1:].tolist()
            maps = [np.isin(mask, ids), *((mask == one) for one in ids)] if len(ids) > 1 else [mask > 0]
            previous[:] = [np.pad(one.astype(np.float32), pads(one.shape)) for one in maps]
            references[:] = [{s: encode(whole, one, s)[0] for s in SCALES} for one in previous]
            return mask
        found = np.stack(
            [follow(whole, one, reference) for one, reference in zip(previous, references, strict=True)]
        )
        if len(found) > 1:
            found[0] = 1 - found[0]
            odds = np.clip(found, 1e-7, 1 - 1e-7)
            odds = odds / (1 - odds)
            found = odds / odds.sum(0)
            previous[:] = [1 - found[0], *found[1:]]
            return found[:, :height, :width].argmax(0).astype(np.uint8)
        previous[:] = [found[0]]
        return (found[0, :height, :width] > 0.5).astype(np.uint8)

    return step


def padded(side: int) -> int:
    """The next multiple of 32 above, also for one that is a multiple itself."""
    return side + 32 - side % 32


def pads(size: tuple[int, ...]) -> list[tuple[int, int]]:
    """What to add on each side."""
    return [(0, padded(side) - side) for side in size]
