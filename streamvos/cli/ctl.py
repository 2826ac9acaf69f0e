"""`streamvos ctl`: show and control a running pipeline.

streamvos ctl status
streamvos ctl add side --source camera:1
streamvos ctl annotate front corrected.png --at door
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from inspect import Signature, signature
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from streamvos.cli import options
from streamvos.cli.options import JsonTarget, examples
from streamvos.cli.output import make_table, report_error, show
from streamvos.types import InputError

if TYPE_CHECKING:
    from streamvos.pipeline.clients.client import Client
else:
    Client = object  # `_command` evaluates annotations

app = typer.Typer(
    epilog=examples(
        "streamvos ctl status",
        "streamvos ctl annotate front corrected.png",
        "streamvos ctl add side --source camera:1 --height 240",
        "streamvos ctl stop front --at door",
    ),
)

At = Annotated[
    str | None,
    typer.Option(
        "--at",
        metavar="NAME|ADDRESS",
        help="The pipeline's name, or ipc://... or tcp://HOST:PORT; by default the only one that runs.",
    ),
]
Secret = Annotated[
    Path | None, typer.Option("--secret", metavar="FILE", help="The client's NAME.key_secret, for tcp://.")
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


def connect(at: str | None, secret: Path | None, server_key: str | None, timeout: float) -> Client:
    """A client of the pipeline `at`; by default of the one called "default", or of the only one that runs.

    Raises:
        InputError: no pipeline runs, or several do.
    """
    from streamvos.pipeline.clients.client import Client
    from streamvos.pipeline.wire.runtime import live_pipelines

    if at is None:
        running = live_pipelines()
        at = "default" if "default" in running or not running else running[0]
        if at != "default" and len(running) > 1:
            raise InputError(f"which pipeline? Give --at and one of {', '.join(running)}")
    return Client(at, secret=secret, server_key=server_key, timeout=timeout)


def _command(*lines: str) -> Callable[[Callable[..., tuple[Any, ...]]], None]:
    """Make a command of a function that takes a client, and returns what `show` prints.

    The command has the function's other parameters, and the options that all commands share.

    Args:
        lines: examples for the help.
    """

    def register(function: Callable[..., tuple[Any, ...]]) -> None:
        def command(
            at: At = None,
            secret: Secret = None,
            server_key: ServerKey = None,
            timeout: Timeout = 10.0,
            json_target: JsonTarget = None,
            **arguments: Any,
        ) -> None:
            with connect(at, secret, server_key, timeout) as client:
                values, *parts = function(client, **arguments)
            show(values, json_target, *parts)

        _, *own = signature(function, eval_str=True).parameters.values()
        *shared, _ = signature(command, eval_str=True).parameters.values()
        command.__signature__ = Signature([*own, *shared])  # type: ignore[attr-defined]
        command.__annotations__ = {one.name: one.annotation for one in (*own, *shared)}
        app.command(function.__name__, help=function.__doc__, epilog=examples(*lines))(command)

    return register


@_command("streamvos ctl status", "streamvos ctl status --at door --json")
def status(client: Client) -> tuple[Any, ...]:
    """Show streams, rates, latencies, drops and restarts."""
    found = client.status()
    streams, workers, publish = (
        dict(sorted(_mapping(found.get(part)).items())) for part in ("streams", "workers", "publish")
    )
    table = make_table(f"pipeline at {client.address}", COLUMNS)
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
    return found, table, *lines


@_command("streamvos ctl annotate front first.png", "streamvos ctl annotate front fixed.png --at door --json")
def annotate(
    client: Client,
    stream: StreamName,
    mask: Annotated[Path, typer.Argument(metavar="MASK.png", help="Label map; the values are object ids.")],
) -> tuple[Any, ...]:
    """Start, add or correct objects of a stream while it runs."""
    from streamvos.masks.labelmap import read_label_map

    seq = client.annotate(stream, read_label_map(mask))
    return {"stream": stream, "seq": seq}, f"{stream}: applied to frame {seq}"


@_command("streamvos ctl forget front 3", "streamvos ctl forget front 3 --at door")
def forget(
    client: Client,
    stream: StreamName,
    object_id: Annotated[int, typer.Argument(metavar="ID", min=1, max=254, help="The object's id.")],
) -> tuple[Any, ...]:
    """Forget an object of a stream."""
    seq = client.forget(stream, object_id)
    text = f"{stream}: without object {object_id} from frame {seq} on"
    return {"stream": stream, "object": object_id, "seq": seq}, text


@_command("streamvos ctl pause front")
def pause(client: Client, stream: StreamName) -> tuple[Any, ...]:
    """Take no frames of a stream until `resume`."""
    client.pause(stream)
    return {"stream": stream, "state": "paused"}, f"{stream}: paused"


@_command("streamvos ctl resume front")
def resume(client: Client, stream: StreamName) -> tuple[Any, ...]:
    """Take frames of a stream again."""
    client.resume(stream)
    return {"stream": stream, "state": "running"}, f"{stream}: goes on"


@_command("streamvos ctl stop front", "streamvos ctl stop --at door")
def stop(
    client: Client,
    stream: Annotated[
        str,
        typer.Argument(metavar="[STREAM]", help="Name of the stream; by default all.", show_default=False),
    ] = "",
) -> tuple[Any, ...]:
    """End a stream, or the whole pipeline, in order."""
    client.stop(stream)
    return {"stream": stream, "state": "ended"}, f"{stream or 'pipeline'}: ended"


@_command(
    "streamvos ctl add side --source camera:1 --height 240",
    "streamvos ctl add clip --source clip.mp4 --mask first.png --out out/clip",
    "streamvos ctl add --config side.toml --at door",
)
def add(
    client: Client,
    stream: Annotated[
        str | None, typer.Argument(metavar="[STREAM]", help="Name of the stream; by default --config's.")
    ] = None,
    source: Annotated[
        str | None, typer.Option("--source", metavar="SOURCE", help="As for `streamvos run`.")
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option(
            "--config", metavar="FILE", help="A TOML file with one [[streams]] table, and perhaps [method]."
        ),
    ] = None,
    mask: options.MaskPath = None,
    boxes: options.Boxes = None,
    points: options.Points = None,
    method: Annotated[str | None, options.METHOD] = None,
    weights: Annotated[str | None, options.WEIGHTS] = None,
    device: Annotated[str | None, options.DEVICE] = None,
    settings: options.MethodSettings = None,
    policy: options.PolicyName = None,
    height: options.Height = None,
    max_frames: options.MaxFrames = None,
    first_frame: options.FirstFrame = None,
    topic: options.Topic = None,
    allow_truncated: options.AllowTruncated = False,
    realtime: options.Realtime = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", metavar="FOLDER", help="Folder for label maps, overlay and JSON lines."),
    ] = None,
    publish: Annotated[
        bool | None,
        typer.Option("--publish/--no-publish", help="Publish masks on a socket; the default with --source."),
    ] = None,
) -> tuple[Any, ...]:
    """Add a stream to the running pipeline, as a whole or not at all; returns when it has begun.

    The options replace the pipeline's for this stream.
    """
    from streamvos.pipeline.config.adding import read_stream
    from streamvos.pipeline.config.reading import stream_table

    own = {
        "name": method,
        "weights": None if weights is None else options.placed_weights(weights),
        "device": device,
        "options": options.method_settings(settings) or None,
    }
    own = {key: value for key, value in own.items() if value is not None}
    more = {
        "policy": policy,
        "height": height,
        "max_frames": max_frames,
        "first_frame": first_frame,
        "topic": topic,
        "allow_truncated": allow_truncated or None,
        "realtime": realtime,
    }
    if config is not None:
        of_source = {"source": source, "mask": mask, "box": boxes, "point": points, "out": out}
        given = [*of_source.items(), ("publish", publish), *more.items(), ("method's options", own or None)]
        wrong = [f"--{name.replace('_', '-')}" for name, value in given if value is not None]
        if wrong:
            raise InputError(f"{', '.join(wrong)}: --config sets that in its tables; give one of them")
        table = read_stream(config, stream)
    elif stream is None or source is None:
        raise InputError(
            "which stream? Give its name and --source, or --config: streamvos ctl add side --source camera:1"
        )
    else:
        table = stream_table(
            stream,
            source,
            mask=mask,
            boxes=boxes or (),
            points=points or (),
            out=out,
            publish=publish is not False,
            more=more,
        )
        table |= {"method": own} if own else {}
    status = client.add_stream(**table)
    return {"stream": table["name"], **status}, f"{table['name']}: added, {status.get('state')}"


@_command("streamvos ctl remove side", "streamvos ctl remove side --now --at door")
def remove(
    client: Client,
    stream: StreamName,
    now: Annotated[bool, typer.Option("--now", help="Leave out frames that are still on their way.")] = False,
) -> tuple[Any, ...]:
    """End a stream in order and forget it, so that its name and its outputs are free.

    The exit code is 1 if the stream had failed, or its files are not whole.
    """
    status = client.remove_stream(stream, at_once=now)
    if reason := status.get("reason"):
        report_error(f"{stream}: removed; it had failed: {reason}")
        raise typer.Exit(1)
    frames = _number(status.get("frames")) or "0"
    return {"stream": stream, **status}, f"{stream}: removed after {frames} frames"


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
