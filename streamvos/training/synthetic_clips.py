"""Training clips from synthetic videos: frames, and which cells of them show the same surface.

    clips = SyntheticClips(ClipOptions(stills=Path("stills")), seed=0)
    batch = clips.batch(step=0, size=8)
    batch["frames"].shape                   # (8, 3, 3, 224, 224) uint8

A synthetic frame has for every pixel the visible layer and the point on its surface; two cells correspond
when both agree. This supervises every cell and not only object borders.
"""

from __future__ import annotations

import zlib
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field

from streamvos.synthetic.options import list_stills
from streamvos.synthetic.synthetic import SyntheticFrame, SyntheticOptions, SyntheticVideo

CELL = 8
"""Side of a cell in pixels; its labels are those of its middle."""


class ClipOptions(BaseModel):
    """Options of synthetic clips.

    Attributes:
        size: side of the square frames in pixels, a multiple of 8.
        frames: frames per clip.
        largest_gap: largest distance between neighboring frames of the clip, in frames of the video.
        stills: folder of photographs with region maps; None draws textures.
        color_jitter: strength of the change of color, most of it common to the clip.
        gray: share of clips without color.
        queries: cells of each frame that the loss compares, half of them off the background.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    size: int = Field(default=224, ge=32, multiple_of=CELL)
    frames: int = Field(default=3, ge=2)
    largest_gap: int = Field(default=12, ge=1)
    stills: Path | None = None
    color_jitter: float = Field(default=0.3, ge=0, le=1)
    gray: float = Field(default=0.1, ge=0, le=1)
    queries: int = Field(default=224, ge=1)


class SyntheticClips:
    """Batches as a pure function of the step.

    Args:
        options: see `ClipOptions`.
        seed: seed of the clips, 0 or more.

    Raises:
        InputError: the folder of stills cannot be used.
    """

    def __init__(self, options: ClipOptions, seed: int = 0):
        self.options, self.seed = options, seed
        self._stills = () if options.stills is None else list_stills(options.stills)

    def describe(self) -> dict[str, Any]:
        """What defines the clips besides the seed, in JSON types and without the path of the stills."""
        options = self.options.model_dump(mode="json", exclude={"stills"})
        digest = zlib.crc32("\n".join(self._stills).encode())
        stills = {"photographs": len(self._stills), "digest_of_names": digest} if self._stills else None
        return {**options, "stills": stills}

    def batch(self, step: int, size: int) -> dict[str, torch.Tensor]:
        """Clips `step * size` to `(step + 1) * size`, stacked.

        Returns:
            frames (B, T, 3, S, S) uint8 RGB; coordinates (B, T, cells, 2) float32 in pixels of the
            surface; layer and region (B, T, cells) int64; queries (B, T, Q) int64, the cells that the loss
            compares. Cells are row by row, S/8 per row.
        """
        clips = [self.clip(step * size + k) for k in range(size)]
        return {name: torch.from_numpy(np.stack([clip[name] for clip in clips])) for name in clips[0]}

    def clip(self, number: int) -> dict[str, np.ndarray]:
        """One clip; see `batch`."""
        rng = np.random.Generator(np.random.PCG64([self.seed, number]))
        frames, images, mirror = shoot(rng, self.options)
        middle = slice(CELL // 2, None, CELL)

        def cells(name: str) -> np.ndarray:
            """(T, cells, ...): a field of the frames at the middle of each cell."""
            values = np.stack([getattr(frame, name)[mirror][middle, middle] for frame in frames])
            return values.reshape(len(frames), -1, *values.shape[3:])

        layer = cells("layer").astype(np.int64)
        return {
            "frames": images,
            "coordinates": cells("coordinates"),
            "layer": layer,
            "region": cells("region").astype(np.int64),
            "queries": np.stack([_queries(rng, own, self.options.queries) for own in layer]),
        }


def shoot(
    rng: np.random.Generator, options: ClipOptions
) -> tuple[list[SyntheticFrame], np.ndarray, tuple[slice, slice]]:
    """Draw a video and take a clip of it.

    Returns:
        The T frames; their images (T, 3, S, S), changed in color and perhaps mirrored; and the index that
        mirrors the other fields of a frame likewise.
    """
    gaps = rng.integers(1, options.largest_gap + 1, options.frames - 1)
    times = np.concatenate([[0], np.cumsum(gaps)])
    video = SyntheticVideo(
        int(rng.integers(2**31)),
        SyntheticOptions(
            size=(options.size, options.size),
            length=int(times[-1]) + 1,
            objects=int(rng.integers(1, 4)),
            distractors=int(rng.integers(0, 3)),
            occluders=int(rng.integers(0, 2)),
            motion=float(rng.uniform(0.5, 3.5)),
            blur=float(rng.uniform(0, 1)),
            noise=float(rng.uniform(0, 1.5)),
            exposure=float(rng.uniform(0, 1.5)),
            stills=options.stills,
        ),
    )
    frames = [video[int(t)] for t in times]
    if rng.random() < 0.5:
        frames = frames[::-1]
    mirror = np.s_[:, :: -1 if rng.random() < 0.5 else 1]
    color = _ColorJitter(rng, options.color_jitter, options.gray)
    return frames, np.stack([color(frame.image)[mirror].transpose(2, 0, 1) for frame in frames]), mirror


def _queries(rng: np.random.Generator, layer: np.ndarray, count: int) -> np.ndarray:
    """Cells to compare: half of them anywhere, half off the background unless it fills the frame."""
    foreground = np.flatnonzero(layer)
    if not len(foreground):
        return rng.integers(len(layer), size=count)
    anywhere = rng.integers(len(layer), size=count - count // 2)
    return np.concatenate([anywhere, rng.choice(foreground, count // 2)])


class _ColorJitter:
    """Changes of brightness, contrast and color per clip, and a quarter as strong ones per frame."""

    def __init__(self, rng: np.random.Generator, strength: float, gray: float):
        self.rng, self.strength, self.gray = rng, strength, rng.random() < gray
        self.common = self._draw(strength)

    def _draw(self, strength: float) -> np.ndarray:
        """Rows: gain and offset of each channel."""
        gain = np.exp(self.rng.normal(0, strength, 1) + self.rng.normal(0, strength / 2, 3))
        return np.stack([gain, self.rng.normal(0, 60 * strength, 1) + np.zeros(3)])

    def __call__(self, image: np.ndarray) -> np.ndarray:
        own = self._draw(self.strength / 4)
        gain, offset = self.common[0] * own[0], self.common[1] + own[1]
        middle = np.float32(image.mean())
        levels = np.arange(256, dtype=np.float32)[:, None]
        table = np.clip((levels - middle) * gain + middle + offset, 0, 255).astype(np.uint8)
        changed = cv2.LUT(image, table[None])
        if self.gray:
            changed = np.repeat(cv2.cvtColor(changed, cv2.COLOR_RGB2GRAY)[:, :, None], 3, axis=2)
        return changed


def matches(
    coordinates: tuple[torch.Tensor, torch.Tensor],
    layer: tuple[torch.Tensor, torch.Tensor],
    reach: float = CELL,
) -> torch.Tensor:
    """How well each reference cell matches the surface of each target cell.

    Args:
        coordinates: surface points in pixels: references (B, N, 2), target (B, M, 2).
        layer: layers of the references (B, N) and the target (B, M).
        reach: distance in pixels from which on cells do not match.

    Returns:
        (B, N, M) float32: 0 for another surface, else a Gaussian of the distance with a standard deviation
        of half the reach: 1 for the same point, 0.14 just inside the reach.
    """
    # by differences: torch.cdist uses products, which are off by half a pixel at this size
    dx, dy = (coordinates[0][:, :, None, k] - coordinates[1][:, None, :, k] for k in (0, 1))
    squared = dx * dx + dy * dy
    same = layer[0][:, :, None] == layer[1][:, None, :]
    return torch.exp(squared * (-2 / reach**2)) * (same & (squared < reach**2))
