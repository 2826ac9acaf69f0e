"""The streams of a pipeline: how they begin, and recover from a snapshot (docs/protocol.md, 5 and 7).

The `on_...` methods are called when something has happened; each death leads to a new incarnation. How
streams end is in `endings`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from streamvos.pipeline.supervision.endings import Endings, answer
from streamvos.pipeline.supervision.processes import WorkerSlot
from streamvos.pipeline.supervision.stage_link import StageLink
from streamvos.pipeline.supervision.streams import Restart, Snapshot, StreamRecord
from streamvos.pipeline.supervision.topology import RESET_STAGES
from streamvos.pipeline.supervision.worker_pool import Context, WorkerPool
from streamvos.pipeline.telemetry.logs import without_credentials
from streamvos.pipeline.wire.messages import Message
from streamvos.types import InputError


class StreamManager:
    """All streams.

    Args:
        context: shared by all parts of the supervision.
        pool: the workers.

    Attributes:
        streams: by name.
        link: the stages of the streams.
        ends: how streams end.
    """

    def __init__(self, context: Context, pool: WorkerPool):
        self._limits, self._topology, self._pool = context.config.supervision, context.topology, pool
        self._observation, self._log, self._clock = context.observation, context.log, context.clock
        self.streams = {one.name: StreamRecord(one) for one in context.config.streams}
        self.link = StageLink(context, pool, self.streams)
        self.ends = Endings(context, pool, self.link, self.streams)

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
        for stream in self.link.of_worker(worker):
            if stream.closing and worker is self.link.worker(
                stream, "sinks"
            ):  # it has opened its files again
                self.link.tell(stream, "sinks", "stop", drain=False)
            self._begin_if_possible(stream)

    def on_death(self, worker: WorkerSlot, reason: str) -> bool:
        """Handle the death of a worker; returns whether it is restarted."""
        streams = self.link.of_worker(worker)
        self._observation.died(worker.name, worker.stages, reason, [one.name for one in streams])
        for stream in [one for one in streams if one.reason]:  # already failing
            if stream.cut_at is None:
                self.ends.end_badly(stream, stream.reason, stream.input_fault)
            elif worker is self.link.worker(stream, "sinks"):
                self.ends.over(stream, unfinished=True)
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
            self.ends.end_badly(stream, f"{worker.name} died too often {within}, last: {reason}")
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
            self.ends.over(stream)

    def watch(self) -> None:
        """Recover streams that stand still though no stage works: a message was lost on a network."""
        now = self._clock()
        for stream in self.streams.values():
            if stream.phase == "ending":
                self.ends.watch(stream)
            elif stream.phase == "running" and not stream.paused and self._no_stage_works(stream):
                if now - stream.progress_at > self._limits.hang_timeout:
                    self._log.event("stuck", "warning", stream=stream.name)
                    self._observation.interrupted(stream.name)
                    stream.phase = "recovering"
                    self._begin_if_possible(stream)
            else:
                stream.progress_at = now

    # ---- incarnations

    def _begin_if_possible(self, stream: StreamRecord) -> None:
        """Begin a new incarnation of a stream, if all its workers are READY."""
        if self.ends.closing or stream.facts is None or stream.phase in ("running", "ending", "over"):
            return
        if not all(worker.is_ready for worker in self.link.workers_of(stream)):
            return
        memory = self.link.instance(stream, "memory")
        keeps = not stream.lossless and memory is not None and stream.memory_identity == memory.identity
        snapshot = stream.restart_from(keeps)
        if stream.lossless:
            stream.drop_uncommitted()
        number = stream.begin()
        stream.next_seq = 0 if stream.lossless else max(stream.next_seq, stream.acked + 1)
        stream.memory_restart = Restart(keeps, snapshot)
        for kind in RESET_STAGES:
            if kind != "memory":  # its reset needs to know what the sinks have written
                self.link.tell(stream, kind, "reset", stream.next_seq, facts=stream.facts)
        self._log.event("incarnation", stream=stream.name, incarnation=number)
        self._observation.mark("incarnation", stream.name, incarnation=number)

    def _reset_memory(self, stream: StreamRecord, written: int) -> None:
        """Reset the memory, and send it the commands since its snapshot.

        Frames before `written` are written, so commands can no longer be applied to them.
        """
        assert stream.memory_restart is not None
        keeps, snapshot = stream.memory_restart
        stream.memory_restart = None
        memory = self.link.instance(stream, "memory")
        # now, not when the incarnation began: until here the memory has no state that it could keep
        stream.memory_identity = None if memory is None else memory.identity
        commands = stream.commands_after(snapshot, keeps)
        self.link.tell(
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
            self.link.send_command(stream, command)

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
        stream.phase, stream.started, stream.progress_at = "running", True, self._clock()
        start: dict[str, Any] = {"next": stream.next_seq, "fresh": stream.fresh, "written": stream.sinks_next}
        self.link.tell(stream, "source", "start", **start, origin=stream.origin, identity=stream.identity)
        if stream.stopping:  # a worker died after the source had been told
            self.ends.ask_to_end(stream)
        elif stream.paused:
            self.link.tell(stream, "source", "pause")

    def _release(self, stream: StreamRecord, slots: Iterable[int]) -> None:
        """Note progress: give back slots of snapshots to the memory, and frames to the source."""
        for slot in slots:
            self.link.tell(stream, "memory", "release", slot=slot)
        stream.progress_at = self._clock()
        if stream.releasable > stream.released:
            stream.released = stream.releasable
            self.link.tell(stream, "source", "release", stream.released)

    def _no_stage_works(self, stream: StreamRecord) -> bool:
        """Whether frames are on their way, but no stage reports that it works on one."""
        beats: dict[str, Any] = {}
        for worker in self.link.workers_of(stream):
            beats |= {} if worker.current is None else worker.current.beat.get("stages", {})
        own = [beats.get(self._topology.stage(kind, stream.name), {}) for kind in (*RESET_STAGES, "source")]
        sent = own[-1].get("sent", -1)
        return sent > stream.acked and not any(one.get("busy_since") or one.get("writing") for one in own)
