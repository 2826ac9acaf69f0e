"""`streamvos demo`: segment photographed objects that move over a photograph, or your own video, end to end.

streamvos demo --out out/demo
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from streamvos.cli import options
from streamvos.cli.run import run

DEMO_SOURCE = "synthetic:photographs,seed=0,size=360x640,length=80"

EXAMPLES = options.examples(
    "streamvos demo",
    "streamvos demo --source clip.mp4 --mask first.png --out out/mine",
    "streamvos demo --source camera:0 --box 1:200,120,420,460",
)


def demo(
    source: Annotated[
        str,
        typer.Option(
            metavar="SOURCE",
            help="As for `streamvos run`; by default moving photographs.",
            show_default=False,
        ),
    ] = DEMO_SOURCE,
    mask: options.MaskPath = None,
    boxes: options.Boxes = None,
    points: options.Points = None,
    save_first: options.SaveFirst = None,
    out: options.OutFolder = Path("out/demo"),
    weights: options.WeightsName = "default",
    device: options.DeviceName = "auto",
    overwrite: options.Overwrite = False,
    json_target: options.JsonTarget = None,
) -> None:
    """Segment a video end to end, with the bundled weights.

    Without a source of your own, photographed objects move over a photograph: a person, and a raccoon that
    leaves and returns. Their ground truth gives the scores.
    """
    run(
        source,
        mask,
        boxes,
        points,
        save_first=save_first,
        out=out,
        weights=weights,
        device=device,
        overwrite=overwrite,
        json_target=json_target,
    )
