"""The console of a pipeline that `streamvos serve --console` runs: a process of its own.

    with ConsoleProcess("door", "127.0.0.1", 0, say=log.event) as console:
        print(console.url)
        supervisor.run()

The parent keeps the socket, so the address stays when the console is started again after a crash, and
browsers come back by themselves. The child ends when its standard input does, so also with its parent.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from streamvos.console.server import listen_at, make_token, page_url
from streamvos.types import StreamvosError

RESTARTS = 5
"""Crashes within `WINDOW_SECONDS` after which the console stays down; the pipeline goes on."""

WINDOW_SECONDS = 60.0

_END_SECONDS = 2.0


class ConsoleProcess:
    """Starts the console, starts it again after a crash, and ends it.

    Args:
        name: the pipeline's name.
        host, port: where it listens; port 0 takes any free one.
        say: receives events: a name, a level and fields, in any thread.
        options: of `run_console`: selection and files of a SAM model.

    Attributes:
        url: what the browser opens, with the token.

    Raises:
        StreamvosError: nothing can listen there.
        InputError: see `make_token`.
    """

    def __init__(
        self,
        name: str,
        host: str,
        port: int,
        say: Callable[..., None],
        options: Mapping[str, Any] | None = None,
    ):
        self._token = make_token()
        self._socket = listen_at(host, port)
        self.url = page_url(self._socket, self._token)
        self._arguments = {"name": name, "host": host, **(options or {})}
        self._say = say
        self._ending = threading.Event()
        self._process: subprocess.Popen[bytes] | None = None
        self._thread = threading.Thread(target=self._watch, name="console", daemon=True)

    @property
    def pid(self) -> int | None:
        """The process's number while it runs."""
        return None if self._process is None else self._process.pid

    def __enter__(self) -> ConsoleProcess:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._ending.set()
        process = self._process
        if process is not None and process.stdin is not None:
            process.stdin.close()
            try:
                process.wait(_END_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
        self._thread.join(_END_SECONDS)
        self._socket.close()

    def _watch(self) -> None:
        crashes: list[float] = []
        while not self._ending.is_set():
            try:
                self._process = self._start()
            except OSError as error:
                self._say("console_failed", "error", error=str(error))
                return
            code = self._process.wait()
            if self._ending.is_set():
                return
            now = time.monotonic()
            crashes = [one for one in (*crashes, now) if now - one < WINDOW_SECONDS]
            if len(crashes) > RESTARTS:
                self._say("console_given_up", "error", exit_code=code, restarts=RESTARTS)
                return
            self._say("console_restarts", "warning", exit_code=code)
            self._ending.wait(0.5 * (len(crashes) - 1))

    def _start(self) -> subprocess.Popen[bytes]:
        number = self._socket.fileno()
        return subprocess.Popen(
            [sys.executable, "-m", "streamvos.console.process", str(number), json.dumps(self._arguments)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            pass_fds=[number],
            start_new_session=True,  # Ctrl-C is for the pipeline, which ends its console last
            env={**os.environ, "STREAMVOS_CONSOLE_TOKEN": self._token},
        )


def run_console(
    name: str,
    socket: Any,
    token: str,
    host: str,
    ending: Callable[[], bool],
    selection: str = "learned",
    device: str = "auto",
    **files: Any,
) -> None:
    """Serve the console of a pipeline in this process until `ending` is true, or a signal comes."""
    from streamvos.console.backends import PipelineBackend
    from streamvos.console.server import ends_with, is_loopback, make_server, networks

    names_file = None
    if "://" not in name:
        from streamvos.pipeline.wire.runtime import runtime_folder

        names_file = runtime_folder(name) / "names.json"
    # whoever is on another machine may not make the pipeline read this one's files
    backend = PipelineBackend(name, files=is_loopback(socket))
    server = make_server(backend, token, networks(selection, device, **files), host, names_file)
    with ends_with(ending, server):
        server.run(sockets=[socket])
    backend.close()


def _main() -> None:
    from socket import socket

    number, arguments = int(sys.argv[1]), json.loads(sys.argv[2])
    files: dict[str, Any] = {
        key: Path(arguments.pop(key)) for key in ("sam_encoder", "sam_decoder") if arguments.get(key)
    }
    over = threading.Event()

    def wait_for_parent() -> None:
        sys.stdin.buffer.read()  # ends with the parent, in whatever way
        over.set()

    threading.Thread(target=wait_for_parent, daemon=True).start()
    os.nice(5)  # the pipeline comes first
    try:
        token = make_token()
        run_console(socket=socket(fileno=number), token=token, ending=over.is_set, **arguments, **files)
    except StreamvosError as error:
        sys.exit(f"error: console: {error}")
    os._exit(0)  # threads in the networks may take longer


if __name__ == "__main__":
    _main()
