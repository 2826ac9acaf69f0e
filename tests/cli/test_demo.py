"""`streamvos demo`: the main job without anything given, and on one's own clip."""

from __future__ import annotations

import json

from streamvos.cli.demo import DEMO_SOURCE
from streamvos.sources import open_source


def test_one_s_own_clip_is_segmented(call, inputs, weights):
    answer = call("demo", "--source", "clip.mp4", "--mask", "first.png", "--weights", weights)
    assert answer.code == 0
    assert "clip, 64 x 48, tvos on cpu" in answer.out
    assert "6/6" in answer.err  # the progress bar, as it ended
    for name in ("labels/00005.png", "overlay.mp4", "results.jsonl"):
        assert (inputs / "out/demo" / name).is_file()


def test_a_synthetic_clip_is_scored(call, inputs, weights):
    source = "synthetic:seed=13,size=48x64,length=5,leave=0"
    values = json.loads(call("demo", "--source", source, "--weights", weights, "--json").out)
    assert {"J", "F", "J&F"} <= values["scores"].keys()
    table = call("demo", "--source", source, "--weights", weights).out
    for row in ("J ", "F ", "J&F", "fps", "peak memory", "labels ", "overlay ", "results "):
        assert row in table


def test_what_is_shown_without_a_source_has_a_truth_to_score():
    with open_source(DEMO_SOURCE) as source:
        truth = source.label_map(0)
        assert source.size == (360, 640)
        assert 60 <= source.length <= 90
        assert set(truth.ravel().tolist()) == {0, 1, 2}
