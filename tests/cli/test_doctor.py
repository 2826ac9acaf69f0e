"""`streamvos doctor`: what is there, what is missing, and how to get it."""

from __future__ import annotations

import json

import pytest
import torch


def test_everything_that_matters_is_looked_at(call):
    answer = call("doctor", "--json")
    report = json.loads(answer.out)
    found = {one["name"]: one for one in report["findings"]}
    expected = {"Python", "torch", "CUDA", "GPU kernels", "TensorRT", "ZeroMQ", "OpenCV", "FFmpeg", "cameras"}
    assert expected <= found.keys()
    assert found["torch"]["verdict"] == "ok"
    assert torch.__version__ in found["torch"]["found"]
    assert (found["CUDA"]["verdict"] == "ok") == torch.cuda.is_available()
    for one in report["findings"]:
        assert one["verdict"] in ("ok", "optional", "missing")
        assert one["found"]
        # whoever misses something is told how to get it
        assert one["verdict"] == "ok" or one["advice"]
    assert answer.code == (1 if any(one["verdict"] == "missing" for one in report["findings"]) else 0)


def test_the_bundled_weights_are_there(call):
    report = json.loads(call("doctor", "--json").out)
    weights = [one for one in report["findings"] if one["name"] == "weights of tvos"]
    assert [one["verdict"] for one in weights] == ["ok"]


def test_people_get_a_table(call, tmp_path):
    answer = call("doctor", "--json", tmp_path / "report.json")
    assert "how to get it" in answer.out
    for one in json.loads((tmp_path / "report.json").read_text())["findings"]:
        assert one["name"] in answer.out


def test_what_triton_lacks_is_told(call, tmp_path, monkeypatch):
    pytest.importorskip("triton", reason="NO TRITON: nothing else to be missed")
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CC", raising=False)
    (found,) = [
        one for one in json.loads(call("doctor", "--json").out)["findings"] if one["name"] == "GPU kernels"
    ]
    assert (found["verdict"], found["found"]) == ("optional", "triton has no C compiler")
    assert "gcc" in found["advice"]
