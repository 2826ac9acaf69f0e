"""A method that cannot be had: `serve` says so as `run` does, and starts nothing."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from streamvos.weights import save_weights

TESTS = Path(__file__).resolve().parents[1]
STREAMVOS = str(Path(sys.executable).with_name("streamvos"))


@pytest.fixture
def runtime(monkeypatch) -> Iterator[Path]:
    """The folder in which a pipeline that begins makes one of its own."""
    with tempfile.TemporaryDirectory(prefix="svos", dir="/tmp") as folder:
        monkeypatch.setenv("XDG_RUNTIME_DIR", folder)
        yield Path(folder)


@pytest.fixture
def files(inputs) -> Path:
    """The current folder, with weight files that are none, and one of another method."""
    import torch

    Path("cut.safetensors").write_bytes(b"\x10" * 100)
    torch.save({"layer.weight": torch.zeros(3)}, "strange.pth")
    save_weights("rgmp.safetensors", {"x": torch.zeros(3)}, "rgmp", {"options": {}})
    return inputs


CASES = {
    "an unknown method": "--method sam",
    "an unknown method, random": "--method sam --weights none",
    "an unknown option": "--set nope=1",
    "an option out of range": "--set top_k=0",
    "an unknown option, random": "--method rgmp --weights none --set nope=1",
    "no bundled weights": "--method frtm",
    "no such weights": "--weights none.pth",
    "a folder for weights": "--weights frames",
    "a picture for weights": "--weights first.png",
    "weights that are cut off": "--weights cut.safetensors",
    "weights of nobody": "--weights strange.pth",
    "weights of another method": "--method tvos --weights rgmp.safetensors",
    "an unknown backend": "--backend fast",
    "a backend for another device": "--backend cuda-graph --device cpu",
    "weights that do not fit": "--method rgmp --weights rgmp.safetensors",
}


@pytest.mark.parametrize("case", CASES)
def test_a_method_that_cannot_be_had_is_refused_as_by_run(call, files, runtime, case):
    words = CASES[case].split()
    told = call("run", "clip.mp4", "--mask", "first.png", *words).error
    refused = call("serve", "--source", "clip.mp4", "--mask", "first.png", "--log", "json", *words)
    # serve knows where a relative path starts, as its workers have to
    assert refused.error.replace(f"{files}{os.sep}", "") == told
    assert not list(runtime.rglob("*"))


def test_a_file_s_method_is_refused_too(call, files, runtime):
    Path("pipeline.toml").write_text(
        """
        [method]
        name = "tvos"
        weights = "none.safetensors"
        options = { top_k = 5 }
        [[streams]]
        name = "s"
        source = "clip.mp4"
        mask = "first.png"
        """
    )
    assert "there is no weight file none.safetensors" in call("serve", "pipeline.toml").error
    assert not list(runtime.rglob("*"))


@pytest.mark.parametrize("name", ["nowhere_at_all:make", "nowhere.at.all:make", ":make"])
def test_a_module_that_is_not_there_is_refused(call, files, runtime, name):
    error = call("serve", "--source", "clip.mp4", "--mask", "first.png", "--method", name).error
    assert f"cannot load the method {name!r}: No module named" in error
    assert not list(runtime.rglob("*"))


def test_no_process_is_started(files, runtime):
    """Of the command itself, looked at while it runs."""
    command = [STREAMVOS, "serve", "--source", "clip.mp4", "--mask", "first.png", "--set", "nope=1"]
    mark, seen = f"XDG_RUNTIME_DIR={runtime}".encode(), set()
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        while process.poll() is None:
            for entry in Path("/proc").iterdir():
                if entry.name.isdigit() and int(entry.name) not in (process.pid, os.getpid()):
                    with contextlib.suppress(OSError):
                        if mark in (entry / "environ").read_bytes().split(b"\0"):
                            seen.add(entry.name)
            time.sleep(0.01)
        assert process.stderr is not None
        assert "tvos option nope" in process.stderr.read()
    assert process.returncode == 2
    assert not seen


def test_a_module_in_the_current_folder_is_none_to_be_refused(files, runtime, monkeypatch):
    Path("only_here.py").write_text("from stub_methods import drift as make\n")
    monkeypatch.setenv("PYTHONPATH", str(TESTS))
    command = [STREAMVOS, "serve", "--source", "synthetic:length=3,size=48x64", "--method", "only_here:make"]
    done = subprocess.run(
        [*command, "--device", "cpu", "--no-publish"], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr[-3000:]
