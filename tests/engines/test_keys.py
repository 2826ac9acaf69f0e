"""Keys: whatever an engine was made of changes its key, and nothing else does."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from small_methods import SMALL
from torch import nn

from streamvos.engines.exporting import PartModule, export
from streamvos.engines.keys import graph_digest, is_ours, plan_of, weight_digest
from streamvos.engines.signature import Signature
from streamvos.methods import build
from streamvos.methods.parts import ExtractorPart, Part

CPU = torch.device("cpu")


def plan(seed: int = 0, batch: int = 1, size: tuple[int, int] = (32, 48), **changes: Any):
    torch.manual_seed(seed)
    method = build("tvos", {**SMALL["tvos"], **changes.pop("options", {})})
    given = {"backend": "aoti", "settings": {}, "precision": "method", **changes}
    signature = Signature.of(*ExtractorPart.example(size, batch))
    return plan_of(method, method.parts()["extractor"], signature=signature, device=CPU, **given)


def test_the_same_network_has_the_same_key():
    assert plan().digest == plan().digest


@pytest.mark.parametrize(
    "change",
    [
        {"seed": 1},
        {"batch": 2},
        {"size": (48, 32)},
        {"backend": "inductor"},
        {"settings": {"freezing": False}},
        {"precision": "bfloat16"},
        {"options": {"precision": "bfloat16"}},
    ],
    ids=str,
)
def test_whatever_changes_changes_the_key(change):
    assert plan(**change).digest != plan().digest


@pytest.mark.parametrize("fact", ["torch", "cpu", "machine", "device"])
def test_another_version_or_machine_changes_the_key(fact):
    one = plan()
    other = dataclasses.replace(one, facts={**one.facts, fact: "other"})
    assert other.digest != one.digest


def test_what_auto_decides_does_not_depend_on_a_backend_s_options():
    assert plan().question == plan(backend="tensorrt", settings={"optimization_level": 5}).question
    assert plan().question != plan(seed=1).question


def test_weights_count_in_whatever_memory_format_they_are():
    method = build("tvos", SMALL["tvos"])
    part = method.parts()["extractor"]
    before = weight_digest(part)
    method.extractor.to(memory_format=torch.channels_last)
    assert weight_digest(part) == before
    with torch.no_grad():
        method.extractor.backbone.bn1.running_mean[0] += 1
    assert weight_digest(part) != before


def test_graphs_that_differ_only_in_an_argument_have_other_digests():
    """Dilation, stride and padding: what torch-tensorrt's own cache leaves out of its key."""
    x = torch.randn(1, 2, 16, 16)
    digests = set()
    for arguments in ({"dilation": 1}, {"dilation": 2}, {"stride": 2}, {"padding": 1}):
        torch.manual_seed(0)
        module = nn.Conv2d(2, 2, 3, **arguments)
        part = Part("convolution", lambda x, module=module: (module(x),), (module,))
        digests.add(graph_digest(export(PartModule(part), (x,))))
    assert len(digests) == 4


def test_methods_of_others_are_none_of_ours():
    from stub_methods import drift

    assert is_ours(build("frtm-fast", SMALL["frtm-fast"]))
    assert not is_ours(drift())
