"""`streamvos eval --streaming`: offline and streaming side by side."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from streamvos.masks.labelmap import read_label_map, write_label_map
from streamvos.metrics.evaluation import evaluate_sequence


@pytest.fixture
def evaluate(call, davis, weights, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def run(*arguments):
        return call("eval", davis, "--weights", weights, "--streaming", *arguments)

    return run


def costs(tmp_path, seconds, **more):
    path = tmp_path / "latencies.json"
    path.write_text(json.dumps([{"method": "tvos", "height": 48, "seconds": seconds, **more}]))
    return path


def masks(root):
    return [read_label_map(path) for path in sorted(root.glob("*.png"))]


def test_without_latency_streaming_is_offline(evaluate, tmp_path):
    values = json.loads(evaluate("--latencies", costs(tmp_path, 0.0), "--json").out)
    (row,) = values["methods"]
    assert row["streaming"] == row["offline"]
    assert (row["processed"], row["frames_behind"]) == (1, 0)
    assert list(row["offline"]["sequences"]) == ["ant", "bee"]


def test_below_a_period_the_masks_are_those_of_the_frame_before(evaluate, call, davis, tmp_path):
    values = json.loads(evaluate("--latencies", costs(tmp_path, 0.03), "--out", "late", "--json").out)
    (row,) = values["methods"]
    assert (row["processed"], row["frames_behind"]) == (1, 1)
    evaluate("--latencies", costs(tmp_path, 0.0), "--out", "now", "--json", "x.json")
    for name in ("ant", "bee"):
        late, now = masks(tmp_path / "late" / name), masks(tmp_path / "now" / name)
        for before, shown in zip([now[0], *now], late, strict=False):
            np.testing.assert_array_equal(shown, before)
        truth = masks(davis / "Annotations/480p" / name)
        score = evaluate_sequence(truth, late, [1]).percent()
        assert row["streaming"]["sequences"][name] == pytest.approx(score)


def test_a_file_makes_it_deterministic_and_speed_divides(evaluate, tmp_path):
    slow = costs(tmp_path, 0.05, first_seconds=0.09)
    one = evaluate("--latencies", slow, "--json").out
    assert evaluate("--latencies", slow, "--json").out == one
    row = json.loads(one)["methods"][0]
    assert (row["mean_ms"], row["first_frame_ms"]) == pytest.approx((50, 90))
    assert row["processed"] < 1
    fast = json.loads(evaluate("--latencies", slow, "--device-speed", "10", "--json").out)["methods"][0]
    assert (fast["mean_ms"], fast["first_frame_ms"], fast["processed"]) == pytest.approx((5, 9, 1))


def test_a_huge_latency_leaves_the_first_mask(evaluate, davis, tmp_path):
    evaluate("--latencies", costs(tmp_path, 1e6), "--out", "out")
    for name in ("ant", "bee"):
        first = read_label_map(davis / "Annotations/480p" / name / "00000.png")
        for shown in masks(tmp_path / "out" / name):
            np.testing.assert_array_equal(shown, first)


def test_measured_here_with_several_methods_at_another_height(call, davis, tmp_path):
    answer = call(
        "eval", davis, "--streaming", "--fps", "1000", "--device-speed", "0.001", "--height", "32",
        "--method", "frtm-fast,tvos", "--sequences", "ant", "--json", tmp_path / "rows.json",
    )  # fmt: skip
    assert answer.code == 0, answer.err
    assert "measured here, divided by 0.001" in answer.out
    rows = json.loads((tmp_path / "rows.json").read_text())["methods"]
    assert [(row["method"], row["heights"]) for row in rows] == [("frtm-fast", [32]), ("tvos", [32])]
    for row in rows:
        # at a thousandth of the speed and a thousand frames a second, nothing but the first mask is known
        assert row["processed"] == pytest.approx(1 / 5)
        assert row["frames_behind"] == 2
        assert row["mean_ms"] > 1000


def test_masks_are_scored_at_the_size_of_the_true_ones(call, davis, weights, tmp_path):
    call("eval", davis, "--weights", weights, "--height", "24", "--out", tmp_path / "out")
    shapes = {np.array(Image.open(path)).shape for path in (tmp_path / "out").rglob("*.png")}
    assert shapes == {(48, 64)}


def test_rows_of_bench_latency_are_taken(evaluate, tmp_path):
    rows = [
        {"schema": 1, "bench": "latency", "name": f"{k}", "unit": "ms", "mean": mean, "first_frame_ms": 70.0}
        | {"case": {"method": "tvos", "height": 48, "objects": objects, "weights": "bundled"}}
        for k, (mean, objects) in enumerate([(20.0, 1), (50.0, 5)])
    ]
    failed = {"schema": 1, "bench": "latency", "name": "x", "case": {"method": "tvos"}, "failed": "no room"}
    path = tmp_path / "latency.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in [*rows, failed]))
    row = json.loads(evaluate("--latencies", path, "--json").out)["methods"][0]
    assert (row["mean_ms"], row["first_frame_ms"]) == pytest.approx((20, 70))


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["--fps", "0"], "--fps is 0; expected"),
        (["--device-speed", "-1"], "--device-speed is -1"),
        (["--method", "tvos,nope"], "unknown method 'nope'"),
        (["--method", ","], "expected each method once"),
        (["--method", "tvos,tvos"], "expected each method once"),
        (["--method", "tvos,rgmp", "--out", "out"], "--out takes the label maps of one method"),
        (["--latencies", "none.json"], "none.json"),
        (["--latencies", "text.json"], "no JSON"),
        (["--latencies", "empty.json"], "holds no latency"),
        (["--latencies", "negative.json"], "seconds: Input should be greater"),
        (["--latencies", "other.json"], "no latency of tvos at height 48 with 1 object; it has rgmp 48"),
        (["--latencies", "twice.json"], "has 2 latencies of tvos at height 48"),
        (["--latencies", "five.json"], "it has those of 5 objects"),
    ],
)
def test_bad_input_ends_in_one_line_before_the_work(evaluate, tmp_path, arguments, part):
    one = {"method": "tvos", "height": 48, "seconds": 0.1}
    files = {"negative": [one | {"seconds": -1}], "other": [one | {"method": "rgmp"}]}
    files |= {"twice": [one, one], "five": [one | {"objects": 5}], "empty": []}
    for name, rows in files.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(rows))
    (tmp_path / "text.json").write_text("fast")
    assert part in evaluate(*arguments, "--json", "rows.json").error
    assert not (tmp_path / "rows.json").exists()


@pytest.mark.parametrize("option", ["--fps", "--latencies", "--device-speed"])
def test_the_options_of_streaming_need_it(call, davis, option):
    assert f"{option} belongs to --streaming" in call("eval", davis, option, "1").error


def test_void_and_ids_of_davis_2017(call, davis, weights, tmp_path):
    for path in (davis / "Annotations/480p").rglob("*.png"):
        label_map = (np.array(Image.open(path)) > 0).astype(np.uint8) * 3
        label_map[:12], label_map[-12:], label_map[20:22] = 3, 7, 255
        write_label_map(path, label_map)
    file = costs(tmp_path, 0.05, objects=2)
    arguments = ("--streaming", "--dataset", "davis2017", "--latencies", file, "--height", "40")
    answer = call("eval", davis, "--weights", weights, *arguments)
    assert "no latency of tvos at height 40" in answer.error
    file.write_text(file.read_text().replace("48", "40"))
    assert call("eval", davis, "--weights", weights, *arguments).code == 0
