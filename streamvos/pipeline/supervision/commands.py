"""Users' commands: masks, objects to forget, pauses, stops (docs/protocol.md, 7 and 8).

    commands = Commands(dispatcher)                       # `control.ControlServer` calls it
    commands.annotate("front", mask, reply)

A command is numbered, sent to the memory, and stored with its stream until a committed snapshot covers it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from streamvos.masks.checks import MASK_BYTES
from streamvos.pipeline.supervision.additions import Addition
from streamvos.pipeline.supervision.dispatcher import Dispatcher
from streamvos.pipeline.supervision.streams import Command, Reply, StreamRecord
from streamvos.types import InputError

MOST_COMMANDS = 64
"""Maximum number of commands of one stream that have not been applied yet."""

MOST_MASK_BYTES = MASK_BYTES
"""Maximum size of the masks of one stream that no saved state holds yet."""


class Commands:
    """Carries out users' commands; each raises InputError if the stream does not exist or has ended."""

    def __init__(self, dispatcher: Dispatcher):
        self._dispatcher, self._manager = dispatcher, dispatcher.manager
        self._numbers = 0

    def status(self) -> Mapping[str, Any]:
        """The state of all streams and workers."""
        return self._dispatcher.status()

    def annotate(self, stream: str, mask: np.ndarray, reply: Reply) -> None:
        """Apply a mask to the next frame.

        Raises:
            InputError: the mask has another size than the frames, or too many commands or masks are waiting.
                While the source is not open, the size is not known, and the reply comes later.
        """
        record = self._running(stream)
        mask = record.fitted(mask)
        held = sum(one.mask.nbytes for one in record.commands.values() if one.mask is not None)
        if held + mask.nbytes > MOST_MASK_BYTES:
            raise InputError(
                f"masks of {held / 2**20:.0f} MiB wait already for {stream}, which is {record.activity}; at "
                f"most {MOST_MASK_BYTES / 2**20:.0f} MiB may wait, so send this one later"
            )
        self._take_command(record, "annotate", reply, mask=mask.copy())  # it is a view of the message

    def forget(self, stream: str, object_id: int, reply: Reply) -> None:
        """Stop tracking an object."""
        self._take_command(self._running(stream), "forget", reply, object_id=object_id)

    def pause(self, stream: str) -> None:
        """Stop reading frames until `resume`."""
        self._set_paused(stream, True)

    def resume(self, stream: str) -> None:
        """Read frames again."""
        self._set_paused(stream, False)

    def stop(self, stream: str, reply: Reply) -> None:
        """End a stream, or with "" all streams; the reply comes when they have ended."""
        ends = self._manager.ends
        if stream:
            records = [self._running(stream)]
            ends.ask_to_end(records[0])
        else:
            records = ends.ask_all()
        ends.reply_when_over(records, reply)

    def add_stream(
        self,
        table: Mapping[str, Any],
        method: Mapping[str, Any] | None,
        files: bool,
        reply: Reply,
        state: tuple[int, bytes] | None = None,
    ) -> None:
        """Add a stream; the reply comes when it has begun, or cannot."""
        self._dispatcher.additions.request(Addition(table, method, files, reply, state))

    def snapshot(self, stream: str) -> tuple[int, bytes]:
        """The newest saved state of a stream, and after which frame it was saved.

        Raises:
            InputError: there is none, or it is too large to be sent.
        """
        return self._dispatcher.snapshot_of(self._known(stream))

    def remove_stream(self, stream: str, at_once: bool, reply: Reply) -> None:
        """End a stream, and forget it; the reply comes when nothing of it is left."""
        self._manager.ends.remove(self._known(stream), at_once, reply)

    def _set_paused(self, stream: str, paused: bool) -> None:
        record = self._running(stream)
        record.paused = paused
        self._manager.link.tell(record, "source", "pause" if paused else "resume")

    def _known(self, name: str) -> StreamRecord:
        record = self._manager.streams.get(name)
        if record is None and name in self._dispatcher.additions.waiting:
            raise InputError(f"stream {name} is still being checked, and not added yet")
        if record is None:
            names = ", ".join(self._manager.streams) or "none"
            raise InputError(f"there is no stream {name!r:.100}; there are: {names}")
        return record

    def _running(self, name: str) -> StreamRecord:
        record = self._known(name)
        if record.over:
            raise InputError(f"stream {name} has ended{': ' + record.reason if record.reason else ''}")
        return record

    def _take_command(self, stream: StreamRecord, verb: Any, reply: Reply, **more: Any) -> None:
        waiting = [one for one in stream.commands.values() if one.due is None]
        if len(waiting) >= MOST_COMMANDS:
            raise InputError(
                f"{len(waiting)} commands wait already for the next frame of {stream.name}, which is "
                f"{stream.activity}; resume it, or wait"
            )
        self._numbers += 1
        command = Command(self._numbers, verb, reply=reply, **more)
        stream.commands[command.number] = command
        if stream.phase not in ("opening", "recovering") and stream.memory_restart is None:
            # else it is sent with the next reset
            self._manager.link.send_command(stream, command)
