"""A rectangle becomes a mask of the object in it: tight where color allows, sane where it does not."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from streamvos.datasets.davis import DavisDataset
from streamvos.masks.pointing import Pointing
from streamvos.selection.grabcut import GrabCut, object_in_box
from streamvos.selection.objects import select_objects
from streamvos.types import InputError


def scene(rng, height=120, width=160):
    """A noisy picture with a bright disk of radius 25 around (70, 60)."""
    y, x = np.mgrid[:height, :width]
    disk = (x - 70) ** 2 + (y - 60) ** 2 <= 25**2
    image = np.where(disk[..., None], (210, 180, 40), (40, 90, 60)) + rng.normal(0, 12, (height, width, 3))
    return image.clip(0, 255).astype(np.uint8), disk


def overlap(a, b):
    return (a & b).sum() / (a | b).sum()


def test_the_object_is_cut_out_of_its_box(rng):
    image, disk = scene(rng)
    mask = object_in_box(image, (40, 30, 101, 91))
    assert mask.dtype == np.bool_
    assert mask.shape == disk.shape
    assert overlap(mask, disk) > 0.95  # the box itself overlaps by 0.53, the ellipse in it by 0.67


def test_the_same_box_gives_the_same_mask_whatever_was_drawn_before(rng):
    image, _ = scene(rng)
    first = object_in_box(image, (40, 30, 101, 91))
    cv2.randu(np.zeros((50, 50), np.uint8), 0, 255)
    cv2.setRNGSeed(99)
    np.testing.assert_array_equal(object_in_box(image, (40, 30, 101, 91)), first)


def test_nothing_outside_of_the_box_is_taken(rng):
    image, _ = scene(rng)
    for _ in range(10):
        left, top = rng.integers(0, 120), rng.integers(0, 80)
        right, bottom = left + rng.integers(4, 60), top + rng.integers(4, 50)
        mask = object_in_box(image, (int(left), int(top), int(right), int(bottom)))
        assert mask.any()
        mask[top:bottom, left:right] = False
        assert not mask.any()


@pytest.mark.parametrize("fill", [0, 128])
def test_where_color_tells_nothing_it_is_the_inscribed_ellipse(fill):
    image = np.full((80, 100, 3), fill, np.uint8)
    mask = object_in_box(image, (20, 10, 80, 50))
    assert mask.sum() == pytest.approx(np.pi / 4 * 60 * 40, rel=0.02)
    rows, columns = np.nonzero(mask)
    assert (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1) == (20, 10, 80, 50)


def test_a_box_of_the_whole_picture_is_an_ellipse_too(rng):
    image, _ = scene(rng)
    mask = object_in_box(image, (0, 0, 160, 120))
    assert mask.sum() == pytest.approx(np.pi / 4 * 160 * 120, rel=0.01)


def test_what_lies_beyond_the_picture_is_cut_off(rng):
    image, _ = scene(rng)
    np.testing.assert_array_equal(
        object_in_box(image, (-30, -9, 60, 50)), object_in_box(image, (0, 0, 60, 50))
    )


@pytest.mark.parametrize(
    ("box", "part"),
    [
        ((60, 10, 20, 50), "empty"),
        ((20, 50, 60, 10), "empty"),
        ((20, 10, 20, 50), "empty"),
        ((200, 10, 260, 50), "160 x 120"),
        ((-60, 10, 2, 50), "160 x 120"),
        ((20, 10, 23, 50), "4 x 4"),
    ],
)
def test_boxes_that_hold_nothing_are_refused(rng, box, part):
    with pytest.raises(InputError, match=part):
        object_in_box(scene(rng)[0], box)


def test_several_objects_keep_their_ids_and_the_smaller_is_in_front(rng):
    image, disk = scene(rng)
    label_map = select_objects(GrabCut(), image, Pointing({9: (0, 0, 160, 120), 3: (40, 30, 101, 91)}))
    assert label_map.dtype == np.uint8
    assert set(np.unique(label_map)) == {0, 3, 9}
    assert overlap(label_map == 3, disk) > 0.95
    boxes = {1: (5, 5, 40, 40), 2: (5, 5, 40, 40)}
    with pytest.raises(InputError, match="object 1"):
        select_objects(GrabCut(), np.zeros((50, 50, 3), np.uint8), Pointing(boxes))


def test_real_objects_are_cut_out_better_than_by_an_ellipse(shared):
    gains = []
    for sequence in DavisDataset(shared / "data" / "davis2016-dev"):
        image, truth = sequence.image(0), sequence.first_mask() == 1
        rows, columns = np.nonzero(truth)
        box = int(columns.min()), int(rows.min()), int(columns.max()) + 1, int(rows.max()) + 1
        ellipse = np.zeros(truth.shape, np.uint8)
        center = (box[0] + box[2]) / 2, (box[1] + box[3]) / 2
        cv2.ellipse(ellipse, (center, (box[2] - box[0], box[3] - box[1]), 0), 1, cv2.FILLED)
        gains.append(overlap(object_in_box(image, box), truth) - overlap(ellipse == 1, truth))
    assert np.mean(gains) > 0.1
    assert min(gains) > 0
