"""Which files are frames, and in which order; the table of inputs has more."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from streamvos.pictures import listing
from streamvos.pictures.listing import choose_frames, match_pictures, natural_order
from streamvos.types import InputError


@pytest.mark.parametrize(
    "stems",
    [
        ["frame1", "frame2", "frame10", "frame10b"],
        ["0.25", "0.5", "1.5", "2", "10"],
        ["1699999999.0999999", "1699999999.1", "1699999999.11"],
        ["v1.8", "v1.9", "v1.10", "v1.11"],  # counters, as 1.10 ends in 0
        ["9007199254740992", "9007199254740993"],  # more digits than a float has
        ["007", "07", "7", "8"],
        ["a", "B", "c"],
    ],
)
def test_natural_order(stems):
    paths = [Path(f"{stem}.png") for stem in stems]
    assert natural_order(reversed(paths)) == paths
    assert natural_order(paths[1:] + paths[:1]) == paths


def test_a_walk_is_bounded(tmp_path, monkeypatch):
    monkeypatch.setattr(listing, "LONGEST_WALK", 20)
    for number in range(30):
        (tmp_path / str(number)).mkdir()
    with pytest.raises(InputError, match="more than 20 files and folders"):
        match_pictures(str(tmp_path / "**" / "*.png"))


def test_globs_mean_what_they_mean_in_a_shell(tmp_path):
    for name in (
        "a1.png",
        "a2.png",
        "b1.png",
        ".a3.png",
        "sub/a4.png",
        "sub/.hidden/a5.png",
        "take[1]/a6.png",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()

    def found(pattern: str) -> list[str]:
        return [str(path.relative_to(tmp_path)) for path in match_pictures(str(tmp_path / pattern))]

    assert found("a?.png") == ["a1.png", "a2.png"]
    assert found("[ab]1.png") == ["a1.png", "b1.png"]
    assert found("*/*.png") == ["sub/a4.png", "take[1]/a6.png"]
    assert found("**/a*.png") == ["a1.png", "a2.png", "sub/a4.png", "take[1]/a6.png"]
    assert found("**") == ["a1.png", "a2.png", "b1.png", "sub/a4.png", "take[1]/a6.png"]
    assert found("none/*.png") == []


def test_painted_frames_are_frames_where_nothing_else_is(tmp_path):
    for number in range(3):
        image = np.zeros((20, 20, 3), np.uint8)
        image[5:15, 5 + number : 15] = 200
        for name in (f"left{number}.png", f"right{number}.png"):
            Image.fromarray(image).save(tmp_path / name)
    assert choose_frames(tmp_path.iterdir()) == (natural_order(tmp_path.iterdir()), [])
