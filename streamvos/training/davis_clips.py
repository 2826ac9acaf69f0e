"""Training clips from DAVIS and YouTube-VOS, cut as in the TVOS authors' code.

    clips = AuthorsClips(DavisDataset("DAVIS", year="2017", split="train"), AuthorsClipOptions(), seed=0)
    batch = clips.batch(step=0, size=16)
    batch["labels"].shape                   # (16, 10, 1024) int64, 32 x 32 cells

A clip has ten consecutive frames with the same flip and crop. Labels are palette indices at an eighth of the
resolution, found by color: the mean color of a block's middle, then the nearest of 22 palette colors. A block
on a border may therefore get a third label (docs/methods.md, TVOS).
"""

from __future__ import annotations

import zlib
from typing import Any

import cv2
import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field

from streamvos.datasets.clips import VideoDataset
from streamvos.masks.labelmap import davis_palette
from streamvos.types import InputError

CELL = 8
"""Side of a cell in pixels."""

CLASSES = 22
"""Number of palette colors in the authors' loss."""


class AuthorsClipOptions(BaseModel):
    """Options of the authors' clips.

    Attributes:
        size: side of the square crop in pixels, a multiple of 8.
        frames: frames per clip; the last one is the target.
        color_jitter: strength in brightness, contrast, saturation and hue; the authors' option means 0.4.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    size: int = Field(default=256, ge=32, multiple_of=CELL)
    frames: int = Field(default=10, ge=2)
    color_jitter: float = Field(default=0.0, ge=0, le=0.5)


class AuthorsClips:
    """Batches as a pure function of the step.

    An epoch visits every frame once as the start of a clip (shifted back near the end of the video), in a new
    random order, and drops the last, incomplete batch. The authors use the same order in every epoch, by
    mistake. Videos shorter than a clip are skipped.

    Raises:
        InputError: no video is as long as a clip.
    """

    def __init__(self, dataset: VideoDataset[Any], options: AuthorsClipOptions, seed: int = 0):
        self.dataset, self.options, self.seed = dataset, options, seed
        self.starts = dataset.starts(options.frames)
        if not self.starts:
            raise InputError(
                f"none of the {len(dataset.names)} videos has {options.frames} frames with label maps; use "
                "clips of fewer frames"
            )

    def describe(self) -> dict[str, Any]:
        """What defines the clips besides the seed, in JSON types and without the path of the data."""
        data = {"videos": len(self.dataset.names), "clips": len(self.starts)}
        digest = zlib.crc32("\n".join(self.dataset.names).encode())
        return {**self.options.model_dump(mode="json"), "data": {**data, "digest_of_names": digest}}

    def steps_per_epoch(self, size: int) -> int:
        """Number of whole batches in an epoch; InputError if there is none."""
        steps = len(self.starts) // size
        if steps < 1:
            raise InputError(f"a batch of {size} clips needs as many frames, got {len(self.starts)}")
        return steps

    def batch(self, step: int, size: int) -> dict[str, torch.Tensor]:
        """The clips of one step, stacked.

        Returns:
            frames (B, T, 3, S, S) uint8 RGB; labels (B, T, cells) int64 in 0..21.
        """
        epoch, within = divmod(step, self.steps_per_epoch(size))
        order = np.random.Generator(np.random.PCG64([self.seed, epoch])).permutation(self.starts)
        chosen = order[within * size : (within + 1) * size]
        clips = [self.clip(int(i), epoch) for i in chosen]
        return {name: torch.from_numpy(np.stack([clip[name] for clip in clips])) for name in clips[0]}

    def clip(self, i: int, epoch: int) -> dict[str, np.ndarray]:
        """The clip that begins at frame `i` of the data set, as `epoch` sees it.

        Returns:
            frames (T, 3, S, S) uint8 RGB; labels (T, cells) int64 in 0..21, row by row.

        Raises:
            InputError: its frames are smaller than the crop, or a file cannot be read.
        """
        rng = np.random.Generator(np.random.PCG64([self.seed, epoch, i]))
        options, size = self.options, self.options.size
        clip = self.dataset.frames(i, options.frames)
        height, width = clip.images.shape[1:3]
        if min(height, width) < size:
            raise InputError(f"{clip.name} is {height} x {width} (H x W); crops of {size} do not fit")
        top, left = int(rng.integers(height - size + 1)), int(rng.integers(width - size + 1))
        flips = (slice(None), _flip(rng), _flip(rng))
        window = (slice(None), slice(top, top + size), slice(left, left + size))
        images = np.ascontiguousarray(clip.images[flips][window])
        masks = np.ascontiguousarray(clip.masks[flips][window])
        if options.color_jitter:
            images = jitter_colors(images, options.color_jitter, rng)
        return {
            "frames": images.transpose(0, 3, 1, 2),
            "labels": np.stack([labels_by_color(mask).ravel() for mask in masks]),
        }


def _flip(rng: np.random.Generator) -> slice:
    return slice(None, None, -1 if rng.random() < 0.5 else 1)


def labels_by_color(mask: np.ndarray) -> np.ndarray:
    """Labels 0..21 of the 8 x 8 blocks of a label map (S, S) uint8, by palette color: (S/8, S/8) int64."""
    palette = davis_palette().astype(np.float32)
    colors = palette[mask]
    # bilinear resizing to an eighth without antialiasing is the mean of the middle 2 x 2 pixels of each block
    middle = [colors[CELL // 2 - 1 + y :: CELL, CELL // 2 - 1 + x :: CELL] for y in (0, 1) for x in (0, 1)]
    blocks = np.mean(middle, axis=0)
    centroids = np.where(palette[:CLASSES] == 192, 191, palette[:CLASSES])
    distances = ((blocks[:, :, None] - centroids) ** 2).sum(-1)
    return distances.argmin(-1).astype(np.int64)


def jitter_colors(images: np.ndarray, strength: float, rng: np.random.Generator) -> np.ndarray:
    """The same random change of brightness, contrast, saturation and hue for a whole clip.

    The ranges are those of torchvision, which the authors use; the order of the four is fixed.

    Args:
        images: (T, S, S, 3) uint8 RGB.
        strength: factors are drawn from 1 - strength .. 1 + strength, and the hue turns by up to
            `strength` of the circle either way; 0..0.5.
    """
    brightness, contrast, saturation = rng.uniform(1 - strength, 1 + strength, 3).astype(np.float32)
    hue = np.float32(rng.uniform(-strength, strength) * 360)
    changed = np.empty_like(images)
    for k, image in enumerate(images):
        x = np.clip(image.astype(np.float32) / 255 * brightness, 0, 1)
        middle = cv2.cvtColor(x, cv2.COLOR_RGB2GRAY).mean()
        x = np.clip(middle + contrast * (x - middle), 0, 1)
        gray = cv2.cvtColor(x, cv2.COLOR_RGB2GRAY)[..., None]
        x = np.clip(gray + saturation * (x - gray), 0, 1)
        hsv = cv2.cvtColor(x, cv2.COLOR_RGB2HSV)
        hsv[..., 0] = (hsv[..., 0] + hue) % 360
        changed[k] = np.round(np.clip(cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB), 0, 1) * 255)
    return changed
