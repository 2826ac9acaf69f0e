"""Handling of workers' messages, and the status: without sockets, processes or signals.

    dispatcher = Dispatcher(Context(config, topology, start, send, init, observation, log))
    dispatcher.pool.start_all()
    dispatcher.take(worker, instance, message)       # for every message
    dispatcher.watch()                               # many times a second

It connects the pool, which handles workers, and the manager, which handles streams.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from streamvos.addresses import redact
from streamvos.pipeline.supervision.processes import Instance, WorkerSlot
from streamvos.pipeline.supervision.stream_manager import StreamManager
from streamvos.pipeline.supervision.streams import StreamRecord
from streamvos.pipeline.supervision.worker_pool import Context, WorkerPool
from streamvos.pipeline.telemetry.observation import checked_beat, in_local_time
from streamvos.pipeline.wire.messages import Message

LATE_SECONDS = 5.0
"""How long the networks wait for further sources once one is open; later streams join them."""


class Dispatcher:
    """The decisions of one pipeline.

    Args:
        context: configuration, functions and counters, shared with streams and workers.

    Attributes:
        manager: the streams.
        pool: the workers.
    """

    def __init__(self, context: Context):
        self._context, self._config, self._topology = context, context.config, context.topology
        self._observation, self._log, self._clock = context.observation, context.log, context.clock
        self.manager = StreamManager(context)
        self.pool = self.manager.pool = WorkerPool(context, self._init, self.manager.on_death)

    def watch(self) -> None:
        """Act on deaths and deadlines, and initialize the workers that may begin."""
        self.pool.watch()
        self.pool.prepare(self._may_prepare)
        self.manager.watch()

    def take(self, worker: WorkerSlot, instance: Instance, message: Message) -> None:
        """Handle a message from an instance of a worker.

        Raises:
            Refused: a heartbeat is malformed.
            LookupError, TypeError, ValueError: another message is malformed.
        """
        instance.last_beat = self._clock()
        kind = message.kind
        if kind == "hello":
            instance.state = "initializing"
        elif kind == "ready":
            self.manager.on_facts(message["facts"])
            if self.pool.ready(worker, instance, message):
                self._connect_all()
                self.manager.on_ready(worker)
        elif kind == "beat":
            beat = checked_beat(message.fields, worker.stages)
            remote = instance.process is None
            instance.beat = in_local_time(beat, round(self._clock() * 1e9)) if remote else beat
            self._observation.beat(instance.beat["stages"])
        elif kind == "failed":
            self._failed(worker, instance, message)
        elif kind == "dying":
            instance.kill(f"failed in {message['stage']}")
        elif kind == "event":
            own = {"event", "level", "stream", "worker"}
            more = {key: value for key, value in message.fields.items() if key not in own}
            level = message.get("level", "info")
            self._log.event(str(message["event"]), level, stream=message.stream, worker=worker.name, **more)
        elif not instance.spare:
            self.manager.on_message(message)

    def status(self) -> dict[str, Any]:
        """The state of all streams and workers (docs/protocol.md, 8)."""
        workers = self.pool.status()
        stages: dict[str, Mapping[str, Any]] = {}
        for worker in workers.values():
            stages |= worker["beat"].get("stages", {})
        return {
            "pipeline": self._config.name,
            "placement": self._config.placement,
            "method": self._config.method.name,
            "streams": {name: self._status_of(one, stages) for name, one in self.manager.streams.items()},
            "publish": dict(self._topology.publish),
            "frames": dict(self._topology.frames),
            "workers": workers,
            **self._observation.totals(stages),
        }

    def _status_of(self, stream: StreamRecord, stages: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
        waiting = None if stream.over else self._observation.waiting(stream.name)
        facts = stream.facts or {"size": ()}
        return {
            "state": stream.state(waiting is not None),
            "reason": stream.reason,
            "waiting_for": waiting[0] if waiting else "",
            "waiting_seconds": waiting[1] if waiting else 0.0,
            "last_failure": stream.trouble,
            "incarnation": stream.incarnation,
            "objects": stages.get(f"memory.{stream.name}", {}).get("objects", []),
            "size": list(facts["size"]) or None,
            "source": facts.get("label"),
            "policy": stream.config.effective_policy,
            "stall_timeout": stream.config.effective_stall_timeout,
            "queues": stages.get(f"sinks.{stream.name}", {}).get("queues", {}),
            **self._observation.of_stream(stream.name),
        }

    def _failed(self, worker: WorkerSlot, instance: Instance, message: Message) -> None:
        """Handle the failure of a stage: end the stream if its input is at fault, else restart the worker."""
        stage, error = message["stage"], message["error"]
        where = {"worker": worker.name, "stage": stage, "stream": message.stream}
        self._log.event("failed", "error", **where, error=error, details=message.get("details", ""))
        concerned = self.manager.streams.get(message.stream)
        if message["fatal"] and concerned is not None and stage.startswith("source."):
            broke_off = bool(message.get("broke_off"))
            self.manager.source_failed(concerned, error, message["ended"], input_fault=not broke_off)
        elif message["fatal"] and not instance.spare:
            for stream in [concerned] if concerned else self.manager.of_worker(worker):
                self.manager.end_badly(stream, error, input_fault=True)
        else:
            instance.kill(f"{stage} failed: {error}")

    def _connect_all(self) -> None:
        """Send all working instances each other's addresses."""
        working = [one.current for one in self.pool if one.current is not None and one.is_ready]
        endpoints = {edge: address for one in working for edge, address in one.endpoints.items()}
        for instance in working:
            self._context.send(instance, Message("connect", fields={"endpoints": endpoints}))

    def _may_prepare(self, worker: WorkerSlot) -> bool:
        """Whether to send INIT: to sources at once, to others when the frames' sizes are known.

        The extractor's worker does not wait for a stream that cannot be opened, or not soon.
        """
        streams = self.manager.of_worker(worker)
        if "extractor" in worker.stages:
            opened = [stream.opened_at for stream in streams if stream.opened_at is not None]
            late = bool(opened) and self._clock() > min(opened) + LATE_SECONDS
            return late or all(stream.tried for stream in streams)
        return worker.is_source or all(stream.facts is not None for stream in streams)

    def _init(self, worker: WorkerSlot, instance: Instance) -> Message:
        streams = self.manager.streams.values()
        config = self._config.model_dump(mode="json")
        for stream in config["streams"]:
            if f"source.{stream['name']}" not in worker.stages:  # only its own cameras' passwords
                stream["source"] = redact(stream["source"])
        fields = {
            "config": config,
            "stages": list(worker.stages),
            "edges": [{**asdict(edge), "curve": None} for edge in self._topology.edges.values()],
            "facts": {one.name: one.facts for one in streams if one.facts is not None},
            "life": instance.life,
            "standby": instance.spare,
        }
        return Message("init", fields={**self._context.init, **fields})
