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
from streamvos.pipeline.config.pipeline import PipelineConfig
from streamvos.pipeline.supervision.additions import Addition, Additions
from streamvos.pipeline.supervision.endings import answer
from streamvos.pipeline.supervision.processes import Instance, WorkerSlot
from streamvos.pipeline.supervision.stream_manager import StreamManager
from streamvos.pipeline.supervision.streams import StreamRecord
from streamvos.pipeline.supervision.topology import EXTRACTOR
from streamvos.pipeline.supervision.worker_pool import Context, WorkerPool
from streamvos.pipeline.telemetry.observation import checked_beat, in_local_time
from streamvos.pipeline.wire.messages import STATE_BYTES, Message
from streamvos.sinks.claim import Claim
from streamvos.types import InputError

LATE_SECONDS = 5.0
"""How long the networks wait for further sources once one is open; later streams join them."""


class Dispatcher:
    """The decisions of one pipeline.

    Args:
        context: configuration, functions and counters, shared with streams and workers.

    Attributes:
        manager: the streams.
        pool: the workers.
        additions: the streams that users add, until they are admitted.
    """

    def __init__(self, context: Context):
        self._context, self._config, self._topology = context, context.config, context.topology
        self._observation, self._log, self._clock = context.observation, context.log, context.clock
        self.pool = WorkerPool(context, self._init, lambda *death: self.manager.on_death(*death))
        self.manager = StreamManager(context, self.pool)
        self.additions = Additions(context, self.manager.streams, self.manager.ends, self._admit)

    @property
    def finished(self) -> bool:
        """Whether the pipeline has ended."""
        ends = self.manager.ends
        return ends.all_over and (ends.all_asked or not self.additions.waiting)

    def watch(self) -> None:
        """Act on deaths and deadlines, and initialize the workers that may begin."""
        self.pool.watch()
        self.pool.prepare(self._may_prepare)
        self.manager.watch()
        for stream in self.manager.streams.values():
            if stream.adding is not None and stream.has_begun:
                answer(stream.adding, True, status=self.status_of(stream))
                stream.adding = None
        self._clear()
        self.additions.watch()

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
        elif not instance.spare and worker.name in self._topology.workers_of(message.stream):
            self.manager.on_message(message)

    def status(self) -> dict[str, Any]:
        """The state of all streams and workers (docs/protocol.md, 8)."""
        stages = self._beats()
        return {
            "pipeline": self._config.name,
            "placement": self._config.placement,
            "method": self._config.method.name,
            "streams": {name: self._status_of(one, stages) for name, one in self.manager.streams.items()},
            "publish": dict(self._topology.publish),
            "frames": dict(self._topology.frames),
            "workers": self.pool.status(),
            **self._observation.totals(stages),
        }

    def status_of(self, stream: StreamRecord) -> dict[str, Any]:
        """The state of one stream."""
        return self._status_of(stream, self._beats())

    def snapshot_of(self, stream: StreamRecord) -> tuple[int, bytes]:
        """The newest saved state of a stream, and after which frame it was saved.

        Raises:
            InputError: there is none, or it is too large to be sent.
        """
        newest = stream.newest_snapshot
        if newest is None:
            raise InputError(
                f"there is no saved state of {stream.name} yet; it has none before its first mask"
            )
        if newest.array.nbytes > STATE_BYTES:
            raise InputError(
                f"the state of {stream.name} has {newest.array.nbytes} bytes; at most {STATE_BYTES} are sent"
            )
        return newest.seq, self._context.resources.read(stream.name, newest.array)

    def _beats(self) -> dict[str, Mapping[str, Any]]:
        """What all stages have said last."""
        beats: dict[str, Mapping[str, Any]] = {}
        for worker in self.pool:
            beats |= {} if worker.current is None else worker.current.beat.get("stages", {})
        return beats

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
            "method": (stream.method or self._config.method).name,
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
        serves = worker.name in self._topology.workers_of(message.stream)
        concerned = self.manager.streams[message.stream] if serves else None
        beginning = concerned is not None and concerned.adding is not None
        if message["fatal"] and concerned is not None and stage.startswith("source."):
            broke_off = bool(message.get("broke_off"))
            self.manager.ends.source_failed(concerned, error, message["ended"], input_fault=not broke_off)
        elif message["fatal"] and not instance.spare:
            for stream in [concerned] if concerned else self.manager.link.of_worker(worker):
                self.manager.ends.end_badly(stream, error, input_fault=True)
        elif beginning and concerned is not None and message.get("shortage"):
            self.manager.ends.end_badly(concerned, error)  # others may be running for long
        else:
            instance.kill(f"{stage} failed: {error}")

    def _connect_all(self) -> None:
        """Send all working instances each other's addresses, as far as they need them.

        A worker may still have stages of a stream that was removed; they must not find its successor.
        """
        working = [(one, one.current) for one in self.pool if one.current is not None and one.is_ready]
        edges = self._topology.edges
        endpoints = {
            name: address
            for worker, instance in working
            for name, address in instance.endpoints.items()
            if name in edges and edges[name].consumer in worker.stages
        }
        for worker, instance in working:
            own = {name: at for name, at in endpoints.items() if edges[name].producer in worker.stages}
            self._context.send(instance, Message("connect", fields={"endpoints": own}))

    def _may_prepare(self, worker: WorkerSlot) -> bool:
        """Whether to send INIT: to sources at once, to others when the frames' sizes are known.

        The extractor's worker does not wait for a stream that cannot be opened, or not soon.
        """
        streams = self.manager.link.of_worker(worker)
        if any(stage.partition(".")[0] == EXTRACTOR for stage in worker.stages):
            opened = [stream.opened_at for stream in streams if stream.opened_at is not None]
            late = bool(opened) and self._clock() > min(opened) + LATE_SECONDS
            return late or all(stream.tried for stream in streams)
        return worker.is_source or all(stream.facts is not None for stream in streams)

    def _init(self, worker: WorkerSlot, instance: Instance) -> Message:
        """INIT of a worker, which is told of its own streams alone."""
        names = self._topology.streams_of(worker.name)
        streams = [self.manager.streams[name] for name in names]
        config = self._config.only([one.config for one in streams]).model_dump(mode="json")
        for stream in config["streams"]:
            if f"source.{stream['name']}" not in worker.stages:  # only its own cameras' passwords
                stream["source"] = redact(stream["source"])
        if streams[0].added:
            config["remote"] = {}
        if streams[0].method is not None:
            config["method"] = streams[0].method.model_dump(mode="json")
        edges = [edge for edge in self._topology.edges.values() if edge.stream in names]
        fields = {
            "config": config,
            "stages": list(worker.stages),
            "edges": [{**asdict(edge), "curve": None} for edge in edges],
            "facts": {one.name: one.facts for one in streams if one.facts is not None},
            "life": instance.life,
            "standby": instance.spare,
        }
        return Message("init", fields={**self._context.init, **fields})

    # ---- streams come and go

    def _admit(self, addition: Addition, config: PipelineConfig, claim: Claim | None) -> None:
        """Begin a stream that has been checked.

        Raises:
            InputError, ArenaError: a socket's path is too long, or descriptors are missing; nothing is begun.
        """
        (stream,) = config.streams
        self._topology.add(config)
        try:
            self._context.resources.take(stream.name, claim)
        except BaseException:
            self._topology.remove(stream.name)
            raise
        own = None if addition.method is None else config.method
        record = StreamRecord(stream, own, added=True, adding=addition.reply)
        if addition.state is not None:
            record.go_on_from(*addition.state)
        self.manager.streams[stream.name] = record
        workers = {stage: name for name, stages in self._topology.workers.items() for stage in stages}
        self._observation.add(stream.name, workers)
        self._log.event("stream_added", stream=stream.name, source=redact(stream.source))
        self.pool.add(stream)

    def _clear(self) -> None:
        """Give back what streams held that have ended, and forget those that were removed."""
        for name in self.manager.ends.take_cleared():
            self._context.resources.free(name)
        for stream in [one for one in self.manager.streams.values() if one.cleared and one.leaves]:
            self._forget(stream)

    def _forget(self, stream: StreamRecord) -> None:
        last, name = self.status_of(stream), stream.name
        self._context.resources.forget(name)
        stages = {stage for worker in self.pool for stage in worker.stages}
        self._topology.remove(name)
        self.pool.drop()
        del self.manager.streams[name]
        left = {stage for worker in self.pool for stage in worker.stages}
        self._observation.forget(name, stages - left)
        self._log.event("stream_removed", stream=name, reason=stream.reason)
        why = stream.reason or "it was ended before it had begun"
        answer(stream.adding, False, error=f"stream {name} cannot be added: {why}")
        for reply in stream.removing:
            answer(reply, True, status=last)
