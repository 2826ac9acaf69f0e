"""`streamvos eval` and `streamvos score`: the protocol over folders, and its numbers in one form."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from streamvos.masks.labelmap import read_label_map, write_label_map
from streamvos.metrics.scores import MEASURES


@pytest.fixture
def evaluate(call, davis, weights, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def run(*arguments):
        return call("eval", davis, "--weights", weights, *arguments)

    return run


def test_every_sequence_is_scored_and_the_mean(evaluate):
    values = json.loads(evaluate("--json").out)
    assert list(values) == ["sequences", "mean"]
    assert list(values["sequences"]) == ["ant", "bee"]
    for row in (*values["sequences"].values(), values["mean"]):
        assert list(row) == list(MEASURES)
        assert 30 < row["J"] < 100
    means = [np.mean([row[name] for row in values["sequences"].values()]) for name in MEASURES]
    np.testing.assert_allclose([values["mean"][name] for name in MEASURES], means)


def test_score_gives_the_same_numbers_for_the_masks_that_eval_wrote(evaluate, call, davis, tmp_path):
    shown = evaluate("--out", "out", "--json", "eval.json").out
    assert [line for line in shown.splitlines() if "mean" in line]
    out = tmp_path / "out"
    written = sorted(str(path.relative_to(out)) for path in out.rglob("*.png"))
    assert written == [f"{name}/{k:05d}.png" for name in ("ant", "bee") for k in range(5)]
    answer = call("score", davis / "Annotations/480p", "out", "--json", "score.json")
    assert answer.code == 0
    assert json.loads((tmp_path / "score.json").read_text()) == json.loads(
        (tmp_path / "eval.json").read_text()
    )


def test_a_part_of_the_sequences(evaluate, call, davis):
    values = json.loads(evaluate("--sequences", "bee", "--out", "out", "--json").out)
    assert list(values["sequences"]) == ["bee"]
    truth = davis / "Annotations/480p"
    scored = json.loads(call("score", truth, "out", "--sequences", "bee", "--json").out)
    assert scored == values
    alone = json.loads(call("score", truth / "bee", "out/bee", "--json").out)
    assert math.isclose(alone["mean"]["J&F"], values["mean"]["J&F"])


def test_perfect_masks_score_a_hundred(call, davis):
    truth = davis / "Annotations/480p"
    values = json.loads(call("score", truth, truth, "--json").out)
    assert values["mean"]["J&F"] == pytest.approx(100)


def test_objects_count_for_themselves_in_davis_2017(evaluate, call, davis):
    for path in (davis / "Annotations/480p").rglob("*.png"):
        label_map = (np.array(Image.open(path)) > 0).astype(np.uint8)
        label_map[:, 32:] *= 2  # whatever is in the right half is another object
        label_map[:12], label_map[-12:] = 1, 2
        write_label_map(path, label_map)
    assert evaluate("--dataset", "davis2017", "--out", "out").code == 0
    assert set(np.unique(read_label_map("out/ant/00000.png"))) == {0, 1, 2}
    truth = davis / "Annotations/480p"
    right = json.loads(call("score", truth, "out", "--dataset", "davis2017", "--json").out)
    merged = json.loads(call("score", truth, "out", "--json").out)
    exchange = np.array([0, 2, 1], np.uint8)
    for path in Path("out").rglob("*.png"):
        write_label_map(path, exchange[read_label_map(path)])
    wrong = json.loads(call("score", truth, "out", "--dataset", "davis2017", "--json").out)
    assert wrong["mean"]["J"] < right["mean"]["J"] / 2
    # where all objects are merged into one, mistaking one for the other costs nothing
    assert json.loads(call("score", truth, "out", "--json").out) == merged


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["--dataset", "davis2015"], "davis2016, davis2017"),
        (["--sequences", "cat"], "ant, bee"),
        (["--sequences", ","], "ant, bee"),
        (["--split", "val"], "val"),
        (["--set", "nope=1"], "nope"),
        (["--method", "nope"], "nope"),
        (["--device", "nope"], "nope"),
    ],
)
def test_eval_says_what_is_wrong_before_it_works(evaluate, tmp_path, arguments, part):
    assert part in evaluate("--out", "out", "--json", "e.json", *arguments).error
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / "e.json").exists()


def test_a_damaged_frame_ends_eval(evaluate, davis, tmp_path):
    frame = davis / "JPEGImages/480p/bee/00002.jpg"
    frame.write_bytes(frame.read_bytes()[:300])
    assert "00002.jpg" in evaluate("--json", "e.json").error
    assert not (tmp_path / "e.json").exists()


def test_sequences_that_cannot_be_scored_are_refused_at_once(evaluate, davis):
    for path in sorted((davis / "Annotations/480p/bee").iterdir())[1:]:
        path.unlink()
    assert "bee has no label maps beyond the first" in evaluate().error


def test_score_says_what_is_wrong(call, davis, tmp_path):
    truth = davis / "Annotations/480p"
    assert "no predicted label maps" in call("score", truth, davis / "JPEGImages/480p").error
    assert "none" in call("score", tmp_path / "none", truth).error
    (tmp_path / "part").mkdir()
    write_label_map(tmp_path / "part/00000.png", np.zeros((48, 64), np.uint8))
    assert "4 of 5 predictions are missing" in call("score", truth / "ant", tmp_path / "part").error
