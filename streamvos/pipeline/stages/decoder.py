"""The decoder turns evidence into masks, which the memory learns and the sinks write."""

from __future__ import annotations

import torch

from streamvos.pipeline.stages.method import shared_extraction
from streamvos.pipeline.stages.serialization import pack_decision, unpack_question, with_own_picture
from streamvos.pipeline.stages.stage import Stage, StageContext, carried, now
from streamvos.pipeline.wire.messages import Message
from streamvos.segmenter import Decision, decide, make_result


class DecoderStage(Stage):
    """Its only state is a result that waits for the sinks' credit."""

    def __init__(self, name: str, context: StageContext):
        super().__init__(name, context)
        self._evidence = self.inboxes[f"{self.stream}/evidence"]
        self._predictions = self.outboxes[f"{self.stream}/predictions"]
        self._results = self.outboxes[f"{self.stream}/results"]
        self._waiting: tuple[Message, Decision, list[int]] | None = None
        self._ended: Message | None = None
        self._wants_objects = context.config.stream(self.stream).shows_objects

    def prepare(self) -> dict[str, object]:
        extraction = shared_extraction(self.context)
        self._method, self._device = extraction.method, extraction.device
        return {}

    def reset(self, message: Message) -> dict[str, object]:
        self._waiting = self._ended = None
        height, width = message["facts"]["size"]
        self._results.allocate([height * width])
        self._predictions.allocate([3 * 4 * height * width])  # two objects; slots grow for more
        return super().reset(message)

    def step(self) -> float | None:
        while True:
            if self._waiting is not None:
                if not self._results.credit:
                    return None
                self._send_result(*self._waiting)
                self._waiting = None
            if self._ended is not None:
                self._results.send("end", self._ended.seq)
                self._ended = None
            if not self._predictions.credit:
                return None
            message = self._evidence.receive()
            if message is None:
                return None
            if message.kind == "end":
                self._ended = message
                continue
            self._decide(message)

    @torch.inference_mode()
    def _decide(self, message: Message) -> None:
        received = self.busy_since = now()
        question = unpack_question(self._evidence, message, self._device)
        started = now()
        message = with_own_picture(self._evidence, message)
        decision = decide(self._method, question)
        arrays, fields = pack_decision(decision)
        self._evidence.grant(message)
        self._predictions.send("prediction", message.seq, fields, arrays)
        self._waiting = (message, decision, [received, started])
        self.frames += 1
        self.busy_since = 0

    @torch.inference_mode()
    def _send_result(self, message: Message, decision: Decision, stamps: list[int]) -> None:
        self.busy_since = now()
        sure = self._method.options.uncertain_below
        result = make_result(decision.shown(), decision.object_ids, message.seq, sure)
        objects = None
        if self._wants_objects:
            objects = [[o.id, o.score, o.state, o.box, o.area] for o in result.objects.values()]
        fields = carried(message, "decoder", [*stamps, now()])
        arrays: dict[str, object] = {"mask": result.mask}
        if "image" in message.arrays:
            arrays["image"] = message.arrays["image"]
        self._results.send(
            "result", message.seq, {**fields, "ids": list(decision.object_ids), "objects": objects}, arrays
        )
        self.busy_since = 0
