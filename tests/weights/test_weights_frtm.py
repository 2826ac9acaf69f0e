"""Files in the layout of FRTM's published checkpoints, and torchvision's backbones."""

from __future__ import annotations

import json

import pytest
import torch
from goldens import procedural

from streamvos.methods.frtm import FRTM, FRTMOptions
from streamvos.types import InputError
from streamvos.weights.checkpoints import read_checkpoint
from streamvos.weights.frtm import from_authors, is_authors_layout
from streamvos.weights.registry import build_with

NETWORKS = pytest.mark.parametrize("network", ["resnet18", "resnet101"])


@pytest.fixture(scope="module")
def keys(shared) -> dict:
    return json.loads((shared / "methods" / "keys" / "frtm.json").read_text())


def empty(entries) -> dict[str, torch.Tensor]:
    return {name: torch.zeros(shape) for name, shape, *_ in entries}


@NETWORKS
def test_every_published_entry_has_its_place(keys, network):
    checkpoint, backbone = empty(keys["model_keys"][network]), empty(keys["backbone_keys"][network])
    assert is_authors_layout(list(checkpoint))
    converted, options = from_authors(checkpoint, {**backbone, "fc.weight": torch.zeros(1000, 512)})
    with torch.device("meta"):
        method = FRTM(FRTMOptions(**options))
    assert method.options.depth == int(network.removeprefix("resnet"))
    own = {n: v.shape for n, v in method.networks.state_dict().items() if "num_batches" not in n}
    assert own == {n: v.shape for n, v in converted.items()}


def test_values_arrive_where_they_belong(keys, tmp_path):
    entries = keys["model_keys"]["resnet18"]
    theirs = {name: torch.from_numpy(procedural(name, tuple(shape))) for name, shape, *_ in entries}
    torch.save({"name": "rn18", "epoch": 260, "model": theirs}, tmp_path / "rn18_ytvos.pth")
    backbone = {
        name: torch.from_numpy(procedural(name, tuple(shape)))
        for name, shape, *_ in keys["backbone_keys"]["resnet18"]
    }
    torch.save(backbone, tmp_path / "resnet18-5c106cde.pth")
    tensors, options = from_authors(
        read_checkpoint(tmp_path / "rn18_ytvos.pth").tensors,
        read_checkpoint(tmp_path / "resnet18-5c106cde.pth").tensors,
    )
    method = build_with("frtm", options, tensors, tmp_path / "rn18_ytvos.pth")
    refiner, own = method.decoder.refiner.state_dict(), method.extractor.backbone.state_dict()
    assert all(torch.equal(refiner[n.removeprefix("refiner.")], v) for n, v in theirs.items())
    assert all(torch.equal(own[n], v) for n, v in backbone.items())


def test_prefixes_and_counters_do_not_matter(keys):
    checkpoint, backbone = (empty(keys[f"{kind}_keys"]["resnet18"]) for kind in ("model", "backbone"))
    expected, options = from_authors(checkpoint, backbone)
    wrapped, plain = (
        {f"module.{n}": v for n, v in tensors.items() if "num_batches" not in n}
        for tensors in (checkpoint, backbone)
    )
    assert is_authors_layout(list(wrapped))
    converted, others = from_authors(wrapped, plain)
    assert converted.keys() == expected.keys()
    assert others == options


@NETWORKS
def test_a_missing_backbone_is_asked_for_by_name(keys, network):
    with pytest.raises(InputError, match=rf"ResNet-{network[6:]} .*{network}-.*weights convert .*--backbone"):
        from_authors(empty(keys["model_keys"][network]))


def test_what_does_not_fit_is_refused(keys):
    checkpoint, backbone = (empty(keys[f"{kind}_keys"]["resnet18"]) for kind in ("model", "backbone"))
    with pytest.raises(InputError, match="not torchvision's ResNet-18"):
        from_authors(checkpoint, empty(keys["backbone_keys"]["resnet101"]))
    with pytest.raises(InputError, match="1 entries missing"):
        from_authors(checkpoint, {n: v for n, v in backbone.items() if n != "conv1.weight"})
    with pytest.raises(InputError, match="1 of another shape"):
        from_authors(checkpoint, {**backbone, "conv1.weight": torch.zeros(64, 3, 3, 3)})
    with pytest.raises(InputError, match="not an entry of an FRTM checkpoint"):
        from_authors({**checkpoint, "head.weight": torch.zeros(1)}, backbone)
    with pytest.raises(InputError, match="is missing"):
        from_authors({"refiner.project.conv1.weight": torch.zeros(1)}, backbone)
    with pytest.raises(InputError, match="channels"):
        from_authors({**checkpoint, "refiner.TSE.layer4.reduce.0.weight": torch.zeros(64, 77, 1, 1)})


def test_others_are_not_taken_for_it():
    assert not is_authors_layout(["module.backbone.0.weight"])
    assert not is_authors_layout(["Encoder.conv1_p.weight", "decoder.refiner.TSE.layer4.reduce.0.weight"])
