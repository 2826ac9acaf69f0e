"""The supervisor's way to the stages of streams: which worker runs a stage, and messages to it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from streamvos.pipeline.supervision.processes import Instance, WorkerSlot
from streamvos.pipeline.supervision.streams import Command, StreamRecord
from streamvos.pipeline.supervision.worker_pool import Context, WorkerPool
from streamvos.pipeline.wire.messages import Array, Message


class StageLink:
    """Finds stages and tells them something.

    Args:
        context: shared by all parts of the supervision.
        pool: the workers.
        streams: all streams, by name; the owner adds and removes some.
    """

    def __init__(self, context: Context, pool: WorkerPool, streams: Mapping[str, StreamRecord]):
        self._send, self._topology = context.send, context.topology
        self._pool, self._streams = pool, streams

    def of_worker(self, worker: WorkerSlot) -> list[StreamRecord]:
        """Streams that need a worker and are not over."""
        left = [one for one in self._streams.values() if not one.over]
        return [one for one in left if worker.name in self._topology.workers_of(one.name)]

    def workers_of(self, stream: StreamRecord) -> list[WorkerSlot]:
        """All workers that a stream needs."""
        return [self._pool.workers[name] for name in self._topology.workers_of(stream.name)]

    def worker(self, stream: StreamRecord, kind: str) -> WorkerSlot:
        """The worker that runs a stream's stage of a kind."""
        return self._pool.of_stage(self._topology.stage(kind, stream.name))

    def instance(self, stream: StreamRecord, kind: str) -> Instance | None:
        """The working instance of that worker; None if it has no process."""
        return self.worker(stream, kind).current

    def send_command(self, stream: StreamRecord, command: Command) -> None:
        """Send a user's command to the memory."""
        arrays = {} if command.mask is None else {"mask": Array.of(command.mask)}
        fields = {"number": command.number, "object": command.object_id, "due": command.due}
        self.tell(stream, "memory", "command", 0, arrays, verb=command.verb, **fields)

    def tell(
        self,
        stream: StreamRecord,
        kind: str,
        what: str,
        seq: int = 0,
        arrays: Mapping[str, Array] | None = None,
        **fields: Any,
    ) -> None:
        """Send a control message to one stage of a stream, if it has a process."""
        instance = self.instance(stream, kind)
        if instance is not None:
            fields["stage"] = self._topology.stage(kind, stream.name)
            self._send(instance, Message(what, stream.name, stream.incarnation, seq, fields, arrays or {}))
