"""Scoring folders of PNGs: both layouts, what is refused, and real masks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from goldens import shared_path
from PIL import Image

from streamvos.masks.labelmap import write_label_map
from streamvos.metrics.evaluation import evaluate_sequence
from streamvos.metrics.folders import score_folders
from streamvos.types import InputError


def labels(
    count: int = 5, objects: int = 1, shift: int = 0, size: tuple[int, int] = (24, 32)
) -> list[np.ndarray]:
    """A sequence of squares that move; `shift` moves all of them aside."""
    frames = []
    for k in range(count):
        frame = np.zeros(size, np.uint8)
        for one in range(objects):
            frame[2 + 10 * one : 9 + 10 * one, 3 + k + shift : 10 + k + shift] = one + 1
        frames.append(frame)
    return frames


def write(folder: Path, frames: list[np.ndarray], gray: bool = False) -> Path:
    """Write label maps; `gray` as DAVIS 2016 stores them, 0 and 255 without a palette."""
    folder.mkdir(parents=True, exist_ok=True)
    for k, frame in enumerate(frames):
        if gray:
            Image.fromarray((frame > 0).astype(np.uint8) * 255).save(folder / f"{k:05d}.png")
        else:
            write_label_map(folder / f"{k:05d}.png", frame)
    return folder


class TestLayouts:
    def test_one_sequence_inside_each(self, tmp_path):
        write(tmp_path / "truth" / "goat", labels())
        write(tmp_path / "out", labels(shift=2))
        expected = evaluate_sequence(labels(), labels(shift=2)).percent()
        for truth, prediction in (("truth/goat", "out"), ("truth", "out")):
            scores = score_folders(tmp_path / truth, tmp_path / prediction)
            assert list(scores.sequences) == ["goat"]
            assert scores.sequences["goat"].percent() == expected

    def test_a_folder_per_sequence(self, tmp_path):
        for name, shift in (("camel", 0), ("goat", 2)):
            write(tmp_path / "truth" / name, labels())
            write(tmp_path / "out" / name, labels(shift=shift))
        seen = []
        scores = score_folders(str(tmp_path / "truth"), str(tmp_path / "out"), on_sequence=seen.append)
        assert [score.name for score in seen] == list(scores.sequences) == ["camel", "goat"]
        assert scores.sequences["camel"].percent()["J&F"] == 100
        assert scores.sequences["goat"].percent()["J"] < 80
        only = score_folders(tmp_path / "truth", tmp_path / "out", sequences=["goat"])
        assert list(only.sequences) == ["goat"]
        assert only.mean == scores.sequences["goat"].percent()

    def test_one_sequence_of_many_by_name(self, tmp_path):
        for name in ("camel", "goat"):
            write(tmp_path / "truth" / name, labels())
        write(tmp_path / "out", labels())
        assert list(score_folders(tmp_path / "truth", tmp_path / "out", sequences="goat").sequences) == [
            "goat"
        ]
        with pytest.raises(InputError, match="single sequence, but 2 are to be scored"):
            score_folders(tmp_path / "truth", tmp_path / "out")

    def test_other_things_may_lie_beside_the_masks(self, tmp_path):
        truth, out = write(tmp_path / "goat", labels()), write(tmp_path / "out", labels())
        for name in ("overlay.mp4", "results.jsonl", "._00000.png", ".00004.png.17.tmp"):
            (out / name).write_bytes(b"no picture")
        (out / "log").mkdir()
        assert score_folders(truth, out).mean["J"] == 100

    def test_frames_are_ordered_as_numbers(self, tmp_path):
        # 0 .. 11 without leading zeros: as text, 9 would be last and left out instead of 11
        frames = labels(12)
        for folder in ("goat", "out"):
            (tmp_path / folder).mkdir()
            for k, frame in enumerate(frames):
                empty = folder == "out" and k == 11
                write_label_map(tmp_path / folder / f"{k}.png", np.zeros_like(frame) if empty else frame)
        assert score_folders(tmp_path / "goat", tmp_path / "out").mean["J"] == 100


class TestDatasets:
    def test_2016_merges_the_objects_and_2017_does_not(self, tmp_path):
        swapped = [np.array([0, 2, 1], np.uint8)[frame] for frame in labels(objects=2)]
        truth, out = write(tmp_path / "goat", labels(objects=2)), write(tmp_path / "out", swapped)
        assert score_folders(truth, out, dataset="davis2016").mean["J"] == 100
        scores = score_folders(truth, out, dataset="davis2017")
        assert [one.id for one in scores.sequences["goat"].objects] == [1, 2]
        assert scores.mean["J"] == 0

    @pytest.mark.parametrize("dataset", ["davis2016", "davis2017"])
    @pytest.mark.parametrize(("gray_truth", "gray_prediction"), [(True, True), (True, False), (False, True)])
    def test_masks_stored_as_0_and_255(self, tmp_path, dataset, gray_truth, gray_prediction):
        truth = write(tmp_path / "goat", labels(), gray=gray_truth)
        out = write(tmp_path / "out", labels(), gray=gray_prediction)
        assert score_folders(truth, out, dataset=dataset).mean["J"] == 100

    @pytest.mark.parametrize("dataset", ["davis2016", "davis2017"])
    def test_void_stays_void_in_a_frame_without_any_object(self, tmp_path, dataset):
        # Frame 2 holds background and void alone, which by itself looks like a mask of 0 and 255.
        frames, predictions = labels(), labels()
        frames[2][frames[2] > 0] = 255
        predictions[2][:] = 0
        truth, out = write(tmp_path / "goat", frames), write(tmp_path / "out", predictions)
        assert score_folders(truth, out, dataset=dataset).mean["J"] == 100


class TestRefusals:
    @pytest.fixture
    def folders(self, tmp_path):
        return write(tmp_path / "truth" / "goat", labels()), write(tmp_path / "out" / "goat", labels())

    @pytest.mark.parametrize("frame", ["00000", "00002", "00004"])
    def test_a_missing_prediction_is_no_zero(self, folders, frame):
        truth, out = folders
        (out / f"{frame}.png").unlink()
        with pytest.raises(InputError, match=f"goat: 1 of 5 predictions are missing.*{frame}"):
            score_folders(truth, out)

    def test_a_prediction_too_many(self, folders):
        truth, out = folders
        write_label_map(out / "00005.png", labels()[0])
        with pytest.raises(InputError, match=r"without a true label map.*00005"):
            score_folders(truth, out)

    def test_another_size(self, folders):
        truth, out = folders
        write_label_map(out / "00003.png", labels(size=(24, 40))[0])
        with pytest.raises(InputError, match=r"goat, frame 00003: the prediction must be .*got \(24, 40\)"):
            score_folders(truth, out)

    def test_a_sequence_without_predictions_and_one_without_truth(self, folders):
        truth, out = (folder.parent for folder in folders)
        write(truth / "camel", labels())
        with pytest.raises(InputError, match="no predictions for camel"):
            score_folders(truth, out)
        write(out / "camel", labels())
        write(out / "swan", labels())
        with pytest.raises(InputError, match="predictions for swan"):
            score_folders(truth, out)
        assert set(score_folders(truth, out, sequences=["camel", "goat"]).sequences) == {"camel", "goat"}

    def test_predictions_of_another_sequence(self, folders, tmp_path):
        write(tmp_path / "other" / "camel", labels())
        with pytest.raises(InputError, match="no predictions for goat; there are camel"):
            score_folders(folders[0], tmp_path / "other")

    def test_an_unknown_sequence(self, folders):
        with pytest.raises(InputError, match=r"no sequence swan in .*; there are goat"):
            score_folders(folders[0].parent, folders[1].parent, sequences=["swan"])
        with pytest.raises(InputError, match=r"no sequence swan in .*; there are goat"):
            score_folders(folders[0], folders[1], sequences=["swan"])
        with pytest.raises(InputError, match="the list of sequences is empty"):
            score_folders(folders[0].parent, folders[1].parent, sequences=[])

    def test_an_unreadable_prediction(self, folders):
        (folders[1] / "00002.png").write_bytes((folders[1] / "00002.png").read_bytes()[:60])
        with pytest.raises(InputError, match=r"00002\.png"):
            score_folders(*folders)

    def test_a_folder_that_does_not_exist(self, folders, tmp_path):
        with pytest.raises(InputError, match="nowhere"):
            score_folders(folders[0], tmp_path / "nowhere")
        with pytest.raises(InputError, match="nowhere"):
            score_folders(tmp_path / "nowhere", folders[1])

    def test_a_folder_without_masks(self, folders, tmp_path):
        (tmp_path / "empty").mkdir()
        with pytest.raises(InputError, match="no predicted label maps"):
            score_folders(folders[0], tmp_path / "empty")

    def test_the_root_of_davis_gets_a_hint(self, folders, tmp_path):
        write(tmp_path / "DAVIS" / "Annotations" / "480p" / "goat", labels())
        with pytest.raises(InputError, match=r"did you mean .*480p"):
            score_folders(tmp_path / "DAVIS", folders[1])

    def test_masks_both_inside_and_in_folders(self, folders):
        write(folders[1].parent, labels())
        with pytest.raises(InputError, match="itself and in goat"):
            score_folders(folders[0], folders[1].parent)

    def test_a_predicted_object_that_does_not_exist(self, folders):
        write(folders[1], labels(objects=2))
        with pytest.raises(InputError, match=r"frame 00000.*label 2"):
            score_folders(*folders, dataset="davis2017")

    def test_no_object_in_the_first_frame(self, folders):
        write_label_map(folders[0] / "00000.png", np.zeros((24, 32), np.uint8))
        with pytest.raises(InputError, match=r"00000\.png holds no object"):
            score_folders(*folders)

    def test_dataset(self, folders):
        with pytest.raises(InputError, match="davis2016, davis2017"):
            score_folders(*folders, dataset="davis")


class TestRealMasks:
    @pytest.fixture
    def annotations(self):
        return shared_path("data", "davis2016-dev", "Annotations", "480p")

    def test_the_truth_scores_100(self, annotations):
        scores = score_folders(annotations, annotations, dataset="davis2016")
        assert len(scores.sequences) == 5
        for percent in (*scores.to_json()["sequences"].values(), scores.mean):
            assert percent["J"] == percent["F"] == percent["J&F"] == 100
            assert percent["J_recall"] == percent["F_recall"] == 100
            assert percent["J_decay"] == percent["F_decay"] == 0

    def test_the_mask_before_scores_well_and_an_older_one_worse(self, annotations, tmp_path):
        paths = sorted((annotations / "car-shadow").glob("*.png"))
        means = []
        for lag in (1, 6):
            out = tmp_path / str(lag)
            out.mkdir()
            for k, path in enumerate(paths):
                (out / path.name).symlink_to(paths[max(k - lag, 0)])
            means.append(score_folders(annotations / "car-shadow", out).mean)
        # The car moves by a few pixels per frame: the mask before overlaps much, its outline is within the
        # 8 pixels of tolerance in most places; six frames earlier little is left of that.
        assert 75 < means[0]["J"] < 99
        assert 60 < means[0]["F"] < 99
        assert means[1]["J"] < means[0]["J"] - 10
        assert means[1]["F"] < means[0]["F"] - 20
