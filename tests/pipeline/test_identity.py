"""Policy "lossless": the masks of a pipeline are those of a `Segmenter`, bit for bit, in every placement.

Every method is held to it with the stages in this process, with the edges, arenas and threads of the workers;
processes of their own run one method per placement.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from serving import label_maps, serving
from small_methods import SMALL, VARIANTS
from stages_in_process import run_stages

import streamvos
from streamvos.pipeline.config.tables import MethodConfig
from streamvos.pipeline.stages.method import make_method
from streamvos.segmenter import Segmenter
from streamvos.sources import open_source

FRAMES = 12

OPTIONS = {**SMALL, **VARIANTS}
"""Method, or "METHOD/variant" -> options."""


def source_of(seed: int) -> str:
    return f"synthetic:seed={seed},objects=2,size=96x128,length={FRAMES},leave=0"


def expected(method: str, seed: int) -> list[streamvos.Result]:
    """What a segmenter makes of the same frames, with as many threads as the workers have."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        config = MethodConfig(name=method.partition("/")[0], weights=None, options=OPTIONS[method])
        vos = Segmenter(make_method(config), "cpu")
        with open_source(source_of(seed)) as source:
            truth = source.label_map(0)
            return [vos.step(frame.image, truth if frame.index == 0 else None) for frame in source]
    finally:
        torch.set_num_threads(before)


def configuration(method: str, placement: str, folder: Path, streams: int, **more: Any) -> dict[str, Any]:
    return {
        "name": "identity",
        "placement": placement,
        "method": {
            "name": method.partition("/")[0],
            "weights": None,
            "device": "cpu",
            "options": json.loads(json.dumps(OPTIONS[method])),
            "threads": 1,
        },
        "streams": [
            {
                "name": f"s{k}",
                "source": source_of(k),
                "policy": "lossless",
                "sinks": [
                    {"kind": "labels", "path": str(folder / f"s{k}")},
                    {"kind": "json", "path": str(folder / f"s{k}.jsonl")},
                ],
            }
            for k in range(streams)
        ],
        "supervision": {"standby": False},
        **more,
    }


def check(folder: Path, method: str, streams: int) -> None:
    for k in range(streams):
        results = expected(method, k)
        masks = label_maps(folder / f"s{k}")
        assert list(masks) == [f"{t:05d}.png" for t in range(FRAMES)]
        for t, result in enumerate(results):
            assert np.array_equal(masks[f"{t:05d}.png"], result.mask), f"stream {k}, frame {t}"
        lines = [json.loads(line) for line in (folder / f"s{k}.jsonl").read_text().splitlines()]
        assert [line["index"] for line in lines] == list(range(FRAMES))
        for line, result in zip(lines, results, strict=True):
            for one in line["objects"]:
                assert one["score"] == round(result.objects[one["id"]].score, 6)


# batches are allowed to run even where they are no faster, so that their rounding is put to the test
UNMEASURED = {"measured": False}


@pytest.fixture
def _one_thread():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)  # which the stages set


@pytest.mark.usefixtures("_one_thread")
@pytest.mark.parametrize("placement", ["fused", "split"])
@pytest.mark.parametrize("method", list(OPTIONS))
def test_masks_of_every_method_are_those_of_a_segmenter(tmp_path, method, placement):
    run_stages(configuration(method, placement, tmp_path, 2, extractor=UNMEASURED))
    check(tmp_path, method, 2)


@pytest.mark.parametrize(
    ("method", "placement", "streams"), [("frtm-fast", "fused", 2), ("tvos", "split", 1)]
)
def test_masks_of_a_pipeline_of_processes_are_those_of_a_segmenter(tmp_path, method, placement, streams):
    with serving(
        configuration(method, placement, tmp_path, streams, extractor=UNMEASURED), tmp_path
    ) as pipeline:
        assert pipeline.wait() == 0, pipeline.log.read_text()[-3000:]
    check(tmp_path, method, streams)
