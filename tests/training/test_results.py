"""The picture of the losses."""

from __future__ import annotations

import json
import sys

import numpy as np
import pytest
from PIL import Image

from streamvos.training.results import plot_losses, running_mean
from streamvos.types import InputError, SinkError


def write_log(path, count: int):
    rows = [{"step": k, "total": 2 / (k + 1), "layer": 1 / (k + 1)} for k in range(count)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_the_running_mean_is_over_what_there_is_up_to_the_window(rng):
    values = rng.random(30)
    for window in (1, 4, 30, 100):
        expected = [values[max(0, k + 1 - window) : k + 1].mean() for k in range(30)]
        np.testing.assert_allclose(running_mean(values, window), expected)


@pytest.mark.parametrize("count", [1, 120])
def test_a_picture_with_a_line_for_every_loss(tmp_path, count):
    pytest.importorskip("matplotlib")
    picture = tmp_path / "losses.png"
    plot_losses(write_log(tmp_path / "losses.jsonl", count), picture)
    with Image.open(picture) as image:
        colors = {color for _, color in image.convert("RGB").getcolors(maxcolors=100_000)}
    assert {(31, 119, 180), (255, 127, 14)} <= colors  # matplotlib's first two; the third is not needed
    assert (44, 160, 44) not in colors
    assert sorted(path.name for path in tmp_path.iterdir()) == ["losses.jsonl", "losses.png"]


@pytest.mark.parametrize(
    "content", ["", "hello\n", '{"step": 1}\n', "[1, 2]\n", '{"step": 1, "a": 1}\n{"step": 2}\n']
)
def test_a_log_without_losses_is_refused_and_nothing_is_written(tmp_path, content):
    pytest.importorskip("matplotlib")
    (tmp_path / "losses.jsonl").write_text(content)
    with pytest.raises(InputError, match=r"losses\.jsonl"):
        plot_losses(tmp_path / "losses.jsonl", tmp_path / "losses.png")
    assert [path.name for path in tmp_path.iterdir()] == ["losses.jsonl"]


def test_a_missing_log_is_refused(tmp_path):
    pytest.importorskip("matplotlib")
    with pytest.raises(InputError, match="no such file"):
        plot_losses(tmp_path / "losses.jsonl", tmp_path / "losses.png")


def test_a_place_that_cannot_be_written_to_is_named(tmp_path):
    pytest.importorskip("matplotlib")
    with pytest.raises(SinkError, match=r"cannot write .*losses\.png"):
        plot_losses(write_log(tmp_path / "losses.jsonl", 2), tmp_path / "no folder" / "losses.png")


def test_without_matplotlib_it_says_how_to_get_it(tmp_path, monkeypatch):
    for module in ("matplotlib", "matplotlib.figure", "matplotlib.ticker"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(InputError, match=r"pip install 'streamvos\[train\]'"):
        plot_losses(write_log(tmp_path / "losses.jsonl", 2), tmp_path / "losses.png")
