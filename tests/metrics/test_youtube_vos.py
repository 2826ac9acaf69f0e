"""G of YouTube-VOS: which frames count for which object, and how groups are averaged."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from streamvos.masks.labelmap import write_label_map
from streamvos.metrics.scores import ObjectScore, SequenceScore
from streamvos.metrics.youtube_vos import evaluate_youtube_sequence, score_youtube_folders, summarize_youtube
from streamvos.types import InputError

EXACT = 1e-6


def frame(*ids: int) -> np.ndarray:
    """A label map in which object k fills its own 6x6 square; ids that are not given are absent."""
    labels = np.zeros((20, 40), np.uint8)
    for one in ids:
        labels[5:11, 9 * one - 6 : 9 * one] = one
    return labels


class TestSequence:
    def test_an_object_is_judged_after_its_first_label_map_to_the_last(self):
        truths = [frame(1), frame(1), frame(1, 2), frame(1, 2), frame(1, 2)]
        # Object 1: wrong where it was given (no matter), then right, missed, right, missed.
        # Object 2: wrong where it was given (no matter), then right, missed.
        predictions = [frame(), frame(1), frame(), frame(1, 2), frame()]
        score = evaluate_youtube_sequence(truths, predictions, {1: 0, 2: 2})
        assert [one.id for one in score.objects] == [1, 2]
        assert score.objects[0].regions.tolist() == score.objects[0].boundaries.tolist() == [1, 0, 1, 0]
        assert score.objects[1].regions.tolist() == score.objects[1].boundaries.tolist() == [1, 0]

    def test_an_object_that_appears_in_the_last_label_map_has_nothing_to_judge(self):
        score = evaluate_youtube_sequence([frame(1), frame(1, 2)], [frame(1), frame(1)], {1: 0, 2: 1})
        assert score.objects[1].regions.shape == (0,)

    def test_bad_input(self):
        with pytest.raises(InputError, match="predictions end"):
            evaluate_youtube_sequence([frame(1)] * 3, [frame(1)] * 2, {1: 0})
        with pytest.raises(InputError, match=r"label map 1: the prediction must be .*got \(10, 40\)"):
            evaluate_youtube_sequence([frame(1)] * 2, [frame(1), frame(1)[:10]], {1: 0})
        with pytest.raises(InputError, match="label 3"):
            evaluate_youtube_sequence([frame(1)] * 2, [frame(1), frame(3)], {1: 0})
        with pytest.raises(InputError, match="object ids"):
            evaluate_youtube_sequence([frame(1)] * 2, [frame(1)] * 2, {})


def score(video: str, **objects: tuple[float, float]) -> SequenceScore:
    return SequenceScore(
        video,
        tuple(
            ObjectScore(int(key[1:]), np.array([j, j]), np.array([f, f])) for key, (j, f) in objects.items()
        ),
    )


class TestSummary:
    categories = {"a": {1: "dog", 2: "yak"}, "b": {1: "dog", 2: "dog"}}  # noqa: RUF012

    def test_by_hand(self):
        # seen (dog): J 0.9, 0.6, 0.3 -> 0.6; F 0.8, 0.8, 0.2 -> 0.6. unseen (yak): J 0.5, F 0.7.
        # G = (60 + 50 + 60 + 70) / 4
        videos = [score("a", o1=(0.9, 0.8), o2=(0.5, 0.7)), score("b", o1=(0.6, 0.8), o2=(0.3, 0.2))]
        found = summarize_youtube(videos, self.categories, ["dog", "cat"])
        expected = {"G": 60, "J_seen": 60, "J_unseen": 50, "F_seen": 60, "F_unseen": 70}
        assert found.to_json() == pytest.approx(expected, abs=EXACT)
        assert json.loads(json.dumps(found.to_json())) == found.to_json()

    def test_without_unseen_objects_there_is_no_g(self):
        found = summarize_youtube([score("b", o1=(0.6, 0.8))], self.categories, ["dog"])
        assert math.isnan(found.g)
        assert found.to_json()["G"] is found.to_json()["J_unseen"] is None
        assert found.j_seen == pytest.approx(60, abs=EXACT)

    def test_objects_without_a_judged_frame_do_not_count(self):
        nothing = ObjectScore(2, np.empty(0), np.empty(0))
        video = SequenceScore("b", (*score("b", o1=(0.6, 0.8)).objects, nothing))
        assert summarize_youtube([video], self.categories, ["dog"]).j_seen == pytest.approx(60, abs=EXACT)

    def test_bad_input(self):
        with pytest.raises(InputError, match="c: object 1 has no category"):
            summarize_youtube([score("c", o1=(0.6, 0.8))], self.categories, ["dog"])
        with pytest.raises(InputError, match="'dog'"):
            summarize_youtube([score("b", o1=(0.6, 0.8))], self.categories, "dog")


class TestFolders:
    @pytest.fixture
    def split(self, tmp_path: Path) -> Path:
        """Ten frames, every fifth and the last labeled; object 2 appears in the second label map."""
        root = tmp_path / "train"
        for part in ("JPEGImages", "Annotations"):
            (root / part / "a").mkdir(parents=True)
        for k in range(11):
            Image.new("RGB", (40, 20)).save(root / "JPEGImages" / "a" / f"{k:05d}.jpg")
        for k, labels in ((0, frame(1)), (5, frame(1, 2)), (10, frame(1, 2))):
            write_label_map(root / "Annotations" / "a" / f"{k:05d}.png", labels)
        meta = {
            "1": {"category": "dog", "frames": ["00000", "00005", "00010"]},
            "2": {"category": "yak", "frames": ["00005", "00010"]},
        }
        (root / "meta.json").write_text(json.dumps({"videos": {"a": {"objects": meta}}}))
        return root

    def predict(self, folder: Path, *label_maps: np.ndarray) -> Path:
        (folder / "a").mkdir(parents=True)
        for k, labels in enumerate(label_maps):
            write_label_map(folder / "a" / f"{5 * k:05d}.png", labels)
        return folder

    def test_scores(self, split, tmp_path):
        # dog: right, then missed: 50. yak: judged in the last label map alone, right: 100.
        out = self.predict(tmp_path / "out", frame(1), frame(1, 2), frame(2))
        write_label_map(out / "a" / "00007.png", frame(1))  # a frame without truth is passed over
        found = score_youtube_folders(split, out, seen=["dog"]).to_json()
        assert found == {"G": 75, "J_seen": 50, "J_unseen": 100, "F_seen": 50, "F_unseen": 100}
        assert score_youtube_folders(tmp_path, out, seen=["dog"]).to_json() == found  # the split's parent

    def test_missing_parts(self, split, tmp_path):
        out = self.predict(tmp_path / "out", frame(1), frame(1, 2))
        with pytest.raises(InputError, match=r"a: 1 of 3 predictions are missing .*00010"):
            score_youtube_folders(split, out, seen=["dog"])
        with pytest.raises(InputError, match="cannot read the folder"):
            score_youtube_folders(split, tmp_path / "nowhere", seen=["dog"])
        with pytest.raises(InputError, match="no sequence b"):
            score_youtube_folders(split, out, seen=["dog"], videos=["b"])
        (split / "meta.json").unlink()
        with pytest.raises(InputError, match="categories"):
            score_youtube_folders(split, out, seen=["dog"])
