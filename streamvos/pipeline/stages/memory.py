"""The memory holds the target of one stream, applies users' commands and writes snapshots.

    features -> ask -> evidence -> (decoder) -> prediction -> learn

Frame t+1 is asked about only after the decoder's prediction of frame t has been learned. Users' commands are
applied at the first frame that begins after their arrival; the answer names that frame (docs/protocol.md, 7).
"""

from __future__ import annotations

import contextlib
import queue
import threading
from collections import deque
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from streamvos.masks.checks import check_label_map, describe_areas, label_areas
from streamvos.methods.background import TrainingTask
from streamvos.methods.base import Target
from streamvos.pipeline.stages.method import shared_extraction
from streamvos.pipeline.stages.serialization import (
    array_sizes,
    pack_question,
    unpack_decision,
    unpack_features,
    with_own_picture,
)
from streamvos.pipeline.stages.stage import Stage, StageContext, carried, now, remember_command
from streamvos.pipeline.wire.arenas import Arena, ArenaError
from streamvos.pipeline.wire.messages import Array, Message, Place, Refused
from streamvos.segmenter import Question, StreamState, check_mask
from streamvos.types import Annotation, Features, InputError

SNAPSHOT_ARENAS = 3
"""One committed, one waiting to be committed, one to write."""

MOST_FAILURES = 5
"""Successive failures of snapshots before the stage fails."""

_SPARE = 1.25  # of a snapshot's arena, as states grow
_SHARE = 0.02  # of its time that a live stream may spend on snapshots of a large state


@dataclass(frozen=True)
class _Frame:
    """A frame that the decoder works on."""

    message: Message
    features: Features
    question: Question
    commands: list[Message]


class MemoryStage(Stage):
    """Everything that the method remembers of one stream."""

    def __init__(self, name: str, context: StageContext):
        super().__init__(name, context)
        self._features = self.inboxes[f"{self.stream}/features"]
        self._predictions = self.inboxes[f"{self.stream}/predictions"]
        self._evidence = self.outboxes[f"{self.stream}/evidence"]
        self._asked: _Frame | None = None
        self._last = -1  # the last frame that was learned
        self._commands: deque[Message] = deque()
        self._awaited = 0  # commands that belong to the reset and have not arrived yet
        self._written = 0  # frames before this one cannot be changed any more
        self._applied_at: dict[int, int] = {}  # number of a command -> frame, since the last restart
        self._snapshots = _Snapshots(self, context)
        self._training: _BackgroundTraining | None = None

    def prepare(self) -> dict[str, Any]:
        extraction = shared_extraction(self.context)
        self._device = extraction.device
        in_background = self.context.config.method.training == "background"
        self._state = StreamState(extraction.method, self._device, defer=in_background)
        if in_background:
            self._training = _BackgroundTraining(self, self._device)
        return {}

    def reset(self, message: Message) -> dict[str, Any]:
        answer = super().reset(message)
        asked, self._asked = self._asked, None
        self._commands.clear()  # the supervisor sends again what is not yet in a snapshot
        self._awaited, self._written = message["commands"], message["written"]
        height, width = message["facts"]["size"]
        self._snapshots.reset(message, height * width * 3)
        if message["keep"] and asked is not None:
            # a mask of a frame that was never learned is given to the next one; a forgotten object stays so
            self._commands.extend(one for one in asked.commands if one["verb"] == "annotate")
            for one in self._commands:
                self._applied_at.pop(one["number"], None)
        if not (message["keep"] and self._last >= 0):
            self._state.reset()
            self._last = message.seq - 1
            self._applied_at.clear()
            if "snapshot" in message.arrays:
                self._state.restore(self._snapshots.read(message.arrays["snapshot"]))
                self._last = message.seq
        if self._state.size not in (None, (height, width)):
            before = "{1}x{0}".format(*self._state.size)
            raise InputError(
                f"{self.stream}: frames are now {width}x{height} pixels, but were {before}; set height, or "
                "start the stream again"
            )
        return {**answer, "next": self._last + 1, "fresh": not self._state.started}

    def control(self, message: Message) -> None:
        if message.kind == "command":
            self._awaited = max(0, self._awaited - 1)
            number = message["number"]
            if number in self._applied_at:  # its answer and the reset crossed each other
                self._tell_applied(number, self._applied_at[number], message.incarnation)
            elif all(one["number"] != number for one in self._commands):  # or `reset` has kept it
                self._commands.append(message)
        elif message.kind == "release":
            self._snapshots.release(message["slot"])
        elif message.kind == "over":
            self._state.reset()  # nothing needs its memory any more

    def step(self) -> float | None:
        while True:
            if self._asked is not None:
                message = self._predictions.receive()
                if message is None:
                    return None
                if message.seq == self._asked.message.seq:
                    self._learn(self._asked, message)
                self._predictions.grant(message)
                continue
            if self._awaited or not self._evidence.credit:
                return None
            message = self._features.receive()
            if message is None:
                return None
            if message.kind == "end":
                self._evidence.send("end", message.seq)
                continue
            self._begin(message)

    def close(self) -> None:
        if self._training is not None:
            self._training.close()
        super().close()

    def beat(self) -> dict[str, Any]:
        return {
            **super().beat(),
            "objects": list(self._state.object_ids),
            "snapshots": self._snapshots.written,
        }

    @torch.inference_mode()
    def _begin(self, message: Message) -> None:
        received = self.busy_since = now()
        features = unpack_features(self._features, message, self._device)
        message = with_own_picture(self._features, message)
        if self._training is not None:
            self._training.take_over(self._state.target)
        annotation, commands = self._apply_commands(message, features.size)
        self._features.grant(message)
        if not self._state.started and annotation is None:
            self.drops["no mask"] += 1
            self._last = message.seq
            self.tell("skipped", seq=message.seq, incarnation=message.incarnation)
            self.busy_since = 0
            return
        question = self._state.ask(features, annotation)
        arrays, fields = pack_question(question)
        if self._evidence.spec.mode == "shared":
            # room for the method's arrays, with some to spare for more objects
            self._evidence.allocate([int(_SPARE * size) for size in array_sizes(arrays)])
        if "image" in message.arrays:
            arrays["image"] = message.arrays["image"]
        fields |= carried(message, "memory", [received, received, now()])
        fields["commands"] = [command["number"] for command in commands]
        self._evidence.send("evidence", message.seq, fields, arrays)
        self._asked = _Frame(message, features, question, commands)
        self.busy_since = 0  # now the decoder works, or waits for the sinks

    @torch.inference_mode()
    def _learn(self, frame: _Frame, prediction: Message) -> None:
        self.busy_since = now()
        decision = unpack_decision(self._predictions, prediction, self._device)
        self._state.learn(frame.features, frame.question, decision)
        if self._training is not None:
            self._training.begin(self._state.target)
        self._asked, self._last = None, frame.message.seq
        self.frames += 1
        self._snapshots.write_if_due(self._state, frame.message, frame.question.annotation is not None)
        self.busy_since = 0

    def _apply_commands(
        self, message: Message, size: tuple[int, int]
    ) -> tuple[Annotation | None, list[Message]]:
        """Apply the commands that are due at this frame, in their order; nothing follows a mask.

        A mask takes effect when the frame is learned, so what comes after it begins with the next frame.
        """
        annotation, applied = None, []
        if "mask" in message.arrays and not self._state.started:
            # an unusable first mask ends the stream: nothing else says what to track
            annotation = self._checked(self._features.array(message, "mask"), size)
        while self._commands and annotation is None:
            command = self._commands[0]
            due = command.get("due")  # its frame in an earlier incarnation; None: the next frame
            if (self._written if due is None else due) > message.seq:
                break
            self._commands.popleft()
            try:
                if command["verb"] == "forget":
                    self._state.forget(int(command["object"]))
                else:
                    annotation = self._checked(command.arrays["mask"].numpy(), size)
            except InputError as error:
                self.tell("refused", number=command["number"], error=str(error))
                continue
            applied.append(command)
            self._tell_applied(command["number"], message.seq, message.incarnation)
        return annotation, applied

    def _checked(self, mask: np.ndarray, size: tuple[int, int]) -> Annotation:
        """A mask as an annotation; the log tells its objects."""
        annotation = check_mask(mask, size, self._device)
        self.tell("event", event="objects", given=describe_areas(label_areas(check_label_map(mask))))
        return annotation

    def _tell_applied(self, number: int, seq: int, incarnation: int) -> None:
        remember_command(self._applied_at, number, seq)
        self.tell("applied", number=number, seq=seq, incarnation=incarnation)


class _Snapshots:
    """Writes the state of a stream into shared memory from time to time."""

    def __init__(self, stage: MemoryStage, context: StageContext):
        self._stage, self._context = stage, context
        supervision = context.config.supervision
        self._seconds, self._frames = supervision.snapshot_seconds, supervision.snapshot_frames
        names = [f"{stage.stream}/snapshots.{k}" for k in range(SNAPSHOT_ARENAS)]
        self._arenas: list[Arena | None] = [context.arenas.get(name) for name in names]
        self._free = list(range(SNAPSHOT_ARENAS))
        self._written_at, self._written_seq = 0, -1
        self._lossless = context.config.stream(stage.stream).effective_policy == "lossless"
        self._failures = 0
        self._cost = 0  # duration of the last one, ns
        self.written = 0

    def reset(self, message: Message, frame_bytes: int) -> None:
        self._free = [k for k in range(SNAPSHOT_ARENAS) if k not in message["taken"]]
        self._frames = self._context.config.snapshot_frames(self._stage.stream, frame_bytes)
        self._written_at, self._written_seq = now(), message.seq

    def release(self, slot: int) -> None:
        if slot not in self._free:
            self._free.append(slot)

    def read(self, array: Array) -> bytes:
        if not isinstance(array.data, Place):
            return bytes(array.data)
        arena = self._context.arenas[array.data.arena]
        with arena.read(array.data, array.nbytes) as view:
            return bytes(view)

    def write_if_due(self, state: StreamState, message: Message, annotated: bool) -> None:
        """Save the state after a frame if it is time, or if the frame was annotated."""
        frames = message.seq - self._written_seq
        waited = now() - self._written_at
        due = frames >= self._frames or waited >= self._seconds * 1e9
        if not self._lossless:  # a lossless source releases its frames by snapshots
            due = due and waited >= self._cost / _SHARE
        if annotated or due:
            self._write(state, message)

    def _write(self, state: StreamState, message: Message) -> None:
        if not self._free:
            return  # the sinks have not yet written what the last one covers; tried again at the next frame
        began = now()
        slot = self._free.pop()
        try:
            self._stage.tell(
                "snapshot",
                seq=message.seq,
                incarnation=message.incarnation,
                slot=slot,
                arrays={"snapshot": self._placed(state.snapshot(), self._arenas[slot])},
            )
        except (ArenaError, Refused) as error:
            self._free.append(slot)
            self._failures += 1
            self._stage.tell("event", event="snapshot_failed", level="warning", error=str(error))
            if self._failures >= MOST_FAILURES and self._lossless:
                raise  # frames could no longer be released, and the stream would stop for ever
            return
        self._failures = 0
        self._written_at, self._written_seq = now(), message.seq
        self._cost = self._written_at - began
        self.written += 1

    @staticmethod
    def _placed(blob: bytes, arena: Arena | None) -> Array:
        if arena is None:  # the supervisor is on another host
            return Array("uint8", (len(blob),), blob)
        if arena.slot_bytes < len(blob):
            arena.allocate(1, int(_SPARE * len(blob)))
        generation, _ = arena.write(0, blob)
        return Array("uint8", (len(blob),), Place(arena.name, 0, generation, 0))


class _BackgroundTraining:
    """Runs the training tasks of a target in a thread of its own."""

    def __init__(self, stage: MemoryStage, device: torch.device):
        self._stage = stage
        self._side = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._todo: queue.SimpleQueue[TrainingTask | None] = queue.SimpleQueue()
        self._done: queue.SimpleQueue[TrainingTask] = queue.SimpleQueue()
        threading.Thread(target=self._train, name=f"{stage.name} training", daemon=True).start()

    def begin(self, target: Target) -> None:
        for task in target.take_tasks():
            self._todo.put(task)

    def take_over(self, target: Target) -> None:
        """Give the target its finished tasks; it ignores those that are out of date."""
        while not self._done.empty():
            target.take_over(self._done.get())

    def close(self) -> None:
        self._todo.put(None)  # a task that runs is not waited for

    def _train(self) -> None:
        with torch.inference_mode():
            while (task := self._todo.get()) is not None:
                try:
                    with torch.cuda.stream(self._side) if self._side else contextlib.nullcontext():
                        task.run()
                except Exception as error:  # the object goes on with the model it has
                    text = f"{type(error).__name__}: {error}"
                    self._stage.tell("event", event="training_failed", level="warning", error=text)
                self._done.put(task)
