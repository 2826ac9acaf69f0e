"""Clips for training, and the finding of pictures."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from streamvos.datasets.clips import frames_in, label_maps_in, locate, starts, window
from streamvos.pictures.opening import read_rgb
from streamvos.types import InputError


def test_windows_start_where_asked_and_shift_back_at_the_end():
    assert list(window(0, 3, 10, "goat")) == [0, 1, 2]
    assert list(window(7, 3, 10, "goat")) == [7, 8, 9]
    assert list(window(9, 3, 10, "goat")) == [7, 8, 9]
    assert list(window(5, 10, 10, "goat")) == list(range(10))


def test_a_window_that_cannot_fit_names_the_video():
    with pytest.raises(InputError, match="goat has 10 frames"):
        window(0, 11, 10, "goat")
    with pytest.raises(InputError, match="count >= 1"):
        window(0, 0, 10, "goat")


def test_every_frame_of_a_row_of_videos_is_found():
    lengths = [3, 0, 2, 5]
    found = [locate(lengths, i) for i in range(10)]
    assert found == [(0, 0), (0, 1), (0, 2), (2, 0), (2, 1), (3, 0), (3, 1), (3, 2), (3, 3), (3, 4)]
    for i in (-1, 10):
        with pytest.raises(InputError, match=r"0\.\.9"):
            locate(lengths, i)


def test_starts_are_the_frames_of_videos_with_room():
    assert starts([3, 0, 2, 5], count=3) == [0, 1, 2, 5, 6, 7, 8, 9]
    assert starts([3, 0, 2, 5], count=4) == [5, 6, 7, 8, 9]
    assert starts([3, 0, 2, 5], count=9) == []


class TestPictures:
    def test_numbers_are_ordered_as_numbers_and_words_as_words(self, tmp_path):
        for name in ("10.png", "9.png", "1.PNG", ".hidden.png", "._9.png", "notes.txt", "2.jpg"):
            (tmp_path / name).touch()
        assert list(label_maps_in(tmp_path)) == ["1", "9", "10"]
        (tmp_path / "b.png").touch()
        assert list(label_maps_in(tmp_path)) == ["1", "9", "10", "b"]

    def test_one_name_twice(self, tmp_path):
        for name in ("00000.jpg", "00000.jpeg"):
            (tmp_path / name).touch()
        with pytest.raises(InputError, match=r"both 00000\.jpeg and 00000\.jpg"):
            frames_in(tmp_path)

    def test_any_kind_of_picture_becomes_rgb(self, tmp_path):
        Image.fromarray(np.full((4, 5), 7, np.uint8)).save(tmp_path / "gray.png")
        assert read_rgb(tmp_path / "gray.png").tolist() == np.full((4, 5, 3), 7).tolist()

    def test_a_broken_picture(self, tmp_path):
        Image.fromarray(np.random.default_rng(0).integers(0, 255, (60, 80, 3), np.uint8)).save(
            tmp_path / "cut.jpg"
        )
        whole = (tmp_path / "cut.jpg").read_bytes()
        (tmp_path / "cut.jpg").write_bytes(whole[: len(whole) // 2])
        (tmp_path / "text.jpg").write_text("no picture")
        for name in ("cut.jpg", "text.jpg", "missing.jpg"):
            with pytest.raises(InputError, match=name):
                read_rgb(tmp_path / name)
