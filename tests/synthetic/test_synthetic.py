"""Synthetic videos: the promises that the demo, the tests and the training rely on."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from goldens import shared_path
from scipy.spatial import cKDTree

from streamvos.synthetic.synthetic import SyntheticFrame, SyntheticOptions, SyntheticVideo
from streamvos.types import InputError

SMALL = SyntheticOptions(size=(96, 128), length=30)
CLEAN = replace(SMALL, blur=0.0, noise=0.0, exposure=0.0)
FIELDS = ("image", "label_map", "layer", "region", "coordinates")


def make_stills(folder: Path, count: int = 4, size: tuple[int, int] = (160, 200)) -> Path:
    """A folder of made-up photographs: smooth noise, with a few discs that are regions of their own."""
    rng = np.random.default_rng(7)
    (folder / "images").mkdir(parents=True)
    (folder / "regions").mkdir()
    for k in range(count):
        image = cv2.resize(rng.integers(0, 256, (20, 25, 3)).astype(np.uint8), size[::-1])
        regions = np.full(size, 3, np.uint8)
        for value in (5, 6, 9):
            middle = tuple(int(n) for n in rng.integers(40, 120, 2))
            cv2.circle(regions, middle, 24, value, -1)
            cv2.circle(image, middle, 12, rng.integers(0, 256, 3).tolist(), -1)
        cv2.imwrite(str(folder / "images" / f"{k}.jpg"), image)
        cv2.imwrite(str(folder / "regions" / f"{k}.png"), regions)
    return folder


@pytest.fixture(scope="module")
def stills(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_stills(tmp_path_factory.mktemp("stills") / "made")


def assert_same(a: SyntheticFrame, b: SyntheticFrame, fields: tuple[str, ...] = FIELDS) -> None:
    for name in fields:
        np.testing.assert_array_equal(getattr(a, name), getattr(b, name), err_msg=name)


def least_area(options: SyntheticOptions) -> float:
    return min(0.003, 0.2 / options.objects) * options.size[0] * options.size[1]


@pytest.mark.parametrize("drawn", [True, False])
def test_same_seed_gives_same_video_in_any_order(drawn: bool, stills: Path):
    options = replace(SMALL, length=9, stills=None if drawn else stills)
    forward = list(SyntheticVideo(5, options))
    again = SyntheticVideo(5, options)
    for t in (8, 0, 3, 3, 7):
        assert_same(again[t], forward[t])
    other = SyntheticVideo(6, options)[3]
    assert (other.image != forward[3].image).mean() > 0.5


def test_it_is_a_sequence():
    video = SyntheticVideo(1, replace(SMALL, length=5))
    assert len(video) == len(list(video)) == 5
    assert_same(video[-1], video[4])
    assert len(video[1:4]) == 3
    assert_same(video[np.int64(2)], video[2])
    for outside in (5, -6):
        with pytest.raises(IndexError):
            video[outside]
    with pytest.raises(TypeError):
        video[1.0]  # type: ignore[call-overload]


def test_changing_a_frame_does_not_change_the_video():
    video = SyntheticVideo(2, replace(SMALL, length=3))
    first = video[1]
    kept = {name: getattr(first, name).copy() for name in FIELDS}
    for name in FIELDS:
        getattr(first, name)[:] = 0
    for name, value in kept.items():
        np.testing.assert_array_equal(getattr(video[1], name), value)


@pytest.mark.parametrize(
    ("size", "objects", "distractors", "occluders"),
    [
        ((16, 16), 1, 1, 1),
        ((16, 16), 7, 0, 0),
        ((64, 64), 2, 1, 1),
        ((64, 64), 20, 5, 3),
        ((64, 64), 113, 0, 1),
        ((96, 96), 254, 0, 1),
        ((17, 301), 5, 2, 1),
        ((301, 17), 5, 2, 1),
        ((33, 57), 3, 0, 2),
        ((480, 854), 4, 2, 1),
        ((1080, 1920), 2, 1, 1),
    ],
)
def test_every_object_is_visible_in_frame_0(
    size: tuple[int, int], objects: int, distractors: int, occluders: int
):
    options = SyntheticOptions(size, length=2, objects=objects, distractors=distractors, occluders=occluders)
    for seed in range(6 if objects < 100 and size[0] < 400 else 2):
        frame = SyntheticVideo(seed, options)[0]
        assert frame.image.shape == (*size, 3)
        assert frame.image.dtype == frame.label_map.dtype == frame.layer.dtype == np.uint8
        assert frame.label_map.shape == frame.layer.shape == frame.region.shape == size
        assert frame.region.dtype == np.int32
        assert frame.coordinates.shape == (*size, 2)
        assert frame.coordinates.dtype == np.float32
        assert np.isfinite(frame.coordinates).all()
        areas = np.bincount(frame.label_map.ravel(), minlength=objects + 1)
        assert len(areas) == objects + 1
        assert areas[1:].min() >= least_area(options), (seed, areas)


def test_every_object_of_photographs_is_visible_in_frame_0(stills: Path):
    options = replace(SMALL, length=1, objects=6, occluders=2, stills=stills)
    for seed in range(10):
        areas = np.bincount(SyntheticVideo(seed, options)[0].label_map.ravel(), minlength=7)
        assert areas[1:].min() >= least_area(options), seed


def interior(frame: SyntheticFrame, number: int) -> np.ndarray:
    """Pixels of a layer at least 3 px away from its border, where no other layer shines through."""
    inside = cv2.copyMakeBorder((frame.layer == number).astype(np.uint8), 1, 1, 1, 1, cv2.BORDER_REPLICATE)
    return cv2.erode(inside, np.ones((7, 7), np.uint8))[1:-1, 1:-1] > 0


def pairs(a: SyntheticFrame, b: SyntheticFrame, number: int, near: float = 0.3):
    """Pixels of two frames that show the same point of a layer, as two boolean-masked index arrays."""
    points_a, points_b = np.argwhere(interior(a, number)), np.argwhere(interior(b, number))
    if not len(points_a) or not len(points_b):
        return points_a[:0], points_b[:0]
    tree = cKDTree(a.coordinates[tuple(points_a.T)])
    distance, index = tree.query(b.coordinates[tuple(points_b.T)], distance_upper_bound=near)
    found = np.isfinite(distance)
    return points_a[index[found]], points_b[found]


def check_correspondence(options: SyntheticOptions, seeds: range) -> None:
    seen, same_errors, other_errors = set(), [], []
    for seed in seeds:
        video = SyntheticVideo(seed, options)
        a = video[0]
        for b in (video[4], video[15]):
            for number in range(1 + options.objects + options.distractors + options.occluders):
                at_a, at_b = pairs(a, b, number)
                if len(at_a) < 30:
                    continue
                seen.add(min(number, 4))
                color_a, color_b = (f.image[tuple(p.T)].astype(int) for f, p in ((a, at_a), (b, at_b)))
                same_errors.append(np.abs(color_a - color_b).mean())
                other_errors.append(np.abs(np.roll(color_a, len(color_a) // 2, 0) - color_b).mean())
                same_region = a.region[tuple(at_a.T)] == b.region[tuple(at_b.T)]
                # Region numbers are read to the nearest pixel, and pairs are up to 0.3 px apart.
                assert same_region.mean() > 0.8, (seed, number)
    assert seen >= {0, 1, 2, 3}, "background, objects and distractor were all compared"
    # Pairs are 0.2 px apart on average, and pixels are blended from four at differing phases; with the
    # strongest textures here that is worth some gray levels, far less than between any two points.
    assert np.mean(same_errors) < 6
    assert np.mean(same_errors) < 0.35 * np.mean(other_errors)
    assert np.median(same_errors) < 5


def test_equal_coordinates_show_the_same_point_when_drawn():
    check_correspondence(replace(CLEAN, size=(160, 200), motion=1.5), range(6))


def test_equal_coordinates_show_the_same_point_on_photographs(stills: Path):
    check_correspondence(replace(CLEAN, size=(160, 200), motion=1.5, stills=stills), range(6))


def test_equal_coordinates_show_the_same_point_on_the_shared_stills():
    folder = shared_path("data", "stills")
    options = replace(CLEAN, size=(224, 224), stills=folder)
    check_correspondence(options, range(6))
    areas = [np.bincount(SyntheticVideo(s, options)[0].label_map.ravel(), minlength=3)[1:] for s in range(20)]
    assert np.min(areas) >= least_area(options)


def test_layers_labels_and_regions_agree(stills: Path):
    for seed, options in enumerate((SMALL, replace(SMALL, stills=stills, objects=3, distractors=2))):
        owner: dict[int, int] = {}
        distractor_pixels = 0
        for frame in SyntheticVideo(seed, options):
            expected = np.where(frame.layer <= options.objects, frame.layer, 0)
            np.testing.assert_array_equal(frame.label_map, expected)
            assert frame.region.min() >= 0
            for region, number in np.unique(np.stack([frame.region.ravel(), frame.layer.ravel()]), axis=1).T:
                assert owner.setdefault(int(region), int(number)) == number
            distractor_pixels += np.count_nonzero(frame.layer == options.objects + 1)
        assert distractor_pixels > 100, "the distractor was there to be mistaken for an object"
        assert len(owner) > 8


@pytest.mark.parametrize("seed", range(5))
def test_an_object_that_leaves_returns(seed: int):
    options = replace(SMALL, length=40, objects=1, distractors=0, occluders=0, leave=1.0)
    visible = [bool((frame.label_map == 1).any()) for frame in SyntheticVideo(seed, options)]
    assert visible[0]
    assert not all(visible)
    gone = visible.index(False)
    assert any(visible[gone:]), "it came back"
    assert visible[-1]


def test_occluders_pass_in_front():
    options = replace(SMALL, objects=2, distractors=0, occluders=1, length=60, motion=2.0)
    covered = 0
    for seed in range(3):
        covered += sum(int((frame.layer == 3).sum() > 50) for frame in SyntheticVideo(seed, options)[::4])
    assert covered > 5


def test_without_motion_nothing_moves():
    video = SyntheticVideo(3, replace(CLEAN, motion=0.0, length=25, leave=1.0))
    for t in (1, 24):
        assert_same(video[t], video[0])


def test_motion_scales_the_speed():
    def moved(motion: float) -> float:
        total = 0.0
        for seed in range(4):
            video = SyntheticVideo(seed, replace(CLEAN, motion=motion, leave=0.0, occluders=0, distractors=0))
            a, b = video[10], video[11]
            both = (a.layer == 0) & (b.layer == 0)
            total += float(np.abs(a.coordinates - b.coordinates)[both].mean())
        return total

    assert moved(0.25) * 2 < moved(1.0) < moved(4.0) / 2


def test_rigid_layers_keep_distances():
    options = replace(
        CLEAN, size=(160, 200), deformation=0.0, objects=1, distractors=0, occluders=0, leave=0.0
    )
    for seed in range(3):
        frame = SyntheticVideo(seed, options)[12]
        for number in (0, 1):
            inside = interior(frame, number)
            ys, xs = np.nonzero(inside)
            design = np.stack([xs, ys, np.ones_like(xs)], 1).astype(float)
            target = frame.coordinates[inside]
            matrix, *_ = np.linalg.lstsq(design, target, rcond=None)
            # An affine map explains all of it; float32 coordinates of some hundred pixels carry 1e-5.
            assert np.abs(design @ matrix - target).max() < 1e-3


@pytest.mark.parametrize("effect", ["noise", "exposure", "blur"])
def test_effects_change_the_picture_and_not_the_truth(effect: str):
    options = replace(CLEAN, motion=3.0)
    clean, spoiled = SyntheticVideo(4, options), SyntheticVideo(4, replace(options, **{effect: 1.0}))
    changed = 0.0
    for t in (0, 9, 20):
        assert_same(clean[t], spoiled[t], FIELDS[1:])
        changed += np.abs(clean[t].image.astype(int) - spoiled[t].image).mean()
    assert changed > 1.0


def test_noise_is_new_in_every_frame():
    video = SyntheticVideo(0, replace(CLEAN, motion=0.0, noise=1.0))
    difference = video[0].image.astype(int) - video[1].image
    assert difference.std() > 1.0
    assert abs(difference.mean()) < 0.5


def test_two_frames_larger_than_the_noise_bank_differ():
    options = replace(CLEAN, size=(800, 1000), motion=0.0, noise=1.0, length=2)
    a, b = SyntheticVideo(0, options)
    assert (a.image != b.image).mean() > 0.3


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"size": (15, 100)}, "size"),
        ({"size": (100, 9000)}, "size"),
        ({"size": (100.0, 100)}, "size"),
        ({"size": 100}, "size"),
        ({"size": (100, 100, 3)}, "size"),
        ({"length": 0}, "length"),
        ({"length": 2.5}, "length"),
        ({"objects": 0}, "objects"),
        ({"objects": 255, "size": (480, 854)}, "254"),
        ({"objects": True}, "objects"),
        ({"objects": 254, "distractors": 2, "size": (480, 854)}, "255 layers"),
        ({"objects": 200, "size": (64, 64)}, "do not fit"),
        ({"distractors": -1}, "distractors"),
        ({"occluders": -1}, "occluders"),
        ({"motion": -0.1}, "motion"),
        ({"motion": float("nan")}, "motion"),
        ({"motion": "fast"}, "motion"),
        ({"deformation": 3}, "deformation"),
        ({"leave": 1.5}, "leave"),
        ({"blur": -1}, "blur"),
        ({"noise": float("inf")}, "noise"),
        ({"exposure": 5}, "exposure"),
        ({"same_still": 2}, "same_still"),
        ({"stills": Path("/nowhere/at/all")}, "stills"),
    ],
)
def test_bad_options_are_refused(change: dict, word: str):
    with pytest.raises(InputError, match=word):
        SyntheticVideo(0, replace(SMALL, **change))


@pytest.mark.parametrize("seed", [-1, 1.5, "0", None, True])
def test_bad_seeds_are_refused(seed: object):
    with pytest.raises(InputError, match="seed"):
        SyntheticVideo(seed, SMALL)  # type: ignore[arg-type]


def test_numpy_numbers_and_text_paths_are_taken(stills: Path):
    options = replace(SMALL, size=(np.int64(64), np.int32(80)), length=np.int64(2), stills=str(stills))
    assert SyntheticVideo(np.int64(3), options)[1].image.shape == (64, 80, 3)


def test_broken_stills_are_named(tmp_path: Path):
    options = replace(SMALL, stills=tmp_path / "a")
    (tmp_path / "a" / "images").mkdir(parents=True)
    with pytest.raises(InputError, match="regions"):
        SyntheticVideo(0, options)
    (tmp_path / "a" / "regions").mkdir()
    with pytest.raises(InputError, match=r"NAME\.jpg"):
        SyntheticVideo(0, options)

    corrupt = make_stills(tmp_path / "b", 1)
    (corrupt / "images" / "0.jpg").write_bytes(b"no picture")
    with pytest.raises(InputError, match=r"0\.jpg cannot be decoded"):
        SyntheticVideo(0, replace(SMALL, stills=corrupt))

    for name, wrong in (("c", np.zeros((10, 10), np.uint8)), ("d", np.zeros((160, 200, 3), np.uint8))):
        folder = make_stills(tmp_path / name, 1)
        cv2.imwrite(str(folder / "regions" / "0.png"), wrong)
        with pytest.raises(InputError, match=r"0\.png has shape"):
            SyntheticVideo(0, replace(SMALL, stills=folder))


def test_any_region_map_will_do(tmp_path: Path):
    """One region, a region per pixel (16 bits), and photographs far smaller than the frame."""
    rng = np.random.default_rng(0)
    for name, size, regions in (
        ("one", (90, 120), np.ones((90, 120), np.uint8)),
        ("many", (90, 120), np.arange(90 * 120, dtype=np.uint16).reshape(90, 120)),
        ("tiny", (12, 10), rng.integers(0, 4, (12, 10)).astype(np.uint8)),
    ):
        folder = tmp_path / name
        (folder / "images").mkdir(parents=True)
        (folder / "regions").mkdir()
        cv2.imwrite(str(folder / "images" / "x.jpg"), rng.integers(0, 256, (*size, 3)).astype(np.uint8))
        cv2.imwrite(str(folder / "regions" / "x.png"), regions)
        options = SyntheticOptions(size=(300, 400), length=2, stills=folder)
        for seed in range(3):
            frame = SyntheticVideo(seed, options)[1]
            assert frame.image.shape == (300, 400, 3)
            assert frame.region.min() >= 0
