"""Worker processes as the supervisor holds them: started, looked after, killed.

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
    """One life of a worker.

    Attributes:
        worker: its name.
        stages: that it runs.
        identity: its routing id on the control socket, of this life alone.
        life: 0 for the first.
        process: None for a remote worker.
        state: see docs/protocol.md, 5.
        spare: it is held ready, and runs nothing yet.
        deadline: monotonic seconds at which it must be READY.
        last_beat: monotonic seconds.
        beat: what the last heartbeat said.
        endpoints: edge -> where it is bound.
        killed: why the supervisor killed it.
        expected: it was told to exit.
        told: it was told to prepare.
        seen_dead: the process was gone when we looked last.
    """

    worker: str
    stages: tuple[str, ...]
    identity: bytes
    life: int
    process: subprocess.Popen[bytes] | None
    state: State = "starting"
    spare: bool = False
    deadline: float = 0.0
    last_beat: float = 0.0
    beat: Mapping[str, Any] = field(default_factory=dict)
    endpoints: dict[str, str] = field(default_factory=dict)
    killed: str = ""
    expected: bool = False
    told: bool = False
    seen_dead: bool = False

    @property
    def pid(self) -> int | None:
        """Of the process here."""
        return None if self.process is None else self.process.pid

    def kill(self, reason: str) -> None:
        """SIGKILL, once; what follows is the same as for any other death. A remote worker is given up."""
        if self.process is None:
            self.killed = self.killed or reason
            return
        if self.process.poll() is not None:
            return
        self.killed = self.killed or reason
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
    worker: str,
    stages: Sequence[str],
    life: int,
    control: str,
    session: bytes,
    arenas: Mapping[str, int],
    pipe: int,
    spare: bool = False,
) -> Instance:
    """Start one.

    Args:
        worker, stages: its name and what it is to run.
        life: which one it is.
        control: address of the supervisor's socket.
        session: of the supervisor.
        arenas: name -> descriptor, which it inherits.
        pipe: reading end of the pipe whose closing tells it that the supervisor is gone.
        spare: it is to be held ready.

    Raises:
        OSError: the system has nothing left for another process.
    """
    identity = f"{worker}#{life}"
    told = {
        "name": worker,
        "stages": list(stages),
        "control": control,
        "session": session.hex(),
        "identity": identity,
        "arenas": dict(arenas),
        "pipe": pipe,
        "parent": os.getpid(),
    }
    with os.fdopen(os.memfd_create("streamvos letter"), "w+b") as letter:  # a disk may be full
        letter.write(json.dumps(told).encode())
        letter.seek(0)
        process = subprocess.Popen(
            [sys.executable, "-m", "streamvos.pipeline.stages.worker"],
            stdin=letter,
            stdout=sys.stderr.fileno(),
            pass_fds=(pipe, *arenas.values()),
            start_new_session=True,  # Ctrl-C is the supervisor's business alone
        )
    return Instance(worker, tuple(stages), identity.encode(), life, process, spare=spare)
