"""A worker: one process, the thread of each of its stages, and the line to the supervisor.

    python -m streamvos.pipeline.stages.worker < start.json   # {"name": "compute", "control": "ipc://..."}

The main thread speaks with the supervisor and sends the heartbeat; a stage that hangs does not silence it.
The process ends when the supervisor says so, or is gone.
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
from collections.abc import Mapping
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import zmq

from streamvos.pipeline.config.pipeline import PipelineConfig
from streamvos.pipeline.stages.stage import Stage, StageContext, StageThread, in_turns
from streamvos.pipeline.telemetry.logs import warnings_as_events
from streamvos.pipeline.wire.arenas import Arena
from streamvos.pipeline.wire.messages import Message, Refused, decode, encode
from streamvos.pipeline.wire.security import Curve
from streamvos.pipeline.wire.spec import EdgeSpec
from streamvos.pipeline.wire.waker import Waker
from streamvos.types import InputError, StreamvosError

BEAT_SECONDS = 0.25
GONE_SECONDS = 10.0
"""A remote worker that has not heard from its supervisor for so long ends."""

FAILED = 3
"""Exit code of a worker that could not go on and has said why."""

SWITCH_SECONDS = 0.0005
"""For so long a thread may keep others of its process from running Python."""

STAGES = {
    "source": ("streamvos.pipeline.stages.source", "SourceStage"),
    "extractor": ("streamvos.pipeline.stages.extractor", "ExtractorStage"),
    "memory": ("streamvos.pipeline.stages.memory", "MemoryStage"),
    "decoder": ("streamvos.pipeline.stages.decoder", "DecoderStage"),
    "sinks": ("streamvos.pipeline.stages.sinks", "SinksStage"),
}


class Worker:
    """One worker process.

    Args:
        name: of the worker, as the topology has it.
        control: the supervisor's address.
        session: of the supervisor; None for a remote worker, which learns it with INIT.
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
        """Until the supervisor says exit; the exit code."""
        with warnings_as_events(self._warn):
            return self._run()

    def _run(self) -> int:
        self._say(Message("hello", fields={"worker": self.name, "pid": os.getpid()}))
        poller = zmq.Poller()
        poller.register(self._control, zmq.POLLIN)
        poller.register(self._waker.descriptor, zmq.POLLIN)
        beat_at, heard_at = time.monotonic(), math.inf  # a remote worker may be there before its supervisor
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
                self._say(Message("ready", fields={"endpoints": {}, "facts": {}, "standby": True}))
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
        for stages in in_turns(self._stages):
            thread = StageThread(stages, self._stage_failed)
            self._threads |= dict.fromkeys((stage.name for stage in stages), thread)
            thread.start()
        self._say(Message("ready", fields={"endpoints": endpoints, "facts": self._facts, "standby": False}))

    def _prepare(self, message: Message) -> None:
        if self._session is None:
            self._session = message["pipeline_session"]
        config = PipelineConfig.model_validate(message["config"])
        secret = self._secret or config.security.secret
        own = None if secret is None else Curve(secret, serves_own=True)
        edges = [EdgeSpec(**one) for one in message["edges"]]
        edges = [replace(edge, curve=own if edge.mode == "inline" else None) for edge in edges]
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
            module, kind = STAGES[name.partition(".")[0]]
            stage: Stage = getattr(import_module(module), kind)(name, self._context)
            self._stages.append(stage)
            self._facts[name] = stage.prepare()
        # no collection looks at all that torch brought, for tens of ms in the middle of a frame
        gc.collect()
        gc.freeze()

    def _tell(self, message: Message) -> None:
        """Send to the supervisor, from any thread."""
        self._outgoing.put(encode(message, self._session or b""))
        self._waker.wake()

    def _send_outgoing(self) -> None:
        self._waker.clear()
        while not self._outgoing.empty():
            self._control.send_multipart(self._outgoing.get())

    def _warn(self, level: str, text: str) -> None:
        self._tell(Message("event", fields={"event": "warned", "level": level, "text": text}))

    def _say(self, message: Message) -> None:
        self._control.send_multipart(encode(message, self._session or b""))

    def _beat(self) -> None:
        stages = {stage.name: stage.beat() for stage in self._stages if stage.name in self._threads}
        usage = resource.getrusage(resource.RUSAGE_SELF)
        self._say(
            Message(
                "beat",
                fields={
                    "stages": stages,
                    "clock": time.monotonic_ns(),
                    "memory": _resident_bytes(),
                    "cpu": usage.ru_utime + usage.ru_stime,
                    "descriptors": _descriptors(),
                },
            )
        )

    def _stage_failed(self, stage: Stage, error: Exception) -> None:
        """In the stage's thread. What is the input's fault ends its stream; everything else this worker."""
        self._fail(stage, error)
        if not isinstance(error, InputError):
            self._tell(Message("dying", fields={"stage": stage.name}))

    def _fail(self, stage: Stage | None, error: Exception) -> None:
        known = isinstance(error, StreamvosError)
        text = str(error) if known else "".join(traceback.format_exception(error)).strip()
        fields = {
            "stage": stage.name if stage else self.name,
            "error": text if known else f"{type(error).__name__}: {error}",
            "details": "" if known else text,
            "fatal": isinstance(error, InputError),
            "ended": stage is not None and stage.ended,
        }
        self._tell(Message("failed", stage.stream if stage else "", fields=fields))
        if threading.current_thread() is threading.main_thread():
            self._send_outgoing()

    def _end(self) -> None:
        threads = set(self._threads.values())
        for thread in threads:
            thread.order(None)
        for thread in threads:
            thread.join(1.0)
        self._control.close(linger=200)
        sys.stdout.flush()
        sys.stderr.flush()
        # not through the interpreter's end: a thread that hangs in a driver would hold it up
        with contextlib.suppress(Exception):
            if all(not thread.is_alive() for thread in self._threads.values()):
                self._zmq.destroy(linger=200)
        os._exit(self._code or 0)


def run_remote(name: str, address: str, secret: str | Path | None = None) -> int:
    """Run one stage on this host for a supervisor elsewhere (`streamvos stage`).

    Args:
        name: of the stage, "memory.front".
        address: tcp:// of the supervisor.
        secret: file with the pipeline's secret key, which all its hosts share.

    Returns:
        The exit code.

    Raises:
        InputError: there is no such stage, or the address or keys cannot be used.
    """
    if name.partition(".")[0] not in STAGES:
        raise InputError(f"there is no stage {name!r}; a stage is one of extractor, source.S, memory.S, ...")
    _keep_memory()
    sys.setswitchinterval(SWITCH_SECONDS)
    _preload((name,))
    return Worker(name, address, None, f"remote {name}#{secrets.token_hex(4)}".encode(), {}, secret).run()


def main() -> int:
    """A worker that a supervisor started; its settings come on standard input: others can read arguments."""
    start = json.loads(sys.stdin.read())
    with open(os.devnull) as nothing:
        os.dup2(nothing.fileno(), 0)
    _end_with(start["parent"], start["pipe"])
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN if number != signal.SIGTERM else signal.SIG_DFL)
    _keep_memory()
    sys.setswitchinterval(SWITCH_SECONDS)
    _preload(start["stages"])
    worker = Worker(
        start["name"],
        start["control"],
        bytes.fromhex(start["session"]),
        start["identity"].encode(),
        start["arenas"],
    )
    return worker.run()


def _preload(stages: list[str] | tuple[str, ...]) -> None:
    """Import what the stages need, before the supervisor can say what to do."""
    for kind in {name.partition(".")[0] for name in stages}:
        import_module(STAGES[kind][0])


def _end_with(parent: int, pipe: int) -> None:
    """End this process when the supervisor ends, however that comes about."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
        if os.getppid() != parent:
            os._exit(FAILED)

    def watch() -> None:
        with contextlib.suppress(OSError):
            os.read(pipe, 1)  # ends when the writing end, which only the supervisor has, is closed
        os._exit(FAILED)

    threading.Thread(target=watch, name="supervisor watch", daemon=True).start()


def _keep_memory() -> None:
    """Have the C library keep what is freed: new pages for the tensors of every frame have to be zeroed."""
    with contextlib.suppress(AttributeError):  # glibc has it
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD
        mallopt(-3, 2**25)  # M_MMAP_THRESHOLD, as large as it may be


def _publishing_keys(config: PipelineConfig, secret: str | Path | None) -> Curve | None:
    """Keys for those who subscribe; None where the list of clients is on another host."""
    clients = config.security.clients
    return None if secret is None or clients is None or not clients.is_dir() else Curve(secret, clients)


def _resident_bytes() -> int:
    with contextlib.suppress(OSError, ValueError), open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _descriptors() -> int | None:
    with contextlib.suppress(OSError):
        return len(os.listdir("/proc/self/fd"))
    return None


if __name__ == "__main__":
    sys.exit(main())
