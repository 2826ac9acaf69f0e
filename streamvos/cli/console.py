"""`streamvos console`: a page and an HTTP API for a pipeline that runs already.

streamvos console door
"""

from __future__ import annotations

from typing import Annotated

import typer

from streamvos.cli import options
from streamvos.cli.output import show

EXAMPLES = options.examples("streamvos console door", "streamvos console door --listen 0.0.0.0:8642")

Listen = Annotated[
    str,
    typer.Option("--listen", metavar="[HOST:]PORT", help="Where the page is; port 0 takes any that is free."),
]


def console(
    name: Annotated[
        str | None,
        typer.Argument(metavar="[NAME]", help="The pipeline's name; by default the only one that runs."),
    ] = None,
    listen: Listen = "127.0.0.1:0",
    select: options.Select = None,
    sam_encoder: options.SamEncoder = None,
    sam_decoder: options.SamDecoder = None,
    device: options.DeviceName = "auto",
    json_target: options.JsonTarget = None,
) -> None:
    """Show a running pipeline in the browser, to select objects.

    It ends with Ctrl-C. The page's address, which is printed, ends with a token that it needs;
    $STREAMVOS_CONSOLE_TOKEN sets it.
    """
    from streamvos.cli.ctl import connect
    from streamvos.console.process import run_console
    from streamvos.console.server import address, listen_at, make_token, page_url

    host, port = address(listen)
    with connect(name, None, None, 10.0) as client:
        pipeline = str(client.status().get("pipeline", name))
    token = make_token()
    with listen_at(host, port) as socket:
        url = page_url(socket, token)
        show({"url": url, "pipeline": pipeline}, json_target, f"console of {pipeline}: {url}")
        run_console(
            name if name and "://" in name else pipeline,
            socket,
            token,
            host,
            lambda: False,
            selection=select or "learned",
            device=device,
            sam_encoder=sam_encoder,
            sam_decoder=sam_decoder,
        )
