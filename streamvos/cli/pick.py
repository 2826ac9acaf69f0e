"""`streamvos pick`: point at objects in one frame in the browser, and write their label map.

streamvos pick clip.mp4 --out first.png
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from streamvos.cli import options
from streamvos.cli.console import Listen
from streamvos.cli.output import check_writable, remark, show
from streamvos.types import InputError

EXAMPLES = options.examples(
    "streamvos pick clip.mp4 --out first.png",
    "streamvos pick camera:0 --height 480 --out first.png",
    "streamvos pick clip.mp4 --frame 120 --out frame120.png --listen 0.0.0.0:8642",
)


def pick(
    source: Annotated[
        str,
        typer.Argument(metavar="SOURCE", help="As for `streamvos run`."),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", metavar="FILE.png", help="The label map.")],
    frame: Annotated[int, typer.Option("--frame", min=0, metavar="N", help="Which frame, from 0.")] = 0,
    height: options.Height = None,
    listen: Listen = "127.0.0.1:0",
    select: options.Select = None,
    sam_encoder: options.SamEncoder = None,
    sam_decoder: options.SamDecoder = None,
    device: options.DeviceName = "auto",
    json_target: options.JsonTarget = None,
) -> None:
    """Select objects in one frame in the browser, for --mask.

    Their label map is written when the page's button "Save" is pressed; that ends the command. The page's
    address, which is printed, ends with a token that it needs.
    """
    from streamvos.console.backends import PictureBackend
    from streamvos.console.server import (
        address,
        ends_with,
        listen_at,
        make_server,
        make_token,
        networks,
        page_url,
    )
    from streamvos.masks.checks import object_ids
    from streamvos.sources import open_source

    if out.suffix.lower() != ".png":
        raise InputError(f"--out {out}: a label map is a PNG; give a name that ends with .png")
    check_writable(out.parent)
    host, port = address(listen)
    with open_source(source, height=height, max_frames=frame + 1) as opened:
        name, image = opened.name, None
        for one in opened:
            image = one.image if one.index == frame else None
        if image is None:
            raise InputError(f"{name} has no frame {frame}")
    backend, token = PictureBackend(name, image, out), make_token()
    selecting = networks(select or "learned", device, sam_encoder=sam_encoder, sam_decoder=sam_decoder)
    with listen_at(host, port) as socket:
        remark(f"pick objects at {page_url(socket, token)}")
        server = make_server(backend, token, selecting, host)
        with ends_with(backend.finished.is_set, server):
            server.run(sockets=[socket])
    if not backend.finished.is_set():
        raise InputError(f"the page was not saved, so {out} was not written")
    ids = object_ids(backend.label_map)
    show({"mask": str(out), "objects": ids}, json_target, f"{len(ids)} objects in {out}")
