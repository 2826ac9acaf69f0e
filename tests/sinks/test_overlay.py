"""Drawing: the objects change, in their palette colors, and nothing else does."""

import numpy as np
import pytest

from streamvos.masks.labelmap import davis_palette
from streamvos.sinks import Overlay
from streamvos.types import InputError

BARE = {"labels": False, "boxes": False}


@pytest.fixture
def picture() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (60, 80, 3)).astype(np.uint8)


def squares() -> np.ndarray:
    mask = np.zeros((60, 80), np.uint8)
    mask[10:30, 10:40] = 1
    mask[30:50, 10:40] = 2  # touches object 1
    mask[40:60, 60:80] = 200  # touches the border
    return mask


def test_only_objects_are_touched(picture, make_result):
    mask, before = squares(), picture.copy()
    drawn = Overlay(**BARE)(picture, make_result(mask))
    assert drawn.dtype == np.uint8
    assert drawn.shape == picture.shape
    assert drawn is not picture
    np.testing.assert_array_equal(picture, before)
    np.testing.assert_array_equal(drawn[mask == 0], picture[mask == 0])
    changed = (drawn != picture).any(axis=2)
    assert changed[mask != 0].mean() > 0.99


@pytest.mark.parametrize("opacity", [0.0, 0.3, 1.0])
def test_inside_the_color_is_mixed_with_the_picture(picture, make_result, opacity):
    mask = squares()
    drawn = Overlay(opacity=opacity, contour=0, **BARE)(picture, make_result(mask))
    expected = opacity * davis_palette()[mask].astype(float) + (1 - opacity) * picture
    # One gray level: the mixing rounds.
    assert np.abs(drawn[mask != 0] - expected[mask != 0]).max() <= 1


def test_the_contour_lies_within_objects_along_their_edges(picture, make_result):
    mask = squares()
    plain = Overlay(contour=0, **BARE)(picture, make_result(mask))
    drawn = Overlay(contour=2, **BARE)(picture, make_result(mask))
    line = (plain != drawn).any(axis=2)
    expected = np.zeros_like(line)
    expected[10:50, 10:40] = True
    expected[12:28, 12:38] = False  # two pixels on every side, also where objects 1 and 2 touch
    expected[32:48, 12:38] = False
    expected[40:42, 60:80] = True
    expected[40:60, 60:62] = True  # the picture's border is no edge
    # The line may miss a pixel whose color happens to be the same.
    assert (line & ~expected).sum() == 0
    assert line.sum() > 0.98 * expected.sum()
    assert len(np.unique(drawn[10:12, 10:40].reshape(-1, 3), axis=0)) == 1


def test_nothing_to_draw_leaves_the_picture(picture, make_result):
    drawn = Overlay()(picture, make_result(np.zeros((60, 80), np.uint8), ids=(1, 2)))
    np.testing.assert_array_equal(drawn, picture)


def test_labels_and_boxes_are_drawn_and_stay_within_the_picture(picture, make_result):
    mask = np.zeros((60, 80), np.uint8)
    mask[0:4, 76:80] = 254
    mask[58:60, 0:2] = 1
    result = make_result(mask, states={254: "uncertain"})
    bare = Overlay(**BARE)(picture, result)
    labelled = Overlay(labels=True)(picture, result)
    boxed = Overlay(labels=False, boxes=True)(picture, result)
    assert (labelled != bare).any(axis=2).sum() > 50
    assert (boxed != bare).any()


def test_state_is_written_out_when_it_is_not_tracking(picture, make_result):
    mask = squares()
    sure = Overlay()(picture, make_result(mask))
    unsure = Overlay()(picture, make_result(mask, states={1: "uncertain"}))
    assert (sure != unsure).any()


@pytest.mark.parametrize("size", [(1, 1), (1, 50), (3, 3)])
def test_tiny_pictures(make_result, size):
    drawn = Overlay(boxes=True)(np.zeros((*size, 3), np.uint8), make_result(np.ones(size, np.uint8)))
    assert drawn.shape == (*size, 3)


@pytest.mark.parametrize("options", [{"opacity": 1.5}, {"opacity": -0.1}, {"contour": -1}, {"contour": 1.5}])
def test_values_out_of_range_are_refused(options):
    with pytest.raises(InputError):
        Overlay(**options)
