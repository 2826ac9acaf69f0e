"""`bench streaming`: a row per method, height and rate on a tiny data set."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from bench.results import read
from bench.streaming import best_lines
from streamvos.cli import main
from streamvos.synthetic.synthetic import SyntheticOptions, SyntheticVideo


@pytest.fixture(scope="module")
def davis(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("davis")
    for seed, name in ((8, "ant"), (33, "bee")):
        for index, frame in enumerate(
            SyntheticVideo(seed, SyntheticOptions(size=(48, 64), length=5, objects=1))
        ):
            for kind, picture in (("JPEGImages", frame.image), ("Annotations", frame.label_map * 255)):
                path = root / kind / "480p" / name / f"{index:05d}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(picture).save(path)
    return root


def test_rows_with_scores_offline_and_streaming(davis, tmp_path, capsys):
    path = tmp_path / "rows.jsonl"
    arguments = ["--methods", "frtm-fast", "--height", "48,32", "--fps", "0.1,1000", "--threads", "1"]
    assert main(["bench", "streaming", str(davis), *arguments, "--json", str(path)]) == 0
    captured = capsys.readouterr()
    assert "about" in captured.err
    rows = read(path)
    assert [(row.case.height, row.case.fps) for row in rows] == [(48, 0.1), (48, 1000), (32, 0.1), (32, 1000)]
    for row in rows:
        assert row.count == 2 * 4
        assert len(row.repetitions) == 2
        assert row.case.threads == 1
        assert set(row.details["sequences"]) == {"ant", "bee"}
        assert all(0 <= row.details["offline"][measure] <= 100 for measure in ("J", "F", "J&F"))
        # ten seconds a frame: in time for the next one; a millisecond: nothing is, but the first mask
        slow = row.case.fps == 0.1
        assert row.details["behind"] == (1 if slow else 2)
        assert row.details["processed %"] == (100 if slow else 20)
    for one, other in zip(rows[::2], rows[1::2], strict=True):
        assert one.scores["J&F offline"] == other.scores["J&F offline"]
        assert one.scores["J&F streaming"] != other.scores["J&F streaming"]
    best = best_lines(rows)
    assert len(best) == 2
    assert all(line in captured.out for line in best)
    assert best[0].startswith("0.1 fps: best is frtm-fast at ")


def test_rows_alone_on_the_standard_output(davis, capsys):
    arguments = ["--methods", "frtm-fast", "--height", "32", "--fps", "30", "--sequences", "ant"]
    assert main(["bench", "streaming", str(davis), *arguments, "--json"]) == 0
    (line,) = capsys.readouterr().out.splitlines()
    assert json.loads(line)["bench"] == "streaming"


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["--fps", "fast"], "--fps 'fast'"),
        (["--fps", "0"], "--fps '0'"),
        (["--fps", "nan"], "--fps 'nan'"),
        (["--height", "8"], "--height '8'"),
        (["--methods", "nope"], "unknown method 'nope'"),
        (["--sequences", "cat"], "ant, bee"),
    ],
)
def test_bad_input_ends_in_one_line(davis, capsys, arguments, part):
    assert main(["bench", "streaming", str(davis), *arguments]) == 2
    captured = capsys.readouterr()
    assert part in captured.err
    assert (captured.out, len(captured.err.splitlines())) == ("", 1)


def test_a_folder_without_frames(tmp_path, capsys):
    assert main(["bench", "streaming", str(tmp_path)]) == 2
    assert "no JPEGImages/480p" in capsys.readouterr().err
