"""What the README and docs/usage.md say works, works: their blocks are run in order, in one folder.

The folder holds what a reader would have: clip.mp4, first.png (the label map of its first frame), a small
DAVIS, and published checkpoints (with random weights). Of a console block, every line that begins with
"$" is a command:

- `make TARGET ...` is not run (it would run these tests again); the target must exist in the Makefile, and
  the variables on the line must be used there.
- `streamvos ...` is run. A camera or an address is played by a file, `run` ends after three frames,
  `train` after one small step, and `watch` after three masks; engines are built for the clip's size.
  `serve` runs until the end of the module.

Any other command fails the test, since nothing would hold it true. Python blocks are run as they are, one
after the other, as in one session. Links to files must lead somewhere.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from fractions import Fraction
from itertools import islice
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from PIL import Image
from small_training_data import SMALL, write_training_data

import streamvos
from streamvos.cli import main
from streamvos.masks.labelmap import read_label_map, write_label_map
from streamvos.synthetic.synthetic import SyntheticOptions, SyntheticVideo

ROOT = Path(__file__).resolve().parents[1]
PAGES = {page: (ROOT / page).read_text(encoding="utf-8") for page in ("README.md", "docs/usage.md")}
README = "\n".join(PAGES.values())


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)


def commands() -> list[list[str]]:
    lines = [line for block in blocks("console") for line in block.splitlines()]
    assert all(line.startswith("$ ") for line in lines)
    return [shlex.split(line.removeprefix("$ "), comments=True) for line in lines]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """What a reader would have."""
    here = tmp_path_factory.mktemp("reader")
    # ten seconds, so that a camera of it still shows something to a machine that is busy
    video = SyntheticVideo(7, SyntheticOptions(size=(192, 256), length=12, objects=2, leave=0.0))
    with av.open(str(here / "clip.mp4"), "w") as container:
        stream = container.add_stream("libx264", rate=Fraction(12, 10))
        stream.height, stream.width, stream.pix_fmt = 192, 256, "yuv420p"
        for frame in video:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame.image, format="rgb24")))
        container.mux(stream.encode(None))
    latency = {"method": "tvos", "height": 192, "seconds": 0.04}
    (here / "latency.jsonl").write_text(json.dumps(latency) + "\n")
    for name in ("first", "more"):
        write_label_map(here / f"{name}.png", video[0].label_map)
    for kind in ("JPEGImages", "Annotations"):
        (here / "DAVIS" / kind / "480p/walk").mkdir(parents=True)
    for index, frame in enumerate(islice(video, 4)):
        Image.fromarray(frame.image).save(here / f"DAVIS/JPEGImages/480p/walk/{index:05d}.jpg")
        mask = np.where(frame.label_map, 255, 0).astype(np.uint8)
        Image.fromarray(mask).save(here / f"DAVIS/Annotations/480p/walk/{index:05d}.png")
    network = streamvos.load("frtm-fast", None, device="cpu").method
    refiner = {f"refiner.{n}": v for n, v in network.decoder.refiner.state_dict().items()}
    for name in ("rn18_ytvos.pth", "weights.pth"):
        torch.save({"name": "rn18", "epoch": 260, "model": refiner}, here / name)
    classifier = {"fc.weight": torch.zeros(1000, 512), "fc.bias": torch.zeros(1000)}
    backbone = {**network.extractor.backbone.state_dict(), **classifier}
    torch.save(backbone, here / "resnet18-5c106cde.pth")
    return here


@pytest.fixture(scope="module")
def door(folder):
    """The pipeline that the README serves, with a longer video in the part of the camera."""
    (words,) = [words for words in commands() if words[1] == "serve"]
    video = "synthetic:seed=7,size=192x256,length=100000,objects=2,leave=0"
    arguments = [word.replace("camera:0", video) for word in words[1:]] + ["--realtime"]
    runtime = tempfile.mkdtemp(prefix="svos", dir="/tmp")
    os.environ["XDG_RUNTIME_DIR"] = runtime
    process = subprocess.Popen([sys.executable, "-m", "streamvos.cli", *arguments], cwd=folder)
    try:
        limit = time.monotonic() + 60
        while (
            '"running"'
            not in subprocess.run(
                [sys.executable, "-m", "streamvos.cli", "ctl", "status", "--at", "door", "--json"],
                capture_output=True,
                text=True,
            ).stdout
        ):
            assert process.poll() is None
            assert time.monotonic() < limit
            time.sleep(0.2)
        yield process
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0
    finally:
        process.kill()
        process.wait()
        del os.environ["XDG_RUNTIME_DIR"]


@pytest.fixture
def in_folder(folder, monkeypatch):
    write_training_data(folder / "DATA")
    monkeypatch.chdir(folder)
    return folder


def test_every_command_is_one_that_is_held_true():
    assert {words[0] for words in commands()} == {"make", "streamvos"}


def test_make_targets_exist():
    makefile = (ROOT / "Makefile").read_text()
    inline = [shlex.split(text) for text in re.findall(r"`(make [^`]*)`", README)]
    for words in [words for words in [*commands(), *inline] if words[0] == "make"]:
        assert re.search(rf"^{re.escape(words[1])}:", makefile, re.MULTILINE), words
        for variable in words[2:]:
            assert f"$({variable.partition('=')[0]})" in makefile, words


def small(words: list[str]) -> list[str]:
    """The same command with a file in the part of the camera, and an early end."""
    arguments = [re.sub(r"^(camera:0|rtsp://\S+)$", "camera:clip.mp4", word) for word in words[1:]]
    if arguments[0] == "run":
        if "--max-frames" in arguments:
            arguments[arguments.index("--max-frames") + 1] = "3"
        else:
            arguments += ["--max-frames", "3"]
    if arguments[:2] == ["engines", "build"]:
        size = arguments.index("--size") + 1
        arguments[size:] = ["192x256", *arguments[size + 1 :], "--frames", "2"]
    if arguments[0] == "watch":
        arguments += ["--max", "3"]
    if arguments[:2] == ["train", "features"]:
        arguments += [f"--set={name}={json.dumps(value)}" for name, value in SMALL.model_dump().items()]
    elif arguments[0] == "train":
        arguments += shlex.split(
            "--set steps=1 --set batch=1 --set workers=0 --clip size=[64,96] --clip frames=3"
        )
    return arguments


AROUND_A_PIPELINE = {"serve", "watch", "ctl", "console", "pick"}
WITH_A_PERSON = {"console", "pick"}
"""They go on until somebody at a browser ends them; tests/console runs them."""


def test_the_command_line_s_examples_run(in_folder, capsys):
    run = [words for words in commands() if words[0] == "streamvos" and words[1] not in AROUND_A_PIPELINE]
    assert {words[1] for words in run} >= {"run", "eval", "score", "train"}
    for words in run:
        assert main(small(words)) == 0, (words, capsys.readouterr().err)
    # and leave what the README says they leave
    for name in ("clip", "camera"):
        maps = sorted((in_folder / "out" / name / "labels").glob("*.png"))
        assert len(maps) == 3
        assert len(read_label_map(maps[-1])) == 192
        # a camera does not wait: of what it shows meanwhile, frames are left out
        assert maps[-1].name == "00002.png" or name == "camera"
        for file in ("overlay.mp4", "results.jsonl"):
            assert (in_folder / "out" / name / file).is_file()
    for file in ("first_frame.png", "results.json", "runs/mine/tvos.safetensors"):
        assert (in_folder / file).is_file()


def test_the_examples_around_a_pipeline_run(in_folder, door, capsys):
    run = [words for words in commands() if words[1] in AROUND_A_PIPELINE - WITH_A_PERSON - {"serve"}]
    assert {words[1] for words in run} == {"watch", "ctl"}
    for words in run:
        assert main(small(words)) == 0, (words, capsys.readouterr().err)


def test_the_python_examples_run(in_folder, door, capsys):
    session: dict[str, object] = {}
    for block in blocks("python"):
        exec(compile(block, "README.md", "exec"), session)
    assert "tracking" in capsys.readouterr().out
    vos, other, frame = session["vos"], session["other"], session["frame"]
    np.testing.assert_array_equal(vos.step(frame.image).mask, other.step(frame.image).mask)


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page):
    links = re.findall(r"\]\(([^)#]+)\)", PAGES[page])
    assert links
    for link in links:
        assert link.startswith("https://") or (ROOT / page).parent.joinpath(link).exists(), link


def test_the_first_minute_fits_one_screen():
    before, first_screen, _ = PAGES["README.md"].partition("## Install")
    assert first_screen
    assert len(before.splitlines()) <= 40
    assert before.count("```console") == before.count("```python") == before.count("![") == 1
