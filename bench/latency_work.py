"""What a process of `bench latency` does: a stream of its own, some frames per turn.

JOBS["begin"](method="tvos", ...)         # {"first_frame_ms": ..., "threads": ...}
JOBS["turn"](seconds=2.0)                 # {"values": [ms], "stages": {...}, "samples": [[s, MiB]]}
JOBS["end"]()                             # {"peak_mib": ..., "state_mib": ...}
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

import streamvos
import streamvos.segmenter.segmenter as step_module
from streamvos.methods import Method
from streamvos.nn.resnet import BasicBlock, Bottleneck
from streamvos.segmenter.state import Decision, Question

from .machine import memory_mib
from .scenes import Scene

RESIDUAL = 0.2
SAMPLE_SECONDS = 0.5


def bounded(method: Method) -> Method:
    """Random residual branches scaled down; their sum grows with the depth, beyond what float32 holds."""
    for block in method.networks.modules():
        if isinstance(block, (BasicBlock, Bottleneck)):
            last = block.bn3 if isinstance(block, Bottleneck) else block.bn2
            last.weight.data.mul_(RESIDUAL)
    return method


class Stages:
    """How long the parts of a step take: extract, read, decode, remember, and making the label map.

    On a GPU, events in its queue tell, and are read when the mask is on the host.
    """

    NAMES = ("extract", "read", "decode", "remember", "label map")

    def __init__(self, device: torch.device) -> None:
        self._cuda = device.type == "cuda"
        self._marks: list[tuple[str, Any, Any]] = []

    def timed(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        """`call`, whose time counts as `name`; also a range of profilers."""

        def run(*arguments: Any) -> Any:
            with torch.profiler.record_function(name):
                start = self._mark()
                answer = call(*arguments)
                self._marks.append((name, start, self._mark()))
            return answer

        return run

    def take(self) -> dict[str, float]:
        """Milliseconds of every stage since the last call; on a GPU the last operation must be done."""
        found: dict[str, float] = defaultdict(float)
        for name, start, end in self._marks:
            found[name] += start.elapsed_time(end) if self._cuda else 1e3 * (end - start)
        self._marks.clear()
        return found

    def _mark(self) -> Any:
        if not self._cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event


class Stream:
    """One stream, and the clock before it."""

    def __init__(
        self,
        method: str,
        weights: str | None,
        backend: str,
        device: str,
        options: dict[str, Any],
        size: Sequence[int],
        objects: int,
    ) -> None:
        torch.manual_seed(0)
        self.segmenter = streamvos.load(method, weights, device, backend, **options)
        self.method, self.device = self.segmenter.method, self.segmenter.device
        self.engines = self.segmenter.extraction.engines
        if weights is None:
            bounded(self.method)
        self._scene, self._objects, self._t = Scene((size[0], size[1]), objects), objects, 0
        self._give_truth = weights is None
        self._truth: np.ndarray | None = None
        self.stages = Stages(self.device)
        self._measure_stages()
        self._began = time.monotonic()
        self._sampled = -SAMPLE_SECONDS

    def frame(self) -> tuple[float, dict[str, float]]:
        """The next frame: milliseconds in all, and of every stage."""
        image, self._truth = self._scene.frame(self._t)
        mask = self._truth if self._t == 0 else None
        self._t += 1
        self.wait()
        started = time.perf_counter()
        self.segmenter.step(image, mask)
        return 1e3 * (time.perf_counter() - started), self.stages.take()

    def turn(self, seconds: float) -> dict[str, Any]:
        """Frames for so many seconds, at least one, after one with cold caches that does not count."""
        self.frame()
        values: list[float] = []
        stages: dict[str, list[float]] = {name: [] for name in Stages.NAMES}
        samples: list[tuple[float, float]] = []
        end = time.monotonic() + seconds
        while not values or time.monotonic() < end:
            milliseconds, parts = self.frame()
            values.append(milliseconds)
            for name, value in parts.items():
                stages[name].append(value)
            at = time.monotonic() - self._began
            if at - self._sampled >= SAMPLE_SECONDS:
                self._sampled = at
                samples.append((at, self.memory()))
        return {"values": values, "stages": {k: v for k, v in stages.items() if v}, "samples": samples}

    def memory(self, peak: bool = False) -> float:
        """MiB, of the GPU if it runs there, else of this process."""
        if self.device.type == "cuda":
            told = torch.cuda.max_memory_allocated if peak else torch.cuda.memory_allocated
            return told(self.device) / 2**20
        return memory_mib(peak=peak) or 0.0

    def state_mib(self) -> float:
        """MiB of what the method remembers."""
        state = self.segmenter._state.target.state_dict()
        return sum(value.nbytes for value in state.values()) / 2**20

    def wait(self) -> None:
        """Until the device has nothing left to do."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def _measure_stages(self) -> None:
        """Put clocks around the parts that `Segmenter.step` calls, which stays as it is."""
        one, timed = self.segmenter, self.stages.timed
        one.extraction = timed("extract", one.extraction)  # type: ignore[assignment]
        one._state.ask = timed("read", one._state.ask)  # type: ignore[method-assign]
        one._state.learn = timed("remember", one._state.learn)  # type: ignore[method-assign]
        decide = step_module.decide

        def decide_truly(method: Method, question: Question) -> Decision:
            decision = decide(method, question)
            if not self._give_truth or question.first:
                return decision
            truth = torch.from_numpy(self._truth).to(self.device).long()
            certain = torch.nn.functional.one_hot(truth, 1 + self._objects).movedim(-1, 0).float()
            return replace(decision, predicted=certain)

        step_module.decide = timed("decode", decide_truly)
        step_module.make_result = timed("label map", step_module.make_result)


_stream: Stream | None = None
_explain = False
_profile: str | None = None


def _begin(history: int, explain: bool, profile: str | None = None, **case: Any) -> dict[str, Any]:
    """Load, and take the frames that do not count."""
    global _stream, _explain, _profile
    _stream, _explain, _profile = Stream(**case), explain, profile
    first, _ = _stream.frame()
    for _ in range(history):
        _stream.frame()
    return {
        "first_frame_ms": first,
        "threads": torch.get_num_threads(),
        "engines": _stream.engines.describe(),
    }


def _turn(seconds: float) -> dict[str, Any]:
    assert _stream is not None
    return _stream.turn(seconds)


def _end() -> dict[str, Any]:
    assert _stream is not None
    told: dict[str, Any] = {"peak_mib": _stream.memory(peak=True), "state_mib": _stream.state_mib()}
    if _explain:
        from .explaining import explain

        told["explained"] = explain(_stream.frame, _stream.device)
    if _profile is not None:
        from .explaining import write_trace

        write_trace(_stream.frame, _profile, _stream.device)
    return told


JOBS = {"begin": _begin, "turn": _turn, "end": _end}
