"""`streamvos demo`: segment a synthetic video, or your own, end to end.

streamvos demo --out out/demo
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from streamvos.cli import options
from streamvos.cli.run import run

DEMO_SOURCE = "synthetic:seed=7,objects=2,distractors=1,size=360x640,length=60"

EXAMPLES = options.examples(
    "streamvos demo",
    "streamvos demo --source clip.mp4 --mask first.png --out out/mine",
    "streamvos demo --source camera:0 --box 1:200,120,420,460",
)


def demo(
    source: Annotated[
        str,
        typer.Option(
            metavar="SOURCE", help="As for `streamvos run`; by default a synthetic video.", show_default=False
        ),
    ] = DEMO_SOURCE,
    mask: options.MaskPath = None,
    boxes: options.Boxes = None,
    save_first: options.SaveFirst = None,
    out: options.OutFolder = Path("out/demo"),
    weights: options.WeightsName = "default",
    device: options.DeviceName = "auto",
    json_target: options.JsonTarget = None,
) -> None:
    """Segment a video end to end, with the bundled weights.

    Without a source of your own, the video is synthetic, and its ground truth gives the scores.
    """
    run(source, mask, boxes, save_first, out, weights=weights, device=device, json_target=json_target)
