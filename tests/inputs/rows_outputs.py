"""Outputs: names that are odd, files that are in the way, inputs that a run would replace."""

from __future__ import annotations

import os
from pathlib import Path

from inputs.table import Case, row, scene
from PIL import Image
from small_videos import write_video

ODD = ["1%", "10", "-o", "[red]", "a b", "line\nfeed", 'quo"te', "x.1", "x.partial", "é", "\udcff"]
"""Names of frames in their order; "\\udcff" is a byte that is no UTF-8."""


@row("odd names of frames are names of label maps")
def odd_names(folder: Path) -> Case:
    images, label_maps = scene(len(ODD))
    (folder / "frames").mkdir()
    for name, image in zip(ODD, images, strict=True):
        Image.fromarray(image).save(folder / "frames" / f"{name}.png")
    return Case("frames", first=label_maps[0], stems=ODD)


@row("a file of the user in the place of the results is refused", doors=("run",))
def in_the_way(folder: Path) -> Case:
    images, label_maps = scene(3)
    write_video(folder / "clip.mp4", images)
    (folder / "out").mkdir()
    (folder / "out/results.jsonl").write_text("the user's\n")
    return Case("clip.mp4", first=label_maps[0], error=r"out/results\.jsonl is there already.*--overwrite")


@row("a source in the place of an output is refused", doors=("run",))
def over_the_source(folder: Path) -> Case:
    images, label_maps = scene(3)
    (folder / "out").mkdir()
    write_video(folder / "clip.mp4", images)
    os.link(folder / "clip.mp4", folder / "out/overlay.mp4")
    return Case("clip.mp4", first=label_maps[0], error=r"out/overlay\.mp4 would replace what is read")


@row("an output over the weights is refused", doors=("run",))
def over_the_mask(folder: Path) -> Case:
    images, label_maps = scene(3)
    write_video(folder / "clip.mp4", images)
    Image.fromarray(label_maps[0]).save(folder / "mask.png")
    (folder / "link.json").symlink_to("mask.png")
    options = ["--json", "link.json"]
    return Case(
        "clip.mp4", mask=folder / "mask.png", error="took 'link.json'|would replace", run_options=options
    )


@row("masks of resized frames come at the size of the given one", doors=("run",))
def height(folder: Path) -> Case:
    images, label_maps = scene(3)
    write_video(folder / "clip.mp4", images)
    return Case("clip.mp4", first=label_maps[0], options={"height": 24})
