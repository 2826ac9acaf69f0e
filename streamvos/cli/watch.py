"""`streamvos watch`: show the rates, gaps, latencies and objects that a pipeline publishes.

streamvos watch door
streamvos watch ipc:///run/user/1000/streamvos/door/masks-front.sock --save masks/
"""

from __future__ import annotations

import signal
import time
from collections import Counter, deque
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer
import zmq

from streamvos.cli.ctl import Secret, ServerKey, Timeout, connect
from streamvos.cli.options import JsonTarget, Overwrite, examples
from streamvos.cli.output import check_writable, error_console, make_table, report_error, show
from streamvos.cli.signals import Stopped
from streamvos.metrics.latency import Latencies
from streamvos.pipeline.clients.client import PipelineError, find_address, publishers_in
from streamvos.pipeline.clients.published import FORMS, End, Form, Mask
from streamvos.pipeline.clients.subscribing import Subscription
from streamvos.pipeline.wire.endpoints import is_loopback
from streamvos.pipeline.wire.messages import Refused
from streamvos.pipeline.wire.security import Curve
from streamvos.sinks.claim import Claim
from streamvos.sinks.record import OutputRecord
from streamvos.types import InputError

if TYPE_CHECKING:
    from rich.table import Table

EXAMPLES = examples(
    "streamvos watch",
    "streamvos watch door --stream front --max 100 --json",
    "streamvos watch ipc:///run/user/1000/streamvos/door/masks-front.sock --form raw --save masks/",
    "streamvos watch tcp://10.0.0.5:5601 --secret clients/laptop.key_secret --server-key keys/door.key",
)

MAX_STREAMS = 256
"""Limit of streams, and of causes of drops, that a publisher can name."""


LOOK_SECONDS = 2.0
"""How often streams are looked for that were added to the pipeline."""


class StreamView:
    """What has been received from one stream.

    Args:
        name: the stream's name.
        is_local: whether frames are captured on this host, whose clock then measures latencies.
    """

    def __init__(self, name: str, is_local: bool):
        self.name = name
        self.frames = self.lost = self.recovered = 0
        self.dropped: Counter[str] = Counter()
        self.last: Mask | None = None
        self.ended = False
        self._latencies = Latencies() if is_local else None
        self._recent: deque[int] = deque(maxlen=50)

    def add(self, mask: Mask) -> None:
        """Count one message."""
        if self.last is not None and mask.seq > self.last.seq + 1:
            self.lost += mask.seq - self.last.seq - 1
        self.frames += 1
        self.recovered += mask.recovered
        for cause, count in list(mask.dropped.items())[:MAX_STREAMS]:
            if cause in self.dropped or len(self.dropped) < MAX_STREAMS:
                self.dropped[cause[:80]] += count
        if self._latencies is not None and mask.received_ns >= mask.captured_ns:
            self._latencies.add(mask.received_ns - mask.captured_ns)
        self._recent.append(mask.received_ns)
        self.last = mask

    @property
    def fps(self) -> float | None:
        """Frames per second over the last 50 frames; None before the second frame."""
        span = self._recent[-1] - self._recent[0] if len(self._recent) > 1 else 0
        return (len(self._recent) - 1) / span * 1e9 if span else None

    def to_json(self) -> dict[str, Any]:
        """The state for programs."""
        last = self.last
        objects = {} if last is None else last.objects
        return {
            "frames": self.frames,
            "seq": None if last is None else last.seq,
            "incarnation": None if last is None else last.incarnation,
            "size": None if last is None else list(last.size),
            "fps": self.fps,
            "lost_on_the_way": self.lost,
            "dropped": dict(self.dropped),
            "recovered": self.recovered,
            "latency": None if self._latencies is None else self._latencies.summary(),
            "objects": {str(key): {"state": one.state, "score": one.score} for key, one in objects.items()},
            "ended": self.ended,
        }

    def row(self) -> list[str]:
        """The state as a row of the table."""
        value = self.to_json()
        latency = value["latency"] or {}
        milliseconds = [latency.get(f"{name}_ms") for name in ("p50", "p95", "p99")]
        objects = ", ".join(f"{key} {one['state']}" for key, one in list(value["objects"].items())[:8])
        more = len(value["objects"]) - 8
        return [
            self.name + (" (ended)" if self.ended else ""),
            str(self.frames),
            "" if value["seq"] is None else str(value["seq"]),
            "" if value["fps"] is None else f"{value['fps']:.1f}",
            str(self.lost),
            ", ".join(f"{cause} {count}" for cause, count in sorted(self.dropped.items())) or "0",
            *("" if one is None else f"{one:.1f}" for one in milliseconds),
            objects + (f" and {more} more" if more > 0 else ""),
        ]


def watch(
    place: Annotated[
        str | None,
        typer.Argument(metavar="[NAME|ADDRESS]", help="The pipeline's name, or address of a stream's masks."),
    ] = None,
    stream: Annotated[str, typer.Option("--stream", metavar="NAME", help="One stream; by default all.")] = "",
    form: Annotated[
        str, typer.Option("--form", metavar="FORM", help=f"How masks travel: {', '.join(FORMS)}.")
    ] = "rle",
    save: Annotated[
        Path | None,
        typer.Option("--save", metavar="FOLDER", help="Store label maps as FOLDER/STREAM/SEQ.png."),
    ] = None,
    overwrite: Overwrite = False,
    maximum: Annotated[
        int | None, typer.Option("--max", min=1, metavar="N", help="Stop after N frames.")
    ] = None,
    secret: Secret = None,
    server_key: ServerKey = None,
    timeout: Timeout = 10.0,
    json_target: JsonTarget = None,
) -> None:
    """Show what a pipeline publishes, until it ends or Ctrl-C.

    Latency is measured from the capture of a frame to its arrival here, if both are on this host.
    """
    if save is not None:
        check_writable(save)
    saving = None if save is None else _Saving(save, overwrite)
    addresses = _addresses(place, stream, secret, server_key, timeout)
    curve = Curve(secret, server_key=server_key) if secret and server_key else None
    is_local = all(one.startswith("ipc://") or is_loopback(one) for one in addresses.values())
    views = {name: StreamView(name, is_local) for name in addresses if name}
    context: zmq.Context[Any] = zmq.Context()
    stopped: Stopped | None = None
    try:
        with Subscription(context, addresses.values(), stream, cast(Form, form), curve) as subscription:
            try:
                known = bool(stream) or _is_masks(place)
                look = None if known else partial(_addresses, place, "", secret, server_key, 1.0)
                _follow(subscription, views, is_local, saving, maximum, look)
            except Stopped as error:
                stopped = error
        refused = dict(subscription.refused)
    finally:
        if saving is not None:
            saving.close()
        context.term()
    lines = [f"refused messages: {cause} {count}" for cause, count in sorted(refused.items())]
    values = {"streams": {name: view.to_json() for name, view in views.items()}, "refused": refused}
    show(values, json_target, _table(views), *lines)
    if stopped is not None and stopped.number != signal.SIGINT:  # Ctrl-C is the usual end
        raise stopped


def _follow(
    subscription: Subscription,
    views: dict[str, StreamView],
    is_local: bool,
    saving: _Saving | None,
    maximum: int | None,
    look: Callable[[], dict[str, str]] | None,
) -> None:
    """Take messages until all streams have ended, or `maximum` frames have arrived.

    `look` finds the streams that publish now, since some may be added; None = they are known.
    """
    from rich.live import Live

    frames, here, drawn, looked = 0, 0, 0.0, time.monotonic()
    with Live(
        console=error_console(), auto_refresh=False, transient=True
    ) as live:  # nothing without terminal
        while maximum is None or frames < maximum:
            one = subscription.receive(0.25)
            if time.monotonic() - drawn > 0.2:
                drawn = time.monotonic()
                live.update(_table(views), refresh=True)
            if look is not None and time.monotonic() - looked > LOOK_SECONDS:
                with suppress(InputError, PipelineError):  # it ends, or publishes nothing now
                    subscription.connect(look().values())
                looked = time.monotonic()
            if subscription.connections < here:
                report_error("a publisher has disconnected; waiting for it (Ctrl-C ends)", "warning")
            here = subscription.connections
            if one is None:
                continue
            if one.stream not in views:
                if len(views) >= MAX_STREAMS:
                    continue
                views[one.stream] = StreamView(one.stream, is_local)
            view = views[one.stream]
            view.ended = isinstance(one, End)
            if isinstance(one, Mask):
                view.add(one)
                frames += 1
                if saving is not None:
                    saving.add(one, subscription)
            elif all(each.ended for each in views.values()):
                return


class _Saving:
    """Stores label maps in one folder per stream.

    Args:
        folder: the folder of these folders.
        overwrite: whether files that streamvos did not write are replaced.
    """

    def __init__(self, folder: Path, overwrite: bool):
        self._folder, self._overwrite = folder, overwrite
        self._claims: dict[str, tuple[Claim, OutputRecord]] = {}

    def add(self, mask: Mask, subscription: Subscription) -> None:
        """Store one mask; InputError if the folder holds files of the user that it would replace."""
        from streamvos.masks.labelmap import write_label_map

        try:
            label_map = mask.label_map
        except Refused as error:
            subscription.refused.count(error.cause, error)
            return
        place = self._folder / mask.stream  # a name, as the subscription has checked
        if mask.stream not in self._claims:
            claim = Claim(folders=[place], may_name=str.isdecimal, overwrite=self._overwrite)
            claim.check()
            claim.enter(begin=False)
            self._claims[mask.stream] = claim, claim.record(place)
        path, record = place / f"{mask.seq:05d}.png", self._claims[mask.stream][1]
        record.expect(path)
        write_label_map(path, label_map)
        record.finished(path)

    def close(self) -> None:
        """Release the folders."""
        for claim, _ in self._claims.values():
            claim.release()


def _is_masks(place: str | None) -> bool:
    """Whether a place is the address of a stream's masks, and not a pipeline."""
    return place is not None and "://" in place and not place.endswith("/control.sock")


def _addresses(
    place: str | None, stream: str, secret: Path | None, server_key: str | None, timeout: float
) -> dict[str, str]:
    """Stream -> address of its masks; `place` may be such an address."""
    if place is not None and _is_masks(place):
        if place.startswith("tcp://"):
            is_loopback(place)  # raises if the address is invalid
        return {stream: find_address(place)}
    with connect(place, secret, server_key, timeout) as client:
        return publishers_in(client.status(), stream, client.address)


def _table(views: dict[str, StreamView]) -> Table:
    columns = ["stream", "frames", "seq", "fps", "lost", "dropped", "p50 ms", "p95 ms", "p99 ms", "objects"]
    table = make_table("masks", columns)
    for view in views.values():
        table.add_row(*view.row())
    return table
