"""The console's process: a socket, uvicorn, and what the browser is to open.

with listen_at(*address("8642")) as socket:
    print(page_url(socket, token))
    make_server(backend, token, selecting).run(sockets=[socket])
"""

from __future__ import annotations

import contextlib
import ipaddress
import os
import re
import secrets
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import uvicorn

from streamvos.console.app import make_app
from streamvos.console.backends import Backend
from streamvos.console.guard import Guard
from streamvos.console.hub import Hub
from streamvos.console.selecting import Selecting
from streamvos.types import InputError, StreamvosError

DEFAULT_PORT = 8642
"""The port of `serve --console`; if it is taken, any free one."""

MESSAGE_BYTES = 2**14
"""Largest message that a page may send over its WebSocket."""

_CONNECTIONS = 512


def address(text: str) -> tuple[str, int]:
    """Host and port from "8642", "0.0.0.0:8642" or "[::1]:8642"; without a host, the loopback.

    Raises:
        InputError: another form, or the port is not 0 (any free one) to 65535.
    """
    match = re.fullmatch(r"(?:(\[[0-9A-Fa-f:.%\w]+\]|[A-Za-z0-9_.-]+):)?([0-9]{1,5})", text.strip())
    if match is None or int(match[2]) > 65535:
        raise InputError(f"the console's address is {text!r}; expected PORT or HOST:PORT, such as 8642")
    return (match[1] or "127.0.0.1").strip("[]"), int(match[2])


def listen_at(host: str, port: int) -> socket.socket:
    """A socket that listens.

    Raises:
        StreamvosError: nothing can listen there.
    """
    try:
        family, *_, place = next(iter(socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)))
        made = socket.socket(family, socket.SOCK_STREAM)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind(place)
        made.listen(256)
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise StreamvosError(
            f"cannot serve the console at {host}:{port}: {reason}; choose another port (0: any that is free)"
        ) from None
    return made


def is_loopback(listening: socket.socket) -> bool:
    """Whether only this machine can reach a socket."""
    return ipaddress.ip_address(listening.getsockname()[0].partition("%")[0]).is_loopback


def page_url(listening: socket.socket, token: str, host: str = "") -> str:
    """What the browser opens; the token is behind "#", so it is in no server's log."""
    name, port = listening.getsockname()[:2]
    name = host or name
    if name in ("0.0.0.0", "::"):
        name = socket.gethostname()
    return f"http://{f'[{name}]' if ':' in name else name}:{port}/#token={token}"


def make_token() -> str:
    """The token of $STREAMVOS_CONSOLE_TOKEN, or a new one.

    Raises:
        InputError: it is too short, or does not fit into an address.
    """
    given = os.environ.get("STREAMVOS_CONSOLE_TOKEN", "")
    if not given:
        return secrets.token_urlsafe(24)
    if len(given) < 16 or not all(one.isascii() and (one.isalnum() or one in "-_") for one in given):
        raise InputError(
            "STREAMVOS_CONSOLE_TOKEN must have at least 16 letters, digits, '-' or '_'; "
            'python -c "import secrets; print(secrets.token_urlsafe(24))" makes one'
        )
    return given


def own_names(host: str = "") -> set[str]:
    """Names under which this machine may be called."""
    name = socket.gethostname()
    return {one for one in (host, name, f"{name}.local", socket.getfqdn() if host else "") if one}


def make_server(
    backend: Backend,
    token: str,
    selecting: Selecting,
    host: str = "",
    names_file: Path | None = None,
) -> uvicorn.Server:
    """A server that has not begun yet; `run(sockets=[...])` runs it until `should_exit`."""
    app = Guard(make_app(Hub(backend, names_file), selecting), token, own_names(host))
    config = uvicorn.Config(
        app,
        log_level="error",
        access_log=False,
        server_header=False,
        date_header=False,
        ws_max_size=MESSAGE_BYTES,
        ws_per_message_deflate=False,  # pictures do not get smaller
        limit_concurrency=_CONNECTIONS,
        timeout_keep_alive=20,
        timeout_graceful_shutdown=1,
        lifespan="on",
    )
    return uvicorn.Server(config)


@contextlib.contextmanager
def ends_with(ending: Callable[[], bool], server: uvicorn.Server, seconds: float = 0.2) -> Iterator[None]:
    """Within the block, end the server when `ending` is true."""
    over = threading.Event()

    def look() -> None:
        while not over.wait(seconds):
            if ending():
                server.should_exit = True
                return

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()


def networks(selection: str, device: str, **files: Any) -> Selecting:
    """What selects and follows, loaded with its first use.

    Args:
        selection: who makes masks; see `streamvos.selection.objects`.
        device: where networks run.
        **files: of a SAM model.
    """

    def make_segmenter() -> Any:
        from streamvos.segmenter.segmenter import Segmenter
        from streamvos.types import DEFAULT_METHOD
        from streamvos.weights import load_method

        return Segmenter(load_method(DEFAULT_METHOD, "default", {}), device)

    def make() -> Any:
        from streamvos.selection.objects import make_selector

        return make_selector(selection, device=device, **files)

    return Selecting(make, make_segmenter)
