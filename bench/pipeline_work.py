"""What a process of `bench pipeline` does: the bare loop that the pipeline is compared with."""

from __future__ import annotations

import time
from typing import Any

import torch

import streamvos
from streamvos.masks.labelmap import read_label_map
from streamvos.methods.base import Method
from streamvos.sources import open_source


def _loop(clip: str, mask: str, method: str, warm_up: int, seconds: float) -> dict[str, Any]:
    """Milliseconds a frame of `Segmenter.step` over a file, after `warm_up` frames, for so many seconds."""
    vos, count, began = streamvos.load(method, device="cpu"), 0, 0.0
    with open_source(clip) as source:
        for frame in source:
            _ = vos.step(frame.image, read_label_map(mask) if not count else None).objects
            if count == warm_up:
                began = time.monotonic()
            count += 1
            if count > warm_up + 1 and time.monotonic() - began > seconds:
                break
    return {
        "ms": 1e3 * (time.monotonic() - began) / (count - 1 - warm_up),
        "threads": torch.get_num_threads(),
    }


def _evidence(method: str, size: list[int]) -> dict[str, Any]:
    """Bytes of the arrays that the memory sends to the decoder for a frame with two objects."""
    from streamvos.pipeline.config.tables import MethodConfig
    from streamvos.pipeline.stages.method import make_method
    from streamvos.pipeline.stages.serialization import array_sizes, pack_question
    from streamvos.segmenter import Extraction, StreamState, check_mask, decide

    from .scenes import Scene

    made: Method = make_method(MethodConfig(name=method))
    extract = Extraction(made, "cpu")
    state, scene = StreamState(extract.method, extract.device), Scene((size[0], size[1]), 2)
    with torch.inference_mode():
        for t in range(2):
            image, labels = scene.frame(t)
            features = extract([torch.from_numpy(image)])
            truth = torch.from_numpy(labels)
            given = check_mask(truth, scene.size, extract.device) if t == 0 else None
            question = state.ask(features, given)
            state.learn(features, question, decide(extract.method, question))
    arrays, _ = pack_question(question)
    return {"bytes": sum(array_sizes(arrays))}


JOBS = {"loop": _loop, "evidence": _evidence}
