"""What works everywhere: an MP4, a folder of pictures, and the plainest mistakes."""

from __future__ import annotations

from pathlib import Path

from inputs.table import SIZE, Case, row, scene
from PIL import Image
from small_videos import write_video


@row("an mp4")
def mp4(folder: Path) -> Case:
    images, label_maps = scene(6)
    write_video(folder / "clip.mp4", images, fps=12)
    return Case("clip.mp4", first=label_maps[0], pictures=images, stamps=[t / 12 for t in range(6)])


@row("a folder of pictures is read in the order of its numbers")
def pictures(folder: Path) -> Case:
    images, label_maps = scene(12)
    (folder / "frames").mkdir()
    for t, image in enumerate(images):
        Image.fromarray(image).save(folder / "frames" / f"frame{t}.png")
    stems = [f"frame{t}" for t in range(12)]
    return Case("frames", first=label_maps[0], pictures=images, tolerance=0, stems=stems)


@row("a mask of another size is refused with both sizes")
def other_size(folder: Path) -> Case:
    images, label_maps = scene(3)
    write_video(folder / "clip.mp4", images)
    height, width = SIZE
    error = rf"\({height // 2}, {width // 2}\)|{width // 2} x {height // 2}"
    return Case("clip.mp4", first=label_maps[0][::2, ::2], error=error)


@row("a text file is refused as a source")
def text(folder: Path) -> Case:
    (folder / "notes.txt").write_text("no video\n")
    _, label_maps = scene(1)
    return Case("notes.txt", first=label_maps[0], error="notes.txt")
