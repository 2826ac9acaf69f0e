"""A long skip shows progress, so that it is not mistaken for a read that hangs."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from small_videos import make_video

from streamvos.sources import open_source


@pytest.mark.parametrize(
    ("name", "count"),
    [("clip.mp4", 20), ("clip.mp4", 300), ("clip.ts", 300)],
    ids=["decoded", "sought", "ts"],
)
def test_skipping_frames_of_a_video(tmp_path, name, count):
    make_video(tmp_path / name, 320, (32, 48))
    with open_source(tmp_path / name) as source:
        before = time.monotonic_ns()
        assert source.alive_ns < before
        source.pass_over(count)
        assert source.alive_ns > before
        assert next(source).index == count


def test_skipping_by_stride(tmp_path: Path):
    for t in range(9):
        Image.fromarray(np.full((16, 16, 3), t, np.uint8)).save(tmp_path / f"{t}.png")
    with open_source(tmp_path, stride=2) as source:
        assert [int(frame.image[0, 0, 0]) for frame in source] == [0, 2, 4, 6, 8]
    make_video(tmp_path / "camera.mp4", 30, (32, 48), fps=120)
    with open_source(f"camera:{tmp_path / 'camera.mp4'}", policy="lossless", stride=3) as source:
        before = time.monotonic_ns()
        assert [frame.index for frame in source] == list(range(10))
        assert source.alive_ns > before
