"""YouTube-VOS folders: sparse label maps, objects that appear later, with and without meta.json."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from streamvos.datasets.youtube import YouTubeObject, YouTubeVosDataset
from streamvos.masks.labelmap import write_label_map
from streamvos.types import InputError

SIZE = (20, 40)


def label_map(*ids: int) -> np.ndarray:
    """A label map in which object k fills its own square."""
    labels = np.zeros(SIZE, np.uint8)
    for one in ids:
        labels[5:11, 9 * one - 6 : 9 * one] = one
    return labels


def add_video(split: Path, name: str, count: int, labels: dict[int, np.ndarray]) -> None:
    for part in ("JPEGImages", "Annotations"):
        (split / part / name).mkdir(parents=True)
    for k in range(count):
        Image.new("RGB", SIZE[::-1], (5 * k,) * 3).save(
            split / "JPEGImages" / name / f"{k:05d}.jpg", quality=95
        )
    for k, mask in labels.items():
        write_label_map(split / "Annotations" / name / f"{k:05d}.png", mask)


def write_meta(split: Path, **videos: dict) -> None:
    content = {"videos": {name: {"objects": objects} for name, objects in videos.items()}}
    (split / "meta.json").write_text(json.dumps(content))


@pytest.fixture
def split(tmp_path: Path) -> Path:
    """Object 2 of video a appears at frame 10; object 3 is there from the start."""
    split = tmp_path / "train"
    maps = {0: label_map(1, 3), 5: label_map(1), 10: label_map(1, 2), 15: label_map(1, 2, 3)}
    add_video(split, "a", 18, maps)
    add_video(split, "b", 6, {0: label_map(1), 5: label_map(1)})
    return split


class TestVideos:
    def test_frames_and_sparse_label_maps(self, split):
        video = YouTubeVosDataset(split.parent, "train")["a"]
        assert len(video) == 18
        assert list(video.annotation_paths) == [0, 5, 10, 15]
        np.testing.assert_array_equal(video.mask(10), label_map(1, 2))
        assert abs(int(video.image(7).mean()) - 35) <= 1
        with pytest.raises(InputError, match="a: frame 7 has no label map; those that have: 0, 5, 10, 15"):
            video.mask(7)

    def test_the_splits_own_folder_will_do(self, split):
        dataset = YouTubeVosDataset(split)
        assert dataset.names == ("a", "b")
        assert [video.name for video in dataset] == ["a", "b"]
        assert dataset[1] is dataset["b"]
        assert not dataset.has_meta
        assert YouTubeVosDataset(split, videos="b").names == ("b",)

    def test_objects_from_the_label_maps(self, split):
        objects = YouTubeVosDataset(split)["a"].objects
        assert objects == (YouTubeObject(1, None, 0), YouTubeObject(2, None, 10), YouTubeObject(3, None, 0))

    def test_objects_from_meta(self, split):
        write_meta(
            split,
            a={
                "2": {"category": "yak", "frames": ["00015", "00010"]},
                "1": {"category": "dog", "frames": ["00000", "00005", "00010", "00015"]},
            },
        )
        dataset = YouTubeVosDataset(split)
        assert dataset.has_meta
        assert dataset["a"].objects == (YouTubeObject(1, "dog", 0), YouTubeObject(2, "yak", 10))
        assert dataset["b"].objects == (YouTubeObject(1, None, 0),)  # not in meta.json

    def test_given_masks_show_each_object_once_at_its_first_frame(self, split):
        given = list(YouTubeVosDataset(split)["a"].given_masks())
        assert [index for index, _ in given] == [0, 10]
        np.testing.assert_array_equal(given[0][1], label_map(1, 3))
        np.testing.assert_array_equal(given[1][1], label_map(2))  # object 1 is there too, but was given

    def test_given_masks_that_do_not_show_their_object(self, split):
        write_meta(split, a={"2": {"category": "yak", "frames": ["00005"]}})
        with pytest.raises(InputError, match=r"00005\.png does not show object 2"):
            list(YouTubeVosDataset(split)["a"].given_masks())

    def test_void_is_no_object(self, split):
        labels = label_map(1)
        labels[0] = 255
        write_label_map(split / "Annotations" / "b" / "00000.png", labels)
        video = YouTubeVosDataset(split)["b"]
        assert [one.id for one in video.objects] == [1]
        assert set(np.unique(next(iter(video.given_masks()))[1])) == {0, 1}


class TestClips:
    def test_windows_run_over_the_labeled_frames(self, split):
        dataset = YouTubeVosDataset(split)
        assert dataset.starts(1) == list(range(4 + 2))
        clip = dataset.frames(1, count=3)
        assert (clip.name, clip.frame_names) == ("a", ("00005", "00010", "00015"))
        for image, k in zip(clip.images, (5, 10, 15), strict=True):
            assert abs(int(image.mean()) - 5 * k) <= 1
        np.testing.assert_array_equal(clip.masks[2], label_map(1, 2, 3))

    def test_windows_are_shifted_back(self, split):
        dataset = YouTubeVosDataset(split)
        assert dataset.frames(3, count=2).frame_names == ("00010", "00015")
        assert dataset.frames(5, count=2).name == "b"

    def test_starts(self, split):
        dataset = YouTubeVosDataset(split)
        assert dataset.starts(3) == [0, 1, 2, 3]
        assert dataset.starts(2) == [0, 1, 2, 3, 4, 5]
        with pytest.raises(InputError, match="b has 2 frames"):
            dataset.frames(4, 3)


class TestRefusals:
    def test_layout(self, tmp_path):
        with pytest.raises(InputError, match=r"JPEGImages; expected JPEGImages/<video>/\*\.jpg"):
            YouTubeVosDataset(tmp_path)
        (tmp_path / "train" / "JPEGImages" / "a").mkdir(parents=True)
        with pytest.raises(InputError, match=r"no folder .*Annotations"):
            YouTubeVosDataset(tmp_path)
        (tmp_path / "train" / "Annotations" / "b").mkdir(parents=True)
        with pytest.raises(InputError, match="no video in common"):
            YouTubeVosDataset(tmp_path)

    def test_an_unknown_video(self, split):
        with pytest.raises(InputError, match=r"no sequence c .*there are a, b"):
            YouTubeVosDataset(split, videos=["c"])

    def test_a_label_map_without_a_frame(self, split):
        write_label_map(split / "Annotations" / "b" / "00077.png", label_map(1))
        with pytest.raises(InputError, match=r"video b .*00077"):
            YouTubeVosDataset(split)["b"]

    def test_a_video_without_pictures(self, split):
        for part in ("JPEGImages", "Annotations"):
            (split / part / "c").mkdir()
        with pytest.raises(InputError, match=r"video c .*no frames"):
            YouTubeVosDataset(split)["c"]

    def test_label_maps_without_any_object(self, split):
        for name in ("00000", "00005"):
            write_label_map(split / "Annotations" / "b" / f"{name}.png", np.zeros(SIZE, np.uint8))
        with pytest.raises(InputError, match="b has no object"):
            _ = YouTubeVosDataset(split)["b"].objects

    @pytest.mark.parametrize("content", ["{", "[]", '{"videos": []}', "{}"])
    def test_meta_that_cannot_be_read(self, split, content):
        (split / "meta.json").write_text(content)
        with pytest.raises(InputError, match=r"meta\.json"):
            YouTubeVosDataset(split)

    def test_meta_with_something_else_for_a_video(self, split):
        (split / "meta.json").write_text('{"videos": {"a": [1]}}')
        with pytest.raises(InputError, match="video a: expected"):
            _ = YouTubeVosDataset(split)["a"].objects

    @pytest.mark.parametrize(
        ("objects", "words"),
        [
            ({"x": {"category": "dog", "frames": ["00000"]}}, "expected an id"),
            ({"255": {"category": "dog", "frames": ["00000"]}}, "expected an id"),
            ({"1": {"category": "dog", "frames": []}}, "list of frame names"),
            ({"1": {"category": "dog"}}, "list of frame names"),
            ({"1": ["00000"]}, "list of frame names"),
            ({"1": {"category": "dog", "frames": ["00099"]}}, "none of its frames exists, such as '00099'"),
            ({"1": {"category": "dog", "frames": [[1]]}}, "list of frame names"),
            ([1], "expected"),
            (None, "expected"),
            ({}, "no object"),
        ],
    )
    def test_meta_with_a_malformed_video(self, split, objects, words):
        write_meta(split, a=objects)
        with pytest.raises(InputError, match=words):
            _ = YouTubeVosDataset(split)["a"].objects
