"""`streamvos run`: segment one source and write what comes out.

streamvos run clip.mp4 --mask first.png --out out/
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer

from streamvos.cli import options
from streamvos.types import InputError

EXAMPLES = options.examples(
    "streamvos run clip.mp4 --mask first.png --out out/",
    "streamvos run clip.mp4 --box 1:200,120,420,460 --box 2:10,80,90,300 --out out/",
    "streamvos run DAVIS/JPEGImages/480p/goat --mask DAVIS/Annotations/480p/goat/00000.png",
    "streamvos run camera:0 --save-first first.png",
    "streamvos run camera:0 --box 1:200,120,420,460 --max-frames 300",
    "streamvos run rtsp://user:secret@10.0.0.5/stream --mask first.png --height 480",
    "streamvos run ride/ --topic /camera/image_raw --mask first.png",
    "streamvos run synthetic:seed=3,objects=2 --json",
)


def run(
    source: Annotated[
        str,
        typer.Argument(
            metavar="SOURCE",
            help="Video file, folder or 'glob' of pictures, rosbag2 or MCAP recording, camera:N, rtsp://..., "
            "synthetic:..., - (stdin).",
        ),
    ],
    mask: options.MaskPath = None,
    boxes: options.Boxes = None,
    points: options.Points = None,
    select: options.Select = None,
    sam_encoder: options.SamEncoder = None,
    sam_decoder: options.SamDecoder = None,
    save_first: options.SaveFirst = None,
    out: options.OutFolder = Path("out"),
    method: options.MethodName = None,
    weights: options.WeightsName = "default",
    device: options.DeviceName = "auto",
    backend: options.BackendName = "eager",
    settings: options.MethodSettings = None,
    height: options.Height = None,
    mask_size: options.MaskSize = None,
    stride: Annotated[int, typer.Option(min=1, metavar="N", help="Take every n-th frame.")] = 1,
    max_frames: options.MaxFrames = None,
    first_frame: options.FirstFrame = None,
    policy: Annotated[
        str | None,
        typer.Option(
            metavar="latest|lossless",
            help="Drop all but the newest frame (live sources), or none (what has an end).",
        ),
    ] = None,
    allow_truncated: options.AllowTruncated = False,
    fps: Annotated[
        float | None, typer.Option(metavar="RATE", help="Frame rate of pictures; 24 by default.")
    ] = None,
    topic: options.Topic = None,
    timeout: Annotated[
        float, typer.Option(metavar="SECONDS", help="Live sources: longest wait for opening and for a frame.")
    ] = 10.0,
    labels: Annotated[bool, typer.Option(help="Write label-map PNGs.")] = True,
    overlay: Annotated[bool, typer.Option(help="Write a video with the objects drawn over it.")] = True,
    results: Annotated[bool, typer.Option(help="Write a JSON-lines file.")] = True,
    mcap: Annotated[bool, typer.Option("--mcap", help="Write results.mcap, which Foxglove opens.")] = False,
    rosbag: Annotated[
        bool, typer.Option("--rosbag", help="Write rosbag/, a ROS 2 recording of results and pictures.")
    ] = False,
    rerun: Annotated[
        str | None,
        typer.Option(
            metavar="[HOST:PORT|FILE.rrd]", help="Show results in Rerun's viewer, or log them for it."
        ),
    ] = None,
    overwrite: options.Overwrite = False,
    json_target: options.JsonTarget = None,
) -> None:
    """Segment one source, frame by frame, as it comes.

    The first frame needs a label map (--mask), or a rectangle or a point for each object
    (--box, --point).
    """
    import streamvos
    from streamvos.cli import segmenting
    from streamvos.cli.output_folder import OutputFolder, claim_out
    from streamvos.masks.exports import file_of_mask
    from streamvos.masks.pointing import Pointing
    from streamvos.selection.objects import check_selection, make_selector
    from streamvos.sinks.rerun import check_target, is_file
    from streamvos.sources import LiveSource, open_source
    from streamvos.sources.first_frame import first_label_map, given_label_map

    # everything is checked before anything is written, what is quick to check first
    pointing, method_options = Pointing.parse(boxes, points), options.method_settings(settings)
    select = select or "learned"
    check_selection(select, sam_encoder, sam_decoder)
    rerun_file = rerun if rerun is not None and is_file(rerun) else None
    written = options.places_of_files(
        {"--json": json_target, "--save-first": save_first, "--rerun": rerun_file}
    )
    models = {"--sam-encoder": sam_encoder, "--sam-decoder": sam_decoder}
    mask_file = None if mask is None else file_of_mask(mask)
    read = options.places_of_files({"--mask": mask_file, "--weights": weights, **models})
    kinds = {"labels": labels, "overlay": overlay, "results": results, "mcap": mcap, "rosbag": rosbag}
    claim = claim_out(out, source, kinds, written, read, overwrite)
    if rerun is not None:
        check_target(rerun)
    for option, package in (("mcap", "mcap"), ("rosbag", "rosbags")):
        if kinds[option] and find_spec(package) is None:
            raise InputError(f"--{option}: {package} is not installed: pip install 'streamvos[bags]'")
    if mask_size not in (None, "source", "frames"):
        raise InputError(f"--mask-size {mask_size!r} is unknown; choose source or frames")
    if save_first is not None:
        segmenting.check_save_first(save_first, overwrite)
    opened = open_source(
        source,
        height=height,
        stride=stride,
        max_frames=max_frames,
        first_frame=first_frame or 0,
        fps=fps,
        topic=topic,
        policy=options.checked_policy(policy),
        allow_truncated=allow_truncated,
        open_timeout=timeout,
        stall_timeout=timeout,
    )
    with opened:
        if save_first is not None and mask is None and not pointing.ids:
            segmenting.save_frame(segmenting.next_frame(opened), save_first)
            segmenting.report_first_frame(opened, save_first, json_target)
            return
        given = given_label_map(opened, mask, pointing, first_frame)
        if given is None and not pointing.ids:
            raise InputError(
                f"{opened.name}: name the objects in the first frame: --mask FILE.png, a label map of it, or "
                "--box ID:LEFT,TOP,RIGHT,BOTTOM, a rectangle around an object, or --point ID:X,Y on it; "
                "--save-first FILE.png stores that frame, to paint a mask on or to read off pixels"
            )
        vos = streamvos.load(method, options.weights_argument(weights), device, backend, **method_options)
        selector = make_selector(select, sam_encoder, sam_decoder, device) if pointing.ids else None
        if isinstance(opened, LiveSource):
            segmenting.warm_up(vos, opened.size)
        first = segmenting.next_frame(opened)
        if save_first is not None:
            segmenting.save_frame(first, save_first)
        label_map = first_label_map(first, given, pointing, selector)
        size, whole = segmenting.masks_of(opened, mask, mask_size)
        threshold = vos.method.options.uncertain_below
        folder = OutputFolder(out, opened, claim, kinds, size, whole, rerun, threshold)
        values, stopped = segmenting.segment(opened, first, label_map, vos, folder)
    segmenting.report(values, json_target)
    if stopped is not None:
        raise stopped
