"""DAVIS folders: what is found, what is read, what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from goldens import shared_path
from PIL import Image

from streamvos.datasets.davis import DavisDataset
from streamvos.masks.labelmap import write_label_map
from streamvos.types import InputError

SIZE = (24, 32)


def label_map(k: int, objects: int) -> np.ndarray:
    """Bars that move a column per frame, object 1 and so on."""
    labels = np.zeros(SIZE, np.uint8)
    for one in range(objects):
        labels[2 + 7 * one : 6 + 7 * one, 2 + k : 8 + k] = one + 1
    return labels


def add_sequence(
    root: Path, name: str, count: int, objects: int = 1, gray: bool = False, resolution: str = "480p"
):
    """Frames whose gray value is 10 times their number, so that a test can tell them apart."""
    frames, annotations = root / "JPEGImages" / resolution / name, root / "Annotations" / resolution / name
    frames.mkdir(parents=True)
    annotations.mkdir(parents=True)
    for k in range(count):
        Image.new("RGB", SIZE[::-1], (10 * k,) * 3).save(frames / f"{k:05d}.jpg", quality=95)
        labels = label_map(k, objects)
        if gray:
            Image.fromarray((labels > 0).astype(np.uint8) * 255).save(annotations / f"{k:05d}.png")
        else:
            write_label_map(annotations / f"{k:05d}.png", labels)


def add_list(root: Path, folder: str, split: str, *lines: str) -> None:
    (root / "ImageSets" / folder).mkdir(parents=True, exist_ok=True)
    (root / "ImageSets" / folder / f"{split}.txt").write_text("\n".join(lines) + "\n")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    add_sequence(tmp_path, "camel", 5, objects=2)
    add_sequence(tmp_path, "goat", 7, gray=True)
    add_sequence(tmp_path, "swan", 3)
    return tmp_path


class TestSequences:
    def test_without_a_list_every_sequence_is_there(self, root):
        (root / "JPEGImages" / "480p" / "frames-only").mkdir()
        (root / "Annotations" / "480p" / "masks-only").mkdir()
        dataset = DavisDataset(root)
        assert dataset.names == ("camel", "goat", "swan")
        assert len(dataset) == 3
        assert [sequence.name for sequence in dataset] == list(dataset.names)
        assert dataset[1] is dataset["goat"]
        assert dataset[-1].name == "swan"

    def test_frames_and_label_maps_belong_together(self, root):
        sequence = DavisDataset(str(root))["goat"]
        assert len(sequence) == 7
        for k in range(7):
            assert sequence.frame_paths[k].stem == sequence.annotation_paths[k].stem == f"{k:05d}"
            assert sequence.image(k).shape == (*SIZE, 3)
            assert abs(int(sequence.image(k).mean()) - 10 * k) <= 1  # JPEG
            np.testing.assert_array_equal(sequence.mask(k), label_map(k, 1))
        assert sequence.annotated

    def test_2016_is_one_object_from_either_kind_of_mask(self, root):
        for name, objects in (("camel", 2), ("goat", 1)):
            sequence = DavisDataset(root, year="2016")[name]
            np.testing.assert_array_equal(sequence.first_mask(), label_map(0, objects) > 0)
            assert sequence.object_ids == (1,)
            for k, mask in enumerate(sequence.masks()):
                assert mask.dtype == np.uint8
                np.testing.assert_array_equal(mask, label_map(k, objects) > 0)

    def test_2017_keeps_the_ids(self, root):
        dataset = DavisDataset(root, year="2017")
        np.testing.assert_array_equal(dataset["camel"].mask(3), label_map(3, 2))
        assert dataset["camel"].object_ids == (1, 2)
        assert dataset["goat"].object_ids == (1,)  # 0 and 255 is one object there, too

    @pytest.mark.parametrize("year", ["2016", "2017"])
    def test_void_stays_void_in_a_frame_without_any_object(self, root, year):
        labels = label_map(1, 1) * np.uint8(255)
        write_label_map(root / "Annotations" / "480p" / "swan" / "00001.png", labels)
        np.testing.assert_array_equal(DavisDataset(root, year=year)["swan"].mask(1), labels)

    def test_test_sets_have_the_first_label_map_alone(self, root):
        for k in range(1, 7):
            (root / "Annotations" / "480p" / "goat" / f"{k:05d}.png").unlink()
        dataset = DavisDataset(root)
        sequence = dataset["goat"]
        assert not sequence.annotated
        assert len(sequence) == 7
        np.testing.assert_array_equal(sequence.first_mask(), label_map(0, 1))
        with pytest.raises(InputError, match="goat: only the first frame"):
            sequence.mask(3)
        assert dataset.starts(1) == list(range(5 + 3))  # nothing to train on

    def test_another_resolution(self, tmp_path):
        add_sequence(tmp_path, "camel", 3, resolution="Full-Resolution")
        assert DavisDataset(tmp_path, resolution="Full-Resolution").names == ("camel",)


class TestLists:
    def test_the_validation_list_is_the_default(self, root):
        add_list(root, "2017", "val", "swan", "", "camel  ")
        add_list(root, "2017", "train", "goat")
        assert DavisDataset(root, year="2017").names == ("swan", "camel")
        assert DavisDataset(root, year="2017", split="train").names == ("goat",)
        assert DavisDataset(root, year="2016").names == ("camel", "goat", "swan")  # no list of that year

    def test_the_2016_list_names_frames(self, root):
        lines = [
            f"/JPEGImages/480p/{name}/{k:05d}.jpg /Annotations/480p/{name}/{k:05d}.png"
            for name in ("swan", "goat")
            for k in range(3)
        ]
        add_list(root, "480p", "val", *lines)
        assert DavisDataset(root, year="2016").names == ("swan", "goat")

    def test_named_sequences_need_not_be_in_the_default_list(self, root):
        add_list(root, "2016", "val", "swan")
        assert DavisDataset(root, sequences=["goat", "swan"]).names == ("goat", "swan")
        assert DavisDataset(root, sequences="goat").names == ("goat",)
        with pytest.raises(InputError, match=r"no sequence goat .*swan"):
            DavisDataset(root, split="val", sequences=["goat"])

    def test_a_list_of_more_than_there_is(self, root):
        add_list(root, "2016", "val", "swan", "blackswan")
        with pytest.raises(InputError, match=r"val\.txt lists blackswan.*there are camel, goat, swan"):
            DavisDataset(root)

    def test_a_split_without_a_list(self, root):
        with pytest.raises(InputError, match=r"split 'train'.*train\.txt"):
            DavisDataset(root, split="train")

    def test_an_empty_list(self, root):
        add_list(root, "2016", "val", "")
        with pytest.raises(InputError, match="lists no sequence"):
            DavisDataset(root)


class TestClips:
    def test_the_frames_of_all_sequences_in_a_row(self, root):
        dataset = DavisDataset(root, year="2017")
        assert dataset.starts(1) == list(range(15))
        clip = dataset.frames(6, count=3)  # camel has 5, so this is goat's second
        assert clip.name == "goat"
        assert clip.frame_names == ("00001", "00002", "00003")
        assert clip.images.shape == (3, *SIZE, 3)
        assert clip.images.dtype == clip.masks.dtype == np.uint8
        for k in range(3):
            np.testing.assert_array_equal(clip.masks[k], label_map(k + 1, 1))
            assert abs(int(clip.images[k].mean()) - 10 * (k + 1)) <= 1

    def test_a_clip_is_shifted_back_at_the_end(self, root):
        dataset = DavisDataset(root)
        assert dataset.frames(4, count=3).frame_names == ("00002", "00003", "00004")
        assert dataset.frames(4, count=3).name == "camel"

    def test_every_start_gives_a_clip(self, root):
        dataset = DavisDataset(root)
        assert dataset.starts(4) == list(range(12))  # swan, with 3 frames, has no room
        assert all(len(dataset.frames(i, 4).images) == 4 for i in dataset.starts(4))
        with pytest.raises(InputError, match="swan has 3 frames"):
            dataset.frames(13, 4)
        with pytest.raises(InputError, match=r"0\.\.14"):
            dataset.frames(15, 1)

    def test_a_label_map_of_another_size(self, root):
        path = root / "Annotations" / "480p" / "goat" / "00002.png"
        write_label_map(path, label_map(2, 1)[:, :30])
        with pytest.raises(InputError, match=r"00002\.png is 24 x 30 .*expected 24 x 32"):
            DavisDataset(root).frames(6, 3)


class TestRefusals:
    def test_an_unknown_sequence_names_those_there_are(self, root):
        with pytest.raises(InputError, match=r"no sequence gaot .*there are camel, goat, swan"):
            DavisDataset(root, sequences=["goat", "gaot"])
        with pytest.raises(InputError, match="no sequence gaot"):
            DavisDataset(root)["gaot"]
        with pytest.raises(InputError, match="twice"):
            DavisDataset(root, sequences=["goat", "goat"])
        with pytest.raises(InputError, match="empty"):
            DavisDataset(root, sequences=[])

    def test_a_layout_that_lacks_a_part(self, tmp_path):
        with pytest.raises(
            InputError, match=r"that folder does not exist; expected JPEGImages/480p/<sequence>/\*\.jpg"
        ):
            DavisDataset(tmp_path / "nowhere")
        (tmp_path / "JPEGImages" / "1080p").mkdir(parents=True)
        with pytest.raises(InputError, match=r"no JPEGImages/480p .*JPEGImages holds 1080p"):
            DavisDataset(tmp_path)
        (tmp_path / "JPEGImages" / "480p" / "goat").mkdir(parents=True)
        with pytest.raises(InputError, match="no Annotations/480p"):
            DavisDataset(tmp_path)
        (tmp_path / "Annotations" / "480p" / "camel").mkdir(parents=True)
        with pytest.raises(InputError, match="no video in common"):
            DavisDataset(tmp_path)

    def test_label_maps_without_frames_and_frames_without_label_maps(self, root):
        annotations = root / "Annotations" / "480p" / "goat"
        (annotations / "00003.png").unlink()
        with pytest.raises(InputError, match=r"no label map for 00003"):
            DavisDataset(root)
        assert DavisDataset(root, sequences=["camel"]).names == ("camel",)  # the others are not looked at
        write_label_map(annotations / "00003.png", label_map(3, 1))
        write_label_map(annotations / "00099.png", label_map(3, 1))
        with pytest.raises(InputError, match=r"no frame belongs to the label maps 00099"):
            DavisDataset(root)

    def test_a_sequence_without_frames(self, root):
        for path in (root / "JPEGImages" / "480p" / "goat").iterdir():
            path.unlink()
        with pytest.raises(InputError, match=r"goat holds no \.jpg"):
            DavisDataset(root)

    def test_an_empty_first_mask(self, root):
        write_label_map(root / "Annotations" / "480p" / "swan" / "00000.png", np.zeros(SIZE, np.uint8))
        with pytest.raises(InputError, match=r"00000\.png holds no object"):
            DavisDataset(root)["swan"].first_mask()

    def test_year(self, root):
        with pytest.raises(InputError, match="2016, 2017"):
            DavisDataset(root, year="2018")


def test_the_real_development_set():
    dataset = DavisDataset(shared_path("data", "davis2016-dev"))
    assert {sequence.name: len(sequence) for sequence in dataset} == {
        "blackswan": 50,
        "bmx-trees": 80,
        "car-shadow": 40,
        "goat": 90,
        "scooter-black": 43,
    }
    for sequence in dataset:
        assert sequence.image(0).shape == (480, 854, 3)
        assert sequence.first_mask().shape == (480, 854)
        assert sequence.object_ids == (1,)
        assert 0.002 < sequence.first_mask().mean() < 0.3
    clip = dataset.frames(100, count=3)
    assert set(np.unique(clip.masks[0])) == {0, 1}
    assert clip.images.shape == (3, 480, 854, 3)
