"""What a label map must be, and how one is resized."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from streamvos.masks.checks import check_label_map, fit_label_map, named_objects, object_ids
from streamvos.types import InputError

MAP = np.array([[0, 3, 3], [254, 255, 0]], np.uint8)


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.int32, np.int64, np.uint64])
def test_integers_of_any_kind_become_uint8(dtype):
    checked = check_label_map(MAP.astype(dtype), (2, 3))
    assert checked.dtype == np.uint8
    assert checked.flags.c_contiguous
    np.testing.assert_array_equal(checked, MAP)


def test_nothing_is_copied_that_is_right_already():
    assert check_label_map(MAP) is MAP
    np.testing.assert_array_equal(check_label_map(MAP[:, ::2]), MAP[:, ::2])
    assert check_label_map(MAP > 2).tolist() == [[0, 1, 1], [1, 1, 0]]


@pytest.mark.parametrize(
    ("mask", "size", "words"),
    [
        (np.zeros((4, 5, 1), int), None, r"an integer label map \(H, W\), got \(4, 5, 1\) int64"),
        (np.zeros((0, 5), int), None, r"got \(0, 5\) int64"),
        (np.zeros((4, 5), np.uint8), (5, 4), r"an integer label map \(5, 4\), got \(4, 5\) uint8"),
        (np.zeros((4, 5), np.float32), (4, 5), r"got \(4, 5\) float32$"),
        (np.full((4, 5), np.nan), (4, 5), "NaN or infinity"),
        (np.zeros((4, 5), complex), None, "complex128"),
        (np.full((4, 5), 256), None, r"1\.\.254 \(objects\) and 255 \(void\), got values 256\.\.256"),
        (np.full((4, 5), -1), None, r"got values -1\.\.-1"),
        (np.full((4, 5), 2**63, np.uint64), None, "9223372036854775808"),
        ("mask.png", None, "got a str"),
        ([[1], [1, 2]], None, "got a list"),
        (None, None, "got a NoneType"),
    ],
)
def test_anything_else_is_refused_with_what_came_and_what_was_expected(mask, size, words):
    with pytest.raises(InputError, match=f"^goat must (be|hold) .*{words}"):
        check_label_map(mask, size, name="goat")


def test_background_and_void_are_no_objects():
    assert object_ids(MAP) == named_objects(MAP) == [3, 254]
    for empty in (np.zeros((2, 2), np.uint8), np.array([[0, 255]], np.uint8)):
        assert object_ids(empty) == []
        with pytest.raises(InputError, match="goat names no object"):
            named_objects(empty, "goat")


def test_masks_are_resized_to_the_nearest_pixel_as_opencv_does():
    rng = np.random.default_rng(0)
    for native, height in (((480, 854), 240), ((1080, 1920), 360), ((30, 41), 90)):
        size = height, native[1] * height // native[0]
        mask = np.repeat(np.repeat(rng.integers(0, 4, (native[0] // 5, native[1]), np.uint8), 5, 0), 1, 1)
        mask[:, :8] = np.arange(8) // 2  # every object survives
        expected = cv2.resize(mask, size[::-1], interpolation=cv2.INTER_NEAREST_EXACT)
        found = fit_label_map(mask, size, mask.shape)
        # they may differ where a center falls on the border of two pixels
        assert (found != expected).mean() < 0.01
    assert fit_label_map(MAP, (2, 3), (4, 6)) is MAP


def test_a_mask_of_another_size_is_refused():
    with pytest.raises(InputError, match=r"goat is 3 x 2, the frames are 4 x 2; both must agree"):
        fit_label_map(MAP, (2, 4), (2, 4), "goat")
    with pytest.raises(InputError, match=r"are 4 x 2 \(8 x 4 before they are resized to the height\)"):
        fit_label_map(MAP, (2, 4), (4, 8))


def test_an_object_that_vanishes_is_an_error():
    mask = np.zeros((4, 4), np.uint8)
    mask[0, 0], mask[1, 1] = 8, 9
    assert object_ids(fit_label_map(np.maximum(mask, 9 * (mask > 0)), (2, 2), (4, 4))) == [9]
    with pytest.raises(InputError, match="object 8 of the mask has no pixel left at 2 x 2"):
        fit_label_map(mask, (2, 2), (4, 4))
