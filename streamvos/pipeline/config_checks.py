"""What no single key of a pipeline.toml can know: which of them do not go together.

Every check raises ValueError with a sentence; `config` turns it into an `InputError` that names the place.
"""

from __future__ import annotations

import ipaddress
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

from streamvos.data.boxes import parse_box
from streamvos.sources.addresses import is_url, redact, scheme_of
from streamvos.sources.generated import parse_parameters
from streamvos.sources.live_address import URL_SCHEMES
from streamvos.types import InputError

if TYPE_CHECKING:
    from streamvos.pipeline.config import PipelineConfig, SinkConfig, StreamConfig

LONGEST_SOCKET = 107
"""Bytes of the path of a socket, at most: Linux, unix(7)."""

_TCP = re.compile(r"tcp://(?P<host>\[[^\]]+\]|[^:/\s\[\]]+):(?P<port>\*|\d{1,5})")


def check_source(source: str) -> None:
    """It is named in a way that a source can be; whether it is there is found out when it is opened."""
    if not source.strip():
        raise ValueError("it is an empty text; expected a path, a glob, camera:N, a URL or synthetic:")
    if is_url(source):
        if scheme_of(source) not in URL_SCHEMES:
            raise ValueError(f"cannot read {redact(source)}; expected one of {', '.join(URL_SCHEMES)}")
    elif source == "camera:":
        raise ValueError('"camera:" lacks its number or path; expected such as "camera:0"')
    elif is_synthetic(source):
        try:
            parse_parameters(source.partition(":")[2])
        except InputError as error:
            raise ValueError(str(error)) from None


def is_synthetic(source: str) -> bool:
    """Whether a source is made on the spot, and its truth known."""
    return source == "synthetic" or source.startswith("synthetic:")


def check_boxes(boxes: tuple[str, ...]) -> None:
    """They can be read, and each object has one."""
    seen: set[int] = set()
    for text in boxes:
        try:
            object_id, _ = parse_box(text)
        except InputError as error:
            raise ValueError(str(error)) from None
        if object_id in seen:
            raise ValueError(f'"{text}": object {object_id} has a box already; give each id once')
        seen.add(object_id)


def check_stream(stream: StreamConfig) -> None:
    """Policy, source and first mask of a stream go together."""
    if stream.policy == "latest" and not stream.live and not stream.realtime:
        raise ValueError(
            f'policy: "latest" drops frames of a live source, and {redact(stream.source)} is none; '
            'use "lossless", or add realtime = true to play it at its own speed'
        )
    if stream.fps is not None and stream.live:
        raise ValueError("fps: a live source has its own clock; leave it out")
    if stream.reopen and (not stream.live or stream.max_frames is not None):
        raise ValueError(
            "reopen: it is for cameras and network streams, and without max_frames; a file ends where it ends"
        )
    nothing = stream.mask is None and not stream.boxes and not is_synthetic(stream.source)
    if nothing and stream.effective_policy == "lossless":
        raise ValueError(
            'policy "lossless" may drop no frame, and without mask or boxes nobody knows what to follow in '
            'the first; add mask = "first.png" or boxes = ["ID:LEFT,TOP,RIGHT,BOTTOM"]'
        )
    _check_paths_of(stream)


def check_places(config: PipelineConfig) -> None:
    """Nothing is written, bound or published twice in the same place."""
    taken: dict[Path, str] = {}
    addresses: dict[str, str] = {}
    for stream in config.streams:
        for sink in stream.sinks:
            owner = f'the {sink.kind} sink of "{stream.name}"'
            if sink.path is not None:
                _take(taken, resolved(sink.path), str(sink.path), owner)
            elif sink.kind == "publish":
                address = sink.address or f"the socket of {stream.name}"
                if address in addresses:
                    raise ValueError(
                        f'{owner} and {addresses[address]} publish at the same address, "{address}"; '
                        "give each stream its own"
                    )
                if not address.endswith(":*"):
                    addresses[address] = owner
    if config.observe.trace is not None:
        _take(taken, resolved(config.observe.trace), str(config.observe.trace), "the trace")
    if config.control is not None and config.control in addresses:
        raise ValueError(f'control and {addresses[config.control]} have the same address, "{config.control}"')


def check_safety(config: PipelineConfig) -> None:
    """Nobody can connect from another host without a key."""
    security = config.security
    if (security.secret is None) != (security.clients is None):
        lacking = "clients" if security.clients is None else "secret"
        raise ValueError(
            f"[security] lacks {lacking}: secret is the file with our key, clients the folder with the "
            "public keys of those who may connect; CURVE alone admits everybody who knows our public key"
        )
    if security.secret is not None:
        return
    published = [
        (f'the publish sink of "{stream.name}"', sink.address)
        for stream in config.streams
        for sink in stream.sinks
        if sink.address is not None
    ]
    hosts = [(f"remote.{name}.host", f"tcp://{one.host}:1") for name, one in config.remote.items()]
    if config.remote and config.host is not None:
        hosts.append(("host", f"tcp://{config.host}:1"))
    for owner, address in [*published, ("control", config.control), *hosts]:
        if address is not None and is_open(address):
            told = address.removeprefix("tcp://").removesuffix(":1") if owner.endswith("host") else address
            raise ValueError(
                f'{owner}: "{told}" can be reached from other hosts; that needs keys: make them with '
                "`streamvos keys new` and name them in [security]"
            )


def check_address(address: str) -> None:
    """It is one that a socket can bind."""
    if address.startswith("ipc://"):
        path = address.removeprefix("ipc://")
        if not path or len(os.fsencode(path)) > LONGEST_SOCKET:
            raise ValueError(f'"{address}": the path of a socket has 1 to {LONGEST_SOCKET} bytes')
        if path.startswith("@"):
            raise ValueError(
                f'"{address}" has no place in the file system, so everybody could connect; give a path'
            )
        return
    check_tcp(address)


def check_tcp(address: str) -> None:
    """It is a tcp:// address with a port."""
    match = _TCP.fullmatch(address)
    if match is None or (match["port"] != "*" and not 0 < int(match["port"]) < 65536):
        raise ValueError(f'expected an address such as "tcp://127.0.0.1:5555", got "{redact(address)}"')


def is_open(address: str) -> bool:
    """Whether an address can be reached from other hosts: tcp:// beyond the loopback."""
    match = _TCP.fullmatch(address)
    if match is None:
        return not address.startswith(("ipc://", "inproc://"))
    host = match["host"].strip("[]")
    if host == "localhost":
        return False
    try:
        return not ipaddress.ip_address(host).is_loopback
    except ValueError:  # a name, an interface, or "*"
        return True


def resolved(path: Path) -> Path:
    """Where a path leads, whether or not something is there."""
    return Path(os.path.realpath(path))


def _check_paths_of(stream: StreamConfig) -> None:
    """No sink writes over what the stream is read from."""
    place = Path(stream.source.removeprefix("camera:"))
    is_path = not is_url(stream.source) and not is_synthetic(stream.source)
    mask = None if stream.mask is None else resolved(stream.mask)
    for number, sink in enumerate(stream.sinks, start=1):
        if sink.path is None:
            continue
        path, told = resolved(sink.path), f'sink {number} ("{sink.kind}"): {sink.path}'
        # a folder of label maps may get a file of any picture's name
        read = {resolved(place), resolved(place.parent)} if sink.kind == "labels" else {resolved(place)}
        if is_path and path in read:
            raise ValueError(f"{told} would replace what is read from {stream.source}; write elsewhere")
        if mask is not None and path in ({mask, mask.parent} if sink.kind == "labels" else {mask}):
            raise ValueError(f"{told} could replace the mask {stream.mask}; write elsewhere")


def check_sink(sink: SinkConfig) -> None:
    """Path and address are what the kind needs."""
    if sink.kind == "publish":
        if sink.path is not None:
            raise ValueError(f'a publish sink has an address and no path, got path = "{sink.path}"')
        if sink.address is not None:
            check_address(sink.address)
        return
    if sink.address is not None:
        raise ValueError(f'a {sink.kind} sink has a path and no address, got address = "{sink.address}"')
    if sink.path is None:
        what = "folder" if sink.kind == "labels" else "file"
        raise ValueError(f'a {sink.kind} sink needs path = "...", the {what} that it writes')
    if sink.kind == "overlay" and sink.path.suffix.lower() != ".mp4":
        raise ValueError(f'the overlay is an MP4: expected a path that ends in .mp4, got "{sink.path}"')


def _take(taken: dict[Path, str], path: Path, told: str, owner: str) -> None:
    if path in taken:
        raise ValueError(f'{owner} and {taken[path]} write to the same place, "{told}"; give each its own')
    taken[path] = owner
