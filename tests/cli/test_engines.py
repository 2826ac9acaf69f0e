"""`streamvos engines`: the command that a stream names, built, listed, compared, pruned; clear errors."""

from __future__ import annotations

import json
import logging
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
import torch

import streamvos
from streamvos.cli import main
from streamvos.engines.cache import FOLDER_VARIABLE
from streamvos.engines.recipes import recipes


@pytest.fixture(scope="module")
def stored(tmp_path_factory, weights, video) -> Path:
    """A cache with the engine that a stream asked for, built by the command that it names."""
    folder = tmp_path_factory.mktemp("stored") / "engines"
    lines: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(FOLDER_VARIABLE, str(folder))
        logging.getLogger("streamvos").addHandler(handler)
        try:
            vos = streamvos.load("tvos", weights, "cpu", "aoti")
            vos.step(video[0].image, video[0].label_map)
        finally:
            logging.getLogger("streamvos").removeHandler(handler)
        assert "eager, there is no engine" in vos.extraction.engines.describe()["extractor"][0]
        (line,) = lines
        program, *arguments = shlex.split(line.partition("to build one: ")[2])
        assert program == "streamvos"
        assert main([*arguments, "--frames", "3"]) == 0
    return folder


@pytest.fixture
def folder(stored, tmp_path, monkeypatch) -> Path:
    """A copy, to be damaged; the one that commands use."""
    shutil.copytree(stored, tmp_path / "engines")
    monkeypatch.setenv(FOLDER_VARIABLE, str(tmp_path / "engines"))
    return tmp_path / "engines"


def test_the_engine_that_a_stream_asked_for_runs_from_the_next_start_on(folder, weights, video):
    vos = streamvos.load("tvos", weights, "cpu", "aoti")
    vos.step(video[0].image, video[0].label_map)
    assert vos.extraction.engines.describe()["extractor"][0].startswith("1x3x48x64: aoti (feature error")


def test_run_takes_the_engine(call, folder, inputs, weights):
    answer = call(
        "run", "clip.mp4", "--mask", "first.png", "--weights", weights, "--backend", "aoti", "--json"
    )
    assert answer.code == 0
    (line,) = json.loads(answer.out)["engines"]["extractor"]
    assert "aoti (feature error" in line
    assert line.endswith("(6 calls)")


def test_a_start_with_an_engine_needs_no_compiler_and_leaves_no_files(folder, inputs, weights, tmp_path):
    """However it ends: torch keeps what it unpacks until then, and for ever where it cannot clear it away."""
    left = tmp_path / "temporary"
    left.mkdir()
    environment = {**os.environ, "TMPDIR": str(left), "PATH": str(tmp_path / "no compiler")}
    run = [sys.executable, "-m", "streamvos.cli", "run", "--weights", str(weights), "--backend", "aoti"]
    command = [*run, "clip.mp4", "--mask", "first.png", "--json"]
    ran = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    assert "aoti (feature error" in json.loads(ran.stdout)["engines"]["extractor"][0]
    assert not list(left.iterdir())
    endless = "synthetic:size=48x64,length=1000000"
    with subprocess.Popen([*run, endless, "--out", "endless"], env=environment) as running:
        until = time.monotonic() + 60
        while not Path("endless/labels/00002.png").exists():
            assert running.poll() is None
            assert time.monotonic() < until
            time.sleep(0.05)
        running.kill()
    assert not list(left.iterdir())


def test_a_lossless_pipeline_gives_the_same_bits_with_an_engine(call, folder, inputs, weights):
    """The same masks, boxes and scores, which are told to six digits."""
    given = ["--mask", "first.png", "--weights", str(weights), "--backend", "aoti"]
    assert call("run", "clip.mp4", *given, "--out", "run").code == 0
    command = ["serve", "--method", "tvos", "--source", "clip.mp4", *given, "--out", "serve", "--no-publish"]
    with tempfile.TemporaryDirectory(prefix="svos", dir="/tmp") as runtime:  # sockets need short names
        subprocess.run(
            [sys.executable, "-m", "streamvos.cli", *command],
            env={**os.environ, "XDG_RUNTIME_DIR": runtime},
            check=True,
            timeout=120,
            capture_output=True,
        )
    ours, theirs = (objects_in(Path(name) / "results.jsonl") for name in ("run", "serve"))
    assert len(ours) == 6
    assert ours == theirs


def objects_in(path: Path) -> list[object]:
    return [json.loads(line)["objects"] for line in path.read_text().splitlines()]


def test_engines_are_listed_with_their_numbers(call, folder):
    answer = call("engines", "list", "--json")
    listed = json.loads(answer.out)
    assert listed["recipes"] == list(recipes())
    (engine,) = listed["engines"]
    assert engine["engine"] == "tvos/extractor 1..8x3x48x64 aoti"
    assert engine["usable"]
    assert "J with eager's masks" in call("engines", "list").out


def test_an_engine_is_compared_again_on_a_clip_of_one_s_own(call, folder, inputs, weights):
    given = ["engines", "build", "tvos-extractor", "--check", "--backend", "aoti", "--weights", weights]
    given += ["--clip", "clip.mp4"]
    answer = call(*given, "--mask", "first.png", "--json")
    assert answer.code == 0
    (row,) = json.loads(answer.out)["engines"]
    assert "over 6 frames" in row["state"]
    assert "--mask" in call(*given).error


def test_a_damaged_file_is_found_and_pruned(call, folder, weights):
    (engine,) = folder.glob("*/engine.pt2")
    engine.write_bytes(engine.read_bytes()[:-1])
    given = ["engines", "build", "tvos-extractor", "--check", "--backend", "aoti", "--weights", weights]
    assert "damaged" in call(*given, "--size", "48x64", "--frames", "3").error
    assert call("engines", "prune").out.startswith("1 engines deleted")
    assert json.loads(call("engines", "list", "--json").out)["engines"] == []


def test_prune_deletes_what_cannot_be_used_any_more(call, folder):
    assert call("engines", "prune").out.startswith("0 engines deleted")
    (path,) = folder.glob("*/manifest.json")
    manifest = json.loads(path.read_text())
    manifest["plan"]["facts"]["torch"] = "1.0"
    path.write_text(json.dumps(manifest))
    assert "torch is now" in json.loads(call("engines", "list", "--json").out)["engines"][0]["state"]
    assert call("engines", "prune").out.startswith("1 engines deleted")
    assert not list(folder.glob("*/manifest.json"))


def test_prune_can_delete_everything(call, folder):
    assert json.loads(call("engines", "prune", "--all", "--json").out)["deleted"] == [
        "tvos/extractor 1..8x3x48x64 aoti"
    ]


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["build", "--backend", "eager"], "builds nothing"),
        (["build", "tvos-nothing"], "tvos-extractor"),
        (["build", "tvos-extractor", "--method", "frtm"], "'frtm' is not the method of"),
        (["build", "tvos-extractor", "--size", "480"], "HEIGHTxWIDTH"),
        (["build", "frtm-refiner", "--method", "frtm", "--size", "48x64"], "--weights"),
        (["build", "joint-backbone", "--size", "48x64"], "no part 'backbone'"),
        (["build", "--weights", "none"], "recipes"),
        (["build", "tvos-extractor", "--size", "48x64", "--backend", "tensorrt"], "NVIDIA"),
        (["build", "tvos-extractor", "--mask", "first.png"], "--clip"),
        (["run"], "no such command"),
    ],
)
def test_what_cannot_be_done_is_one_clear_line(call, tmp_path, monkeypatch, arguments, word):
    monkeypatch.setenv(FOLDER_VARIABLE, str(tmp_path / "engines"))
    assert word in call("engines", *arguments).error


def test_a_folder_that_others_can_write_to_is_refused(call, folder):
    folder.chmod(0o777)
    for verb in ("list", "prune"):
        assert "chmod" in call("engines", verb).error


@pytest.mark.parametrize("command", [["run", "clip.mp4", "--mask", "first.png"], ["eval", "davis"]])
def test_an_unknown_backend_is_refused_with_those_that_there_are(call, inputs, davis, weights, command):
    place = [str(davis) if one == "davis" else one for one in command]
    error = call(*place, "--weights", weights, "--backend", "warp").error
    assert "unknown backend 'warp'" in error
    assert "aoti" in error


def test_export_without_onnx_says_how_to_get_it(call, tmp_path, weights, monkeypatch):
    monkeypatch.setattr("streamvos.engines.exporting.find_spec", lambda name: None)
    given = ["engines", "export", "tvos-extractor", "--size", "48x64", "--weights", weights]
    assert "streamvos[onnx]" in call(*given, "--onnx", tmp_path / "tvos.onnx").error


def test_an_exported_network_gives_the_same_numbers_elsewhere(call, tmp_path, weights):
    import onnxruntime

    from streamvos.methods.parts import ExtractorPart

    path = tmp_path / "tvos.onnx"
    given = ["engines", "export", "tvos-extractor", "--size", "48x64", "--weights", weights]
    assert call(*given, "--onnx", path).code == 0
    session = onnxruntime.InferenceSession(path)
    (frames,) = ExtractorPart.example((48, 64), 1)
    (embedding,) = session.run(["output_0"], {"input_0": frames.contiguous().numpy()})
    expected = streamvos.load("tvos", weights, "cpu").method.extractor(frames)["embedding"]
    torch.testing.assert_close(torch.from_numpy(embedding), expected, atol=1e-4, rtol=1e-4)
