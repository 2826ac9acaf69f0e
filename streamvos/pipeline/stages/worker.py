"""A worker process: the threads of its stages and the connection to the supervisor.

    python -m streamvos.pipeline.stages.worker < start.json   # {"name": "compute", "control": "ipc://..."}

The main thread talks to the supervisor and sends the heartbeat, also while a stage hangs. The process ends
when the supervisor says so, or has ended.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import json
import math
import os
import queue
import resource
import secrets
import signal
import sys
import threading
import time
import traceback
from collections.abc import Iterable, Mapping
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import zmq

from streamvos.pipeline.config.pipeline import PipelineConfig
from streamvos.pipeline.stages.stage import Stage, StageContext, StageThread, in_turns
from streamvos.pipeline.telemetry.logs import warnings_as_events
from streamvos.pipeline.telemetry.statistics import STAGES
from streamvos.pipeline.wire.arenas import Arena, ArenaError
from streamvos.pipeline.wire.messages import Message, Refused, decode, encode
from streamvos.pipeline.wire.security import Curve, NoKeys
from streamvos.pipeline.wire.spec import EdgeSpec
from streamvos.pipeline.wire.waker import Waker
from streamvos.types import InputError, StreamvosError, TruncatedError, is_out_of_memory

BEAT_SECONDS = 0.25
GONE_SECONDS = 10.0
"""A remote worker ends after so many seconds without a message from its supervisor."""

FAILED = 3
"""Exit code of a worker that has reported a failure."""

SWITCH_SECONDS = 0.0005
"""How long one thread may keep the others from running Python."""


def make_stage(name: str, context: StageContext) -> Stage:
    """The stage of a name such as "memory.front"."""
    kind = name.partition(".")[0]
    stage: Stage = getattr(_module_of(name), f"{kind.capitalize()}Stage")(name, context)
    return stage


def _module_of(name: str) -> ModuleType:
    return import_module(f"streamvos.pipeline.stages.{name.partition('.')[0]}")


class Worker:
    """One worker process.

    Args:
        name: its name in the topology.
        control: the supervisor's address.
        session: the supervisor's session; None for a remote worker, which gets it with INIT.
        identity: routing id on the control socket.
        arenas: name -> inherited descriptor.
        secret: file with the pipeline's secret key, for a control socket that leaves the host.
    """

    def __init__(
        self,
        name: str,
        control: str,
        session: bytes | None,
        identity: bytes,
        arenas: Mapping[str, int],
        secret: str | Path | None = None,
    ):
        self.name = name
        self._session, self._secret, self._remote = session, secret, session is None
        self._arenas = {key: Arena(key, fd) for key, fd in arenas.items()}
        self._zmq: zmq.Context[Any] = zmq.Context()
        self._zmq.setsockopt(zmq.MAX_SOCKETS, 4096)
        self._control: zmq.Socket[bytes] = self._zmq.socket(zmq.DEALER)
        self._control.setsockopt(zmq.ROUTING_ID, identity)
        self._control.setsockopt(zmq.LINGER, 1000)
        self._control.setsockopt(zmq.SNDHWM, 0)
        if secret is not None:
            Curve(secret).connect(self._control)
        self._control.connect(control)
        self._outgoing: queue.SimpleQueue[list[Any]] = queue.SimpleQueue()  # from the stages' threads
        self._waker = Waker()
        self._threads: dict[str, StageThread] = {}
        self._stages: list[Stage] = []
        self._context: StageContext | None = None
        self._code: int | None = None

    def run(self) -> int:
        """Run until the supervisor says exit; returns the exit code."""
        with warnings_as_events(self._warn):
            return self._run()

    def _run(self) -> int:
        self._tell(Message("hello", fields={"worker": self.name, "pid": os.getpid()}))
        poller = zmq.Poller()
        poller.register(self._control, zmq.POLLIN)
        poller.register(self._waker.descriptor, zmq.POLLIN)
        beat_at, heard_at = time.monotonic(), math.inf  # a remote worker may start before its supervisor
        while self._code is None:
            poller.poll(max(0, round((beat_at - time.monotonic()) * 1000)))
            self._send_outgoing()
            while self._code is None and self._control.poll(0):
                heard_at = time.monotonic()
                self._handle(self._control.recv_multipart())
            if time.monotonic() >= beat_at:
                beat_at = time.monotonic() + BEAT_SECONDS
                if self._context is not None:
                    self._beat()
                if self._remote and time.monotonic() - heard_at > GONE_SECONDS:
                    print("streamvos: the supervisor has been silent for too long", file=sys.stderr)
                    self._code = FAILED
        self._end()
        return self._code

    def _handle(self, parts: list[bytes]) -> None:
        try:
            message = decode(parts, self._session)
        except Refused:
            return
        if message.kind == "init":
            self._initialize(message)
        elif message.kind == "exit":
            self._code = 0
        elif message.kind == "connect":
            for thread in set(self._threads.values()):
                thread.order(message["endpoints"])
        elif message.kind != "ping" and (stage := message.get("stage")) in self._threads:
            self._threads[stage].order(message)

    def _initialize(self, message: Message) -> None:
        try:
            if self._context is None:
                self._prepare(message)
            if message["standby"]:
                self._tell(Message("ready", fields={"endpoints": {}, "facts": {}, "standby": True}))
                return
            assert self._context is not None
            self._context.life = message["life"]
            endpoints: dict[str, str] = {}
            for stage in self._stages:
                endpoints |= stage.bind()
        except Exception as error:
            self._fail(self._stages[-1] if self._stages else None, error)
            self._code = FAILED
            return
        self._tell(Message("ready", fields={"endpoints": endpoints, "facts": self._facts, "standby": False}))
        for stages in in_turns(self._stages):
            thread = StageThread(stages, self._stage_failed)
            self._threads |= dict.fromkeys((stage.name for stage in stages), thread)
            thread.start()

    def _prepare(self, message: Message) -> None:
        if self._session is None:
            self._session = message["pipeline_session"]
        config = PipelineConfig.model_validate(message["config"])
        secret = self._secret or config.security.secret
        own = None if secret is None else Curve(secret, serves_own=True)
        edges = [EdgeSpec(**one) for one in message["edges"]]
        at_tcp = own or NoKeys()
        edges = [replace(edge, curve=at_tcp if edge.mode == "inline" else None) for edge in edges]
        self._context = StageContext(
            config,
            self._zmq,
            self._session or b"",
            self._arenas,
            {one.name: one for one in edges},
            self._tell,
            message["life"],
            message["facts"],
            {
                "runtime": message["runtime"],
                "started": message.get("started"),
                "curve": _publishing_keys(config, secret) or own,
            },
        )
        self._facts: dict[str, Any] = {}
        for name in message["stages"]:
            self._stages.append(make_stage(name, self._context))
            self._facts[name] = self._stages[-1].prepare()
        # otherwise a collection visits all of torch's objects, for tens of ms in the middle of a frame
        gc.collect()
        gc.freeze()

    def _tell(self, message: Message) -> None:
        """Send a message to the supervisor; from any thread."""
        self._outgoing.put(encode(message, self._session or b""))
        self._waker.wake()

    def _send_outgoing(self) -> None:
        self._waker.clear()
        while not self._outgoing.empty():
            self._control.send_multipart(self._outgoing.get())

    def _warn(self, level: str, text: str) -> None:
        self._tell(Message("event", fields={"event": "warned", "level": level, "text": text}))

    def _beat(self) -> None:
        stages = {stage.name: stage.beat() for stage in self._stages if stage.name in self._threads}
        self._tell(Message("beat", fields={"stages": stages, "clock": time.monotonic_ns(), **_usage()}))

    def _stage_failed(self, stage: Stage, error: Exception) -> None:
        """Called in the stage's thread. An `InputError` ends the stream, any other error this worker."""
        self._fail(stage, error)
        if not isinstance(error, InputError):
            self._tell(Message("dying", fields={"stage": stage.name}))

    def _fail(self, stage: Stage | None, error: Exception) -> None:
        known = isinstance(error, StreamvosError)
        text = str(error) if known else "".join(traceback.format_exception(error)).strip()
        fields = {
            "stage": stage.name if stage else self.name,
            "error": text if known else _said(error),
            "details": "" if known else text,
            "fatal": isinstance(error, InputError),
            "broke_off": isinstance(error, TruncatedError),
            "ended": stage is not None and stage.ended,
            "shortage": isinstance(error, ArenaError),
        }
        self._tell(Message("failed", stage.stream if stage else "", fields=fields))

    def _end(self) -> None:
        threads = set(self._threads.values())
        for thread in threads:
            thread.order(None)
        for thread in threads:
            thread.join(1.0)
        self._send_outgoing()
        self._control.close(linger=200)
        sys.stdout.flush()
        sys.stderr.flush()
        # without the interpreter's finalization: a thread that hangs in a driver would block it
        with contextlib.suppress(Exception):
            if not any(thread.is_alive() for thread in threads):
                self._zmq.destroy(linger=200)
        os._exit(self._code or 0)


def _said(error: Exception) -> str:
    """What an error of a library says, in one line."""
    first = (str(error).strip() or "no message").splitlines()[0]
    if is_out_of_memory(error):
        return f"out of memory ({first}); try a smaller height, or another device"
    return f"{type(error).__name__}: {error}"


def run_remote(name: str, address: str, secret: str | Path | None = None) -> int:
    """Run one stage on this host for a supervisor on another one (`streamvos stage`).

    Args:
        name: the stage, such as "memory.front".
        address: the supervisor's, tcp://host:port.
        secret: file with the pipeline's secret key, which all its hosts share.

    Raises:
        InputError: there is no such stage, or the address or keys cannot be used.
    """
    if name.partition(".")[0] not in STAGES:
        raise InputError(f"there is no stage {name!r}; a stage is one of extractor, source.S, memory.S, ...")
    _set_up([name])
    return Worker(name, address, None, f"remote {name}#{secrets.token_hex(4)}".encode(), {}, secret).run()


def main() -> int:
    """Run a worker for a supervisor, with the settings on standard input: others can read arguments."""
    start = json.loads(sys.stdin.read())
    with open(os.devnull) as nothing:
        os.dup2(nothing.fileno(), 0)
    _end_with(start["parent"], start["pipe"])
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN if number != signal.SIGTERM else signal.SIG_DFL)
    _set_up(start["stages"])
    worker = Worker(
        start["name"],
        start["control"],
        bytes.fromhex(start["session"]),
        start["identity"].encode(),
        start["arenas"],
    )
    return worker.run()


def _set_up(stages: Iterable[str]) -> None:
    """Configure the process, and import what the stages need before the supervisor's first message."""
    sys.setswitchinterval(SWITCH_SECONDS)
    # have the C library keep freed memory: new pages for the tensors of every frame have to be zeroed
    with contextlib.suppress(AttributeError):  # only glibc has mallopt
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD
        mallopt(-3, 2**25)  # M_MMAP_THRESHOLD, the largest allowed
    for name in stages:
        _module_of(name)


def _end_with(parent: int, pipe: int) -> None:
    """End this process when the supervisor ends, for whatever reason."""
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
    if os.getppid() != parent:
        os._exit(FAILED)

    def watch() -> None:
        with contextlib.suppress(OSError):
            os.read(pipe, 1)  # ends when the writing end, which only the supervisor has, is closed
        os._exit(FAILED)

    threading.Thread(target=watch, name="supervisor watch", daemon=True).start()


def _publishing_keys(config: PipelineConfig, secret: str | Path | None) -> Curve | None:
    """Keys for subscribers; None where the list of clients is on another host."""
    clients = config.security.clients
    return (
        None
        if secret is None or clients is None or not clients.is_dir()
        else Curve(secret, clients, warns=False)
    )


def _usage() -> dict[str, float | None]:
    """Processor seconds, resident bytes and open descriptors of this process."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    memory = descriptors = None
    with contextlib.suppress(OSError):  # no descriptor is left to read them with
        memory = int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
        descriptors = len(os.listdir("/proc/self/fd"))
    return {"cpu": usage.ru_utime + usage.ru_stime, "memory": memory, "descriptors": descriptors}


if __name__ == "__main__":
    sys.exit(main())
