"""`streamvos demo`: the main job end to end, on a synthetic video or on one's own.

streamvos demo --out out/demo
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

import streamvos
from streamvos.cli.common import DeviceName, JsonTarget, console
from streamvos.cli.run import first_label_map, report, segment
from streamvos.sources import open_source

DEMO_SOURCE = "synthetic:seed=7,objects=2,distractors=1,size=360x640,length=60"


def demo(
    source: Annotated[str, typer.Option(help="Your own source; as for `streamvos run`.")] = DEMO_SOURCE,
    mask: Annotated[Path | None, typer.Option(help="Label map (PNG) of its first frame.")] = None,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for what is written.")] = Path("out/demo"),
    device: DeviceName = "auto",
    json_target: JsonTarget = None,
) -> None:
    """Segment a video with moving objects end to end, with the bundled weights.

    Examples:

        streamvos demo

        streamvos demo --source clip.mp4 --mask first.png --out out/mine
    """
    with open_source(source) as opened:
        first_mask = first_label_map(opened, mask)
        vos = streamvos.load("tvos", device=device)
        console.print(f"Segmenting {opened.name}, {opened.size[1]} x {opened.size[0]}, on {vos.device} ...")
        summary = segment(opened, first_mask, vos, out, {"labels": True, "overlay": True, "results": True})
    report(summary, opened.name, json_target)
