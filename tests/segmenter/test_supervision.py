"""Results as detections of the library supervision."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import supervision

from streamvos.types import InputError, ObjectResult, Result


def result(objects):
    mask = np.zeros((20, 30), np.uint8)
    for one in objects:
        if one.box is not None:
            left, top, right, bottom = one.box
            mask[top:bottom, left:right] = one.id
    return Result(
        mask, 3, tuple(one.id for one in objects), lambda: mask, lambda: {one.id: one for one in objects}
    )


def test_objects_that_are_seen_are_detections():
    objects = [
        ObjectResult(2, 0.9, "tracking", (1, 2, 6, 8), 30),
        ObjectResult(5, 0.0, "lost", None, 0),
        ObjectResult(7, 0.4, "uncertain", (10, 10, 20, 15), 50),
    ]
    found = result(objects).to_supervision()
    assert isinstance(found, supervision.Detections)
    assert found.tracker_id.tolist() == [2, 7]
    assert found.xyxy.tolist() == [[1, 2, 6, 8], [10, 10, 20, 15]]
    assert found.mask.sum((1, 2)).tolist() == [30, 50]
    assert found.data["state"].tolist() == ["tracking", "uncertain"]
    picture = supervision.MaskAnnotator().annotate(np.zeros((20, 30, 3), np.uint8), found)
    assert picture[3, 2].any()
    assert len(found[found.confidence > 0.5]) == 1


def test_nothing_seen_is_an_empty_set():
    found = result([ObjectResult(5, 0.0, "lost", None, 0)]).to_supervision()
    assert len(found) == 0
    assert found.mask.shape == (0, 20, 30)


def test_without_the_library_the_error_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "supervision", None)
    with pytest.raises(InputError, match=r"streamvos\[supervision\]"):
        result([]).to_supervision()
