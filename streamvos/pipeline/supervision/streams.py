"""The supervisor's record of one stream: its incarnation, snapshots, and users' commands.

Pure bookkeeping without sockets or clocks, so that tests can try out the race orders of docs/protocol.md.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import numpy as np

from streamvos.masks.checks import fit_label_map
from streamvos.pipeline.config.streams import StreamConfig
from streamvos.pipeline.config.tables import MethodConfig
from streamvos.pipeline.supervision.topology import RESET_STAGES
from streamvos.pipeline.wire.messages import Array

StreamPhase = Literal["opening", "resetting", "running", "recovering", "ending", "over"]
Reply = Callable[..., None]


@dataclass
class Command:
    """A user's command; numbered in the order of arrival."""

    number: int
    verb: Literal["annotate", "forget"]
    object_id: int = 0
    mask: np.ndarray | None = None
    due: int | None = None  # the frame it was applied to; None until that is known
    reply: Reply | None = None  # answers the user; None once it was called


@dataclass(frozen=True)
class Snapshot:
    """A saved state of the memory."""

    seq: int
    slot: int | None  # of the memory's; None = it came from a user
    array: Array


class Restart(NamedTuple):
    """How the memory begins an incarnation: with its present state, from a snapshot, or without a state."""

    keeps: bool
    snapshot: Snapshot | None


@dataclass
class StreamRecord:
    """Everything about one stream. Times are monotonic seconds."""

    config: StreamConfig
    method: MethodConfig | None = None  # its own; None = the pipeline's
    added: bool = False  # while the pipeline ran, so that it has workers of its own
    phase: StreamPhase = "opening"
    facts: Mapping[str, Any] | None = None  # what the source found; None before it was opened
    tried: bool = False  # opening the source has succeeded or failed at least once
    opened_at: float | None = None  # when the source was first opened
    identity: Mapping[str, Any] = field(default_factory=dict)  # of the source, when it was first opened
    origin: int | None = None  # when the time stamps of a live source began, in its host's monotonic ns
    # this incarnation
    incarnation: int = 0  # 0 before the first
    awaiting: set[str] = field(default_factory=set)  # kinds of stages that have not answered the reset
    memory_restart: Restart | None = None  # until the sinks have reported what they have written
    memory_identity: bytes | None = None  # the instance whose memory was reset last
    next_seq: int = 0  # the source's first frame
    sinks_next: int = 0  # frames before this one have reached the sinks
    fresh: bool = True  # the memory needs the first mask again
    # progress
    acked: int = -1  # frames up to this one have been written; -1 = none
    released: int = -1  # the source need not keep frames up to this one
    progress_at: float = 0.0  # the last sign of progress
    snapshots: list[Snapshot] = field(default_factory=list)  # not committed yet
    committed: Snapshot | None = None
    commands: dict[int, Command] = field(default_factory=dict)  # not in a committed snapshot yet, by number
    trouble: str = ""  # why one of its workers died last
    # pause and end
    paused: bool = False
    stopping: bool = False  # a user or a signal has asked it to end
    closing: bool = False  # its sinks close with the frames they have, as soon as they are ready
    failed_sinks: dict[str, str] = field(default_factory=dict)  # kind -> error; the others went on
    cut_at: float | None = None  # when the sinks were asked to close at once
    reason: str = ""  # why it failed; "" if it did not
    input_fault: bool = False  # the reason is a fault of the user's input
    cleared: bool = False  # its shared memory has been given back
    started: bool = False  # its source has been told to begin at least once
    adding: Reply | None = None  # answers who added it; None once that has been done
    removing: list[Reply] = field(default_factory=list)  # answer those who removed it

    @property
    def name(self) -> str:
        """The stream's name."""
        return self.config.name

    @property
    def lossless(self) -> bool:
        """Whether its policy is "lossless"."""
        return self.config.effective_policy == "lossless"

    @property
    def over(self) -> bool:
        """Whether it has ended."""
        return self.phase == "over"

    @property
    def has_begun(self) -> bool:
        """Whether whoever added it can be told so: it runs, or waits for a live source to come back."""
        waits = self.config.live and self.tried and self.facts is None
        return self.started or (waits and not self.over)

    @property
    def leaves(self) -> bool:
        """Whether it is forgotten once it is over: it was removed, or could not begin."""
        return bool(self.removing) or (self.over and self.adding is not None and not self.has_begun)

    @property
    def has_files(self) -> bool:
        """Whether its sinks have begun files."""
        return self.incarnation > 0 and any(sink.path is not None for sink in self.config.sinks)

    @property
    def activity(self) -> str:
        """What it does, in a word for messages."""
        return "paused" if self.paused else self.phase

    def state(self, waits: bool) -> str:
        """The stream's state in `status`; `waits`: whether a stage waits for its source or a disk."""
        if self.over:
            return "failed" if self.reason else "ended"
        if self.phase == "running" and self.paused:
            return "paused"
        if self.phase in ("running", "ending"):
            return "waiting" if waits else "running"
        return "recovering" if self.phase == "recovering" or self.incarnation > 1 else "starting"

    # ---- incarnations

    def begin(self) -> int:
        """Begin a new incarnation and return its number; messages of earlier ones no longer count."""
        self.incarnation += 1
        self.awaiting = set(RESET_STAGES)
        self.phase = "resetting"
        return self.incarnation

    def restart_from(self, memory_lives: bool) -> Snapshot | None:
        """The snapshot to go on from; None = the beginning, or (live) the state that the memory still has.

        Under "lossless" it is the committed one, after which the source has all frames; else the newest one.
        """
        if self.lossless:
            return self.committed
        if memory_lives:
            return None
        return self.newest_snapshot

    # ---- snapshots

    def go_on_from(self, seq: int, state: bytes) -> None:
        """Begin with a state that a user has, instead of without one; not under "lossless"."""
        self.committed = Snapshot(seq, None, Array("uint8", (len(state),), state))
        self.acked, self.next_seq = seq, seq + 1

    @property
    def newest_snapshot(self) -> Snapshot | None:
        """The newest saved state, whether what it covers is written or not."""
        return self.snapshots[-1] if self.snapshots else self.committed

    @property
    def taken(self) -> list[int]:
        """Slots that hold a snapshot."""
        kept = [*self.snapshots, *([self.committed] if self.committed else [])]
        return sorted({one.slot for one in kept if one.slot is not None})

    def add_snapshot(self, snapshot: Snapshot) -> list[int]:
        """Add a saved snapshot; returns the slots that became free."""
        self.snapshots.append(snapshot)
        return self._commit()

    def acknowledge(self, seq: int) -> list[int]:
        """Note that the sinks have written all frames up to `seq`; returns the slots that became free."""
        self.acked = max(self.acked, seq)
        return self._commit()

    def drop_uncommitted(self) -> None:
        """Forget the snapshots after the committed one, since the frames are computed again from there."""
        self.snapshots.clear()

    def _commit(self) -> list[int]:
        ready = [one for one in self.snapshots if not self.lossless or one.seq <= self.acked]
        if not ready:
            return []
        newest = max(ready, key=lambda one: one.seq)
        old = [one for one in ready if one is not newest] + ([self.committed] if self.committed else [])
        gone = [one.slot for one in old if one.slot is not None]
        self.snapshots = [one for one in self.snapshots if one not in ready]
        self.committed = newest
        covered = [n for n, c in self.commands.items() if c.due is not None and c.due <= newest.seq]
        for number in covered:
            del self.commands[number]
        return gone

    @property
    def releasable(self) -> int:
        """The source need not keep frames up to this one; -1 = it must keep all."""
        if not self.lossless:
            return self.acked
        return -1 if self.committed is None else self.committed.seq

    # ---- commands

    def fitted(self, mask: np.ndarray) -> np.ndarray:
        """A mask at the size of the frames; as it is while the source is not open.

        Raises:
            InputError: it has another size.
        """
        if self.facts is None:
            return mask
        size = tuple(self.facts["size"])
        return fit_label_map(mask, size, tuple(self.facts.get("native_size", size)))

    def commands_after(self, snapshot: Snapshot | None, memory_keeps: bool) -> list[Command]:
        """The commands that the memory needs again, in order."""
        if memory_keeps:
            return [one for one in self.commands.values() if one.due is None]
        after = -1 if snapshot is None else snapshot.seq
        return [one for one in self.commands.values() if one.due is None or one.due > after]

    def applied(self, number: int, seq: int) -> Reply | None:
        """Note that a command was applied to a frame; returns the waiting user's reply function."""
        command = self.commands.get(number)
        if command is None:
            return None
        for earlier in self.commands.values():
            # commands apply in order: this one was refused, and its memory died before it could say so
            if earlier.number < number and earlier.due is None:
                earlier.due = seq
        command.due = seq
        reply, command.reply = command.reply, None
        if self.committed is not None and seq <= self.committed.seq:
            del self.commands[number]
        return reply

    def refused(self, number: int) -> Reply | None:
        """Note that a command could not be applied; returns the waiting user's reply function."""
        command = self.commands.pop(number, None)
        return None if command is None else command.reply
