"""`streamvos run`: segment one source and write what comes out.

streamvos run clip.mp4 --mask first.png --out out/
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from streamvos.cli.common import (
    BackendName,
    DeviceName,
    JsonTarget,
    MethodName,
    MethodSettings,
    WeightsName,
    examples,
)
from streamvos.cli.output_folder import Kinds
from streamvos.cli.segmenting import Job

EXAMPLES = examples(
    "streamvos run clip.mp4 --mask first.png --out out/",
    "streamvos run clip.mp4 --box 1:200,120,420,460 --box 2:10,80,90,300 --out out/",
    "streamvos run DAVIS/JPEGImages/480p/goat --mask DAVIS/Annotations/480p/goat/00000.png",
    "streamvos run camera:0 --save-first first.png",
    "streamvos run camera:0 --box 1:200,120,420,460 --max-frames 300",
    "streamvos run rtsp://user:secret@10.0.0.5/stream --mask first.png --height 480",
    "streamvos run synthetic:seed=3,objects=2 --json",
)

MaskPath = Annotated[
    Path | None,
    typer.Option("--mask", metavar="FILE", help="Label map (PNG) of the first frame; the values are ids."),
]
Boxes = Annotated[
    list[str] | None,
    typer.Option(
        "--box",
        metavar="ID:LEFT,TOP,RIGHT,BOTTOM",
        help="Instead of a mask, or beside it: a rectangle around an object in the first frame, in pixels of "
        "what --save-first stores. Repeatable.",
    ),
]
SaveFirst = Annotated[
    Path | None,
    typer.Option(
        "--save-first",
        metavar="FILE.png",
        help="Store the first frame; without a mask or box, that is all that is done.",
    ),
]


def run(
    source: Annotated[
        str,
        typer.Argument(
            metavar="SOURCE",
            help="Video file, folder or 'glob' of pictures, camera:N, rtsp://..., synthetic:...",
        ),
    ],
    mask: MaskPath = None,
    boxes: Boxes = None,
    save_first: SaveFirst = None,
    out: Annotated[
        Path, typer.Option("--out", "-o", metavar="FOLDER", help="Folder for what is written.")
    ] = Path("out"),
    method: MethodName = "tvos",
    weights: WeightsName = "default",
    device: DeviceName = "auto",
    backend: BackendName = "eager",
    settings: MethodSettings = None,
    height: Annotated[
        int | None,
        typer.Option(
            min=16, max=8192, metavar="ROWS", help="Resize frames, and a mask of their size, to so many rows."
        ),
    ] = None,
    stride: Annotated[int, typer.Option(min=1, metavar="N", help="Take every n-th frame.")] = 1,
    max_frames: Annotated[
        int | None, typer.Option("--max-frames", min=1, metavar="N", help="End after so many frames.")
    ] = None,
    fps: Annotated[
        float | None, typer.Option(metavar="RATE", help="Frame rate of pictures, which have none; else 24.")
    ] = None,
    timeout: Annotated[
        float, typer.Option(metavar="SECONDS", help="Live sources: longest wait to open, and for a frame.")
    ] = 10.0,
    labels: Annotated[bool, typer.Option(help="Write label-map PNGs.")] = True,
    overlay: Annotated[bool, typer.Option(help="Write a video with the objects drawn over it.")] = True,
    results: Annotated[bool, typer.Option(help="Write a JSON-lines file.")] = True,
    json_target: JsonTarget = None,
) -> None:
    """Segment one source, frame by frame, as it comes.

    The first frame needs a label map (--mask), or a rectangle around each object (--box).
    """
    Job(
        source=source,
        out=out,
        mask=mask,
        boxes=boxes,
        save_first=save_first,
        selection={
            "height": height,
            "stride": stride,
            "max_frames": max_frames,
            "fps": fps,
            "open_timeout": timeout,
            "stall_timeout": timeout,
        },
        kinds=Kinds(labels, overlay, results),
        method=method,
        weights=weights,
        device=device,
        backend=backend,
        settings=settings,
        json_target=json_target,
    ).run()
