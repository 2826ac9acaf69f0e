"""How streams end: in order, with the frames they have, or badly (docs/protocol.md, 6)."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import Any

from streamvos.pipeline.supervision.stage_link import StageLink
from streamvos.pipeline.supervision.streams import Reply, StreamRecord
from streamvos.pipeline.supervision.worker_pool import Context, WorkerPool
from streamvos.pipeline.telemetry.logs import without_credentials
from streamvos.types import StreamvosError

CLOSE_SECONDS = 0.5
"""Time for the sinks to close their files once the drain has taken too long."""


class Endings:
    """The ends of all streams.

    Args:
        context: shared by all parts of the supervision.
        pool: the workers.
        link: the stages.
        streams: all streams, by name.

    Attributes:
        all_asked: the pipeline was asked to end with its streams, and takes no further ones.
        closing: no incarnation begins any more.
    """

    def __init__(
        self, context: Context, pool: WorkerPool, link: StageLink, streams: Mapping[str, StreamRecord]
    ):
        self._pool, self._link, self._streams = pool, link, streams
        self._limits = context.config.supervision
        self._observation, self._log, self._clock = context.observation, context.log, context.clock
        self._keep = context.config.keep
        self.all_asked = self.closing = False
        self._stops: list[tuple[list[StreamRecord], Reply]] = []  # requests to end streams

    @property
    def all_over(self) -> bool:
        """Whether the pipeline ends: all streams have ended, and those that were removed are gone."""
        going = any(not stream.over or stream.leaves for stream in self._streams.values())
        return not going and (self.all_asked or not self._keep)

    @property
    def code(self) -> int:
        """The exit code of the pipeline, given the ends of its streams so far."""
        failed = [stream for stream in self._streams.values() if stream.over and stream.reason]
        return max((2 if stream.input_fault else 1 for stream in failed), default=0)

    def close(self) -> None:
        """End all streams in order, and begin no incarnation any more."""
        self.closing = True
        self.ask_all()

    def ask_all(self) -> list[StreamRecord]:
        """End the pipeline: all streams, in order; returns those that have not ended yet."""
        self.all_asked = True
        left = [stream for stream in self._streams.values() if not stream.over]
        for stream in left:
            self.ask_to_end(stream)
        return left

    def cut_short(self) -> None:
        """Close all sinks with the frames they have, since the drain takes too long."""
        for stream in self._streams.values():
            self.cut(stream)

    def cut(self, stream: StreamRecord) -> None:
        """Close the sinks of a stream with the frames they have."""
        if not stream.over and stream.cut_at is None:
            stream.stopping, stream.cut_at = True, self._clock()
            self._log.event("cut_short", "warning", stream=stream.name)
            self._close_sinks(stream)

    def watch(self, stream: StreamRecord) -> None:
        """End a stream that takes too long to end."""
        now = self._clock()
        if stream.cut_at is not None:
            if now - stream.cut_at > CLOSE_SECONDS:
                self.over(stream, unfinished=True)
        elif self._observation.waiting(stream.name) is not None:  # such as for space on a disk
            stream.progress_at = now
        elif now - stream.progress_at > self._limits.hang_timeout:
            self.end_badly(stream, stream.reason or "it did not end when it was asked to", stream.input_fault)

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
            self._link.tell(stream, "source", "stop")
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
        worker = self._link.worker(stream, "sinks")
        if worker.is_ready:
            self._link.tell(stream, "sinks", "stop", drain=False)
            return
        returns = worker.current is not None or (worker.start_at is not None and not self._pool.leaving)
        if not stream.has_files or stream.cut_at is not None or not returns:
            self.over(stream, unfinished=True)

    def over(self, stream: StreamRecord, unfinished: bool = False) -> None:
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
        self._link.tell(stream, "memory", "over")
        for command in stream.commands.values():
            answer(command.reply, False, error=f"stream {stream.name} has ended")
        stream.commands.clear()
        self._answer_stops()
        self._log.event("over", "error" if reason else "info", stream=stream.name, reason=reason)
        for worker in self._link.workers_of(stream):
            if not self._link.of_worker(worker):
                self._pool.retire(worker.name)

    def remove(self, stream: StreamRecord, at_once: bool, reply: Reply) -> None:
        """End a stream that is then forgotten, and then answer the user."""
        stream.removing.append(reply)
        if at_once:
            self.cut(stream)
        elif not stream.over:
            self.ask_to_end(stream)

    def take_cleared(self) -> list[str]:
        """Names of streams that are over and whose own workers are gone; each is returned once."""
        found = []
        for stream in self._streams.values():
            workers = self._link.workers_of(stream)
            if stream.over and not stream.cleared and not any(w.retired and w.instances for w in workers):
                stream.cleared = True
                found.append(stream.name)
        return found


def answer(reply: Reply | None, ok: bool, **fields: Any) -> None:
    """Answer a user, if one is waiting."""
    if reply is not None:
        with contextlib.suppress(StreamvosError):
            reply(ok, **fields)
