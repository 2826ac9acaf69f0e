"""`streamvos ctl`: show and control a running pipeline.

streamvos ctl status
streamvos ctl annotate front corrected.png --at door
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from inspect import Signature, signature
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from streamvos.cli.options import JsonTarget, examples
from streamvos.cli.output import make_table, show
from streamvos.types import InputError

if TYPE_CHECKING:
    from streamvos.pipeline.clients.client import Client
else:
    Client = object  # `_command` evaluates annotations

app = typer.Typer(
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
