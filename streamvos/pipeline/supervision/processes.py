"""Workers and their processes: slots, instances, restarts.

Only processes that were started here are signalled, and only before they have been waited for: afterwards
another process may have the number.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import signal
import subprocess
import sys
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

State = Literal["starting", "initializing", "ready", "dead"]

FIRST_DELAY = 0.5
"""Seconds before the second restart within the window; each further delay is twice as long."""

LONGEST_DELAY = 30.0


@dataclass
class Instance:
    """One life of a worker. Times are monotonic seconds."""

    worker: str
    identity: bytes  # routing id on the control socket, different for each life
    life: int  # 0 for the first
    process: subprocess.Popen[bytes] | None  # None for a remote worker
    state: State = "starting"  # docs/protocol.md, 5
    spare: bool = False  # a standby process, which does not work yet
    prepared: bool = False  # INIT has been sent
    deadline: float = 0.0  # when it must be READY
    last_beat: float = 0.0
    beat: Mapping[str, Any] = field(default_factory=dict)  # the last heartbeat
    endpoints: dict[str, str] = field(default_factory=dict)  # edge -> where it is bound
    expected: bool = False  # it was asked to exit
    killed: str = ""  # why the supervisor killed it
    seen_dead: bool = False  # the last `look` found the process gone

    @property
    def pid(self) -> int | None:
        """Number of its process; None for a remote worker."""
        return None if self.process is None else self.process.pid

    def kill(self, reason: str) -> None:
        """Send SIGKILL, which is then handled like any other death; give up a remote worker."""
        if self.process is not None and self.process.poll() is not None:
            return
        self.killed = self.killed or reason
        if self.process is not None:
            with contextlib.suppress(ProcessLookupError):
                self.process.send_signal(signal.SIGKILL)

    def has_ended(self) -> bool:
        """Whether the process is gone, or the remote worker was given up."""
        return bool(self.killed) if self.process is None else self.process.poll() is not None

    def exit_reason(self) -> str:
        """Why it ended, for the log."""
        code = None if self.process is None else self.process.poll()
        if self.killed or code is None:
            return self.killed or "connection lost"
        if code < 0:
            names = {one.value: f" ({one.name})" for one in signal.Signals}
            return f"signal {-code}{names.get(-code, '')}"
        return f"exit code {code}"

    def bury(self) -> None:
        """Collect the exit status, so that no zombie process stays."""
        if self.process is not None:
            self.process.wait()


class Restarts:
    """Whether and when a dead worker is restarted: exponential back-off and circuit breaker.

    >>> restarts = Restarts(maximum=2, window=60.0)
    >>> [(restarts.died(at), restarts.delay) for at in (0.0, 1.0, 2.0)]
    [(True, 0.0), (True, 0.5), (False, 0.5)]

    Args:
        maximum: restarts within the window; None = no limit, as for cameras, which come back eventually.
        window: seconds.

    Attributes:
        count: restarts so far.
        delay: seconds to wait before the next restart.
    """

    def __init__(self, maximum: int | None, window: float):
        self._maximum, self._window = maximum, window
        self._deaths: deque[float] = deque()
        self.count = 0
        self.delay = 0.0

    def died(self, at: float) -> bool:
        """Note a death at a time in seconds; returns whether the worker is restarted, after `delay`."""
        while self._deaths and at - self._deaths[0] > self._window:
            self._deaths.popleft()
        if self._maximum is not None and len(self._deaths) >= self._maximum:
            return False
        self._deaths.append(at)
        self.count += 1
        recent = len(self._deaths)
        self.delay = 0.0 if recent == 1 else min(FIRST_DELAY * 2 ** min(recent - 2, 10), LONGEST_DELAY)
        return True


@dataclass
class WorkerSlot:
    """A worker: its stages, its present process and its restarts. Times are monotonic seconds."""

    name: str
    stages: tuple[str, ...]
    remote: bool  # a user starts it on another host
    restarts: Restarts
    current: Instance | None = None  # does the work
    spare: Instance | None = None  # the standby process
    lives: int = 0  # instances so far
    start_at: float | None = None  # when the next instance is started; None = not planned
    spare_at: float | None = None  # the same for the next standby process
    retired_at: float | None = None  # when it was told to exit, since no stream needs it any more

    @property
    def instances(self) -> list[Instance]:
        """The working and the standby instance, if they live."""
        return [one for one in (self.current, self.spare) if one is not None]

    @property
    def is_source(self) -> bool:
        """Whether it opens a source."""
        return any(stage.startswith("source.") for stage in self.stages)

    @property
    def retired(self) -> bool:
        """Whether no stream needs it any more."""
        return self.retired_at is not None

    @property
    def is_ready(self) -> bool:
        """Whether its instance is READY."""
        return self.current is not None and self.current.state == "ready"


def start_worker(
    worker: WorkerSlot, spare: bool, link: Mapping[str, Any], arenas: Mapping[str, int], output: int
) -> Instance:
    """Start a process for a worker.

    Args:
        worker: its slot.
        spare: whether the process is to be the standby one.
        link: how it reaches the supervisor: `control` and `session` of its socket; `pipe`, the reading end of
            a pipe that closes when the supervisor is gone.
        arenas: name -> descriptor, which the process inherits.
        output: descriptor of its standard output and error.

    Raises:
        OSError: the system has no resources for another process.
    """
    # different for each life, also of a later worker of the same name
    identity = f"{worker.name}#{worker.lives}.{secrets.token_hex(4)}"
    own = {"name": worker.name, "stages": worker.stages, "identity": identity, "arenas": dict(arenas)}
    with os.fdopen(os.memfd_create("streamvos letter"), "w+b") as letter:  # a disk may be full
        letter.write(json.dumps({**own, **link, "parent": os.getpid()}).encode())
        letter.seek(0)
        process = subprocess.Popen(
            [sys.executable, "-m", "streamvos.pipeline.stages.worker"],
            stdin=letter,
            stdout=output,
            stderr=output,
            pass_fds=(link["pipe"], *arenas.values()),
            start_new_session=True,  # so that Ctrl-C reaches only the supervisor
        )
    return Instance(worker.name, identity.encode(), worker.lives, process, spare=spare)
