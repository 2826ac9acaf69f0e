"""Worker processes: started, looked after, killed.

Only what was started here is ever signalled: a process that has been waited for has no number any more.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

State = Literal["starting", "initializing", "ready", "dead"]


@dataclass
class Instance:
    """One life of a worker. Times are monotonic seconds."""

    worker: str
    stages: tuple[str, ...]
    identity: bytes  # routing id on the control socket, of this life alone
    life: int  # 0 for the first
    process: subprocess.Popen[bytes] | None  # None for a remote worker
    state: State = "starting"  # docs/protocol.md, 5
    spare: bool = False  # the standby process, which runs nothing yet
    prepared: bool = False  # INIT has been sent
    deadline: float = 0.0  # when it must be READY
    last_beat: float = 0.0
    beat: Mapping[str, Any] = field(default_factory=dict)  # the last heartbeat
    endpoints: dict[str, str] = field(default_factory=dict)  # edge -> where it is bound
    expected: bool = False  # it was told to exit
    killed: str = ""  # why the supervisor killed it
    seen_dead: bool = False  # the process was gone when we looked last

    @property
    def pid(self) -> int | None:
        """Number of its process; None for a remote worker."""
        return None if self.process is None else self.process.pid

    def kill(self, reason: str) -> None:
        """Send SIGKILL; what follows is the same as for any other death. A remote worker is given up."""
        if self.process is not None and self.process.poll() is not None:
            return
        self.killed = self.killed or reason
        if self.process is not None:
            with contextlib.suppress(ProcessLookupError):
                self.process.send_signal(signal.SIGKILL)

    def has_ended(self) -> bool:
        """Whether the process is gone, or a remote one was given up."""
        return bool(self.killed) if self.process is None else self.process.poll() is not None

    def exit_reason(self) -> str:
        """Why it ended, for people."""
        if self.killed:
            return self.killed
        code = None if self.process is None else self.process.poll()
        if code is None:
            return "connection lost"
        if code < 0:
            with contextlib.suppress(ValueError):
                return f"signal {-code} ({signal.Signals(-code).name})"
            return f"signal {-code}"
        return f"exit code {code}"

    def bury(self) -> None:
        """Take its exit status, so that no zombie stays."""
        if self.process is not None:
            self.process.wait()


def start_worker(
    name: str,
    stages: Sequence[str],
    life: int,
    spare: bool,
    link: Mapping[str, Any],
    arenas: Mapping[str, int],
) -> Instance:
    """Start a worker's process.

    Args:
        name: of the worker.
        stages: which it is to run.
        life: how many processes it has had before.
        spare: it is to be the standby process.
        link: how it reaches the supervisor: `control` and `session` of its socket; `pipe`, the reading end of
            a pipe that closes when the supervisor is gone.
        arenas: name -> descriptor, which it inherits.

    Raises:
        OSError: the system has nothing left for another process.
    """
    identity = f"{name}#{life}"
    own = {"name": name, "stages": list(stages), "identity": identity, "arenas": dict(arenas)}
    with os.fdopen(os.memfd_create("streamvos letter"), "w+b") as letter:  # a disk may be full
        letter.write(json.dumps({**own, **link, "parent": os.getpid()}).encode())
        letter.seek(0)
        process = subprocess.Popen(
            [sys.executable, "-m", "streamvos.pipeline.stages.worker"],
            stdin=letter,
            stdout=sys.stderr.fileno(),
            pass_fds=(link["pipe"], *arenas.values()),
            start_new_session=True,  # Ctrl-C is the supervisor's business alone
        )
    return Instance(name, tuple(stages), identity.encode(), life, process, spare=spare)
