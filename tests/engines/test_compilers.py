"""Compilers at work on a small network: the same numbers, and nothing is loaded but a compiled function."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import pytest
import torch
from torch import nn
from torch._inductor.runtime.cache_dir_utils import default_cache_dir

from streamvos.engines import Engine, EngineCache, aoti, inductor
from streamvos.engines.exporting import PartModule, export
from streamvos.engines.parity import feature_error
from streamvos.engines.signature import Signature
from streamvos.methods.parts import Part
from streamvos.types import InputError

CPU = torch.device("cpu")


class Small(nn.Module):
    """Two outputs, one of them of another dtype and layout."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution, self.norm = nn.Conv2d(3, 8, 3, 2, padding=1), nn.BatchNorm2d(8)
        self.norm.running_mean.uniform_(-1, 1)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        y = self.norm(self.convolution(x)).relu()
        return y, y.mean((2, 3)).to(torch.bfloat16)


@pytest.fixture
def part() -> Part:
    module = Small().eval().requires_grad_(False)
    return Part("small", module, (module,))


def test_inductor_gives_the_part_s_numbers(part, tmp_path):
    """aoti, which takes ten times as long, does so in tests/segmenter/test_building.py."""
    x = torch.randn(2, 3, 16, 24).contiguous(memory_format=torch.channels_last)
    module, path = PartModule(part), tmp_path / inductor.FILE
    inductor.build(export(module, (x,)), path, {})
    engine = Engine(inductor.load(path, CPU, module), Signature.of(x))
    with torch.inference_mode():
        other = torch.randn_like(x)
        # float32, another order of summation; the second output rounds to bfloat16, where one unit is 4e-3
        assert feature_error(part.plain(other)[:1], engine(other)[:1]) < 1e-5
        assert feature_error(part.plain(other), engine(other)) < 1e-2
        assert torch.equal(engine(other)[0], engine(other)[0])


def test_nothing_is_compiled_where_others_could_write(part, tmp_path):
    """Not even for tensors of the other mode, which torch compiles anew for."""
    shared = Path(default_cache_dir())
    before = set(shared.rglob("*.*"))
    x = torch.randn(1, 3, 16, 24)
    module, path = PartModule(part), tmp_path / inductor.FILE
    inductor.build(export(module, (x,)), path, {})
    run = inductor.load(path, CPU, module)
    run(x)
    with torch.inference_mode():
        run(torch.randn_like(x))
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


@pytest.mark.parametrize("content", ["", "[1]", json.dumps({"freezing": {"a": 1}})])
def test_options_that_are_none_are_refused(tmp_path, content):
    path = tmp_path / "engine.json"
    path.write_text(content)
    with pytest.raises(InputError, match="no engine of the inductor backend"):
        inductor.load(path, CPU, nn.Identity())


def test_what_cannot_be_exported_is_refused_with_the_reason():
    part = Part("odd", lambda x: (x if float(x.sum()) > 0 else -x,), ())
    with pytest.raises(InputError, match="cannot be exported"):
        export(PartModule(part), (torch.ones(3),))


def test_another_precision_is_autocast_around_the_part(part):
    x = torch.randn(1, 3, 16, 16)
    with torch.no_grad():
        rounded = PartModule(part, "bfloat16")(x)
        error = feature_error(part.plain(x)[:1], rounded[:1])
    # rounded somewhere (float32 would be 1e-6), to eight bits of mantissa
    assert 1e-4 < error < 3e-2
