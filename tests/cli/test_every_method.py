"""`streamvos run` and `streamvos eval` with every method that there is."""

from __future__ import annotations

import json

import numpy as np
import pytest
from small_methods import SMALL

from streamvos.masks.labelmap import read_label_map
from streamvos.methods import METHODS


def settings(method: str) -> list[str]:
    return [
        part for name, value in SMALL[method].items() for part in ("--set", f"{name}={json.dumps(value)}")
    ]


@pytest.mark.parametrize("method", METHODS)
def test_run_follows_several_objects(call, inputs, method):
    arguments = ("--method", method, "--weights", "none", *settings(method), "--device", "cpu")
    answer = call("run", "frames", "--mask", "first.png", "--out", "out", *arguments)
    assert answer.code == 0, answer.err
    assert f", {method} on cpu" in answer.out
    lines = [json.loads(line) for line in (inputs / "out/results.jsonl").read_text().splitlines()]
    assert len(lines) == 6
    assert all([one["id"] for one in line["objects"]] == [1, 2] for line in lines)
    first = read_label_map(inputs / "out/labels/shot_1.png")
    np.testing.assert_array_equal(first, read_label_map(inputs / "first.png"))


@pytest.mark.parametrize("method", METHODS)
def test_eval_scores_one_object(call, davis, tmp_path, method):
    arguments = ("--method", method, "--weights", "none", *settings(method), "--device", "cpu")
    answer = call("eval", davis, *arguments, "--json", tmp_path / "scores.json")
    assert answer.code == 0, answer.err
    assert f"davis2016, {method}" in answer.out
    scores = json.loads((tmp_path / "scores.json").read_text())
    assert set(scores["sequences"]) == {"ant", "bee"}


@pytest.mark.parametrize("method", METHODS)
def test_an_unknown_option_is_refused_with_those_that_there_are(call, inputs, method):
    arguments = ("--method", method, "--weights", "none", "--set", "magic=1", "--out", "out")
    error = call("run", "frames", "--mask", "first.png", *arguments).error
    assert "magic" in error
    assert next(iter(METHODS[method].options.model_fields)) in error
