"""A pipeline of real processes, for benchmarks and tests: `streamvos serve`, watched from outside.

    with serving({"method": {"name": "tvos"}, "streams": [...]}, folder) as pipeline:
        pipeline.wait_for(lambda: pipeline.events("incarnation"))

"folder" gets the log and, at the end, the summary.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from streamvos.types import StreamvosError

SERVE = """
import json, signal, sys
from streamvos.pipeline.config.reading import make_config
from streamvos.pipeline.telemetry.logs import EventLog
from streamvos.pipeline.supervision.supervisor import Supervisor
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell may have had it ignored
supervisor = Supervisor(make_config(json.loads(sys.argv[1])), EventLog("json"))
open(sys.argv[2] + ".session", "wb").write(supervisor._session)  # for those who try to abuse it
code = supervisor.run()
open(sys.argv[2], "w").write(json.dumps(supervisor.summary()))
sys.exit(code)
"""


class ServingError(StreamvosError):
    """The pipeline ended, or what was awaited did not come."""


class Serving:
    """A running pipeline.

    Args:
        config: as pipeline.toml says it.
        folder: for log and summary.
        threads: of torch in every process; None = its default.
        paths: folders with modules of methods, besides those of PYTHONPATH.

    Attributes:
        process: the supervisor.
        folder: where its log and its summary lie.
    """

    def __init__(
        self,
        config: Mapping[str, Any],
        folder: Path,
        threads: int | None = 1,
        paths: Sequence[str | Path] = (),
    ) -> None:
        self.folder, self.config = folder, config
        self.runtime = tempfile.mkdtemp(prefix="svos", dir="/tmp")
        self.log = folder / "log.jsonl"
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join([*map(str, paths), os.environ.get("PYTHONPATH", "")]),
            "XDG_RUNTIME_DIR": self.runtime,
        }
        environment.pop("OMP_NUM_THREADS", None)
        if threads is not None:
            environment["OMP_NUM_THREADS"] = str(threads)
        with open(self.log, "wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-c", SERVE, json.dumps(config), str(folder / "summary.json")],
                stderr=log,
                stdout=log,
                env=environment,
                start_new_session=True,
            )

    # ---- what it says

    def events(self, name: str | None = None) -> list[dict[str, Any]]:
        """What it has logged, of one name or all."""
        found = []
        for line in self.log.read_text().splitlines():
            with contextlib.suppress(ValueError):
                event = json.loads(line)
                if isinstance(event, dict) and name in (None, event.get("event")):
                    found.append(event)
        return found

    def summary(self) -> dict[str, Any]:
        """At the end."""
        summary: dict[str, Any] = json.loads((self.folder / "summary.json").read_text())
        return summary

    def pids(self) -> dict[str, int]:
        """Worker -> pid of its newest life that is at work, or on its way to it; no spare one."""
        lives: dict[tuple[str, int], int] = {}
        found: dict[str, int] = {}
        for event in self.events():
            if event["event"] == "started":
                lives[event["worker"], event["life"]] = event["pid"]
                if not event["spare"]:
                    found[event["worker"]] = event["pid"]
            elif event["event"] == "ready" and (event["worker"], event["life"]) in lives:
                found[event["worker"]] = lives[event["worker"], event["life"]]
        return found

    def children(self) -> list[int]:
        """Every process that this pipeline has alive."""
        mark = f"XDG_RUNTIME_DIR={self.runtime}".encode()
        found = []
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit() and int(entry.name) != self.process.pid:
                with contextlib.suppress(OSError):
                    if mark in (entry / "environ").read_bytes().split(b"\0") and not _is_zombie(entry):
                        found.append(int(entry.name))
        return found

    # ---- what is done to it

    def wait_for(self, what: Callable[[], Any], seconds: float = 60.0) -> Any:
        """Wait until something is true; its value."""
        limit = time.monotonic() + seconds
        while time.monotonic() < limit:
            value = what()
            if value:
                return value
            if self.process.poll() is not None and not what():
                raise ServingError(f"the pipeline ended: {self._last_words()}")
            time.sleep(0.02)
        raise ServingError(f"nothing came within {seconds:g} s: {self._last_words()}")

    def wait(self, seconds: float = 120.0) -> int:
        """Wait for its end; the exit code."""
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            raise ServingError(f"it does not end: {self._last_words()}") from None

    def signal(self, number: int = signal.SIGTERM) -> None:
        """Send the supervisor a signal."""
        self.process.send_signal(number)

    def kill_worker(self, name: str) -> float:
        """SIGKILL the present life of a worker; when, in monotonic seconds."""
        os.kill(self.pids()[name], signal.SIGKILL)
        return time.monotonic()

    def _last_words(self) -> str:
        return self.log.read_text(errors="replace")[-3000:]


@contextlib.contextmanager
def serving(
    config: Mapping[str, Any], folder: Path, threads: int | None = 1, paths: Sequence[str | Path] = ()
) -> Iterator[Serving]:
    """Serve within the block; afterwards nothing of it is left.

    Raises:
        ServingError: processes had to be killed after it had ended.
    """
    folder.mkdir(parents=True, exist_ok=True)
    one = Serving(config, folder, threads, paths)
    try:
        yield one
    finally:
        if one.process.poll() is None:
            one.process.kill()
        one.process.wait()
        limit = time.monotonic() + 5
        while one.children() and time.monotonic() < limit:
            time.sleep(0.02)
        left = one.children()
        for pid in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        shutil.rmtree(one.runtime, ignore_errors=True)
        if left:
            raise ServingError(f"processes left behind: {left}")


def _is_zombie(entry: Path) -> bool:
    return (entry / "stat").read_text().rpartition(")")[2].split()[0] == "Z"
