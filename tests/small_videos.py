"""Small video files, and the label map of their first frame."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import av
import numpy as np
from PIL import Image

SIZE = (64, 96)


def make_video(path: Path, frames: int, size: tuple[int, int] = SIZE, fps: int = 30) -> None:
    """A video file, as small as can be."""
    rng = np.random.Generator(np.random.PCG64(7))
    picture = rng.integers(0, 255, (*size, 3), dtype=np.uint8)
    write_video(path, [np.ascontiguousarray(np.roll(picture, t, 1)) for t in range(frames)], fps)


def write_video(path: Path, images: Sequence[np.ndarray], fps: int = 30) -> None:
    """An H.264 video of RGB pictures (H, W, 3) uint8, in the container that the name's end says."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=fps, options={"preset": "ultrafast"})
        stream.height, stream.width, stream.pix_fmt = *images[0].shape[:2], "yuv420p"
        for image in images:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode(None))


def make_mask(path: Path, size: tuple[int, int] = SIZE) -> np.ndarray:
    mask = np.zeros(size, np.uint8)
    mask[10:30, 5:25], mask[40:60, 50:70] = 3, 7
    Image.fromarray(mask).save(path)
    return mask
