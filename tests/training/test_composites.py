"""Composed clips: the label maps say exactly where the pasted objects are."""

from __future__ import annotations

import cv2
import numpy as np

from streamvos.training.composites import (
    Cutout,
    LabeledClip,
    Photographs,
    composed_video,
    cut_out,
    random_motion,
    still_clip,
)


def test_labels_lie_where_the_object_was_drawn():
    size = (120, 160)
    cutout = Cutout(np.full((40, 40, 3), 250, np.uint8), np.ones((40, 40), np.float32))
    for seed in range(10):
        mover = random_motion(np.random.default_rng(seed), size, speed=1.0)
        for u in (0.0, 0.5, 1.0):
            image, labels = np.zeros((*size, 3), np.uint8), np.zeros(size, np.uint8)
            mover.paste(cutout, u, image, labels, 3)
            bright = image[..., 0] > 125
            assert set(np.unique(labels)) <= {0, 3}
            assert (bright == (labels == 3)).mean() > 0.999


def test_an_object_keeps_its_look_along_its_path():
    size = (120, 160)
    half = np.zeros((40, 60, 3), np.uint8)
    half[:, :30, 0], half[:, 30:, 1] = 200, 200
    cutout = Cutout(half, np.ones((40, 60), np.float32))
    mover = random_motion(np.random.default_rng(2), size, speed=0.5)
    for u in (0.0, 0.4, 0.9):
        image, labels = np.zeros((*size, 3), np.uint8), np.zeros(size, np.uint8)
        mover.paste(cutout, u, image, labels, 1)
        inside = image[labels == 1]
        if len(inside) > 200:
            assert 0.25 < (inside[:, 0] > inside[:, 1]).mean() < 0.75


def test_a_tiny_object_is_not_cut_out():
    mask = np.zeros((100, 100), bool)
    mask[:3, :3] = True
    assert cut_out(np.zeros((100, 100, 3), np.uint8), mask) is None


def test_a_composed_video_keeps_the_labels_of_the_video():
    labels = np.zeros((4, 60, 80), np.uint8)
    labels[:, 20:40, 30:50] = 1
    images = np.where(labels[..., None] > 0, 220, 30).astype(np.uint8).repeat(3, -1)
    video = LabeledClip(images, labels)
    clip = composed_video(np.random.default_rng(0), video, [], None, (90, 120))
    assert clip.images.shape == (4, 90, 120, 3)
    assert clip.labels.shape == (4, 90, 120)
    bright = clip.images.mean(-1) > 125
    assert (bright == (clip.labels == 1)).mean() > 0.98


def test_clips_of_stills_are_the_same_for_the_same_seed(tmp_path):
    rng = np.random.default_rng(0)
    for k in range(3):
        for kind, content in (
            ("images", rng.integers(0, 255, (50, 70, 3), dtype=np.uint8)),
            ("regions", np.pad(np.ones((30, 40), np.uint8), ((10, 10), (15, 15)))),
        ):
            folder = tmp_path / "duts" / kind
            folder.mkdir(parents=True, exist_ok=True)
            assert cv2.imwrite(str(folder / f"{k}.{'jpg' if kind == 'images' else 'png'}"), content)
    photographs = Photographs(tmp_path)
    one, same, other = (still_clip(np.random.default_rng(s), photographs, (64, 96), 3) for s in (1, 1, 2))
    assert np.array_equal(one.images, same.images)
    assert np.array_equal(one.labels, same.labels)
    assert not np.array_equal(one.images, other.images)
    assert one.labels.max() >= 1
