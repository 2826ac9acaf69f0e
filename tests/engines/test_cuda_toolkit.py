"""Headers and driver of CUDA are found for a C++ compiler, with a toolkit or without; no GPU is needed."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from torch.utils import cpp_extension

from streamvos.engines import aoti, cuda_toolkit

PROGRAM = """
#include <cuda.h>
#include <cuda_runtime_api.h>
int main() { CUdevice device; return cuDeviceGet(&device, 0); }
"""


@pytest.fixture
def no_toolkit(tmp_path, monkeypatch):
    monkeypatch.setattr(cuda_toolkit, "TOOLKITS", tmp_path / "nothing")
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
    with cuda_toolkit.cuda_toolkit(driver):
        assert cpp_extension.CUDA_HOME is not None
        assert compiled(PROGRAM, tmp_path, "-lcuda") == ""
    assert (dict(os.environ), cpp_extension.CUDA_HOME) == (before, None)
    # under the name that the driver's library has where the program runs
    ran = subprocess.run([tmp_path / "program"], env={"LD_LIBRARY_PATH": str(driver.parent)})
    assert ran.returncode == 7


def test_the_toolkit_comes_first_and_wheels_fill_its_gaps(no_toolkit, tmp_path, monkeypatch):
    for name in ("cuda.h", "nv/target"):
        path = tmp_path / "cuda-13.0" / "include" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    monkeypatch.setattr(cuda_toolkit, "TOOLKITS", tmp_path)
    assert cuda_toolkit.header_folders()[0] == tmp_path / "cuda-13.0" / "include"
    assert not {"cuda.h", "nv/target"} & set(cuda_toolkit.missing_headers())
    # as beside a script of that name in /usr/local/bin
    monkeypatch.setattr(cpp_extension, "CUDA_HOME", str(tmp_path / "elsewhere"))
    with cuda_toolkit.cuda_toolkit():
        assert str(tmp_path / "cuda-13.0") == cpp_extension.CUDA_HOME
    assert str(tmp_path / "elsewhere") == cpp_extension.CUDA_HOME


def test_what_is_missing_is_said_before_anything_is_built(no_toolkit, monkeypatch):
    monkeypatch.setattr(cuda_toolkit, "header_folders", lambda: [])
    monkeypatch.setattr("shutil.which", lambda name: name)
    assert "nv/target" in aoti.cannot_build(torch.device("cuda"))
    assert "nvidia-cuda-cccl" in aoti.cannot_build(torch.device("cuda"))
    assert aoti.cannot_build(torch.device("cpu")) is None
