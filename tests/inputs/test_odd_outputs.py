"""Whatever is read and written, and whatever links lead where: no file that was there changes."""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import tempfile
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from inputs.table import scene
from PIL import Image

import streamvos
from streamvos.cli import main
from streamvos.weights import save_weights

NETWORK = {"depth": 18, "stages": 2, "planes": [16, 16], "embedding": 16, "normalize": True}
OPTIONS = {"network": NETWORK, "top_k": 5, "temperature": 20.0, "radius": 1, "keep_first": True}

SOURCES = ["frames", "linked", "frames/*.png", "frames/0.png", "./frames/../linked/"]
MASKS = ["m.png", "hard.png", "soft.png", "out/labels/0.png", "frames/0.png"]
OUTS = [
    "out",
    "out/../out",
    ".",
    "frames",
    "linked",
    "masks",
    "line\nfeed",
    "-o",
    "\udcff",
    "m.png",
    "made/new/out",
]
FILES = [
    "x.json", "m.png", "hard.png", "soft.png", "frames/0.png", "linked/1.png", "frames/new.png",
    "out/results.jsonl", "out/labels/0.png", "out", "tiny.safetensors", "notes.txt", "gone.png", "pipe",
    "made/x.png", "/dev/null",
]  # fmt: skip
THERE = [
    "out/labels/0.png", "out/labels/mine.png", "out/overlay.mp4", "out/overlay.1.partial.mp4",
    "out/results.jsonl", "out/.streamvos-files", "overlay.mp4", "labels/0.png", "masks/labels/1.png",
    "frames/overlay.mp4",
]  # fmt: skip


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    extractor = streamvos.load("tvos", None, device="cpu", network=NETWORK).method.extractor
    path = tmp_path_factory.mktemp("weights") / "tiny.safetensors"
    save_weights(path, extractor.state_dict(), "tvos", {"options": OPTIONS})
    return path


def make(folder: Path, weights: Path, there: list[str]) -> None:
    """Frames, a mask, links to them, and files of the user."""
    images, label_maps = scene(2)
    (folder / "frames").mkdir()
    for t, image in enumerate(images):
        Image.fromarray(image).save(folder / f"frames/{t}.png")
    Image.fromarray(label_maps[0]).save(folder / "m.png")
    os.link(folder / "m.png", folder / "hard.png")
    (folder / "soft.png").symlink_to("m.png")
    (folder / "linked").symlink_to("frames")
    (folder / "gone.png").symlink_to("not/there.png")
    (folder / "notes.txt").write_text("the user's")
    os.mkfifo(folder / "pipe")
    os.link(weights, folder / "tiny.safetensors")
    for name in there:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        if name.endswith(".png"):
            Image.fromarray(label_maps[0]).save(folder / name)
        else:
            (folder / name).write_text(f"the user's {name}")


def state(folder: Path) -> dict[str, str]:
    """Hashes of all regular files, targets of all links."""
    found = {}
    for path in folder.rglob("*"):
        name = os.fsencode(path.relative_to(folder)).hex()
        if path.is_symlink():
            found[name] = f"-> {os.readlink(path)}"
        elif path.is_file():
            found[name] = hashlib.sha256(path.read_bytes()).hexdigest()
        else:
            found[name] = "folder" if path.is_dir() else "other"
    return found


@settings(max_examples=25, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(
    source=st.sampled_from(SOURCES),
    mask=st.sampled_from(MASKS),
    out=st.sampled_from(OUTS),
    json_target=st.none() | st.sampled_from(FILES),
    save_first=st.none() | st.sampled_from(FILES),
    there=st.lists(st.sampled_from(THERE), unique=True, max_size=3),
)
@example("frames", "m.png", "out", None, None, [])
@example("frames", "m.png", "out", "x.json", "made/x.png", ["out/labels/mine.png", "out/.streamvos-files"])
@example("frames", "out/labels/0.png", "out", None, None, ["out/labels/0.png"])
@example("linked", "soft.png", ".", "/dev/null", None, ["overlay.mp4"])
@example("frames", "hard.png", "frames", None, None, [])
@example("frames", "m.png", "out", "pipe", None, [])
def test_no_file_that_was_there_changes(weights, source, mask, out, json_target, save_first, there):
    before_here = Path.cwd()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make(folder, weights, there)
        before = state(folder)
        arguments = ["run", source, "--mask", mask, f"--out={out}", "--weights", "tiny.safetensors"]
        arguments += [] if json_target is None else [f"--json={json_target}"]
        arguments += [] if save_first is None else [f"--save-first={save_first}"]
        errors, printed = io.StringIO(), io.StringIO()
        os.chdir(folder)
        reader = os.open("pipe", os.O_RDONLY | os.O_NONBLOCK)  # so that nobody waits for one
        try:
            with contextlib.redirect_stderr(errors), contextlib.redirect_stdout(printed):
                code = main(arguments)
        finally:
            os.close(reader)
            os.chdir(before_here)
        said, after = errors.getvalue(), state(folder)
        record = os.fsencode("out/.streamvos-files").hex()
        changed = {
            bytes.fromhex(key) for key, value in before.items() if after.get(key) != value and key != record
        }
        assert not changed, (arguments, said)
        assert code in (0, 1, 2), said
        assert "Traceback" not in said
        assert "this is a bug" not in said
        lines = [line for line in said.splitlines() if line.startswith("streamvos: error: ")]
        assert len(lines) == (code != 0), said
        if code == 0:
            place = folder / out
            frames = 1 if source == "frames/0.png" else 2
            assert {f"{t}.png" for t in range(frames)} <= set(os.listdir(place / "labels"))
            assert len((place / "results.jsonl").read_text().splitlines()) == frames
            assert not [
                path for path in place.glob("*.partial.*") if str(path.relative_to(folder)) not in there
            ]
    assert Path("/dev/null").is_char_device()
