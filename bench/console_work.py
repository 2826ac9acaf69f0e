"""What a process of `bench console` does: a pipeline, and its console with a viewer if the case has them.

JOBS["begin"](method="tvos", size=[240, 426], fps=4.0, viewers=0)
JOBS["turn"](seconds=6.0)                 # {"values": [ms of computing per frame, over a second each]}
JOBS["end"]()                             # {"console_percent": ..., "look_us": ...}
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import zmq

from streamvos.pipeline.clients.client import Client
from streamvos.pipeline.clients.publishing import FramePublisher

from .serving import Serving, serving

SETTLE_SECONDS, WINDOW_SECONDS = 1.0, 1.0
LENGTH = 100_000  # frames of the source: more than any run takes
TOKEN = "the-token-of-the-benchmark"

_CONSOLE = "import sys; from streamvos.cli import main; sys.exit(main())"


class Watched:
    """A pipeline, its console, and a viewer of it."""

    def __init__(
        self, method: str, size: Sequence[int], fps: float, viewers: int | None, threads: int | None
    ) -> None:
        self._stack = contextlib.ExitStack()
        folder = Path(self._stack.enter_context(tempfile.TemporaryDirectory(prefix="svos", dir="/tmp")))
        source = f"synthetic:seed=3,objects=1,size={size[0]}x{size[1]},length={LENGTH}"
        stream = {"name": "s", "source": source, "realtime": True, "policy": "latest", "fps": fps}
        table = {"name": method, "device": "cpu", **({} if threads is None else {"threads": threads})}
        config = {"name": "bench", "method": table, "streams": [{**stream, "sinks": [{"kind": "publish"}]}]}
        self._pipeline: Serving = self._stack.enter_context(serving(config, folder, threads))
        control = f"{self._pipeline.runtime}/streamvos/bench/control.sock"
        self._pipeline.wait_for(lambda: Path(control).exists())
        self._client = Client(f"ipc://{control}")
        self._stack.callback(self._client.close)
        self._pipeline.wait_for(lambda: (self._stream()["seq"] or 0) > 2, 120)
        self._own = [self._pipeline.process.pid, *self._pipeline.children()]
        self._console = None if viewers is None else self._start_console(f"ipc://{control}")
        if viewers:
            threading.Thread(target=self._watch, daemon=True).start()
        self._spent = self._spent_by_console = 0.0
        self._client.pause("s")

    def turn(self, seconds: float) -> dict[str, Any]:
        """Frames for so many seconds; then the others' turn."""
        self._client.resume("s")
        time.sleep(SETTLE_SECONDS)
        values: list[float] = []
        end = time.monotonic() + seconds
        while not values or time.monotonic() < end:
            frames, spent, console = self._stream()["seq"], computed(self._own), self._console_spent()
            time.sleep(WINDOW_SECONDS)
            frames, spent = self._stream()["seq"] - frames, computed(self._own) - spent
            if frames > 0:
                values.append(1e3 * spent / frames)
            self._spent += spent
            self._spent_by_console += self._console_spent() - console
        self._client.pause("s")
        return {"values": values}

    def end(self) -> dict[str, Any]:
        """What the console's process took; nothing is left."""
        told = {}
        if self._console is not None:
            told["console_percent"] = round(100 * self._spent_by_console / self._spent, 2)
            told["look_us"] = round(look_us(), 2)
            self._console.kill()
            self._console.wait()
        self._stack.close()
        return told

    def _stream(self) -> dict[str, Any]:
        return dict(self._client.status()["streams"]["s"])

    def _console_spent(self) -> float:
        return 0.0 if self._console is None else computed([self._console.pid])

    def _start_console(self, control: str) -> subprocess.Popen[str]:
        environment = {**os.environ, "STREAMVOS_CONSOLE_TOKEN": TOKEN}
        arguments = ["console", control, "--json", "-"]
        process = subprocess.Popen(
            [sys.executable, "-c", _CONSOLE, *arguments],
            stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment,
        )  # fmt: skip
        assert process.stdout is not None
        text = ""
        while not text.endswith("}\n") and (line := process.stdout.readline()):
            text += line
        self._url = json.loads(text)["url"].partition("/#")[0]
        return process

    def _watch(self) -> None:
        from websockets.exceptions import ConnectionClosed
        from websockets.sync.client import connect

        protocols: Any = ["streamvos", f"token.{TOKEN}"]
        address = self._url.replace("http", "ws") + "/api/ws"
        with (
            contextlib.suppress(ConnectionClosed),
            connect(address, subprotocols=protocols, max_size=None, proxy=None) as socket,
        ):
            socket.send('{"type": "watch", "stream": "s"}')
            for message in socket:
                if isinstance(message, bytes):
                    socket.send('{"type": "drawn"}')


def computed(pids: Sequence[int]) -> float:
    """Seconds that processes have computed, in all threads that live."""
    found = 0
    for pid in pids:
        for task in Path(f"/proc/{pid}/task").glob("*/schedstat"):
            with contextlib.suppress(OSError, ValueError):
                found += int(task.read_text().split()[0])
    return 1e-9 * found


def look_us(times: int = 5000) -> float:
    """Microseconds of a frame that is offered while nobody watches."""
    image = np.zeros((4, 4, 3), np.uint8)
    header = {"seq": 0, "incarnation": 1, "captured": 0, "pts": 0.0}
    context: zmq.Context[Any] = zmq.Context()
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        publisher = FramePublisher(context, f"ipc://{folder}/f", "s", bytes(8))
        started = time.perf_counter()
        for _ in range(times):
            publisher.offer(lambda: image, header)
        spent = time.perf_counter() - started
        publisher.close()
    context.destroy(linger=0)
    return 1e6 * spent / times


_watched: list[Watched] = []


def begin(**given: Any) -> dict[str, Any]:
    """Start everything."""
    _watched.append(Watched(**given))
    return {}


def turn(seconds: float) -> dict[str, Any]:
    """See `Watched.turn`."""
    return _watched[0].turn(seconds)


def end() -> dict[str, Any]:
    """See `Watched.end`."""
    return _watched.pop().end()


JOBS = {"begin": begin, "turn": turn, "end": end}
