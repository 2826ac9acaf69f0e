"""Every kind of source opens by one string."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from streamvos.sources import (
    GeneratedSource,
    ImagesSource,
    LiveSource,
    VideoFileSource,
    open_source,
)
from streamvos.types import InputError, SourceError


@pytest.fixture
def place(tmp_path, make_video) -> Path:
    """A folder with pictures/, clip.mp4 and clip.gif."""
    (tmp_path / "pictures").mkdir()
    for index in range(3):
        Image.fromarray(np.full((8, 8, 3), index, np.uint8)).save(tmp_path / f"pictures/{index}.png")
    (tmp_path / "clip.mp4").write_bytes(make_video(5, container="mp4", codec="libx264"))
    return tmp_path


def test_each_kind_of_text_opens_its_kind_of_source(place):
    kinds = {
        str(place / "pictures"): ImagesSource,
        str(place / "pictures/*.png"): ImagesSource,
        str(place / "pictures/1.png"): ImagesSource,
        str(place / "clip.mp4"): VideoFileSource,
        f"camera:{place / 'clip.mp4'}": LiveSource,
        "synthetic:size=32x32,length=2": GeneratedSource,
    }
    for spec, kind in kinds.items():
        with open_source(spec) as source:
            assert type(source) is kind
            assert next(source).size == source.size
    with open_source(place / "clip.mp4") as source:
        assert type(source) is VideoFileSource
    with open_source("synthetic", max_frames=1) as source:
        assert (type(source), source.length) == (GeneratedSource, 1)


def test_options_reach_the_source(place):
    with open_source(place / "pictures", name="mine", height=4, stride=2, max_frames=1, fps=12) as source:
        assert (source.name, source.size, source.length, source.fps) == ("mine", (4, 4), 1, 6)
        assert len(list(source)) == 1


def test_a_missing_place_is_named_with_what_was_expected():
    with pytest.raises(InputError, match=r"there is no absent\.mp4.*camera:N"):
        open_source("absent.mp4")
    with pytest.raises(InputError, match="nothing matches"):
        open_source("absent/*.png")


@pytest.mark.parametrize(
    ("spec", "options", "word"),
    [
        ("", {}, "empty"),
        (3, {}, "int"),
        ("gopher://user:hunter2@host/a", {}, "rtsp"),
        ("camera:", {}, "camera:0"),
        ("synthetic", {"fps": 0}, "fps"),
        ("synthetic", {"fps": float("inf")}, "fps"),
        ("synthetic", {"policy": "latest"}, "live"),
        ("synthetic", {"policy": "newest"}, "live"),
        ("camera:0", {"policy": "newest"}, "policy"),
        ("camera:0", {"fps": 25}, "clock"),
        ("camera:0", {"stall_timeout": 0}, "stall_timeout"),
        ("camera:0", {"open_timeout": float("nan")}, "open_timeout"),
        ("synthetic", {"stride": 0}, "stride"),
    ],
)
def test_options_that_do_not_fit_are_refused(spec, options, word):
    with pytest.raises(InputError, match=word) as caught:
        open_source(spec, **options)
    assert "hunter2" not in str(caught.value)


def test_a_camera_that_is_not_there():
    with pytest.raises(SourceError, match=r"camera 97"):
        open_source("camera:97")
    with pytest.raises(SourceError, match="/dev/absent"):
        open_source("camera:/dev/absent")


def test_a_path_object_is_always_a_path():
    with pytest.raises(InputError, match="there is no"):
        open_source(Path("camera:0"))


@pytest.mark.parametrize("spec", ["clip.mp4", "pictures", "synthetic:length=20,size=48x64"])
@pytest.mark.parametrize(("before", "over"), [(0, 5), (1, 4), (3, 1), (0, 0), (2, 100)])
@pytest.mark.parametrize("stride", [1, 3])
def test_skipped_frames_change_nothing_for_the_others(tmp_path, make_video, spec, before, over, stride):
    (tmp_path / "clip.mp4").write_bytes(make_video(20, container="mp4", codec="libx264"))
    (tmp_path / "pictures").mkdir()
    for index in range(20):
        Image.fromarray(np.full((48, 64, 3), index * 10, np.uint8)).save(
            tmp_path / f"pictures/{index:05d}.png"
        )
    place = spec if spec.startswith("synthetic") else str(tmp_path / spec)
    with open_source(place, stride=stride, max_frames=6) as source:
        everything = list(source)
    with open_source(place, stride=stride, max_frames=6) as source:
        given = [next(source) for _ in range(before)]
        source.pass_over(over)
        given += list(source)
    expected = everything[:before] + everything[before + over :]
    assert [frame.index for frame in given] == [frame.index for frame in expected]
    assert [frame.pts for frame in given] == pytest.approx([frame.pts for frame in expected])
    assert all(np.array_equal(one.image, two.image) for one, two in zip(given, expected, strict=True))
