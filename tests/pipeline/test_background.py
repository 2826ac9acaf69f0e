"""Training in the background: the stream goes on meanwhile, takes over the new model, and survives a kill."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from serving import label_maps, serving
from small_methods import SMALL

LENGTH = 90
SOURCE = f"synthetic:seed=5,objects=2,size=64x96,leave=0,length={LENGTH}"


def configuration(folder: Path, iterations: int, **stream: Any) -> dict[str, Any]:
    options = {**SMALL["frtm-fast"], "init_iterations": (3, 3), "update_iterations": iterations}
    options["update_interval"] = 8
    return {
        "name": "background",
        "method": {
            "name": "frtm-fast",
            "weights": None,
            "device": "cpu",
            "threads": 1,
            "training": "background",
            "options": json.loads(json.dumps(options)),
        },
        "streams": [
            {
                "name": "s",
                "source": SOURCE,
                "sinks": [
                    {"kind": "labels", "path": str(folder / "labels")},
                    {"kind": "json", "path": str(folder / "out.jsonl")},
                ],
                **stream,
            }
        ],
        "supervision": {"standby": False},
    }


def lines(folder: Path) -> list[dict[str, Any]]:
    for path in (folder / "out.jsonl", *folder.glob("out.*.partial.jsonl")):
        if path.exists():
            return [json.loads(line) for line in path.read_text().splitlines() if line.endswith("}")]
    return []


@pytest.mark.parametrize("killed", [False, True])
def test_every_frame_comes_whoever_is_killed(tmp_path, killed):
    config = configuration(tmp_path, 3, policy="lossless")
    with serving(config, tmp_path / "run") as pipeline:
        if killed:
            pipeline.wait_for(lambda: len(lines(tmp_path)) > 20)
            pipeline.kill_worker("compute")
        assert pipeline.wait() == 0, pipeline.log.read_text()[-3000:]
    assert len(pipeline.events("died")) == killed
    assert not pipeline.events("training_failed")
    assert [one["index"] for one in lines(tmp_path)] == list(range(LENGTH))
    assert len(label_maps(tmp_path / "labels")) == LENGTH
    assert all(len(one["objects"]) == 2 for one in lines(tmp_path))


LEARNER = """
import time

import torch

from stub_methods import Drift, DriftOptions, _Target
from streamvos.methods.background import TrainingTask

SECONDS = 0.7


class Learner(_Target):
    new, waits = (), False

    def write(self, features, probabilities):
        super().write(features, probabilities)
        if self.count % 10 == 0 and not self.waits:
            if self.defer:
                task = TrainingTask(self.ids, lambda: time.sleep(SECONDS), torch.device("cpu"))
                self.new, self.waits = (task,), True
            else:
                time.sleep(SECONDS)

    def take_tasks(self):
        new, self.new = list(self.new), ()
        return new

    def take_over(self, task):
        self.waits = False
        return True


class SlowLearner(Drift):
    def target(self):
        return Learner(self.options)


def make():
    return SlowLearner(DriftOptions())
"""
"""A method whose tasks take as long as many frames."""


@pytest.mark.parametrize("training", ["background", "inline"])
def test_background_training_does_not_hold_the_stream(tmp_path, monkeypatch, training):
    (tmp_path / "slow_learner.py").write_text(LEARNER)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    config = configuration(tmp_path, 3, policy="lossless", realtime=True)
    config["method"] = {"name": "slow_learner:make", "device": "cpu", "threads": 1, "training": training}
    with serving(config, tmp_path / "run") as pipeline:
        assert pipeline.wait() == 0, pipeline.log.read_text()[-3000:]
    assert [one["index"] for one in lines(tmp_path)] == list(range(LENGTH))
    late = pipeline.summary()["streams"]["s"]["latencies"]["glass to mask"]["p95"]
    # eight tasks of 0.7 s, and each holds the frames behind it, two or three of 90: more than a twentieth
    assert (late < 500) == (training == "background")
