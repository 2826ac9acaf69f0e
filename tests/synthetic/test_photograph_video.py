"""Videos of photographs: the truth that the demo is scored with, and the credits of the pictures."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

import streamvos
from streamvos.synthetic.photograph_video import PhotographOptions, PhotographVideo

SMALL = PhotographOptions(size=(90, 160), length=40)
PICTURES = Path(streamvos.__file__).parent / "synthetic" / "photographs"


def test_the_same_seed_gives_the_same_frames_in_any_order():
    first, second = PhotographVideo(3, SMALL), PhotographVideo(3, SMALL)
    for t in (17, 0, -1):
        np.testing.assert_array_equal(first[t].image, second[t].image)
        np.testing.assert_array_equal(first[t].label_map, second[t].label_map)
    np.testing.assert_array_equal(first[:18][-1].image, first[17].image)
    assert (PhotographVideo(4, SMALL)[17].image != first[17].image).mean() > 0.3
    with pytest.raises(IndexError):
        first[40]


@pytest.mark.parametrize("seed", range(4))
def test_an_object_leaves_and_returns_while_the_other_stays(seed: int):
    areas = np.array([np.bincount(f.label_map.ravel(), minlength=3) for f in PhotographVideo(seed, SMALL)])
    assert areas.shape[1] == 3, "no other ids"
    person, flying = areas[:, 1] / 90 / 160, areas[:, 2] / 90 / 160
    assert person.min() > 0.05
    assert min(flying[0], flying[-1]) > 0.01
    gone = np.flatnonzero(flying == 0)
    assert 4 <= len(gone) <= 20
    np.testing.assert_array_equal(gone, np.arange(gone[0], gone[-1] + 1), "it leaves once")


def test_labels_lie_where_the_objects_are():
    """The orange suit is inside the person's label and almost nowhere else but on what is orange as well."""
    for frame in PhotographVideo(0, SMALL)[:8:7]:  # before the orange flower comes
        red, green, blue = np.moveaxis(frame.image.astype(int), -1, 0)
        suit = (red > 150) & (red - blue > 110) & (green > 50) & (green < 130)
        inside = suit & (frame.label_map == 1)
        assert inside.sum() > 0.25 * (frame.label_map == 1).sum()
        assert inside.sum() > 0.8 * suit.sum()


@pytest.mark.parametrize("size", [(16, 16), (200, 60), (60, 400)])
def test_any_size_shows_both_objects_first(size: tuple[int, int]):
    frame = PhotographVideo(1, PhotographOptions(size=size, length=1))[0]
    assert frame.image.shape == (*size, 3)
    assert set(frame.label_map.ravel().tolist()) == {0, 1, 2}


def test_every_picture_is_credited():
    text = (PICTURES / "CREDITS.md").read_text()
    rows = dict(re.findall(r"^\| `(\w+\.webp)` \|(.*)$", text, re.MULTILINE))
    assert rows.keys() == {path.name for path in PICTURES.glob("*.webp")}
    assert all(re.search(r"public domain|CC0 1.0|CC BY 2.0", row) for row in rows.values())
    assert sum(path.stat().st_size for path in PICTURES.iterdir()) < 300_000
