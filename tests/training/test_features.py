"""Features of a training set: what is stored, what is drawn from it, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from small_training_data import SMALL, write_training_data

from streamvos.nn.efficientnet import EfficientNetLite0
from streamvos.training.features import (
    STAGES,
    FeatureClipOptions,
    FeatureClips,
    make_features,
)
from streamvos.types import InputError
from streamvos.weights import bundled_backbone

CLIPS = FeatureClipOptions(size=(64, 96), frames=3)


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("data")
    write_training_data(root)
    return root


@pytest.fixture(scope="module")
def features(data, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("features")
    make_features(data, folder, SMALL)
    return folder


def test_validation_sequences_are_never_stored(features):
    names = {path.name for path in features.iterdir() if path.is_dir()}
    assert names == {"square", "square-0", "stills-000"}


def test_stored_features_are_those_of_the_backbone(data, features):
    network = EfficientNetLite0(stages=6)
    network.load_state_dict(bundled_backbone())
    picture = cv2.imread(str(data / "davis2016-train" / "JPEGImages" / "480p" / "square" / "00003.jpg"))
    frame = torch.from_numpy(picture[..., ::-1].copy()).permute(2, 0, 1)[None].float() / 255
    with torch.no_grad():
        expected = network(frame)["stage5"][0]
    stored = torch.from_numpy(np.load(features / "square" / "stage5.npy")[3]).view(torch.bfloat16).float()
    similar = torch.cosine_similarity(stored.permute(2, 0, 1), expected, dim=0)
    assert similar.min() > 0.98


def test_started_again_it_makes_only_what_is_missing(data, features):
    before = {path: path.stat().st_mtime_ns for path in features.rglob("*.npy")}
    said: list[str] = []
    make_features(data, features, SMALL, said.append)
    assert said == []
    assert {path: path.stat().st_mtime_ns for path in features.rglob("*.npy")} == before


def test_clips_have_the_followed_object_in_their_first_frame(features):
    batch = FeatureClips(features, CLIPS, seed=1).batch(step=0, size=6)
    labels = batch["labels"]
    assert labels.shape == (6, 3, 64, 96)
    assert ((labels[:, 0] == 1).sum((1, 2)) >= 150).all()
    for name, stride in STAGES.items():
        assert batch[name].dtype == torch.bfloat16
        assert batch[name].shape[:2] == (6, 3)
        assert batch[name].shape[3:] == (64 // stride, 96 // stride)


def test_a_batch_depends_on_seed_and_step_alone(features):
    def batch(seed: int, step: int) -> dict[str, torch.Tensor]:
        return FeatureClips(features, CLIPS, seed).batch(step, size=2)

    one, same, other = batch(0, 3), batch(0, 3), batch(1, 3)
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert not torch.equal(one["stage2"], other["stage2"])


def test_clips_longer_than_a_source_play_it_forward_and_backward(features):
    options = CLIPS.model_copy(update={"frames": 7, "stills": 1.0})
    batch = FeatureClips(features, options, seed=1).batch(step=0, size=2)
    for maps in batch["stage2"]:
        frames = [frame.float() for frame in maps]
        period = 2 * (SMALL.still_frames - 1)
        for t in range(7 - period):
            assert torch.equal(frames[t], frames[t + period])
        assert not torch.equal(frames[0], frames[1])


def test_dropout_takes_the_same_channels_from_all_frames_of_a_clip(features):
    given = FeatureClips(features, CLIPS, seed=1).batch(step=0, size=4)
    some = CLIPS.model_copy(update={"dropout": 0.25})
    batch = FeatureClips(features, some, seed=1).batch(step=0, size=4)
    assert torch.equal(batch["labels"], given["labels"])
    for name in STAGES:
        gone = (batch[name] == 0).all(dim=(1, 3, 4))  # (B, C)
        assert 0 < gone.float().mean() < 0.5
        kept = ~gone[:, None, :, None, None] * given[name].float() / 0.75
        assert torch.allclose(batch[name].float(), kept, rtol=0.02)


def test_frames_and_labels_of_a_clip_belong_together(features):
    """The object is bright: stage 2 tells it from its surroundings the same way in every frame."""
    options = FeatureClipOptions(size=(64, 96), frames=3, stills=0)
    batch = FeatureClips(features, options, seed=3).batch(step=0, size=4)
    inside = batch["labels"][..., 2::4, 2::4] == 1
    for maps, masks in zip(batch["stage2"].float(), inside, strict=True):
        differences = [
            m[:, k].mean(1) - m[:, ~k].mean(1) for m, k in zip(maps, masks, strict=True) if k.any()
        ]
        similar = torch.cosine_similarity(differences[0], torch.stack(differences[1:]))
        assert (similar > 0.5).all()


def test_a_folder_of_another_set_is_refused(data, features):
    with pytest.raises(InputError, match="other options"):
        make_features(data, features, SMALL.model_copy(update={"seed": 5}))


def test_a_folder_without_features_is_refused(tmp_path):
    with pytest.raises(InputError, match="holds no features"):
        FeatureClips(tmp_path)


def test_data_without_photographs_are_refused(tmp_path):
    with pytest.raises(InputError, match="no photographs of objects"):
        make_features(tmp_path, tmp_path / "out", SMALL)


def test_what_an_interrupted_process_left_is_no_source(data, tmp_path):
    (tmp_path / ".square.123").mkdir()
    (tmp_path / ".square.123" / "segments.json").write_text("[[0, 6]]")
    make_features(data, tmp_path, SMALL)
    assert json.loads((tmp_path / "square" / "segments.json").read_text()) == [[0, 6]]
    batch = FeatureClips(tmp_path, CLIPS, seed=0).batch(step=0, size=2)
    assert batch["labels"].shape == (2, 3, 64, 96)
