"""The folder of a run, without a run: what it keeps, cleans up and refuses. See also test_loop.py."""

from __future__ import annotations

import json

import pytest
import torch

from streamvos.training.run_folder import RunFolder
from streamvos.types import InputError

STATE = {"model": {"w": torch.ones(3)}, "optimizer": {}, "average": {"w": torch.zeros(3)}}


def test_what_is_saved_is_read_again(tmp_path):
    identity = {"steps": 3, "recipe": {"planes": (64, 128)}}  # a tuple comes back as a list and is the same
    with RunFolder(tmp_path / "a" / "b", identity) as run:
        assert run.read() is None
        run.save(2, STATE)
        saved = run.read()
    assert saved is not None
    assert saved["step"] == 2
    assert torch.equal(saved["model"]["w"], torch.ones(3))
    with RunFolder(tmp_path / "a" / "b", identity) as run:
        assert run.read() is not None


def test_everything_that_differs_is_named_up_to_a_limit(tmp_path):
    with RunFolder(tmp_path, {"equal": 1, **{f"x{k}": k for k in range(9)}}) as run:
        run.save(1, STATE)
    other = {"equal": 1, **{f"x{k}": -k - 1 for k in range(9)}}
    with RunFolder(tmp_path, other) as run, pytest.raises(InputError) as caught:
        run.read()
    text = str(caught.value)
    assert "x0: 0 there, -1 here; x1: 1 there, -2 here" in text
    assert "and 3 more" in text
    assert "equal" not in text


@pytest.mark.parametrize(
    ("lines", "step", "kept"),
    [
        ([0, 1, 2, 3], 2, 2),
        ([0, 1], 5, 2),  # lines that were lost do not come back, but nothing is made up
        ([0, 1, 2], 0, 0),
        ([0, 1, "{", 3], 4, 2),
        (['{"loss": 1}'], 4, 0),
        ([], 4, 0),
    ],
)
def test_the_log_is_cut_where_the_run_goes_on(tmp_path, lines, step, kept):
    texts = [line if isinstance(line, str) else json.dumps({"step": line, "total": 0.5}) for line in lines]
    (tmp_path / "losses.jsonl").write_text("".join(text + "\n" for text in texts))
    with RunFolder(tmp_path, {}) as run:
        run.begin(step)
        run.log(step, {"total": 0.25})
    rows = [json.loads(line) for line in (tmp_path / "losses.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [*range(kept), step]
    assert rows[-1] == {"step": step, "total": 0.25}


def test_what_a_killed_process_left_is_cleaned_up_and_nothing_else(tmp_path):
    for name in (".checkpoint.pt.123", "notes.txt", "tvos.safetensors"):
        (tmp_path / name).write_text("x")
    with RunFolder(tmp_path, {}):
        pass
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "losses.jsonl",
        "notes.txt",
        "tvos.safetensors",
    ]
