"""Synthetic first frames against those of the authors' code, and what holds for any."""

from __future__ import annotations

import json

import cv2
import numpy as np
import pytest

from streamvos.methods.frtm.augmentation import (
    DRAWN_AT_ONCE,
    augment,
    background_matrix,
    blur_kernel,
    choose_changes,
    draw_changes,
    fill_hole,
    target_matrix,
)

FRAME = "davis2016-dev/{}/480p/blackswan/00000.{}"


@pytest.fixture(scope="module")
def golden(shared) -> dict[str, np.ndarray]:
    return dict(np.load(shared / "goldens" / "frtm_augment.npz"))


@pytest.fixture(scope="module")
def swan(shared) -> tuple[np.ndarray, np.ndarray]:
    image = cv2.imread(str(shared / "data" / FRAME.format("JPEGImages", "jpg")))
    mask = cv2.imread(str(shared / "data" / FRAME.format("Annotations", "png")), cv2.IMREAD_GRAYSCALE)
    return np.ascontiguousarray(image[..., ::-1]), mask > 0


@pytest.fixture
def small(rng) -> tuple[np.ndarray, np.ndarray]:
    mask = np.zeros((60, 90), bool)
    mask[20:40, 30:50] = True
    return rng.integers(0, 256, (60, 90, 3), dtype=np.uint8), mask


def test_changes_are_drawn_as_the_authors_draw_them(golden, swan):
    drawn = draw_changes(swan[1].shape, 5, np.random.RandomState(0))
    for side, name in ((0, "fg_spec"), (1, "bg_spec")):
        for pair, spec in zip(drawn, json.loads(str(golden[name])), strict=True):
            change = pair[side]
            assert change.location == tuple(spec["location"])
            assert change.skew == tuple(spec["skew"])
            assert (change.rotation, change.flip) == (spec["rotation"], spec["fliplr"])
            assert (change.scale, change.blur) == (spec["scale"], spec["blur_size"])
            assert change.blur_angle == spec["blur_angle"]
    assert [drawn.index(pair) for pair in choose_changes(swan[1], 5)] == list(golden["chosen"])


def test_matrices_and_kernels_are_the_authors(golden, swan):
    mask = swan[1]
    drawn = draw_changes(mask.shape, 5, np.random.RandomState(0))
    kernels = json.loads(str(golden["kernels"]))
    for k, (target, background) in enumerate(drawn):
        # float64 products in another order
        assert np.abs(target_matrix(target, mask) - golden["fg_T"][k]).max() < 1e-12 * 1000
        assert np.abs(background_matrix(background, (854, 480)) - golden["bg_T"][k]).max() < 1e-12 * 1000
        kernel = blur_kernel(background.blur, background.blur_angle)
        assert kernel.shape == np.shape(kernels[k])
        assert np.abs(kernel - np.array(kernels[k])).max() < 1e-7  # float32


def test_pictures_are_the_authors(golden, swan):
    image, mask = swan
    hole = fill_hole(image, mask, "inpaint")[::2, ::2].transpose(2, 0, 1)
    images, labels = augment(image, mask, 5)
    expected = np.unpackbits(golden["labels"][:, 0], axis=-1)[..., :854] > 0
    assert np.array_equal(labels, expected)
    # another build of OpenCV rounds elsewhere: "at most 1 grey level in 0.01 % of pixels"
    for got, wanted in [
        (hole, golden["inpainted_sub2"]),
        *zip(images[:, ::2, ::2].transpose(0, 3, 1, 2), golden["images_sub2"], strict=True),
    ]:
        difference = np.abs(got.astype(int) - wanted)
        assert difference.max() <= 1
        assert (difference > 0).mean() <= 1e-4


def test_the_first_picture_is_the_given_one(small):
    image, mask = small
    images, labels = augment(image, mask, 5)
    assert images.shape == (5, 60, 90, 3)
    assert images.dtype == np.uint8
    assert labels.shape == (5, 60, 90)
    assert np.array_equal(images[0], image)
    assert np.array_equal(labels[0], mask)
    assert all(0 < one.sum() < one.size for one in labels)
    assert len({one.tobytes() for one in images}) == 5


def test_the_same_seed_gives_the_same_pictures(small):
    image, mask = small
    state = np.random.get_state()[1].copy()
    first, again, other = (augment(image, mask, 4, seed=seed)[0] for seed in (7, 7, 8))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)
    assert np.array_equal(np.random.get_state()[1], state)  # nobody else's stream is touched


def test_the_object_is_seen_where_the_label_says(small):
    image, mask = small
    image = np.where(mask[..., None], np.uint8([250, 10, 10]), np.uint8([10, 10, 250]))
    images, labels = augment(image, mask, 5)
    for one, label in zip(images[1:], labels[1:], strict=True):
        inner = cv2.erode(label.astype(np.uint8), np.ones((5, 5))) > 0
        outer = cv2.dilate(label.astype(np.uint8), np.ones((5, 5))) > 0
        assert (one[inner][:, 0] > 200).all()
        assert (one[~outer][:, 0] < 60).all()  # also where the object was before


def test_the_hole_is_grey_where_it_is_asked_for(small):
    image, mask = small
    filled = fill_hole(image, mask, "grey")
    assert (filled[mask] == 128).all()
    assert np.array_equal(filled[~mask], image[~mask])


@pytest.mark.parametrize("size", [(16, 16), (33, 120), (121, 40)])
@pytest.mark.parametrize("shape", ["pixel", "corner", "row", "all"])
def test_any_mask_can_be_augmented(rng, size, shape):
    mask = np.zeros(size, bool)
    places = {"pixel": np.s_[7, 9], "corner": np.s_[-1:, -1:], "row": np.s_[5], "all": np.s_[:]}
    mask[places[shape]] = True
    image = rng.integers(0, 256, (*size, 3), dtype=np.uint8)
    images, labels = augment(image, mask, 5)
    assert 1 <= len(images) == len(labels) <= 5
    assert labels.any((1, 2)).all()


def test_more_pictures_than_are_drawn_at_once(small):
    image, mask = small
    images, _ = augment(image, mask, DRAWN_AT_ONCE + 10)
    assert len(images) == DRAWN_AT_ONCE + 10
    assert len(augment(image, mask, 1)[0]) == 1
