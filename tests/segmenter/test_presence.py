"""When a mask is not believed, shown with a method that predicts what the frames say."""

import numpy as np
import pytest
import torch
from stub_methods import Drift, DriftOptions, _Target
from torch import nn

from streamvos import Segmenter
from streamvos.types import Evidence, Features, InputError

SIZE = (40, 60)


class _Frames(nn.Module):
    def forward(self, frames: torch.Tensor) -> Features:
        return Features({"frame": frames}, SIZE)


class _Told(_Target):
    """Objects 1 and 2 are as probable as a frame is red and green."""

    def read(self, features):
        objects = features["frame"][0, : len(self.ids)]
        return Evidence({"probabilities": torch.cat([1 - objects.sum(0, keepdim=True), objects])}, self.ids)


class Told(Drift):
    def __init__(self, **options):
        super().__init__(DriftOptions(**options))
        self.extractor = _Frames()

    def target(self):
        return _Told(self.options)


def frame(*areas: int, probability: float = 1.0) -> np.ndarray:
    """A frame in which objects 1, 2, ... have so many pixels, each in rows of its own."""
    image = np.zeros((*SIZE, 3), np.uint8)
    for k, area in enumerate(areas):
        image[20 * k : 20 * k + 20, :, k].flat[:area] = round(255 * probability)
    return image


def begin(*areas: int, **options) -> Segmenter:
    vos = Segmenter(Told(**options), "cpu")
    image = frame(*areas)
    vos.step(image, (image[..., 0] > 0) * 1 + (image[..., 1] > 0) * 2)
    return vos


def states(vos: Segmenter, image: np.ndarray) -> list[tuple[str, int]]:
    result = vos.step(image)
    assert np.allclose(result.probabilities.sum(0), 1, atol=1e-5)
    return [(one.state, one.area) for one in result.objects.values()]


def test_without_the_options_every_mask_is_believed():
    vos = begin(50)
    assert states(vos, frame(1200, probability=0.52)) == [("uncertain", 1200)]


def test_a_mask_that_suddenly_is_many_times_as_large_is_emptied_and_the_object_found_again():
    vos = begin(50, 60, largest_growth=3.0)
    assert states(vos, frame(140, 60)) == [("tracking", 140), ("tracking", 60)]
    assert states(vos, frame(160, 60)) == [("lost", 0), ("tracking", 60)]
    assert states(vos, frame(50, 190)) == [("tracking", 50), ("lost", 0)]
    assert states(vos, frame(50, 60)) == [("tracking", 50), ("tracking", 60)]


def test_an_object_may_grow_as_long_as_that_takes_some_frames():
    vos = begin(20, largest_growth=3.0)
    for area in np.geomspace(20, 1100, 80).astype(int):  # 55 times as large in the end
        assert states(vos, frame(area)) == [("tracking", area)]


def test_an_object_that_was_not_seen_for_long_may_have_grown():
    vos = begin(50, largest_growth=3.0)
    refused = 0
    while states(vos, frame(300)) == [("lost", 0)]:
        refused += 1
    assert 10 <= refused <= 40


def test_a_given_mask_is_always_believed_and_sets_the_size():
    vos = begin(50, largest_growth=3.0)
    large = (frame(1000)[..., 0] > 0).astype(np.uint8)
    assert vos.step(frame(50), large).objects[1].area == 1000
    assert states(vos, frame(1100)) == [("tracking", 1100)]


@pytest.mark.parametrize(("probability", "state"), [(0.62, "uncertain"), (0.55, "lost"), (0.95, "tracking")])
def test_a_mask_that_is_hardly_sure_is_emptied(probability, state):
    vos = begin(50, lost_below=0.6, uncertain_below=0.8)
    assert states(vos, frame(40, probability=probability)) == [(state, 0 if state == "lost" else 40)]


def test_what_is_not_believed_is_learned_as_background():
    refusing, empty = begin(50, largest_growth=3.0), begin(50, largest_growth=3.0)
    refusing.step(frame(900))
    empty.step(frame(0))
    assert refusing.snapshot() == empty.snapshot()


def test_a_snapshot_knows_the_sizes():
    vos = begin(50, 60, largest_growth=3.0)
    for _ in range(30):
        vos.step(frame(50, 60))
    other = Segmenter(vos.method, "cpu")
    other.restore(vos.snapshot())
    for one in (vos, other):
        assert states(one, frame(200, 60)) == [("lost", 0), ("tracking", 60)]
    assert vos.snapshot() == other.snapshot()
    with pytest.raises(InputError, match="other options"):
        begin(50, largest_growth=4.0).restore(vos.snapshot())


def picture(*boxes: tuple[int, int, int, int]) -> np.ndarray:
    """A frame of 40 x 60 in which object 1 fills these boxes: left, top, right, bottom."""
    image = np.zeros((*SIZE, 3), np.uint8)
    for left, top, right, bottom in boxes:
        image[top:bottom, left:right, 0] = 255
    return image


def mask_of(vos: Segmenter, image: np.ndarray) -> np.ndarray:
    return vos.step(image).mask > 0


def looking_near(margin: float | None = 0.5) -> Segmenter:
    """Object 1 is in the upper left corner, 10 x 8 pixels."""
    vos = Segmenter(Told(search_margin=margin), "cpu")
    image = picture((4, 4, 14, 12))
    vos.step(image, (image[..., 0] > 0).astype(np.uint8))
    return vos


HERE, FAR = (5, 4, 15, 12), (40, 24, 55, 36)


def test_a_piece_elsewhere_is_not_believed():
    both = picture(HERE, FAR)
    assert np.array_equal(mask_of(looking_near(), both), picture(HERE)[..., 0] > 0)
    assert np.array_equal(mask_of(looking_near(None), both), both[..., 0] > 0)


def test_it_is_learned_as_background():
    vos, other = looking_near(), looking_near()
    vos.step(picture(HERE, FAR))
    other.step(picture(HERE))
    assert vos.snapshot() == other.snapshot()


def test_an_object_that_jumps_is_believed():
    vos = looking_near()
    assert np.array_equal(mask_of(vos, picture(FAR)), picture(FAR)[..., 0] > 0)
    assert np.array_equal(mask_of(vos, picture(HERE, FAR)), picture(FAR)[..., 0] > 0)  # it is there now


def test_a_lost_object_may_come_back_anywhere():
    vos = looking_near()
    assert not mask_of(vos, picture()).any()
    both = picture(HERE, FAR)
    assert np.array_equal(mask_of(vos, both), both[..., 0] > 0)


@pytest.mark.parametrize("apart", [False, True])
def test_what_reaches_far_is_one_piece(apart):
    """A corner of one pixel; where it is interrupted, the rest is another piece."""
    corner = picture(HERE, (14, 10, 40, 11), (39, 10, 40, 26))
    if apart:
        corner[10:14, 39] = 0
    expected = corner[..., 0] > 0
    if apart:
        expected[14:] = False
    assert np.array_equal(mask_of(looking_near(), corner), expected)


def test_each_object_has_its_own_place():
    vos = begin(50, 60, search_margin=0.3)
    image = frame(50, 60)
    image[36, 40:50, 0] = 255  # of object 1, where object 2 is
    image[2, 40:50, 1] = 255
    image[2, 40:50, 0] = 0
    expected = (frame(50, 60)[..., 0] > 0) * 1 + (frame(50, 60)[..., 1] > 0) * 2
    assert np.array_equal(vos.step(image).mask, expected)


def test_a_snapshot_knows_the_place():
    vos = looking_near()
    mask_of(vos, picture(HERE))
    other = Segmenter(vos.method, "cpu")
    other.restore(vos.snapshot())
    both = picture(HERE, FAR)
    assert np.array_equal(mask_of(other, both), mask_of(vos, both))
    assert not mask_of(other, both)[30, 45]
