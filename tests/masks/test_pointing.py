"""Boxes and clicks as users write them."""

from __future__ import annotations

import pytest

from streamvos.masks.pointing import parse_boxes, parse_points
from streamvos.types import InputError


def test_boxes_are_read_from_text():
    texts = ["1:200,120,420,460", " 254 : -5, 0 ,30, 40 "]
    assert parse_boxes(texts) == {1: (200, 120, 420, 460), 254: (-5, 0, 30, 40)}
    assert parse_boxes(None) == {}


def test_an_object_has_one_box():
    with pytest.raises(InputError, match="object 1 has a box already"):
        parse_boxes(["1:2,3,9,9", "1:4,3,9,9"])


@pytest.mark.parametrize(
    "text",
    ["", "1", "1:2,3,4", "1:2,3,4,5,6", "a:1,2,3,4", "1:1.5,2,3,4", "-1:1,2,3,4", "0:1,2,3,4", "255:1,2,3,4"],
)
def test_other_texts_are_refused(text):
    with pytest.raises(InputError, match=r"ID:LEFT,TOP,RIGHT,BOTTOM|1\.\.254"):
        parse_boxes([text])


def test_points_are_read_from_text():
    texts = ["1:310,200", " 2 : 5.5 , 0 ", "1:350,90,-1", "1:3,4,1"]
    assert parse_points(texts) == {
        1: [(310.0, 200.0, 1), (350.0, 90.0, -1), (3.0, 4.0, 1)],
        2: [(5.5, 0.0, 1)],
    }
    assert parse_points(None) == {}


@pytest.mark.parametrize(
    "text", ["", "1", "1:2", "1:2,3,2", "1:2,3,0", "a:1,2", "0:1,2", "255:1,2", "1:nan,2"]
)
def test_other_points_are_refused(text):
    with pytest.raises(InputError, match=r"ID:X,Y|1\.\.254"):
        parse_points([text])
