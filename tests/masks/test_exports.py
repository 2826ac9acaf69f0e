"""Exports of CVAT and Label Studio become label maps; what is no export is refused."""

from __future__ import annotations

import json
from contextlib import suppress

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamvos.masks.exports import is_export, label_map_of_export, read_export
from streamvos.types import InputError

IMAGES = """<?xml version="1.0" encoding="utf-8"?>
<annotations><version>1.1</version>
  <image id="0" name="clip/frame_000000.PNG" width="40" height="30">
    <polygon label="goat" source="manual" occluded="0" points="5.00,4.00;15.00,4.00;15.00,20.00;5.00,20.00"/>
    <mask label="dog" source="manual" rle="2, 3, 2, 3" left="30" top="10" width="5" height="2" z_order="0"/>
    <box label="cat" xtl="1" ytl="1" xbr="9" ybr="9"/>
  </image>
  <image id="1" name="frame_000001.PNG" width="40" height="30"/>
</annotations>"""

VIDEO = """<annotations><version>1.1</version>
  <meta><job><original_size><width>40</width><height>30</height></original_size></job></meta>
  <track id="0" label="goat">
    <polygon frame="4" outside="0" points="5,4;15,4;15,20;5,20"/>
    <polygon frame="5" outside="1" points="6,4;16,4;16,20;6,20"/>
  </track>
  <track id="7" label="dog">
    <mask frame="4" outside="0" rle="0,10" left="30" top="10" width="5" height="2"/>
  </track>
</annotations>"""

# 6 x 9 pixels with ones in [1:4, 2:7] and at (5, 8), packed by label-studio-converter 0.0.59 (brush.mask2rle)
STROKES = [0, 0, 0, 216, 57, 27, 254, 43, 0, 194, 127, 247, 192, 48, 159, 253, 240, 12, 39, 255, 146, 192]
STROKES += [35, 255, 0]


def label_studio(*regions, size=(6, 9)):
    both = [{"original_height": size[0], "original_width": size[1], **one} for one in regions]
    return json.dumps([{"data": {"image": "/data/upload/3f-frame1.png"}, "annotations": [{"result": both}]}])


def brush(rle=STROKES, **more):
    return {
        "id": "b",
        "type": "brushlabels",
        "value": {"format": "rle", "rle": rle, "brushlabels": ["dog"]},
        **more,
    }


def test_polygons_and_masks_of_cvats_images(tmp_path):
    path = tmp_path / "annotations.xml"
    path.write_text(IMAGES)
    (picture,) = read_export(path)
    assert (picture.name, picture.labels) == ("frame_000000.PNG", {1: "goat", 2: "dog"})
    expected = np.zeros((30, 40), np.uint8)
    expected[4:20, 5:15] = 1
    expected[10, 32:35], expected[11, 32:35] = 2, 2
    np.testing.assert_array_equal(picture.label_map, expected)


def test_tracks_of_cvats_videos_at_the_first_frame_that_has_any(tmp_path):
    path = tmp_path / "annotations.xml"
    path.write_text(VIDEO)
    (picture,) = read_export(path)
    assert (picture.name, picture.labels) == ("frame 4", {1: "goat", 2: "dog"})
    assert (picture.label_map[10:12, 30:35] == 2).all()
    assert picture.label_map[12, 10] == 1


def test_strokes_and_polygons_of_label_studio(tmp_path):
    path = tmp_path / "project.json"
    polygon = {
        "type": "polygonlabels",
        "value": {"points": [[0, 0], [30, 0], [0, 50]], "polygonlabels": ["goat"]},
    }
    path.write_text(label_studio({"id": "a", **polygon}, brush()))
    (picture,) = read_export(path)
    assert (picture.name, picture.labels) == ("3f-frame1.png", {1: "goat", 2: "dog"})
    strokes = np.zeros((6, 9), bool)
    strokes[1:4, 2:7], strokes[5, 8] = True, True
    np.testing.assert_array_equal(picture.label_map == 2, strokes)
    assert picture.label_map[0, 0] == 1


def test_an_export_of_several_pictures_needs_a_name(tmp_path, caplog):
    path = tmp_path / "annotations.xml"
    second = IMAGES.replace(
        'name="frame_000001.PNG" width="40" height="30"/>',
        'name="frame_000001.PNG" width="40" height="30"><polygon label="ox" points="1,1;9,1;9,9"/></image>',
    )
    path.write_text(second)
    with pytest.raises(InputError, match=r"2 pictures .*#frame_000000.PNG"):
        label_map_of_export(path)
    label_map = label_map_of_export(tmp_path / "annotations.xml#frame_000001.PNG")
    assert set(np.unique(label_map)) == {0, 1}
    assert "1 ox" in caplog.text
    assert is_export(tmp_path / "annotations.xml#frame_000001.PNG")
    assert not is_export(tmp_path / "first.png")
    with pytest.raises(InputError, match="name one of them"):
        label_map_of_export(tmp_path / "annotations.xml#other.PNG")


@pytest.mark.parametrize(
    ("name", "text", "part"),
    [
        ("a.xml", "<annotations/>", "no polygon"),
        ("a.xml", "<svg/>", "no export of CVAT"),
        ("a.xml", "no xml", "no export of CVAT"),
        ("a.xml", IMAGES.replace("utf-8", "u0tf-8"), "unknown encoding"),
        ("a.xml", '<!DOCTYPE a [<!ENTITY b "c">]><annotations>&b;</annotations>', "document type"),
        ("a.xml", IMAGES.replace('rle="2, 3, 2, 3"', 'rle="2, 3, 2, 300"'), "cover 307 pixels"),
        ("a.xml", IMAGES.replace('width="40"', 'width="4000000"'), "4000000 x 30"),
        ("a.xml", IMAGES.replace("15.00,4.00", "15.00"), "no export of CVAT"),
        ("a.xml", IMAGES.replace("15.00,4.00", "nan,inf"), "finite"),
        ("a.json", "[]", "no polygon"),
        ("a.json", "[" * 100_000, "no export of CVAT"),
        ("a.json", '{"images": []}', "no polygon"),
        ("a.json", label_studio(brush(STROKES[:9])), "middle of a run"),
        ("a.json", label_studio(brush(), size=(7, 9)), "expected 252"),
        ("a.json", label_studio(brush([300])), "no export of CVAT"),
    ],
)
def test_what_is_no_export_is_refused(tmp_path, name, text, part):
    path = tmp_path / name
    path.write_text(text)
    with pytest.raises(InputError, match=part):
        read_export(path)


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_damaged_exports_are_read_or_refused(tmp_path_factory, data):
    text = data.draw(st.sampled_from([IMAGES, VIDEO, label_studio(brush())]))
    place = data.draw(st.integers(0, len(text) - 1))
    other = data.draw(st.text("0123456789<>\"'{}[],.;-ax ", max_size=4))
    path = tmp_path_factory.mktemp("odd") / ("a.json" if text.startswith("[") else "a.xml")
    path.write_text(text[:place] + other + text[place + data.draw(st.integers(0, 5)) :])
    with suppress(InputError):
        assert all(one.label_map.dtype == np.uint8 for one in read_export(path))
