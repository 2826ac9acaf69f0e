"""`streamvos ctl`: show and control a running pipeline.

streamvos ctl status
streamvos ctl annotate front corrected.png --at door
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from streamvos.cli.options import JsonTarget, examples
from streamvos.cli.output import make_table, show
from streamvos.types import InputError

if TYPE_CHECKING:
    from streamvos.pipeline.clients.client import Client

app = typer.Typer(
    help="Show and control a running pipeline.",
    epilog=examples(
        "streamvos ctl status",
        "streamvos ctl annotate front corrected.png",
        "streamvos ctl stop front --at door",
    ),
)

At = Annotated[
    str | None,
    typer.Option(
        "--at",
        metavar="NAME|ADDRESS",
        help="The pipeline's name, or ipc://... or tcp://HOST:PORT; by default the one that runs.",
    ),
]
Secret = Annotated[
    Path | None, typer.Option("--secret", metavar="FILE", help="Our NAME.key_secret, where tcp:// has keys.")
]
ServerKey = Annotated[
    str | None,
    typer.Option("--server-key", metavar="FILE", help="The pipeline's NAME.key, or the key itself."),
]
Timeout = Annotated[
    float, typer.Option("--timeout", min=0.01, metavar="SECONDS", help="Longest wait for an answer.")
]
StreamName = Annotated[str, typer.Argument(metavar="STREAM", help="Name of the stream.")]

COLUMNS = ["stream", "state", "frame", "fps", "objects", "dropped", "restarts", "p50 ms", "p95 ms", "p99 ms"]


@app.command("status", epilog=examples("streamvos ctl status", "streamvos ctl status --at door --json"))
def status(
    at: At = None,
    secret: Secret = None,
    server_key: ServerKey = None,
    timeout: Timeout = 10.0,
    json_target: JsonTarget = None,
) -> None:
    """Show streams, rates, latencies, drops and restarts."""
    with connect(at, secret, server_key, timeout) as client:
        found, address = client.status(), client.address
    streams, workers, publish = (
        dict(sorted(_mapping(found.get(part)).items())) for part in ("streams", "workers", "publish")
    )
    table = make_table(f"pipeline at {address}", COLUMNS)
    for name, one in streams.items():
        table.add_row(name, *_stream_row(_mapping(one)))
    lines = [_worker_line(name, _mapping(one)) for name, one in workers.items()]
    for name, one in streams.items():
        if _mapping(one).get("waiting_for"):
            waiting = _number(one.get("waiting_seconds"))
            lines.append(f"{name}: waiting for {waiting} s: {one['waiting_for']}")
        if _mapping(one).get("last_failure"):
            lines.append(f"{name}: last failure: {one['last_failure']}")
    lines += [f"masks of {name}: {place}" for name, place in publish.items()]
    show(found, json_target, table, *lines)


@app.command(
    "annotate",
    epilog=examples(
        "streamvos ctl annotate front first.png",
        "streamvos ctl annotate front corrected.png --at door --json",
    ),
)
def annotate(
    stream: StreamName,
    mask: Annotated[Path, typer.Argument(metavar="MASK.png", help="Label map; the values are object ids.")],
    at: At = None,
    secret: Secret = None,
    server_key: ServerKey = None,
    timeout: Timeout = 10.0,
    json_target: JsonTarget = None,
) -> None:
    """Start, add or correct objects of a stream while it runs."""
    from streamvos.masks.labelmap import read_label_map

    label_map = read_label_map(mask)
    with connect(at, secret, server_key, timeout) as client:
        seq = client.annotate(stream, label_map)
    show({"stream": stream, "seq": seq}, json_target, f"{stream}: applied to frame {seq}")


@app.command(
    "forget", epilog=examples("streamvos ctl forget front 3", "streamvos ctl forget front 3 --at door")
)
def forget(
    stream: StreamName,
    object_id: Annotated[int, typer.Argument(metavar="ID", min=1, max=254, help="The object's id.")],
    at: At = None,
    secret: Secret = None,
    server_key: ServerKey = None,
    timeout: Timeout = 10.0,
    json_target: JsonTarget = None,
) -> None:
    """Forget an object of a stream."""
    with connect(at, secret, server_key, timeout) as client:
        seq = client.forget(stream, object_id)
    text = f"{stream}: without object {object_id} from frame {seq} on"
    show({"stream": stream, "object": object_id, "seq": seq}, json_target, text)


@app.command("pause", epilog=examples("streamvos ctl pause front"))
def pause(
    stream: StreamName,
    at: At = None,
    secret: Secret = None,
    server_key: ServerKey = None,
    timeout: Timeout = 10.0,
    json_target: JsonTarget = None,
) -> None:
    """Take no frames of a stream until `resume`."""
    with connect(at, secret, server_key, timeout) as client:
        client.pause(stream)
    show({"stream": stream, "state": "paused"}, json_target, f"{stream}: paused")


@app.command("resume", epilog=examples("streamvos ctl resume front"))
def resume(
    stream: StreamName,
    at: At = None,
    secret: Secret = None,
    server_key: ServerKey = None,
    timeout: Timeout = 10.0,
    json_target: JsonTarget = None,
) -> None:
    """Take frames of a stream again."""
    with connect(at, secret, server_key, timeout) as client:
        client.resume(stream)
    show({"stream": stream, "state": "running"}, json_target, f"{stream}: goes on")


@app.command("stop", epilog=examples("streamvos ctl stop front", "streamvos ctl stop --at door"))
def stop(
    stream: Annotated[
        str,
        typer.Argument(
            metavar="[STREAM]", help="Name of the stream; without it, all end.", show_default=False
        ),
    ] = "",
    at: At = None,
    secret: Secret = None,
    server_key: ServerKey = None,
    timeout: Timeout = 10.0,
    json_target: JsonTarget = None,
) -> None:
    """End a stream, or the whole pipeline, in order."""
    with connect(at, secret, server_key, timeout) as client:
        client.stop(stream)
    show({"stream": stream, "state": "ended"}, json_target, f"{stream or 'pipeline'}: ended")


def connect(at: str | None, secret: Path | None, server_key: str | None, timeout: float) -> Client:
    """A client of the pipeline that is meant: the one named, or "default", or the only one that runs.

    Raises:
        InputError: there is none, or there are several.
    """
    from streamvos.pipeline.clients.client import Client
    from streamvos.pipeline.wire.runtime import live_pipelines

    if at is None:
        running = live_pipelines()
        at = "default" if "default" in running or not running else running[0]
        if at != "default" and len(running) > 1:
            raise InputError(f"which pipeline? Give --at and one of {', '.join(running)}")
    return Client(at, secret=secret, server_key=server_key, timeout=timeout)


def _stream_row(stream: Mapping[str, Any]) -> list[str]:
    objects, dropped = stream.get("objects"), _mapping(stream.get("dropped"))
    latency = _mapping(_mapping(stream.get("latencies")).get("glass to mask"))
    return [
        str(stream.get("state", "")),
        _number(stream.get("seq")),
        _number(stream.get("fps"), 1),
        str(len(objects)) if isinstance(objects, (list, dict)) else _number(objects),
        str(sum(value for value in dropped.values() if isinstance(value, int))),
        _number(stream.get("restarts")),
        *(_number(latency.get(name), 1) for name in ("p50", "p95", "p99")),
    ]


def _worker_line(name: str, worker: Mapping[str, Any]) -> str:
    memory = _mapping(worker.get("beat")).get("memory")
    known = {
        "pid": worker.get("pid"),
        "restarts": worker.get("restarts"),
        "memory": f"{memory / 2**20:.0f} MiB" if isinstance(memory, int) else None,
        "standby": worker.get("standby"),
    }
    rest = "".join(f", {key} {value}" for key, value in known.items() if value is not None)
    return f"worker {name}: {worker.get('state', 'unknown')}{rest}"


def _number(value: Any, digits: int = 0) -> str:
    """A number of a status message, which may hold anything."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or value != value:
        return ""
    return f"{value:.{digits}f}"


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}
