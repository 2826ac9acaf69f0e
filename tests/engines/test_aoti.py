"""Packages: compiled where nobody else can write, and nothing is loaded but a compiled function."""

from __future__ import annotations

import os
import shutil
import subprocess
import zipfile
from pathlib import Path

import pytest
import torch
from torch import nn
from torch._inductor import codecache
from torch._inductor.runtime.cache_dir_utils import default_cache_dir
from torch.utils import cpp_extension

from streamvos.engines import aoti
from streamvos.engines.exporting import export
from streamvos.engines.signature import Signature
from streamvos.methods.parts import Part
from streamvos.types import InputError

CPU = torch.device("cpu")

PROGRAM = """
#include <cuda.h>
#include <cuda_runtime_api.h>
int main() { CUdevice device; return cuDeviceGet(&device, 0); }
"""


def test_nothing_is_compiled_where_others_could_write(tmp_path, monkeypatch):
    headers, shared = tmp_path / "headers", Path(default_cache_dir())
    # an earlier run may have filled the shared one
    monkeypatch.setattr(codecache, "_HEADER_DIR", str(headers))
    before = set(shared.rglob("*.*"))
    x = torch.randn(1, 4)
    part = Part("relu", lambda x: (x.relu(),), ())
    aoti.build(export(part, (x,)), tmp_path / "engine.pt2", Signature.of(x), freezing=True)
    run = aoti.load(tmp_path / "engine.pt2", CPU, nn.Identity())
    assert torch.equal(run(-x.abs())[0], torch.zeros(1, 4))
    assert set(shared.rglob("*.*")) == before
    assert not list(headers.rglob("*.*"))


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


# ---- headers and driver of CUDA, for a C++ compiler; no GPU is needed


@pytest.fixture
def no_toolkit(monkeypatch):
    monkeypatch.setattr(cpp_extension, "CUDA_HOME", None)


def compiled(source: str, folder: Path, *arguments: str) -> str:
    """What the compiler says; empty where it has nothing to complain of."""
    (folder / "program.cpp").write_text(source)
    command = ["g++", folder / "program.cpp", "-o", folder / "program", *arguments]
    ran = subprocess.run(command, capture_output=True, text=True)
    return ran.stderr if ran.returncode else ""


@pytest.mark.skipif(shutil.which("g++") is None, reason="NO G++: nothing can be compiled")
def test_a_program_for_the_driver_compiles_and_links_without_a_toolkit(no_toolkit, tmp_path):
    pytest.importorskip("triton", reason="NO TRITON: its wheel brings the headers of CUDA")
    driver = tmp_path / "driver" / "libcuda.so.1"
    driver.parent.mkdir()
    (tmp_path / "driver.c").write_text("int cuDeviceGet(int *device, int number) { return 7; }")
    command = ["gcc", "-shared", "-Wl,-soname,libcuda.so.1", tmp_path / "driver.c", "-o", driver]
    subprocess.run(command, check=True)
    before = dict(os.environ)
    with aoti.cuda_toolkit(driver):
        assert cpp_extension.CUDA_HOME is not None
        assert compiled(PROGRAM, tmp_path, "-lcuda") == ""
    assert (dict(os.environ), cpp_extension.CUDA_HOME) == (before, None)
    # under the name that the driver's library has where the program runs
    ran = subprocess.run([tmp_path / "program"], env={"LD_LIBRARY_PATH": str(driver.parent)})
    assert ran.returncode == 7


def test_the_toolkit_comes_first_and_wheels_fill_its_gaps(no_toolkit, tmp_path, monkeypatch):
    for name in ("cuda.h", "nv/target"):
        path = tmp_path / "include" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    monkeypatch.setattr(cpp_extension, "CUDA_HOME", str(tmp_path))
    assert aoti.header_folders()[0] == tmp_path / "include"
    assert not {"cuda.h", "nv/target"} & set(aoti.missing_headers())
    # a script called nvcc in /usr/local/bin makes torch believe in a toolkit without headers
    monkeypatch.setattr(cpp_extension, "CUDA_HOME", str(tmp_path / "elsewhere"))
    with aoti.cuda_toolkit():
        assert str(tmp_path / "elsewhere") not in os.environ["CPATH"]
    assert str(tmp_path / "elsewhere") == cpp_extension.CUDA_HOME


def test_what_is_missing_is_said_before_anything_is_built(no_toolkit, monkeypatch):
    monkeypatch.setattr(aoti, "header_folders", lambda: [])
    monkeypatch.setattr("shutil.which", lambda name: name)
    assert "nv/target" in aoti.cannot_build(torch.device("cuda"))
    assert "nvidia-cuda-cccl" in aoti.cannot_build(torch.device("cuda"))
    assert aoti.cannot_build(torch.device("cpu")) is None
