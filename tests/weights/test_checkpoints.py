"""Weight files are read without running anything in them, and refused with the reason."""

from __future__ import annotations

import collections
import os
import pickle
import sys
import types
import zipfile

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import streamvos
from streamvos import InputError
from streamvos.weights import bundled_path, read_checkpoint, save_weights

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
    assert loaded.options.top_k == 4  # the caller's option wins
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


def test_a_header_of_any_length_is_read(tmp_path):
    path, lengths = tmp_path / "any.safetensors", set()
    for count in range(0, 256, 4):
        save_weights(path, {"weight": torch.ones(2)}, "tvos", {"note": "x" * count})
        lengths.add(path.read_bytes()[0])
        assert read_checkpoint(path).metadata["note"] == "x" * count
    assert 0x80 in lengths  # with which a pickle begins too


@pytest.mark.parametrize(("method", "name"), [("tvos", "tvos"), ("joint", "joint"), ("frtm-fast", "frtm")])
def test_a_file_of_weights_says_whose_it_is(method, name):
    path = bundled_path(method)
    assert streamvos.load(weights=path, device="cpu").method.name == name


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


@pytest.fixture
def authors_code(monkeypatch):
    """Modules that hold the authors' classes while a file is written, and nothing while it is read."""

    class AverageMeter:
        def __init__(self):
            self.values, self.count = [0.25, 0.5], 2

    class Settings:
        def __init__(self, harmful: Hostile | None = None):
            self.lr, self.inner, self.harmful = 1e-3, AverageMeter(), harmful

    for module, one in (("lib.utils", AverageMeter), ("ltr.admin.settings", Settings)):
        one.__module__, one.__qualname__ = module, one.__name__
        for name in (module.split(".")[0], module):
            monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
        setattr(sys.modules[module], one.__name__, one)
    yield AverageMeter, Settings
    monkeypatch.undo()


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("wrapper", ["model", "net"])
def test_the_authors_training_objects_are_read_as_nothing(
    tmp_path, authors_code, monkeypatch, zipped, wrapper
):
    meter, settings = authors_code
    stats = collections.defaultdict(meter)
    stats["train/loss"].best = np.float64(0.125)
    stats["valid/loss"].count = 7
    weight = torch.arange(6.0).view(2, 3)
    content = {wrapper: {"a.weight": weight}, "stats": stats, "settings": settings(), "epoch": 3}
    torch.save(content, tmp_path / "published.pth", _use_new_zipfile_serialization=zipped)
    monkeypatch.undo()  # whoever reads the file does not have the authors' code
    tensors = read_checkpoint(tmp_path / "published.pth").tensors
    assert list(tensors) == ["a.weight"]
    assert torch.equal(tensors["a.weight"], weight)


@pytest.mark.parametrize("zipped", [True, False])
def test_what_hides_among_the_authors_objects_is_refused(tmp_path, authors_code, monkeypatch, zipped):
    proof = tmp_path / "it-ran"
    content = {"net": {"a": torch.zeros(1)}, "settings": authors_code[1](Hostile(str(proof)))}
    torch.save(content, tmp_path / "evil.pth", _use_new_zipfile_serialization=zipped)
    monkeypatch.undo()
    with pytest.raises(InputError, match=r"refused \(.*mkdir"):
        read_checkpoint(tmp_path / "evil.pth")
    assert not proof.exists()


def test_a_dump_of_tensorflow_variables_is_read(tmp_path):
    np.savez(tmp_path / "dump.npz", **{"logits/weights": np.ones((1, 1, 256, 1), np.float32), "step": 7})
    tensors = read_checkpoint(tmp_path / "dump.npz").tensors
    assert {n: tuple(v.shape) for n, v in tensors.items()} == {"logits/weights": (1, 1, 256, 1)}
    np.savez(tmp_path / "evil.npz", a=np.array([Hostile(str(tmp_path / "it-ran"))], dtype=object))
    with pytest.raises(InputError, match=r"evil\.npz is not a readable \.npz"):
        read_checkpoint(tmp_path / "evil.npz")
    assert not (tmp_path / "it-ran").exists()
    (tmp_path / "cut.npz").write_bytes((tmp_path / "dump.npz").read_bytes()[:-40])
    with pytest.raises(InputError, match=r"cut\.npz"):
        read_checkpoint(tmp_path / "cut.npz")


def damaged(tmp_path):
    """Name -> bytes of files that no reader may stumble over."""
    torch.save({"a": torch.zeros(3)}, tmp_path / "good.pth", _use_new_zipfile_serialization=False)
    good = (tmp_path / "good.pth").read_bytes()
    bad_zip = tmp_path / "bad.zip"
    with zipfile.ZipFile(bad_zip, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a/data.pkl", bytes(range(256)) * 40)
    deflated = bytearray(bad_zip.read_bytes())
    deflated[60:90] = bytes(30)
    header = b"\x93NUMPY\x01\x00" + (118).to_bytes(2, "little")
    with zipfile.ZipFile(bad_zip, "w") as archive:
        archive.writestr(
            "huge.npy", header + b"{'descr': '<f4', 'fortran_order': False, 'shape': (10**15,)}".ljust(118)
        )
    huge = bad_zip.read_bytes()
    with zipfile.ZipFile(bad_zip, "w") as archive:
        archive.writestr("open.npy", header + b"{'descr': '<f4'".ljust(118))
    cuts = {f"cut{k}.pth": good[: len(good) * k // 20] for k in range(1, 20)}
    return {
        **cuts,
        "stops.pth": b"\x80\x02." * 4,
        "deflated.pth": bytes(deflated),
        "huge.npz": huge,
        "open.npz": bad_zip.read_bytes(),
    }


def test_damaged_files_are_refused_with_their_name(tmp_path):
    for name, content in damaged(tmp_path).items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(InputError, match=name):
            read_checkpoint(tmp_path / name)


@pytest.mark.parametrize(
    "description", ["[1]", "{}", '{"method": 5}', '{"method": "tvos", "options": 5}', "[" * 99_999]
)
def test_a_description_that_is_none_is_refused(tmp_path, description):
    path = tmp_path / "odd.safetensors"
    save_file({"a": torch.zeros(1)}, path, metadata={"format": "streamvos", "description": description})
    with pytest.raises(InputError, match=r"odd\.safetensors"):
        streamvos.load("tvos", path, device="cpu")


def test_tensors_that_are_no_weights_are_refused(tmp_path, method):
    torch.save({"backbone.0.weight": torch.zeros(3, device="meta")}, tmp_path / "meta.pth")
    with pytest.raises(InputError, match="not a plain tensor"):
        read_checkpoint(tmp_path / "meta.pth")
    torch.save({"backbone.0.weight": torch.zeros(1).expand(10**12)}, tmp_path / "expanded.pth")
    with pytest.raises(InputError, match="not a plain tensor"):
        read_checkpoint(tmp_path / "expanded.pth")
    state = {n: v.to(torch.complex64) for n, v in method.extractor.state_dict().items()}
    save_weights(tmp_path / "complex.safetensors", state, "tvos", {"options": {"network": NETWORK}})
    with pytest.raises(InputError, match="expects floating point"):
        streamvos.load("tvos", tmp_path / "complex.safetensors", device="cpu")


def test_a_small_file_cannot_ask_for_a_huge_network(tmp_path):
    for name, options in (
        ("feelvos", {"network": {"head_channels": 10**6}}),
        ("feelvos", {"network": {"middle": 10**9}}),
        ("rgmp", {"network": {"channels": 10**6}}),
        ("frtm", {"planes": [10**6] * 4}),
        ("joint", {"network": {"channels": 10**6}}),
    ):
        save_weights(tmp_path / "w.safetensors", {"a": torch.zeros(1)}, name, {"options": options})
        with pytest.raises(InputError):
            streamvos.load(name, tmp_path / "w.safetensors", device="cpu")
