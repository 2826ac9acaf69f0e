"""`streamvos fleet`: run streams on many machines, and say what runs where.

streamvos fleet up fleet.toml
streamvos fleet drain camera-host-2 --at site
"""

from __future__ import annotations

import os
import re
from contextlib import closing
from pathlib import Path
from typing import Annotated, Any

import typer

from streamvos.cli.options import BUNDLED_NAMES, METHOD_NAMES, Boxes, JsonTarget, Points, examples
from streamvos.cli.output import make_table, report_error, show
from streamvos.pipeline.config.tables import MethodConfig
from streamvos.types import InputError

app = typer.Typer(
    epilog=examples(
        "streamvos fleet up fleet.toml",
        "streamvos fleet add front rtsp://camera/stream --height 480 --mask first.png",
        "streamvos fleet drain camera-host-2",
    ),
)

At = Annotated[
    str | None,
    typer.Option("--at", metavar="NAME", help="The fleet's name; by default the only one that runs here."),
]
StreamName = Annotated[str, typer.Argument(metavar="STREAM", help="Name of the stream.")]
Machine = Annotated[str, typer.Argument(metavar="MACHINE", help="Name of a machine, or one share of it.")]


@app.command(epilog=examples("streamvos fleet up fleet.toml"))
def up(
    file: Annotated[Path, typer.Argument(metavar="FLEET.toml", help="What to run (docs/scale.md).")],
    log: Annotated[str, typer.Option(metavar="text|json", help="Format of the log.")] = "text",
) -> None:
    """Run a fleet until Ctrl-C, which ends its streams in order, with their states saved."""
    from streamvos.fleet.cluster import ClusterLostError, RayCluster
    from streamvos.fleet.config import read_fleet
    from streamvos.fleet.running import Fleet
    from streamvos.fleet.store import Store
    from streamvos.pipeline.telemetry.logs import EventLog

    if log not in ("text", "json"):
        raise InputError(f"--log is {log!r}; expected text or json")
    config = read_fleet(file)
    _check_method(config.method)
    store = Store(config.store, begin=True)
    with closing(EventLog(log)) as events, RayCluster(config) as cluster:  # type: ignore[arg-type]
        try:
            code = Fleet(config, store, cluster, events).run()
        except ClusterLostError as error:
            report_error(error)
            events.close()
            os._exit(1)  # leaving Ray in order would wait for its head for minutes
        if code == 0:
            cluster.end_shares()
        raise typer.Exit(code)


@app.command(epilog=examples("streamvos fleet status", "streamvos fleet status --at site --json"))
def status(at: At = None, json_target: JsonTarget = None) -> None:
    """Show streams and shares."""
    with _connect(at) as client:
        found = client.status()
    table = make_table("streams", ["stream", "state", "share", "machine", "fps", "objects", "placements"])
    lines = []
    for name, one in sorted(found["streams"].items()):
        fps = f"{one['fps']:.1f}" if isinstance(one["fps"], float) and one["fps"] == one["fps"] else ""
        cells = [one["state"], one["share"], one["machine"], fps, len(one["objects"] or ()), one["epoch"]]
        table.add_row(name, *map(str, cells))
        if one["problem"]:
            lines.append(f"{name}: {one['problem']}")
    shares = make_table("shares", ["share", "machine", "kind", "state", "used"])
    for name, one in sorted(found["shares"].items()):
        shares.add_row(name, one["machine"], one["kind"], one["state"], f"{100 * one['used']:.0f} %")
        if one["problem"]:
            lines.append(f"{name}: {one['problem']}")
    show(found, json_target, table, shares, *lines, *filter(None, [found["store"]]))


@app.command(epilog=examples("streamvos fleet add front rtsp://camera/stream --height 480 --mask first.png"))
def add(
    stream: StreamName,
    source: Annotated[str, typer.Argument(metavar="SOURCE", help="A camera or network stream.")],
    height: Annotated[int, typer.Option(metavar="ROWS", help="Rows of the frames.")],
    mask: Annotated[Path | None, typer.Option(metavar="MASK.png", help="Its first objects.")] = None,
    boxes: Boxes = None,
    points: Points = None,
    realtime: Annotated[bool, typer.Option("--realtime", help="Play a file as if it were live.")] = False,
    at: At = None,
    json_target: JsonTarget = None,
) -> None:
    """Add a stream; it is placed where there is room."""
    keys: dict[str, Any] = {"height": height}
    if mask is not None:
        keys["mask"] = str(mask.absolute())
    given = {"boxes": boxes, "points": points, "realtime": realtime}
    keys.update((key, value) for key, value in given.items() if value)
    with _connect(at) as client:
        found = client.add_stream(stream, source, **keys)
    where = f"runs on {found['share']}" if found["share"] else f"waits: {found['problem']}"
    show({"stream": stream, **found}, json_target, f"{stream}: {where}")


@app.command(epilog=examples("streamvos fleet remove front"))
def remove(stream: StreamName, at: At = None, json_target: JsonTarget = None) -> None:
    """End a stream, and forget its states and masks."""
    with _connect(at) as client:
        client.remove_stream(stream)
    show({"stream": stream, "state": "ended"}, json_target, f"{stream}: ended")


@app.command(epilog=examples("streamvos fleet drain camera-host-2", "streamvos fleet drain 1f3a90c2-0"))
def drain(
    machine: Machine,
    undo: Annotated[bool, typer.Option("--undo", help="Let it take streams again.")] = False,
    at: At = None,
    json_target: JsonTarget = None,
) -> None:
    """Move the streams of a machine elsewhere, as far as there is room, and place none on it."""
    with _connect(at) as client:
        shares = client.drain(machine, undo)
    what = (
        "takes streams again"
        if undo
        else "moves its streams; `streamvos fleet status` shows when it is empty"
    )
    show({"shares": shares}, json_target, *(f"{share}: {what}" for share in shares))


def _check_method(method: MethodConfig) -> None:
    """Refuse an unknown method or option before anything starts."""
    names = BUNDLED_NAMES if method.weights == "default" else METHOD_NAMES
    if ":" in method.name or (method.name in names and not method.options):
        return  # a user's method, or nothing to check, so this process does not import torch
    from streamvos.weights import check_method

    # a file is on the machines where the networks run
    check_method(method.name, "default" if method.weights == "default" else None, method.options)


def _connect(at: str | None) -> Any:
    from streamvos.fleet.client import FleetClient
    from streamvos.pipeline.wire.runtime import live_pipelines

    if at is None:
        shares = re.compile(r"-[0-9a-f]{8}-\d+$")  # the pipelines of a fleet's shares on this machine
        fleets = [name for name in live_pipelines() if not shares.search(name)]
        if len(fleets) > 1:
            raise InputError(f"which fleet? Give --at and one of {', '.join(fleets)}")
        at = fleets[0] if fleets else "fleet"
    return FleetClient(at)
