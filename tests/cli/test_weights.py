"""`streamvos weights`: what there is, what a file holds, and published checkpoints made ours."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import streamvos
from streamvos.methods import METHODS
from streamvos.weights import BACKBONE, BUNDLED, bundled_path

CHILDREN = {"conv1": "0", "bn1": "1", "layer1": "4", "layer2": "5", "layer3": "6", "layer4": "7"}


@pytest.fixture(scope="module")
def published(tmp_path_factory) -> Path:
    """A checkpoint as the TVOS authors' training wrote it, of their smallest network, with random weights."""
    torch.manual_seed(0)
    options = {"depth": 18, "embedding": None}
    extractor = streamvos.load("tvos", None, device="cpu", network=options).method.extractor
    state = {}
    for name, value in extractor.state_dict().items():
        backbone, child, rest = name.split(".", 2)
        state[f"module.{backbone}.{CHILDREN[child]}.{rest}"] = value
    path = tmp_path_factory.mktemp("published") / "resnet18.pth.tar"
    torch.save({"epoch": 240, "state_dict": state, "optimizer": {}, "scheduler": {}}, path)
    return path


def test_every_method_is_listed(call):
    listed = json.loads(call("weights", "list", "--json").out)["methods"]
    assert [one["method"] for one in listed] == [*METHODS, BACKBONE]
    tvos = listed[0]
    assert tvos["bundled"] == "tvos.safetensors"
    assert tvos["parameters"] > 1e5
    table = call("weights", "list").out
    assert all(name in table for name in METHODS)


def test_a_published_checkpoint_is_recognized_converted_and_used(call, published, tmp_path):
    report = json.loads(call("weights", "inspect", published, "--json").out)
    assert (report["layout"], report["method"], report["fits"]) == ("published", "tvos", True)
    out = tmp_path / "ours.safetensors"
    answer = call("weights", "convert", published, "--out", out)
    assert answer.code == 0
    assert f"{out}: tvos" in answer.out
    report = json.loads(call("weights", "inspect", out, "--json").out)
    assert (report["layout"], report["method"], report["fits"]) == ("streamvos", "tvos", True)
    a = streamvos.load("tvos", published, device="cpu").method.extractor.state_dict()
    b = streamvos.load("tvos", out, device="cpu").method.extractor.state_dict()
    assert all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("method", sorted(BUNDLED))
def test_bundled_weights_fit_with_the_backbone_that_they_share(call, method):
    report = json.loads(call("weights", "inspect", bundled_path(method), "--json").out)
    assert (report["layout"], report["fits"]) == ("streamvos", True)


def test_nothing_is_replaced_unless_asked(call, published, tmp_path):
    out = tmp_path / "ours.safetensors"
    out.write_bytes(b"precious")
    assert "is there already" in call("weights", "convert", published, "--out", out).error
    assert out.read_bytes() == b"precious"
    assert call("weights", "convert", published, "--out", out, "--force").code == 0
    assert "a streamvos file already" in call("weights", "convert", out, "--out", tmp_path / "b").error
    assert "no folder" in call("weights", "convert", published, "--out", tmp_path / "no" / "b").error


def test_unknown_files_are_said_to_be_unknown(call, tmp_path):
    torch.save({"some.weight": torch.zeros(3)}, tmp_path / "other.pth")
    report = json.loads(call("weights", "inspect", tmp_path / "other.pth", "--json").out)
    assert (report["layout"], report["method"], report["parameters"]) == ("unknown", None, 3)
    error = call("weights", "convert", tmp_path / "other.pth", "--out", tmp_path / "b.safetensors").error
    assert "not a known checkpoint" in error
    assert "some.weight" in error
    assert "no weight file" in call("weights", "inspect", tmp_path / "absent.pth").error


def test_what_does_not_fit_is_told(call, published, tmp_path):
    content = torch.load(published, weights_only=True)
    del content["state_dict"]["module.backbone.0.weight"]
    torch.save(content, tmp_path / "cut.pth")
    report = json.loads(call("weights", "inspect", tmp_path / "cut.pth", "--json").out)
    assert report["method"] is None or report["fits"] is False
