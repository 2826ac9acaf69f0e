"""The streams of a pipeline: how they begin, recover from a snapshot, and end (docs/protocol.md, 5 to 7).

The `on_...` methods are called when something has happened; each death leads to a new incarnation.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping
from typing import Any

from streamvos.pipeline.supervision.processes import Instance, WorkerSlot
from streamvos.pipeline.supervision.streams import Command, Reply, Restart, Snapshot, StreamRecord
from streamvos.pipeline.supervision.topology import RESET_STAGES, stage_name
from streamvos.pipeline.supervision.worker_pool import Context, WorkerPool
from streamvos.pipeline.telemetry.logs import without_credentials
from streamvos.pipeline.wire.messages import Array, Message
from streamvos.types import InputError, StreamvosError

CLOSE_SECONDS = 0.5
"""Time for the sinks to close their files once the drain has taken too long."""


class StreamManager:
    """All streams.

    Args:
        context: shared by all parts of the supervision.

    Attributes:
        streams: by name.
        pool: the workers; set by `Dispatcher`.
        code: the exit code, given the ends of streams so far.
    """

    pool: WorkerPool

    def __init__(self, context: Context):
        self._limits, self._topology, self._send = context.config.supervision, context.topology, context.send
        self._observation, self._log, self._clock = context.observation, context.log, context.clock
        self.streams = {one.name: StreamRecord(one) for one in context.config.streams}
        self._closing = False  # no incarnation begins any more
        self._stops: list[tuple[list[StreamRecord], Reply]] = []  # requests to end streams
        self.code = 0

    @property
    def all_over(self) -> bool:
        """Whether all streams have ended."""
        return all(stream.over for stream in self.streams.values())

    def of_worker(self, worker: WorkerSlot) -> list[StreamRecord]:
        """Streams that need a worker and are not over."""
        left = [one for one in self.streams.values() if not one.over]
        return [one for one in left if worker.name in self._topology.workers_of(one.name)]

    # ---- what happens

    def on_facts(self, facts: Mapping[str, Any]) -> None:
        """Note the facts in a worker's READY: stage -> what it found in its source."""
        for stage, found in facts.items():
            kind, _, name = stage.partition(".")
            if kind == "source":
                stream = self.streams[name]
                stream.facts, stream.tried = found, True
                stream.identity = stream.identity or found.get("identity") or {}
                stream.opened_at = stream.opened_at or self._clock()
                self._fit_masks(stream)

    def _fit_masks(self, stream: StreamRecord) -> None:
        """Fit masks that came before the size of the frames was known, and refuse those of another size."""
        for command in [one for one in stream.commands.values() if one.mask is not None and one.due is None]:
            assert command.mask is not None
            try:
                command.mask = stream.fitted(command.mask)
            except InputError as error:
                answer(stream.refused(command.number), False, error=str(error))

    def on_ready(self, worker: WorkerSlot) -> None:
        """Begin the streams for which this was the last worker to get READY."""
        for stream in self.of_worker(worker):
            if stream.closing and worker is self._worker(stream, "sinks"):  # it has opened its files again
                self.tell(stream, "sinks", "stop", drain=False)
            self._begin_if_possible(stream)

    def on_death(self, worker: WorkerSlot, reason: str) -> bool:
        """Handle the death of a worker; returns whether it is restarted."""
        streams = self.of_worker(worker)
        self._observation.died(worker.name, worker.stages, reason, [one.name for one in streams])
        for stream in [one for one in streams if one.reason]:  # already failing
            if stream.cut_at is None:
                self.end_badly(stream, stream.reason, stream.input_fault)
            elif worker is self._worker(stream, "sinks"):
                self._over(stream, unfinished=True)
            streams.remove(stream)
        for stream in streams:
            stream.trouble = without_credentials(f"{worker.name}: {reason}")
            if not stream.closing:  # else only the sinks are still needed
                stream.phase = "recovering" if stream.incarnation else "opening"
            stream.tried = stream.tried or worker.is_source
        if not streams:
            return False
        if worker.restarts.died(self._clock()):
            return True
        within = f"within {self._limits.restart_window:g} s (max_restarts)"
        for stream in streams:
            self.end_badly(stream, f"{worker.name} died too often {within}, last: {reason}")
        return False

    def on_message(self, message: Message) -> None:
        """Handle a stage's message about its stream."""
        stream = self.streams.get(message.stream)
        if stream is None or stream.over:
            return
        kind = message.kind
        if kind == "reset_done":
            self._reset_done(stream, message)
        elif kind == "ack":
            self._observation.frames(stream.name, message.incarnation, message.get("frames", []))
            self._release(stream, stream.acknowledge(message.seq))
        elif kind == "origin":
            stream.origin = int(message["origin"])
        elif kind == "skipped":
            self._observation.skipped(stream.name)
            self._release(stream, stream.acknowledge(message.seq))
        elif kind == "snapshot" and message.incarnation == stream.incarnation:
            snapshot = Snapshot(message.seq, message["slot"], message.arrays["snapshot"])
            self._release(stream, stream.add_snapshot(snapshot))
        elif kind == "applied" and (not stream.lossless or message.incarnation == stream.incarnation):
            answer(stream.applied(message["number"], message.seq), True, seq=message.seq)
            self._observation.mark("command applied", stream.name, seq=message.seq)
            self._log.event("applied", stream=stream.name, seq=message.seq, number=message["number"])
        elif kind == "refused":
            answer(stream.refused(message["number"]), False, error=message["error"])
            self._log.event("refused", "warning", stream=stream.name, error=message["error"])
        elif kind == "sink_failed":
            stream.failed_sinks[str(message["sink"])] = str(message["error"])
            self._log.event(
                "sink_failed", "error", stream=stream.name, sink=message["sink"], error=message["error"]
            )
        elif kind == "ended":
            self._over(stream)

    def watch(self) -> None:
        """Recover streams that stand still though no stage works: a message was lost on a network."""
        now = self._clock()
        for stream in self.streams.values():
            if stream.phase == "ending":
                self._watch_end(stream, now)
            elif stream.phase == "running" and not stream.paused and self._no_stage_works(stream):
                if now - stream.progress_at > self._limits.hang_timeout:
                    self._log.event("stuck", "warning", stream=stream.name)
                    self._observation.interrupted(stream.name)
                    stream.phase = "recovering"
                    self._begin_if_possible(stream)
            else:
                stream.progress_at = now

    def _watch_end(self, stream: StreamRecord, now: float) -> None:
        """End a stream that takes too long to end."""
        if stream.cut_at is not None:
            if now - stream.cut_at > CLOSE_SECONDS:
                self._over(stream, unfinished=True)
        elif self._observation.waiting(stream.name) is not None:  # such as for space on a disk
            stream.progress_at = now
        elif now - stream.progress_at > self._limits.hang_timeout:
            self.end_badly(stream, stream.reason or "it did not end when it was asked to", stream.input_fault)

    # ---- incarnations

    def _begin_if_possible(self, stream: StreamRecord) -> None:
        """Begin a new incarnation of a stream, if all its workers are READY."""
        if self._closing or stream.facts is None or stream.phase in ("running", "ending", "over"):
            return
        if not all(self.pool.workers[name].is_ready for name in self._topology.workers_of(stream.name)):
            return
        memory = self._instance(stream, "memory")
        keeps = not stream.lossless and memory is not None and stream.memory_identity == memory.identity
        snapshot = stream.restart_from(keeps)
        if stream.lossless:
            stream.drop_uncommitted()
        number = stream.begin()
        stream.next_seq = 0 if stream.lossless else max(stream.next_seq, stream.acked + 1)
        stream.memory_restart = Restart(keeps, snapshot)
        for kind in RESET_STAGES:
            if kind != "memory":  # its reset needs to know what the sinks have written
                self.tell(stream, kind, "reset", stream.next_seq, facts=stream.facts)
        self._log.event("incarnation", stream=stream.name, incarnation=number)
        self._observation.mark("incarnation", stream.name, incarnation=number)

    def _reset_memory(self, stream: StreamRecord, written: int) -> None:
        """Reset the memory, and send it the commands since its snapshot.

        Frames before `written` are written, so commands can no longer be applied to them.
        """
        assert stream.memory_restart is not None
        keeps, snapshot = stream.memory_restart
        stream.memory_restart = None
        memory = self._instance(stream, "memory")
        # now, not when the incarnation began: until here the memory has no state that it could keep
        stream.memory_identity = None if memory is None else memory.identity
        commands = stream.commands_after(snapshot, keeps)
        self.tell(
            stream,
            "memory",
            "reset",
            stream.next_seq if snapshot is None else snapshot.seq,
            {} if snapshot is None else {"snapshot": snapshot.array},
            facts=stream.facts,
            keep=keeps,
            taken=stream.taken,
            commands=len(commands),
            written=written if stream.lossless else 0,
        )
        for command in commands:
            self.send_command(stream, command)

    def _reset_done(self, stream: StreamRecord, message: Message) -> None:
        if message.incarnation != stream.incarnation:
            return  # the answer to an older reset
        kind = message["stage"].partition(".")[0]
        if kind == "sinks" and stream.memory_restart:
            for number, seq in message.get("obeyed", []):  # the memory died before it could report them
                answer(stream.applied(number, seq), True, seq=seq)
            self._reset_memory(stream, max(message["next"], stream.acked + 1))
        if kind == "sinks":
            stream.sinks_next = message["next"]
        elif kind == "memory":
            stream.fresh = message["fresh"]
        if kind == "memory" and stream.lossless:
            stream.next_seq = message["next"]
        elif kind in ("memory", "sinks") and not stream.lossless:  # never a frame of an earlier life again
            stream.next_seq = max(stream.next_seq, message["next"])
        stream.awaiting.discard(kind)
        if stream.phase == "resetting" and not stream.awaiting:
            self._start(stream)

    def _start(self, stream: StreamRecord) -> None:
        """Start the source, since all other stages have answered the reset."""
        stream.phase, stream.progress_at = "running", self._clock()
        start: dict[str, Any] = {"next": stream.next_seq, "fresh": stream.fresh, "written": stream.sinks_next}
        self.tell(stream, "source", "start", **start, origin=stream.origin, identity=stream.identity)
        if stream.stopping:  # a worker died after the source had been told
            self.ask_to_end(stream)
        elif stream.paused:
            self.tell(stream, "source", "pause")

    def _release(self, stream: StreamRecord, slots: Iterable[int]) -> None:
        """Note progress: give back slots of snapshots to the memory, and frames to the source."""
        for slot in slots:
            self.tell(stream, "memory", "release", slot=slot)
        stream.progress_at = self._clock()
        if stream.releasable > stream.released:
            stream.released = stream.releasable
            self.tell(stream, "source", "release", stream.released)

    def _no_stage_works(self, stream: StreamRecord) -> bool:
        """Whether frames are on their way, but no stage reports that it works on one."""
        beats: dict[str, Any] = {}
        for name in self._topology.workers_of(stream.name):
            current = self.pool.workers[name].current
            beats |= {} if current is None else current.beat.get("stages", {})
        own = [beats.get(stage_name(kind, stream.name), {}) for kind in (*RESET_STAGES, "source")]
        sent = own[-1].get("sent", -1)
        return sent > stream.acked and not any(one.get("busy_since") or one.get("writing") for one in own)

    # ---- ends

    def close(self) -> None:
        """End all streams in order."""
        self._closing = True
        for stream in self.streams.values():
            self.ask_to_end(stream)

    def cut_short(self) -> None:
        """Close the sinks with the frames they have, since the drain takes too long."""
        now = self._clock()
        for stream in self.streams.values():
            if not stream.over and stream.cut_at is None:
                stream.cut_at = now
                self._log.event("cut_short", "warning", stream=stream.name)
                self._close_sinks(stream)

    def source_failed(self, stream: StreamRecord, reason: str, ended: bool, input_fault: bool = True) -> None:
        """A source cannot go on; if it has sent `end`, frames on their way are still written."""
        if stream.phase != "running" or not ended:
            self.end_badly(stream, reason, input_fault)
            return
        stream.phase, stream.reason, stream.input_fault = "ending", reason, input_fault

    def end_badly(self, stream: StreamRecord, reason: str, input_fault: bool = False) -> None:
        """End a stream that cannot go on; its files are closed with the frames they have."""
        if stream.over or stream.cut_at is not None:
            return
        stream.input_fault, stream.reason = input_fault, reason
        stream.cut_at = self._clock()
        self._close_sinks(stream)

    def ask_to_end(self, stream: StreamRecord) -> None:
        """End a stream in order; if it is not running, its files are closed with the frames they have."""
        stream.stopping = True
        if stream.phase == "running":
            stream.phase = "ending"
            self.tell(stream, "source", "stop")
        elif not stream.over and stream.phase != "ending":
            self._close_sinks(stream)

    def reply_when_over(self, streams: list[StreamRecord], reply: Reply) -> None:
        """Answer a user when these streams have ended."""
        self._stops.append((streams, reply))
        self._answer_stops()

    def _answer_stops(self) -> None:
        for streams, reply in self._stops:
            if all(stream.over for stream in streams):
                failed = [f"stream {one.name} has failed: {one.reason}" for one in streams if one.reason]
                answer(reply, not failed, **({"error": "; ".join(failed)} if failed else {}))
        self._stops = [one for one in self._stops if not all(stream.over for stream in one[0])]

    def _close_sinks(self, stream: StreamRecord) -> None:
        """Close the sinks with the frames they have; those that are being restarted, when they are ready."""
        stream.phase, stream.closing = "ending", True
        worker = self._worker(stream, "sinks")
        if worker.is_ready:
            self.tell(stream, "sinks", "stop", drain=False)
            return
        returns = worker.current is not None or (worker.start_at is not None and not self.pool.leaving)
        if not stream.has_files or stream.cut_at is not None or not returns:
            self._over(stream, unfinished=True)

    def _over(self, stream: StreamRecord, unfinished: bool = False) -> None:
        """Note that a stream has ended; a reason means that it failed.

        Args:
            stream: the stream.
            unfinished: its sinks have not said that they closed their files.
        """
        failures = [f"the {kind} sink failed: {error}" for kind, error in stream.failed_sinks.items()]
        if unfinished and stream.has_files:
            cause = f" ({stream.trouble})" if stream.trouble else ""
            failures.append(
                f"its sinks did not finish their files{cause}; what they have is in partial files"
            )
        reason = stream.reason = without_credentials("; ".join(filter(None, (stream.reason, *failures))))
        stream.phase = "over"
        self.tell(stream, "memory", "over")
        for command in stream.commands.values():
            answer(command.reply, False, error=f"stream {stream.name} has ended")
        stream.commands.clear()
        self._answer_stops()
        if reason:
            self.code = max(self.code, 2 if stream.input_fault else 1)
        self._log.event("over", "error" if reason else "info", stream=stream.name, reason=reason)
        for name in self._topology.workers_of(stream.name):
            if not self.of_worker(self.pool.workers[name]):
                self.pool.retire(name)

    def take_cleared(self) -> list[str]:
        """Names of streams that are over and whose own workers are gone; each is returned once."""
        found = []
        for stream in self.streams.values():
            workers = [self.pool.workers[name] for name in self._topology.workers_of(stream.name)]
            if stream.over and not stream.cleared and not any(w.retired and w.instances for w in workers):
                stream.cleared = True
                found.append(stream.name)
        return found

    # ---- what is sent

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
        instance = self._instance(stream, kind)
        if instance is not None:
            fields["stage"] = stage_name(kind, stream.name)
            self._send(instance, Message(what, stream.name, stream.incarnation, seq, fields, arrays or {}))

    def _instance(self, stream: StreamRecord, kind: str) -> Instance | None:
        return self._worker(stream, kind).current

    def _worker(self, stream: StreamRecord, kind: str) -> WorkerSlot:
        return self.pool.of_stage(stage_name(kind, stream.name))


def answer(reply: Reply | None, ok: bool, **fields: Any) -> None:
    """Answer a user, if one is waiting."""
    if reply is not None:
        with contextlib.suppress(StreamvosError):
            reply(ok, **fields)
