"""Training data of a few small pictures: two short videos and four photographs of a square."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

from streamvos.training.features import VALIDATION, FeatureOptions

SMALL = FeatureOptions(scales=(1.0,), still_clips=3, still_frames=3, still_size=(64, 96))


def write_training_data(root: Path) -> None:
    """The folders that `make_features` reads; the second video is one for validation."""
    rng = np.random.default_rng(0)
    for name in ("square", VALIDATION[0]):
        for t in range(6):
            picture = rng.integers(0, 90, (64, 96, 3), dtype=np.uint8)
            mask = np.zeros((64, 96), np.uint8)
            mask[20:44, 20 + 4 * t : 44 + 4 * t] = 255
            picture[mask > 0] += 150
            video = root / "davis2016-train"
            _write(video / "JPEGImages" / "480p" / name / f"{t:05d}.jpg", picture)
            _write(video / "Annotations" / "480p" / name / f"{t:05d}.png", mask)
    for k in range(4):
        regions = np.zeros((50, 70), np.uint8)
        regions[10:40, 15:50] = 1
        _write(root / "duts" / "images" / f"{k}.jpg", rng.integers(0, 255, (50, 70, 3), dtype=np.uint8))
        _write(root / "duts" / "regions" / f"{k}.png", regions)


def _write(path: Path, picture: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), picture)
