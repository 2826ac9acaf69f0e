"""Synthetic clips: the same for the same step, and correspondences that hold."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from streamvos.synthetic.synthetic import SyntheticOptions, SyntheticVideo
from streamvos.training.losses import cross_entropy_to_matches, log_affinity
from streamvos.training.synthetic_clips import CELL, ClipOptions, SyntheticClips, matches
from streamvos.types import InputError

OPTIONS = ClipOptions(size=64, queries=12)
CELLS = (64 // CELL) ** 2


def grid(columns: int, rows: int, shift: tuple[float, float] = (0, 0)) -> torch.Tensor:
    """(1, cells, 2) surface coordinates of the cells of a flat surface moved by `shift` pixels (x, y)."""
    y, x = np.mgrid[:rows, :columns] * CELL + CELL // 2
    points = np.stack([x.ravel() - shift[0], y.ravel() - shift[1]], -1)
    return torch.tensor(points[None], dtype=torch.float32)


class TestBatches:
    def test_have_the_shapes_that_are_promised(self):
        batch = SyntheticClips(OPTIONS, seed=1).batch(0, 2)
        shapes = {name: (tuple(value.shape), value.dtype) for name, value in batch.items()}
        assert shapes == {
            "frames": ((2, 3, 3, 64, 64), torch.uint8),
            "coordinates": ((2, 3, CELLS, 2), torch.float32),
            "layer": ((2, 3, CELLS), torch.int64),
            "region": ((2, 3, CELLS), torch.int64),
            "queries": ((2, 3, 12), torch.int64),
        }
        assert 0 <= int(batch["queries"].min()) <= int(batch["queries"].max()) < CELLS

    def test_are_a_function_of_seed_and_step_whatever_was_asked_before(self):
        clips = SyntheticClips(OPTIONS, seed=1)
        first = clips.batch(3, 2)
        clips.batch(0, 2)
        for again in (clips.batch(3, 2), SyntheticClips(OPTIONS, seed=1).batch(3, 2)):
            assert all(torch.equal(first[name], again[name]) for name in first)

    def test_differ_from_step_to_step_from_clip_to_clip_and_from_seed_to_seed(self):
        clips = SyntheticClips(OPTIONS, seed=1)
        pictures = [*clips.batch(0, 2)["frames"], *clips.batch(1, 2)["frames"]]
        pictures += [*SyntheticClips(OPTIONS, seed=2).batch(0, 2)["frames"]]
        for k, one in enumerate(pictures):
            assert all((one.float() - other.float()).abs().mean() > 1 for other in pictures[:k])

    def test_do_not_depend_on_how_the_steps_are_cut(self):
        clips = SyntheticClips(OPTIONS, seed=1)
        whole, halves = clips.batch(0, 4), [clips.batch(0, 2), clips.batch(1, 2)]
        for name in whole:
            assert torch.equal(whole[name], torch.cat([half[name] for half in halves]))

    def test_leave_the_callers_random_numbers_alone(self):
        np.random.seed(0)
        before = torch.get_rng_state(), np.random.get_state()[1].copy()
        SyntheticClips(OPTIONS, seed=1).batch(0, 1)
        assert torch.equal(torch.get_rng_state(), before[0])
        assert np.array_equal(np.random.get_state()[1], before[1])


class TestSupervision:
    def test_queries_prefer_the_objects_to_the_background(self):
        batch = SyntheticClips(ClipOptions(size=64, queries=200), seed=0).batch(0, 6)
        asked = batch["layer"].gather(2, batch["queries"])
        everywhere, on_objects = (batch["layer"] > 0).float().mean(), (asked > 0).float().mean()
        assert on_objects > 0.5 + 0.3 * everywhere  # half of the queries, and some of the others by chance

    def test_cells_that_correspond_look_alike(self):
        """More than in the mirror image, which is what a flip without its truth would be."""
        clips = SyntheticClips(ClipOptions(size=96, frames=2, color_jitter=0, gray=0), seed=5)
        middles = slice(CELL // 2, None, CELL)
        won = []
        for number in range(16):
            clip = {name: torch.from_numpy(value) for name, value in clips.clip(number).items()}
            colors = clip["frames"][:, :, middles, middles].float()
            points, layers = clip["coordinates"], clip["layer"]
            weight, there = matches((points[:1], points[1:]), (layers[:1], layers[1:]))[0].max(0)
            moved = (weight > 0.5) & (there % 12 != torch.arange(len(there)) % 12)  # sideways
            if moved.sum() < 5:
                continue
            first, second = colors.flatten(2).transpose(1, 2)
            mirrored_first, mirrored_second = colors.flip(3).flatten(2).transpose(1, 2)
            apart = (first[there] - second)[moved].abs().mean()
            apart_in_mirror = (mirrored_first[there] - mirrored_second)[moved].abs().mean()
            won.append(bool(apart < apart_in_mirror))
        assert len(won) >= 8
        assert sum(won) >= 0.8 * len(won)  # blur, noise and plain backgrounds cost a few; without truth, half

    def test_both_directions_of_both_axes_of_a_clip_occur(self):
        """Surface coordinates of the background grow to the right, unless the clip is flipped."""
        clips = SyntheticClips(OPTIONS, seed=0)
        signs = set()
        for number in range(12):
            clip = clips.clip(number)
            rows = clip["coordinates"][0].reshape(8, 8, 2)
            background = (clip["layer"][0] == 0).reshape(8, 8)
            pairs = background[:, 1:] & background[:, :-1]
            signs.add(np.sign((rows[:, 1:] - rows[:, :-1])[pairs][:, 0].mean()))
        assert signs == {-1, 1}

    def test_colors_change_only_as_much_as_is_asked(self):
        plain, jittered, gray = (
            SyntheticClips(ClipOptions(size=64, color_jitter=jitter, gray=share), seed=3).batch(0, 4)
            for jitter, share in ((0, 0), (0.3, 0), (0, 1))
        )
        assert (plain["frames"].float() - jittered["frames"].float()).abs().mean() > 5
        for other in (jittered, gray):
            assert all(torch.equal(plain[name], other[name]) for name in ("coordinates", "layer", "region"))
        assert torch.equal(gray["frames"][:, :, 0], gray["frames"][:, :, 1])
        assert not torch.equal(plain["frames"][:, :, 0], plain["frames"][:, :, 1])


class TestMatches:
    @pytest.mark.parametrize("shift", [(0, 0), (2, 0), (0, 1), (-1, 3)])
    def test_a_translation_by_whole_cells_matches_cell_to_cell(self, shift):
        columns, rows = 6, 5
        references, target = grid(columns, rows), grid(columns, rows, (shift[0] * CELL, shift[1] * CELL))
        layer = torch.zeros(1, columns * rows, dtype=torch.int64)
        found = matches((references, target), (layer, layer))[0]
        for j in range(rows * columns):
            x, y = j % columns - shift[0], j // columns - shift[1]
            expected = torch.zeros(rows * columns)
            if 0 <= x < columns and 0 <= y < rows:
                expected[y * columns + x] = 1
            assert torch.equal(found[:, j], expected)

    def test_the_weight_falls_with_the_distance_and_ends_at_the_reach(self):
        references = torch.zeros(1, 1, 2)
        target = torch.tensor([[[0, 0], [2, 0], [0, -4], [7.9, 0], [8, 0], [6, 6], [100, 0]]])
        layer = torch.zeros(1, 1, dtype=torch.int64), torch.zeros(1, 7, dtype=torch.int64)
        weights = matches((references, target), layer)[0, 0].tolist()
        expected = [1, np.exp(-0.125), np.exp(-0.5), np.exp(-0.5 * (7.9 / 4) ** 2), 0, 0, 0]
        assert weights == pytest.approx(expected, rel=1e-5)

    def test_another_layer_never_matches(self):
        points = grid(4, 4)
        layers = torch.zeros(1, 16, dtype=torch.int64), torch.ones(1, 16, dtype=torch.int64)
        assert matches((points, points), layers).count_nonzero() == 0

    def test_far_from_the_origin_it_is_as_exact_as_near(self):
        layer = torch.zeros(1, 64, dtype=torch.int64)
        near = matches((grid(8, 8), grid(8, 8, (3, 1))), (layer, layer))
        far = matches((grid(8, 8) + 4096, grid(8, 8, (3, 1)) + 4096), (layer, layer))
        assert torch.equal(near, far)

    def test_on_a_still_video_every_cell_matches_itself_and_perfect_features_cost_nothing(self):
        still = SyntheticOptions(size=(64, 64), length=3, motion=0, deformation=0, noise=0, exposure=0)
        video = SyntheticVideo(5, still)
        middles = slice(CELL // 2, None, CELL)
        points, layers = [], []
        for t in (0, 2):
            points.append(torch.tensor(video[t].coordinates[middles, middles].reshape(1, -1, 2)))
            layers.append(torch.tensor(video[t].layer[middles, middles].reshape(1, -1).astype(np.int64)))
        true = matches((points[0], points[1]), (layers[0], layers[1]))
        assert torch.equal(true.diagonal(dim1=1, dim2=2), torch.ones(1, CELLS))
        # one dimension for every surface point: features that know all and nothing else
        shown = [torch.cat([one, layer[..., None]], -1) for one, layer in zip(points, layers, strict=True)]
        known, which = torch.unique(torch.cat(shown, 1)[0].round(), dim=0, return_inverse=True)
        features = torch.nn.functional.one_hot(which, len(known)).float().view(2, 1, CELLS, -1)
        alone = true * (true == 1)  # scaled objects have neighbors within reach of each other
        perfect = cross_entropy_to_matches(log_affinity(features[0], features[1], 50.0), alone)
        blind = cross_entropy_to_matches(log_affinity(0 * features[0], features[1], 50.0), alone)
        assert float(perfect) < 1e-6
        assert float(blind) == pytest.approx(np.log(CELLS), rel=1e-5)


class TestOptions:
    def test_stills_that_are_not_there_are_refused_at_once(self, tmp_path):
        with pytest.raises(InputError, match="images/ and regions/"):
            SyntheticClips(ClipOptions(size=64, stills=tmp_path))

    def test_the_description_tells_stills_apart_without_naming_their_place(self, tmp_path):
        descriptions = [SyntheticClips(OPTIONS).describe()]
        for folder, names in (("a", ["x", "y"]), ("b", ["x", "y"]), ("c", ["x", "z"])):
            for part in ("images", "regions"):
                (tmp_path / folder / part).mkdir(parents=True)
            for name in names:
                picture = Image.new("RGB", (80, 80))
                picture.save(tmp_path / folder / "images" / f"{name}.jpg")
                picture.convert("L").save(tmp_path / folder / "regions" / f"{name}.png")
            clips = SyntheticClips(OPTIONS.model_copy(update={"stills": tmp_path / folder}))
            descriptions.append(clips.describe())
        none, a, b, c = descriptions
        assert a == b != c != none != a
        assert str(tmp_path) not in repr(descriptions)
