"""Packages: compiled where nobody else can write, and nothing is loaded but a compiled function."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest
import torch
from torch import nn
from torch._inductor.runtime.cache_dir_utils import default_cache_dir

from streamvos.engines import aoti
from streamvos.engines.cache import EngineCache
from streamvos.engines.exporting import export
from streamvos.engines.signature import Signature
from streamvos.methods.parts import Part
from streamvos.types import InputError

CPU = torch.device("cpu")


def test_nothing_is_compiled_where_others_could_write(tmp_path):
    shared = Path(default_cache_dir())
    before = set(shared.rglob("*.*"))
    x = torch.randn(1, 4)
    part = Part("relu", lambda x: (x.relu(),), ())
    aoti.build(export(part, (x,)), tmp_path / aoti.FILE, {}, Signature.of(x))
    run = aoti.load(tmp_path / aoti.FILE, CPU, nn.Identity())
    assert torch.equal(run(-x.abs())[0], torch.zeros(1, 4))
    assert set(shared.rglob("*.*")) == before
    assert list((EngineCache().folder / "compiler" / "headers").glob("*.gch"))


def test_a_package_with_anything_but_code_in_it_is_not_loaded(tmp_path):
    path = tmp_path / "engine.pt2"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("engine/data/aotinductor/model/x.so", b"")
        archive.writestr("engine/data/weights/weight_0", b"")
    with pytest.raises(InputError, match="no package of a compiled function"):
        aoti.load(path, CPU, nn.Identity())


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 no archive"])
def test_a_file_that_is_no_package_is_refused(tmp_path, content):
    path = tmp_path / "engine.pt2"
    path.write_bytes(content)
    with pytest.raises(InputError, match="cannot be loaded"):
        aoti.load(path, CPU, nn.Identity())
