"""All stages of a pipeline in this process: each worker's in its threads, the test in the supervisor's place.

What a pipeline computes does not depend on processes. A run takes milliseconds where five processes take
seconds to start; what only processes show (kills, recovery, signals) is tested with `serving`.

    run_stages({"placement": "split", "method": ..., "streams": [...]})   # until every stream has ended
"""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any

import zmq

from streamvos.pipeline.config.reading import make_config
from streamvos.pipeline.stages.stage import Stage, StageContext, StageThread, in_turns
from streamvos.pipeline.stages.worker import make_stage
from streamvos.pipeline.supervision.streams import Snapshot, StreamRecord
from streamvos.pipeline.supervision.topology import RESET_STAGES, Topology
from streamvos.pipeline.wire.arenas import Arena
from streamvos.pipeline.wire.messages import Message, decode, encode
from streamvos.pipeline.wire.runtime import Runtime

SESSION = b"together"


def run_stages(config: Mapping[str, Any], seconds: float = 60.0) -> None:
    """Run every stream of a configuration from its first frame to its end.

    Args:
        config: as `streamvos serve` takes it; remote stages run here too, over tcp.
        seconds: the most that it may take.

    Raises:
        Exception: what a stage raised.
        AssertionError: it took too long.
    """
    with ExitStack() as cleanup:
        pipeline = _Stages(config, cleanup)
        pipeline.begin()
        pipeline.run(time.monotonic() + seconds)


class _Stages:
    def __init__(self, config: Mapping[str, Any], cleanup: ExitStack):
        self._config = make_config(config)
        folder = Path(tempfile.mkdtemp(prefix="svos", dir="/tmp"))
        cleanup.callback(shutil.rmtree, folder)
        self._topology = Topology(self._config, Runtime("together", folder, lock=-1))
        self._told: SimpleQueue[Message | Exception] = SimpleQueue()
        self._facts: dict[str, dict[str, Any]] = {}
        self._records = {one.name: StreamRecord(one) for one in self._config.streams}
        self._threads: dict[str, StageThread] = {}
        self._endpoints: dict[str, str] = {}
        descriptors = {}
        for name in self._topology.arenas:
            created = Arena.create(name)
            descriptors[name] = created.fd
            cleanup.callback(os.close, created.fd)
            cleanup.callback(created.close)
        workers = {**self._topology.workers, **{name: (name,) for name in self._topology.remote}}
        # sources first: the others want to know what they found
        for _, names in sorted(workers.items(), key=lambda one: not one[0].startswith("source.")):
            arenas = {name: Arena(name, fd) for name, fd in descriptors.items()}
            context: zmq.Context[Any] = zmq.Context()
            cleanup.callback(context.destroy, linger=0)
            self._start_worker(names, context, arenas, folder, cleanup)

    def _start_worker(
        self,
        names: tuple[str, ...],
        context: zmq.Context[Any],
        arenas: Mapping[str, Arena],
        folder: Path,
        cleanup: ExitStack,
    ) -> None:
        shared = {"runtime": str(folder)}
        given = StageContext(
            self._config, context, SESSION, arenas, self._topology.edges, self._hear, 0, self._facts, shared
        )
        stages: list[Stage] = []
        for name in names:
            stage = make_stage(name, given)
            stages.append(stage)
            facts = stage.prepare()
            if name.startswith("source."):
                self._facts[stage.stream] = facts
            self._endpoints |= stage.bind()
        for group in in_turns(stages):
            thread = StageThread(group, lambda _, error: self._told.put(error))
            cleanup.callback(thread.join, 5)
            cleanup.callback(thread.order, None)
            self._threads |= dict.fromkeys((stage.name for stage in group), thread)
            thread.start()

    def _hear(self, message: Message) -> None:
        self._told.put(decode([bytes(part) for part in encode(message, SESSION)], SESSION))

    def _order(self, stage: str, message: Message) -> None:
        self._threads[stage].order(replace(message, fields={**message.fields, "stage": stage}))

    def begin(self) -> None:
        """The first incarnation of every stream."""
        for thread in set(self._threads.values()):
            thread.order(self._endpoints)
        for name, record in self._records.items():
            record.begin()
            fields = {
                "facts": self._facts[name], "keep": False, "taken": [], "commands": 0, "written": 0,
            }  # fmt: skip
            for kind in RESET_STAGES:
                self._order(_stage(kind, name), Message("reset", name, 1, 0, fields))

    def run(self, deadline: float) -> None:
        """Answer what the stages say, until all streams have ended."""
        running = set(self._records)
        while running:
            try:
                message = self._told.get(timeout=max(0.0, deadline - time.monotonic()))
            except Empty:
                raise AssertionError(f"{', '.join(sorted(running))} did not end in time") from None
            if isinstance(message, Exception):
                raise message
            if message.kind == "ended":
                running.discard(message.stream)
            else:
                self._answer(self._records[message.stream], message)

    def _answer(self, record: StreamRecord, message: Message) -> None:
        name = record.name
        if message.kind == "reset_done":
            record.awaiting.discard(message["stage"].partition(".")[0])
            if not record.awaiting:
                record.phase = "running"
                start = {"next": 0, "fresh": True, "written": 0, "origin": None}
                self._order(f"source.{name}", Message("start", name, 1, 0, start))
            return
        free: list[int] = []
        if message.kind == "ack":
            free = record.acknowledge(message.seq)
        elif message.kind == "snapshot":
            free = record.add_snapshot(Snapshot(message.seq, message["slot"], message.arrays["snapshot"]))
        for slot in free:
            self._order(f"memory.{name}", Message("release", name, 1, 0, {"slot": slot}))
        if record.releasable > record.released:
            record.released = record.releasable
            self._order(f"source.{name}", Message("release", name, 1, record.released))


def _stage(kind: str, stream: str) -> str:
    return kind if kind == "extractor" else f"{kind}.{stream}"
