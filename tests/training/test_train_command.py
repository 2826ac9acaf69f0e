"""`streamvos train tvos` from the command line: what it makes, what it takes, what it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from small_training_data import SMALL, write_training_data

import streamvos
from streamvos.cli import main
from streamvos.masks.labelmap import write_label_map
from streamvos.nn.resnet import resnet
from streamvos.training.recipes import RECIPES
from streamvos.weights import bundled_path, read_checkpoint

QUICK = ["--set", "steps=2", "--set", "batch=2", "--set", "workers=0", "--clip", "size=[64,96]"]
QUICK += ["--clip", "frames=3"]
AUTHORS_QUICK = ["--set", "batch=2", "--set", "steps=1", "--set", "workers=0", "--clip", "frames=3"]
AUTHORS_QUICK += ["--clip", "size=32"]


def train(*arguments: str | Path) -> int:
    """The exit code of the command."""
    return main(["train", "tvos", *map(str, arguments)])


@pytest.fixture
def davis(tmp_path: Path) -> Path:
    """A DAVIS folder of one video of 12 frames."""
    root = tmp_path / "DAVIS"
    for part in ("JPEGImages", "Annotations"):
        (root / part / "480p" / "goat").mkdir(parents=True)
    for k in range(12):
        Image.new("RGB", (64, 48), (10 * k,) * 3).save(root / "JPEGImages" / "480p" / "goat" / f"{k:05d}.jpg")
        labels = np.zeros((48, 64), np.uint8)
        labels[8:30, k : 20 + k] = 1
        write_label_map(root / "Annotations" / "480p" / "goat" / f"{k:05d}.png", labels)
    return root


@pytest.fixture(scope="module")
def features(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("training")
    write_training_data(root / "data")
    options = [f"--set={name}={json.dumps(value)}" for name, value in SMALL.model_dump().items()]
    assert (
        main(["train", "features", "--data", str(root / "data"), "--out", str(root / "features"), *options])
        == 0
    )
    return root / "features"


@pytest.mark.parametrize("method", RECIPES)
def test_makes_weights_that_load_and_says_where_they_are(tmp_path, capsys, features, method):
    out = tmp_path / "run"
    arguments = ["--features", str(features), "--out", str(out), *QUICK, "--json"]
    assert main(["train", method, *arguments]) == 0
    printed = capsys.readouterr()
    summary = json.loads(printed.out)
    assert summary["weights"] in printed.err
    names = read_checkpoint(summary["weights"]).tensors
    assert not any(".backbone." in f".{name}" for name in names)
    vos = streamvos.load(method, summary["weights"], device="cpu")
    mask = np.zeros((64, 96), np.uint8)
    mask[8:40, 8:60] = 5
    frame = np.zeros((64, 96, 3), np.uint8)
    vos.step(frame, mask)
    assert vos.step(frame).mask.shape == (64, 96)


def test_training_goes_on_from_given_weights(tmp_path, features):
    """Steps of no length change nothing but the statistics of batch normalization, and roundings."""
    given = bundled_path("rgmp")
    for initial in ("default", str(given)):
        out = tmp_path / initial.replace("/", "_")
        arguments = ["--features", str(features), "--out", str(out), *QUICK, "--initial", initial]
        assert main(["train", "rgmp", *arguments, "--set", "learning_rate=1e-30"]) == 0
        trained = read_checkpoint(out / "rgmp.safetensors").tensors
        for name, value in read_checkpoint(given).tensors.items():
            assert ".running_" in name or torch.allclose(trained[name], value, rtol=2e-3, atol=1e-6), name


def test_weights_of_another_method_are_nothing_to_begin_with(tmp_path, features, capsys):
    arguments = ["--features", str(features), "--out", str(tmp_path), *QUICK]
    assert main(["train", "rgmp", *arguments, "--initial", str(bundled_path("tvos"))]) == 2
    assert "holds weights of 'tvos', not of 'rgmp'" in capsys.readouterr().err


def test_started_again_it_says_that_there_is_nothing_to_do(tmp_path, capsys, features):
    arguments = ["--features", features, "--out", tmp_path, *QUICK]
    assert train(*arguments) == 0
    before = (tmp_path / "tvos.safetensors").stat().st_mtime_ns
    capsys.readouterr()
    assert train(*arguments) == 0
    assert "nothing to do" in capsys.readouterr().err
    assert (tmp_path / "tvos.safetensors").stat().st_mtime_ns == before


def test_other_options_in_the_same_folder_are_refused_in_one_line(tmp_path, capsys, features):
    arguments = ["--features", features, "--out", tmp_path, *QUICK]
    assert train(*arguments) == 0
    capsys.readouterr()
    assert train(*arguments, "--set", "learning_rate=0.5") == 2
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert last.startswith("streamvos: error: ")
    assert "there, 0.5 here" in last


def test_the_authors_recipe_begins_with_the_weights_of_a_file(tmp_path, capsys, davis):
    path = tmp_path / "resnet50.pth"
    torch.save(resnet(50).state_dict(), path)
    arguments = ["--recipe", "authors", "--data", davis, "--out", tmp_path / "run", "--initial", path]
    assert train(*arguments, *AUTHORS_QUICK) == 0
    assert "random: layer4, adjust_dim, bn256" in capsys.readouterr().err
    for path in (tmp_path / "run").iterdir():
        path.unlink()  # 150 MB that pytest would keep


def test_the_authors_recipe_with_options_of_ones_own(tmp_path, capsys, davis):
    """Their network on two frames of 32 pixels, one step."""
    assert train("--recipe", "authors", "--data", davis, "--out", tmp_path / "run", *AUTHORS_QUICK) == 0
    saved = torch.load(tmp_path / "run" / "checkpoint.pt", weights_only=True)
    identity = json.loads(saved["identity"])
    assert (identity["batch"], identity["steps"], identity["optimizer"]) == (2, 1, "sgd")
    assert identity["learning_rate"] == 0.02
    assert identity["schedule_every"] == 6  # an epoch: 12 frames, 2 a step
    assert identity["recipe"]["network"]["depth"] == 50
    path = tmp_path / "run" / "tvos.safetensors"
    options = streamvos.load("tvos", path, device="cpu").method.options
    assert options == type(options)()  # the authors' setting
    # the network stands in the file even where it is the default, which may change some day
    assert read_checkpoint(path).metadata["options"] == {"network": options.network.model_dump(mode="json")}
    for path in (tmp_path / "run").iterdir():
        path.unlink()  # 150 MB that pytest would keep


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "--features is missing"),
        (["--features", "nowhere"], "nowhere holds no features"),
        (["--recipe", "other"], "unknown recipe 'other'; choose features or authors"),
        (["--recipe", "authors"], "needs --data"),
        (["--data", "DAVIS"], "--data and --split are for --recipe authors"),
        (["--recipe", "authors", "--data", "nowhere"], "nowhere"),
        (["--recipe", "authors", "--data", "x", "--features", "x"], "--features is for --recipe features"),
        (
            ["--features", "x", "--set", "stepz=3"],
            "stepz: Extra inputs are not permitted (got 3); options are: steps,",
        ),
        (
            ["--features", "x", "--set", "steps=0"],
            "steps: Input should be greater than or equal to 1 (got 0)",
        ),
        (["--features", "x", "--set", "steps"], "expected NAME=VALUE"),
        (["--features", "x", "--set", "batch=8", "--set", "parts=3"], "parts must divide the batch of 8"),
        (["--features", "x", "--clip", "size=[64,90]"], "size must be two multiples of 32, got (64, 90)"),
    ],
)
def test_bad_input_ends_with_one_line_and_makes_no_folder(tmp_path, capsys, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    assert train("--out", "run", *arguments) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert lines[-1].startswith("streamvos: error: ")
    assert message in lines[-1]
    assert not Path("run").exists()


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        (["--set", "batch=13"], "a batch of 13 clips needs as many frames, got 12"),
        (["--set", "batch=many"], "batch: Input should be a valid integer"),
        (["--clip", "frames=13"], "none of the 1 videos has 13 frames"),
        (["--split", "train"], "no list of the split 'train'"),
        (["--clip", "color_jitter=0.8"], "color_jitter: Input should be less than or equal to 0.5"),
    ],
)
def test_data_that_cannot_serve_are_refused_before_anything_is_made(
    tmp_path, capsys, davis, setting, message
):
    out = tmp_path / "run"
    assert train("--recipe", "authors", "--data", davis, "--out", out, *setting) == 2
    assert message in capsys.readouterr().err.strip().splitlines()[-1]
    assert not out.exists()


def test_frames_smaller_than_the_crop_are_refused_in_one_line_by_a_worker_too(tmp_path, capsys, davis):
    arguments = ["--recipe", "authors", "--data", davis, "--out", tmp_path / "run", "--set", "batch=1"]
    assert train(*arguments, "--set", "workers=1") == 2
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert last == "streamvos: error: goat is 48 x 64 (H x W); crops of 256 do not fit"
