"""Keys: whatever an engine was made of changes its key, and nothing else does."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from small_methods import SMALL

from streamvos.engines.manifest import is_ours, plan_of, weight_digest
from streamvos.engines.recipes import recipe_for
from streamvos.engines.signature import Signature
from streamvos.methods import build
from streamvos.methods.parts import ExtractorPart

CPU = torch.device("cpu")


def plan(seed: int = 0, size: tuple[int, int] = (32, 48), **changes: Any):
    torch.manual_seed(seed)
    method = build("tvos", {**SMALL["tvos"], **changes.pop("options", {})})
    backend, part = changes.pop("backend", "aoti"), method.parts()["extractor"]
    recipe = recipe_for("tvos", "extractor").model_copy(update=changes)
    signature = Signature.of(*ExtractorPart.example(size, 2)).of_any_batch(part, recipe.most)
    return plan_of(method, part, backend, signature, CPU, recipe)


def test_the_same_network_has_the_same_key():
    assert plan().digest == plan().digest


@pytest.mark.parametrize(
    "change",
    [
        {"seed": 1},
        {"size": (48, 32)},
        {"most": 4},
        {"backend": "tensorrt"},
        {"freezing": False},
        {"options": {"precision": "bfloat16"}},
    ],
    ids=str,
)
def test_whatever_changes_changes_the_key(change):
    assert plan(**change).digest != plan().digest


@pytest.mark.parametrize("fact", ["torch", "cpu", "machine", "device"])
def test_another_version_or_machine_changes_the_key(fact):
    one = plan()
    other = one.model_copy(update={"facts": {**one.facts, fact: "other"}})
    assert other.digest != one.digest


def test_an_engine_of_every_batch_is_one_plan():
    (frames,) = ExtractorPart.example((32, 48), 3)
    part = build("tvos", SMALL["tvos"]).parts()["extractor"]
    every = {Signature.of(frames[:count]).of_any_batch(part, 8) for count in (1, 2, 3)}
    assert len(every) == 1


def test_weights_count_in_whatever_memory_format_they_are():
    method = build("tvos", SMALL["tvos"])
    part = method.parts()["extractor"]
    before = weight_digest(part)
    method.extractor.to(memory_format=torch.channels_last)
    assert weight_digest(part) == before
    with torch.no_grad():
        method.extractor.backbone.bn1.running_mean[0] += 1
    assert weight_digest(part) != before


def test_methods_of_others_are_none_of_ours():
    from stub_methods import drift

    assert is_ours(build("frtm-fast", SMALL["frtm-fast"]))
    assert not is_ours(drift())
