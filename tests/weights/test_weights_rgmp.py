"""Files in the layout of RGMP's published checkpoint."""

from __future__ import annotations

import json

import pytest
import torch
from goldens import procedural

from streamvos.methods.rgmp import RGMP, RGMPNetwork, RGMPOptions
from streamvos.nn.resnet import IMAGE_DEVIATION, IMAGE_MEAN
from streamvos.types import InputError
from streamvos.weights.checkpoints import read_checkpoint
from streamvos.weights.registry import build_with
from streamvos.weights.rgmp import from_authors, is_authors_layout

CONSTANTS = {"module.Encoder.mean": IMAGE_MEAN, "module.Encoder.std": IMAGE_DEVIATION}


@pytest.fixture(scope="module")
def entries(shared) -> list[tuple[str, tuple[int, ...]]]:
    keys = json.loads((shared / "methods" / "keys" / "rgmp.json").read_text())
    return [(name, tuple(shape)) for name, shape, *_ in keys["state_dict"] + keys["state_dict_modern_extra"]]


@pytest.fixture
def tiny() -> tuple[dict[str, torch.Tensor], RGMP]:
    """A small network's weights under the authors' names, and the method they belong to."""
    network = RGMPNetwork(depth=50, planes=(4, 4, 8, 8), channels=8)
    method = RGMP(RGMPOptions(network=network))
    theirs = {name: torch.tensor(value).view(1, 3, 1, 1) for name, value in CONSTANTS.items()}
    for name, value in method.networks.state_dict().items():
        theirs[f"module.{authors_name(name)}"] = torch.from_numpy(procedural(name, tuple(value.shape)))
    return theirs, method


def authors_name(name: str) -> str:
    """Ours to theirs, written the other way round than the converter."""
    for k in (1, 2, 3, 4):
        name = name.replace(f"encoder.backbone.layer{k}.", f"Encoder.res{k + 1}.")
    name = name.replace("encoder.backbone.", "Encoder.").replace("encoder.", "Encoder.")
    name = name.replace("decoder.global_convolution.left", "Decoder.GC.conv_l")
    name = name.replace("decoder.global_convolution.right", "Decoder.GC.conv_r")
    name = name.replace("decoder.residual.conv", "Decoder.convG")
    name = name.replace("skip_residual.conv1", "convFS2").replace("skip_residual.conv2", "convFS3")
    name = name.replace("merge_residual.conv", "convMM").replace(".skip.", ".convFS1.")
    return name.replace("decoder.refine", "Decoder.RF").replace("decoder.predict", "Decoder.pred")


def test_every_published_entry_has_its_place(entries):
    values = {
        name: torch.tensor(CONSTANTS[name]).view(shape) if name in CONSTANTS else torch.empty(shape)
        for name, shape in entries
    }
    assert is_authors_layout(list(values))
    converted, options = from_authors(values)
    with torch.device("meta"):
        method = RGMP(RGMPOptions(**options))
    assert method.options == RGMPOptions()
    own = {n: tuple(v.shape) for n, v in method.networks.state_dict().items() if "num_batches" not in n}
    assert {n: tuple(v.shape) for n, v in converted.items()} == own


@pytest.mark.parametrize("prefix", ["module.", ""])
@pytest.mark.parametrize("legacy", [True, False])
def test_a_file_becomes_the_network_it_names(tiny, tmp_path, prefix, legacy):
    theirs, method = tiny
    path = tmp_path / "weights.pth"
    renamed = {prefix + name.removeprefix("module."): value for name, value in theirs.items()}
    if legacy:  # what torch 0.3.1 wrote has no counters
        renamed = {name: value for name, value in renamed.items() if not name.endswith("num_batches_tracked")}
    torch.save(renamed, path, _use_new_zipfile_serialization=not legacy)
    converted, options = from_authors(read_checkpoint(path).tensors)
    loaded = build_with("rgmp", options, converted, path)
    assert loaded.options == method.options
    for name, value in loaded.networks.state_dict().items():
        if not name.endswith("num_batches_tracked"):
            assert torch.equal(value, torch.from_numpy(procedural(name, tuple(value.shape)))), name


def test_other_layouts_are_not_taken_for_it(tiny):
    _, method = tiny
    assert not is_authors_layout(list(method.networks.state_dict()))
    assert not is_authors_layout(["module.backbone.0.weight", "module.Decoder.GC.conv_l1.weight"])
    assert not is_authors_layout([])


def test_what_does_not_fit_is_refused(tiny):
    theirs, _ = tiny
    with pytest.raises(InputError, match=r"Encoder.res6.0.conv1.weight"):
        from_authors({**theirs, "module.Encoder.res6.0.conv1.weight": torch.zeros(1)})
    with pytest.raises(InputError, match=r"Encoder.mean.*0.485"):
        from_authors({**theirs, "module.Encoder.mean": torch.zeros(1, 3, 1, 1)})
    with pytest.raises(InputError, match="predict2"):
        from_authors({name: value for name, value in theirs.items() if "pred2" not in name})
    with pytest.raises(InputError, match="missing"):
        from_authors({name: value for name, value in theirs.items() if "res4" not in name})
