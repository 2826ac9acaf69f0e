"""Synthetic sources: their parameters, frames and ground truth."""

import numpy as np
import pytest

from streamvos.sources import GeneratedSource, Selection
from streamvos.synthetic.options import PhotographOptions, parse_parameters
from streamvos.synthetic.photograph_video import PhotographVideo
from streamvos.synthetic.synthetic import SyntheticOptions, SyntheticVideo
from streamvos.types import InputError

SMALL = "seed=3,objects=2,size=48x64,length=6"


def test_parameters():
    seed, options = parse_parameters("seed=3, objects=4,size=48x64,length=7,motion=0.5")
    assert seed == 3
    assert options == SyntheticOptions(size=(48, 64), objects=4, length=7, motion=0.5)
    assert parse_parameters("") == (0, SyntheticOptions())
    assert parse_parameters("photographs") == (0, PhotographOptions())
    photographs = parse_parameters("photographs, seed=2,size=48x64,length=5")
    assert photographs == (2, PhotographOptions(size=(48, 64), length=5))


@pytest.mark.parametrize(
    ("text", "word"),
    [("sead=3", "sead"), ("seed", "seed"), ("seed=x", "whole number"), ("size=48", "HEIGHTxWIDTH"),
     ("length=2.5", "whole number"), ("motion=fast", "number"), ("seed=1,seed=2", "twice"),
     ("length=0", "length"), ("objects=999", "objects"), ("seed=-1", "seed"),
     ("seed=1,photographs", "photographs"), ("photographs,objects=2", "objects"),
     ("photographs,length=0", "length"), ("photographs,size=8x8", "size"), ("photographs,seed=-1", "seed")],
)  # fmt: skip
def test_parameters_that_cannot_be_used_are_named(text, word):
    with pytest.raises(InputError, match=word):
        GeneratedSource(text)


def test_frames_and_truth_are_those_of_the_video():
    video = SyntheticVideo(3, SyntheticOptions(size=(48, 64), objects=2, length=6))
    with GeneratedSource(SMALL) as source:
        assert (source.name, source.size, source.fps, source.length) == ("synthetic-3", (48, 64), 24.0, 6)
        for frame in source:
            np.testing.assert_array_equal(frame.image, video[frame.index].image)
            np.testing.assert_array_equal(source.label_map(frame.index), video[frame.index].label_map)
            assert frame.pts == pytest.approx(frame.index / 24)
        assert frame.index == 5


def test_photographs_are_a_source_too():
    video = PhotographVideo(2, PhotographOptions(size=(48, 64), length=3))
    with GeneratedSource("photographs,seed=2,size=48x64,length=3") as source:
        assert (source.size, source.length) == ((48, 64), 3)
        for frame in source:
            np.testing.assert_array_equal(frame.image, video[frame.index].image)
            np.testing.assert_array_equal(source.label_map(frame.index), video[frame.index].label_map)


def test_what_is_done_to_a_frame_does_not_reach_the_next_look_at_it():
    with GeneratedSource(SMALL) as source:
        frame, truth = next(source), source.label_map(0)
        assert truth.any()
        frame.image[:] = 0
        truth[:] = 0
        assert source.label_map(0).any()


def test_truth_follows_stride_and_size():
    video = SyntheticVideo(3, SyntheticOptions(size=(48, 64), objects=2, length=6))
    with GeneratedSource(SMALL, selection=Selection(stride=2, height=24)) as source:
        assert source.length == 3
        for frame in source:
            truth, full = source.label_map(frame.index), video[2 * frame.index].label_map
            assert truth.shape == frame.size == (24, 32)
            assert truth.dtype == np.uint8
            assert set(np.unique(truth)) <= set(np.unique(full))
            # Nearest neighbor: each pixel is one of the four it stands for.
            blocks = full.reshape(24, 2, 32, 2).transpose(0, 2, 1, 3).reshape(24, 32, 4)
            assert (blocks == truth[..., None]).any(axis=2).all()


@pytest.mark.parametrize("index", [-1, 6])
def test_there_is_no_truth_beyond_the_video(index):
    with GeneratedSource(SMALL) as source, pytest.raises(InputError, match=r"0\.\.5"):
        source.label_map(index)
