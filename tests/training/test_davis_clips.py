"""Clips as the TVOS authors cut them: windows, crops, flips, and labels by way of colors."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from streamvos.datasets.clips import Clip
from streamvos.datasets.davis import DavisDataset
from streamvos.datasets.youtube import YouTubeVosDataset
from streamvos.masks.labelmap import davis_palette, write_label_map
from streamvos.training.davis_clips import AuthorsClipOptions, AuthorsClips, jitter_colors, labels_by_color
from streamvos.types import InputError

SMALL = AuthorsClipOptions(size=32, frames=3)
HEIGHT, WIDTH = 44, 60


def add_video(frames: Path, annotations: Path, count: int, brightness: int) -> None:
    """Frames of one gray level each, `brightness` + 8 k, so that a test can tell which one it sees."""
    frames.mkdir(parents=True)
    annotations.mkdir(parents=True)
    for k in range(count):
        level = brightness + 8 * k
        Image.new("RGB", (WIDTH, HEIGHT), (level,) * 3).save(frames / f"{k:05d}.jpg", quality=95)
        write_label_map(annotations / f"{k:05d}.png", np.full((HEIGHT, WIDTH), k % 3, np.uint8))


@pytest.fixture
def davis(tmp_path: Path) -> DavisDataset:
    """Two videos: levels 0, 8, 16, 24, 32 and 100, 108, 116, 124."""
    for name, count, brightness in (("bear", 5, 0), ("goat", 4, 100)):
        parts = [tmp_path / part / "480p" / name for part in ("JPEGImages", "Annotations")]
        add_video(*parts, count, brightness)
    return DavisDataset(tmp_path, year="2017")


class Places:
    """A data set whose pictures say where each pixel comes from: red is its row, green its column."""

    names = ("places",)

    def starts(self, count: int) -> list[int]:
        return list(range(40))

    def frames(self, i: int, count: int) -> Clip:
        rows, columns = np.mgrid[:HEIGHT, :WIDTH]
        images = np.stack([np.stack([rows, columns, 0 * rows + k], -1) for k in range(count)])
        masks = np.stack([(rows // 7 + columns // 9 + k) % 4 for k in range(count)])
        return Clip("places", ("0",) * count, images.astype(np.uint8), masks.astype(np.uint8))


def levels(batch: dict[str, torch.Tensor]) -> list[tuple[int, ...]]:
    """The gray level of each frame of each clip, as it was before JPEG."""
    seen = batch["frames"].float().mean((2, 3, 4))
    return [tuple(round(float(level) / 4) * 4 for level in clip) for clip in seen]


class TestEpochs:
    def test_visit_every_frame_once_and_shift_back_what_would_pass_the_end(self, davis):
        clips = AuthorsClips(davis, SMALL, seed=0)
        assert clips.steps_per_epoch(3) == 3
        expected = Counter(
            [(0, 8, 16), (8, 16, 24), *3 * [(16, 24, 32)], (100, 108, 116), *3 * [(108, 116, 124)]]
        )
        for epoch in range(2):
            seen = [clip for step in range(3) for clip in levels(clips.batch(3 * epoch + step, 3))]
            assert Counter(seen) == expected

    def test_have_an_order_of_their_own_and_drop_the_rest(self, davis):
        clips = AuthorsClips(davis, SMALL, seed=0)
        assert clips.steps_per_epoch(4) == 2  # 9 frames: one is left over
        orders = {tuple(levels(clips.batch(2 * epoch, 4))) for epoch in range(5)}
        assert len(orders) == 5

    def test_batches_are_a_function_of_seed_and_step(self, davis):
        first = AuthorsClips(davis, SMALL, seed=0).batch(5, 2)
        clips = AuthorsClips(davis, SMALL, seed=0)
        clips.batch(0, 2)
        again, other = clips.batch(5, 2), AuthorsClips(davis, SMALL, seed=1).batch(5, 2)
        assert all(torch.equal(first[name], again[name]) for name in first)
        assert not torch.equal(first["frames"], other["frames"])
        assert first["frames"].shape == (2, 3, 3, 32, 32)
        assert first["frames"].dtype == torch.uint8
        assert first["labels"].shape == (2, 3, 16)
        assert first["labels"].dtype == torch.int64

    def test_pass_over_videos_that_are_too_short(self, davis):
        clips = AuthorsClips(davis, AuthorsClipOptions(size=32, frames=5))
        assert clips.steps_per_epoch(1) == 5
        assert levels(clips.batch(0, 1)) == [(0, 8, 16, 24, 32)]
        with pytest.raises(InputError, match="none of the 2 videos has 6 frames"):
            AuthorsClips(davis, AuthorsClipOptions(size=32, frames=6))

    def test_a_batch_larger_than_the_data_set_is_refused(self, davis):
        with pytest.raises(InputError, match="a batch of 10 clips needs as many frames, got 9"):
            AuthorsClips(davis, SMALL).batch(0, 10)

    def test_frames_smaller_than_the_crop_are_refused_by_name(self, davis):
        with pytest.raises(InputError, match=r"(bear|goat) is 44 x 60 .*crops of 48"):
            AuthorsClips(davis, AuthorsClipOptions(size=48, frames=3)).batch(0, 1)

    def test_youtube_vos_folders_serve_as_well(self, tmp_path):
        for name in ("0a", "0b"):
            add_video(tmp_path / "JPEGImages" / name, tmp_path / "Annotations" / name, 4, 40)
        clips = AuthorsClips(YouTubeVosDataset(tmp_path), SMALL)
        assert clips.steps_per_epoch(2) == 4
        assert set(levels(clips.batch(0, 2))) <= {(40, 48, 56), (48, 56, 64)}

    def test_the_description_does_not_name_the_place(self, davis):
        description = AuthorsClips(davis, SMALL).describe()
        assert description["data"]["videos"] == 2
        assert str(davis.root) not in repr(description)


class TestAugmentation:
    def test_one_crop_and_one_flip_for_the_whole_clip_and_its_labels(self):
        clips, dataset = AuthorsClips(Places(), SMALL, seed=0), Places()
        directions, corners = Counter(), set()
        for i in range(40):
            clip = clips.clip(i, epoch=0)
            rows, columns = clip["frames"][0, 0, :, 0].astype(int), clip["frames"][0, 1, 0].astype(int)
            for k, (frame, mask) in enumerate(zip(clip["frames"], dataset.frames(i, 3).masks, strict=True)):
                assert (frame[0] == rows[:, None]).all()
                assert (frame[1] == columns[None]).all()
                assert (frame[2] == k).all()
                expected = labels_by_color(mask[np.ix_(rows, columns)])
                assert np.array_equal(clip["labels"][k], expected.ravel())
            step = rows[1] - rows[0], columns[1] - columns[0]
            assert (np.diff(rows) == step[0]).all()
            assert (np.diff(columns) == step[1]).all()
            directions[step] += 1
            corners.add((rows.min(), columns.min()))
        assert set(directions) == {(1, 1), (1, -1), (-1, 1), (-1, -1)}
        assert min(directions.values()) >= 3  # 10 are expected of each
        assert len(corners) > 30

    def test_crops_reach_every_border(self):
        clips = AuthorsClips(Places(), AuthorsClipOptions(size=40, frames=2), seed=0)
        rows = [clips.clip(i, 0)["frames"][0, 0, :, 0] for i in range(40)]
        assert min(row.min() for row in rows) == 0
        assert max(row.max() for row in rows) == HEIGHT - 1

    def test_another_epoch_crops_anew(self):
        clips = AuthorsClips(Places(), SMALL, seed=0)
        assert not np.array_equal(clips.clip(0, 0)["frames"], clips.clip(0, 1)["frames"])

    def test_color_jitter_leaves_geometry_and_labels(self, davis):
        plain = AuthorsClips(Places(), SMALL, seed=0).clip(3, 0)
        jittered = AuthorsClips(Places(), SMALL.model_copy(update={"color_jitter": 0.4}), seed=0).clip(3, 0)
        assert np.array_equal(plain["labels"], jittered["labels"])
        assert not np.array_equal(plain["frames"], jittered["frames"])


class TestColorJitter:
    def test_is_the_same_for_all_frames(self, rng):
        frame = rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)
        changed = jitter_colors(np.stack([frame] * 3), 0.4, rng)
        assert np.array_equal(changed[0], changed[1])
        assert np.array_equal(changed[0], changed[2])
        assert not np.array_equal(changed[0], frame)

    def test_without_strength_nothing_changes(self, rng):
        frames = rng.integers(0, 256, (2, 16, 16, 3), dtype=np.uint8)
        changed = jitter_colors(frames, 0.0, rng)
        assert np.abs(changed.astype(int) - frames).max() <= 1  # rounding on the way to hue and back

    def test_gray_stays_gray(self, rng):
        frames = np.repeat(rng.integers(0, 256, (2, 16, 16, 1), dtype=np.uint8), 3, axis=3)
        changed = jitter_colors(frames, 0.5, rng).astype(int)
        assert np.ptp(changed, axis=3).max() <= 1

    def test_the_hue_goes_round_as_far_as_torchvisions(self):
        """At 0.5 every hue can become every other."""
        red = np.zeros((1, 2, 2, 3), np.uint8)
        red[..., 0] = 200
        strongest = Counter()
        for seed in range(60):
            changed = jitter_colors(red, 0.5, np.random.Generator(np.random.PCG64(seed)))
            strongest[int(changed[0, 0, 0].argmax())] += 1
        assert min(strongest[channel] for channel in range(3)) >= 10


class TestLabels:
    def test_equal_bilinear_downsampling_and_the_nearest_of_22_colors(self, rng, tmp_path):
        """The long way: the PNG's own colors, torch's interpolation, a loop over the colors."""
        coarse = rng.integers(0, 22, (13, 13))
        mask = np.repeat(np.repeat(coarse, 5, 0), 5, 1)[:64, :64].astype(np.uint8)
        write_label_map(tmp_path / "mask.png", mask)
        colors = np.array(Image.open(tmp_path / "mask.png").convert("RGB"))
        small = F.interpolate(
            torch.tensor(colors).permute(2, 0, 1)[None].float(), scale_factor=1 / 8, mode="bilinear"
        )
        palette = [[191 if value == 192 else int(value) for value in color] for color in davis_palette()[:22]]
        expected = np.zeros((8, 8), int)
        for row in range(8):
            for column in range(8):
                color = small[0, :, row, column].tolist()
                distances = [sum((a - b) ** 2 for a, b in zip(color, one, strict=True)) for one in palette]
                expected[row, column] = distances.index(min(distances))
        found = labels_by_color(mask)
        assert found.dtype == np.int64
        assert np.array_equal(found, expected)

    @pytest.mark.parametrize("label", range(22))
    def test_a_uniform_block_keeps_its_label(self, label):
        assert labels_by_color(np.full((8, 8), label, np.uint8)).tolist() == [[label]]

    @pytest.mark.parametrize(
        ("left", "right", "label"),
        [
            (1, 3, 17),  # (128, 0, 0) and (128, 128, 0) give (128, 64, 0), a third label's color
            (0, 4, 0),  # (0, 0, 64) is as far from both: the first wins
            (4, 0, 0),
            (1, 9, 9),  # (160, 0, 0) would be a tie with 192; with 191 it is not
        ],
    )
    def test_a_block_on_a_border_goes_to_the_nearest_color(self, left, right, label):
        mask = np.full((8, 8), left, np.uint8)
        mask[:, 4:] = right
        assert labels_by_color(mask).tolist() == [[label]]

    def test_only_the_middle_of_a_block_counts(self):
        mask = np.full((8, 8), 2, np.uint8)
        mask[3:5, 3:5] = 1
        assert labels_by_color(mask).tolist() == [[1]]
