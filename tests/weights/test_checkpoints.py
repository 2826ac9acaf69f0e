"""Weight files are read without running anything in them, and refused with the reason."""

from __future__ import annotations

import os
import pickle

import pytest
import torch
from safetensors.torch import save_file

import streamvos
from streamvos import InputError
from streamvos.weights import read_checkpoint, save_weights

NETWORK = {"depth": 18, "stages": 2, "planes": [16, 16], "embedding": 16, "normalize": True}


@pytest.fixture
def method():
    return streamvos.load("tvos", None, device="cpu", network=NETWORK).method


def test_weights_and_options_survive_a_round_trip(method, tmp_path):
    path = tmp_path / "w.safetensors"
    options = {"network": NETWORK, "top_k": 3, "temperature": 9.0}
    save_weights(path, method.extractor.state_dict(), "tvos", {"options": options})
    loaded = streamvos.load("tvos", path, device="cpu", top_k=4).method
    assert loaded.options.temperature == 9.0  # from the file
    assert loaded.options.top_k == 4  # from the caller, who has the last word
    for name, value in loaded.extractor.state_dict().items():
        assert torch.equal(value, method.extractor.state_dict()[name])
    assert [p.name for p in tmp_path.iterdir()] == ["w.safetensors"]


class Hostile:
    """Unpickling this makes a file."""

    def __init__(self, path: str):
        self.path = path

    def __reduce__(self):
        return (os.mkdir, (self.path,))


@pytest.mark.parametrize("kind", ["zip", "legacy", "plain"])
def test_a_hostile_file_is_refused_and_nothing_runs(tmp_path, kind):
    proof, path = tmp_path / "it-ran", tmp_path / "evil.pth"
    content = {"state_dict": {"module.backbone.0.weight": Hostile(str(proof))}}
    if kind == "plain":
        path.write_bytes(pickle.dumps(content, protocol=2))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=kind == "zip")
    with pytest.raises(InputError, match=r"refused|readable"):
        streamvos.load("tvos", path, device="cpu")
    assert not proof.exists()


def test_files_that_are_no_weights_are_refused(tmp_path, method):
    whole = tmp_path / "whole.safetensors"
    save_weights(whole, method.extractor.state_dict(), "tvos", {"options": {"network": NETWORK}})
    cases = {
        "empty.pth": b"",
        "text.safetensors": b"these are no weights at all, whatever the name says",
        "cut.safetensors": whole.read_bytes()[:-100],
        "zip.pth": b"PK\x03\x04 and then nothing",
    }
    for name, content in cases.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(InputError, match=name):
            read_checkpoint(tmp_path / name)
    with pytest.raises(InputError, match="no weight file"):
        read_checkpoint(tmp_path)
    torch.save([1, 2, 3], tmp_path / "list.pth")
    with pytest.raises(InputError, match="list"):
        read_checkpoint(tmp_path / "list.pth")
    torch.save({"epoch": 3}, tmp_path / "none.pth")
    with pytest.raises(InputError, match="no tensors"):
        read_checkpoint(tmp_path / "none.pth")


def test_weights_of_another_network_are_refused_by_name(tmp_path, method):
    state = method.extractor.state_dict()
    path = tmp_path / "w.safetensors"
    metadata = {"options": {"network": NETWORK}}

    save_weights(path, {n: v for n, v in state.items() if n != "backbone.conv1.weight"}, "tvos", metadata)
    with pytest.raises(InputError, match=r"1 entries missing \['backbone.conv1.weight'\]"):
        streamvos.load("tvos", path, device="cpu")
    save_weights(path, {**state, "head.weight": torch.zeros(1)}, "tvos", metadata)
    with pytest.raises(InputError, match=r"head\.weight"):
        streamvos.load("tvos", path, device="cpu")
    save_weights(path, {**state, "adjust_dim.weight": torch.zeros(3, 3)}, "tvos", metadata)
    with pytest.raises(InputError, match=r"adjust_dim.weight is \(3, 3\)"):
        streamvos.load("tvos", path, device="cpu")
    save_weights(path, {**state, "bn256.bias": torch.full((16,), torch.nan)}, "tvos", metadata)
    with pytest.raises(InputError, match="NaN"):
        streamvos.load("tvos", path, device="cpu")
    save_weights(path, state, "frtm", metadata)
    with pytest.raises(InputError, match="'frtm', not of 'tvos'"):
        streamvos.load("tvos", path, device="cpu")
    save_file({"weight": torch.zeros(2)}, tmp_path / "foreign.safetensors")
    with pytest.raises(InputError, match="neither a streamvos file nor a known checkpoint"):
        streamvos.load("tvos", tmp_path / "foreign.safetensors", device="cpu")
