from __future__ import annotations

import numpy as np
import pytest
import torch

from streamvos.methods.rgmp.canvas import Canvas, grown, resize


@pytest.mark.parametrize(
    ("frame", "size", "half", "three_quarters"),
    [  # from the authors' code
        ((480, 854), (512, 864), (288, 448), (416, 672)),
        ((240, 427), (256, 448), (160, 256), (224, 352)),
        ((224, 416), (256, 448), (160, 256), (224, 352)),
    ],
)
def test_sizes_are_the_authors(frame, size, half, three_quarters):
    canvas = Canvas(frame)
    assert (canvas.size, canvas.scaled(0.5), canvas.scaled(0.75)) == (size, half, three_quarters)
    assert canvas.scaled(1.0) == canvas.size


def test_every_side_grows_to_a_larger_multiple():
    for side in range(1, 200):
        assert grown(side) % 32 == 0
        assert side < grown(side) <= side + 32


@pytest.mark.parametrize("frame", [(240, 427), (32, 33), (31, 64)])
def test_cropping_undoes_padding_and_the_border_is_black(frame, rng):
    canvas = Canvas(frame)
    image = torch.from_numpy(rng.random((2, 3, *frame)))
    padded = canvas.pad(image)
    assert padded.shape[-2:] == canvas.size
    assert torch.equal(canvas.crop(padded), image)
    assert padded.sum() == pytest.approx(image.sum())
    top, left = canvas.corner
    # the smaller half of an odd margin comes first
    assert canvas.size[0] - frame[0] - top - top in (0, 1)
    assert canvas.size[1] - frame[1] - left - left in (0, 1)


@pytest.mark.parametrize("size", [(160, 256), (224, 352), (256, 448), (300, 500)])
def test_resizing_is_opencvs(size, rng):
    import cv2

    image = rng.random((256, 448, 3)).astype(np.float32)
    expected = cv2.resize(image, size[::-1], interpolation=cv2.INTER_LINEAR)
    got = resize(torch.from_numpy(image).permute(2, 0, 1)[None], size)[0].permute(1, 2, 0).numpy()
    # the two compute the places between pixels in float32 in different ways: 448 * 2^-24 of a pixel and more
    assert np.abs(got - expected).max() < 1e-4
    assert np.abs(got - expected).mean() < 1e-5
