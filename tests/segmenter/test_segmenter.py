"""The public API, end to end on small frames: what it promises, and what it refuses without harm."""

from __future__ import annotations

import json

import numpy as np
import pytest
import safetensors.torch
import torch

import streamvos
from streamvos import InputError, Segmenter
from streamvos.segmenter import state
from streamvos.synthetic.synthetic import SyntheticOptions, SyntheticVideo

NETWORK = {"depth": 18, "stages": 2, "planes": (16, 16), "embedding": 16, "normalize": True}
OPTIONS = {"network": NETWORK, "temperature": 20.0, "top_k": 5, "keep_first": True, "spatial_prior": "none"}


@pytest.fixture(scope="module")
def clip() -> SyntheticVideo:
    return SyntheticVideo(3, SyntheticOptions(size=(64, 96), length=12, objects=3, leave=0.0))


@pytest.fixture
def vos() -> Segmenter:
    return streamvos.load("tvos", None, device="cpu", **OPTIONS)


def same(a: streamvos.Result, b: streamvos.Result) -> bool:
    return np.array_equal(a.mask, b.mask) and np.array_equal(a.probabilities, b.probabilities)


def test_a_result_is_what_it_says(vos, clip):
    first = clip[0]
    result = vos.step(first.image, first.label_map)
    assert np.array_equal(result.mask, first.label_map)
    for t in range(1, 6):
        result = vos.step(clip[t].image)
        assert result.index == t
        assert result.mask.shape == (64, 96)
        assert result.mask.dtype == np.uint8
        assert result.object_ids == (1, 2, 3)
        probabilities = result.probabilities
        assert probabilities.shape == (4, 64, 96)
        assert probabilities.dtype == np.float32
        assert np.allclose(probabilities.sum(0), 1, atol=1e-5)
        assert np.array_equal(probabilities.argmax(0), result.mask)
        for i, one in result.objects.items():
            pixels = result.mask == i
            assert one.id == i
            assert one.area == pixels.sum()
            if one.area:
                left, top, right, bottom = one.box
                outside = pixels.copy()
                outside[top:bottom, left:right] = False
                assert not outside.any()
                assert pixels[top].any()
                assert pixels[bottom - 1].any()
                assert pixels[:, left].any()
                assert pixels[:, right - 1].any()
                assert one.score == pytest.approx(probabilities[i][pixels].mean(), abs=1e-5)
                sure = one.score >= vos.method.options.uncertain_below
                assert one.state == ("tracking" if sure else "uncertain")
            else:
                assert (one.state, one.box, one.score) == ("lost", None, 0.0)


@pytest.mark.parametrize(("threshold", "state"), [(0.0, "tracking"), (1.0, "uncertain")])
def test_an_object_is_uncertain_below_the_threshold_of_the_method(clip, threshold, state):
    vos = streamvos.load("tvos", None, device="cpu", uncertain_below=threshold, **OPTIONS)
    vos.step(clip[0].image, clip[0].label_map)
    objects = vos.step(clip[1].image).objects.values()
    assert {one.state for one in objects if one.area} == {state}


def test_ids_are_the_users_and_may_have_gaps(vos, clip):
    ids = np.array([0, 7, 200, 254], np.uint8)
    result = vos.step(clip[0].image, ids[clip[0].label_map])
    assert vos.object_ids == (7, 200, 254)
    result = vos.step(clip[1].image)
    assert set(np.unique(result.mask)) <= {0, 7, 200, 254}
    assert set(result.objects) == {7, 200, 254}


def test_an_object_can_be_added_corrected_and_forgotten_mid_stream(vos, clip):
    only_one = np.where(clip[0].label_map == 1, 1, 0)
    vos.step(clip[0].image, only_one)
    vos.step(clip[1].image)
    predicted = Segmenter(vos.method, "cpu")
    predicted.restore(vos.snapshot())
    before = predicted.step(clip[2].image).mask

    added = np.where(clip[2].label_map == 2, 2, 0)
    result = vos.step(clip[2].image, added)
    assert result.object_ids == (1, 2)
    assert (result.mask[added == 2] == 2).all()
    # where the mask says nothing, the first object stays where it was predicted
    assert np.array_equal(result.mask[added == 0], before[added == 0])
    vos.step(clip[3].image)

    corrected = np.zeros((64, 96), np.uint8)
    corrected[20:30, 40:60] = 1
    result = vos.step(clip[4].image, corrected)
    assert np.array_equal(result.mask == 1, corrected == 1)
    assert vos.object_ids == (1, 2)

    vos.forget(1)
    result = vos.step(clip[5].image)
    assert result.object_ids == (2,)
    assert 1 not in np.unique(result.mask)
    assert result.probabilities.shape[0] == 2
    vos.forget(2)
    result = vos.step(clip[6].image)
    assert not result.mask.any()
    assert result.objects == {}
    result = vos.step(clip[7].image, clip[7].label_map)  # and the stream can be taken up again
    assert result.object_ids == (1, 2, 3)


def test_void_pixels_of_a_correction_keep_the_prediction(vos, clip):
    vos.step(clip[0].image, clip[0].label_map)
    other = Segmenter(vos.method, "cpu")
    other.restore(vos.snapshot())
    predicted = other.step(clip[1].image).mask
    mask = np.full((64, 96), 255, np.uint8)
    mask[:10, :10] = 1
    result = vos.step(clip[1].image, mask)
    elsewhere = mask == 255
    assert (result.mask[:10, :10] == 1).all()
    assert np.array_equal(result.mask[elsewhere], predicted[elsewhere])


def test_void_of_the_first_mask_belongs_to_nobody(vos, clip):
    mask = clip[0].label_map.copy()
    mask[:16, :32] = 255
    result = vos.step(clip[0].image, mask)
    assert not result.mask[:16, :32].any()
    assert set(vos.object_ids) == {int(i) for i in np.unique(mask)} - {0, 255}


def test_forgetting_and_reset_equal_a_fresh_start(vos, clip):
    fresh = Segmenter(vos.method, "cpu")
    vos.step(clip[0].image, clip[0].label_map)
    vos.step(clip[1].image)
    vos.forget(3)
    vos.reset()
    mask = np.where(clip[2].label_map == 2, 2, 0)
    for t in range(2, 8):
        given = mask if t == 2 else None
        assert same(vos.step(clip[t].image, given), fresh.step(clip[t].image, given))


@pytest.mark.parametrize("at", [0, 3, 7])
def test_a_restored_snapshot_continues_bit_identically(vos, clip, at):
    other = Segmenter(vos.method, "cpu")
    for t in range(12):
        given = clip[t].label_map if t == 0 else None
        result = vos.step(clip[t].image, given)
        if t == at:
            blob = vos.snapshot()
            other.restore(blob)
            assert isinstance(blob, bytes)
        elif t > at:
            assert same(result, other.step(clip[t].image))


def test_probabilities_of_an_old_result_stay_as_they_were(vos, clip):
    vos.step(clip[0].image, clip[0].label_map)
    old = vos.step(clip[1].image)
    expected = vos.step(clip[2].image)
    copy = expected.probabilities.copy()
    for t in range(3, 8):
        vos.step(clip[t].image)
    assert np.array_equal(expected.probabilities, copy)
    assert np.array_equal(old.probabilities.argmax(0), old.mask)


def test_torch_frames_masks_views_and_read_only_arrays_give_the_same(vos, clip):
    first, second = clip[0], clip[1]
    expected = []
    for image, mask in ((first.image, first.label_map), (second.image, None)):
        expected.append(vos.step(image, mask))
    read_only = second.image.copy()
    read_only.flags.writeable = False
    flipped = np.ascontiguousarray(second.image[:, ::-1])[:, ::-1]
    for image in (torch.from_numpy(second.image.copy()), read_only, flipped):
        vos.reset()
        vos.step(torch.from_numpy(first.image.copy()), torch.from_numpy(first.label_map.astype(np.int16)))
        assert same(vos.step(image), expected[1])


BAD_FRAMES = [
    (np.zeros((64, 96), np.uint8), r"\(H, W, 3\) uint8"),
    (np.zeros((64, 96, 4), np.uint8), r"\(64, 96, 4\)"),
    (np.zeros((64, 96, 3), np.float32), "float32"),
    (np.full((64, 96, 3), np.nan), "float64"),
    (np.zeros((64, 97, 3), np.uint8), "64 x 96.*64 x 97"),
    (np.zeros((2, 96, 3), np.uint8), "at least 16"),
    (np.zeros((0, 0, 3), np.uint8), "at least 16"),
    ([[1, 2, 3]], "list"),
    (np.array([["a"]]), "dtype"),
    (None, "NoneType"),
]

BAD_MASKS = [
    (np.zeros((64, 96), np.uint8), "names no object"),
    (np.full((64, 96), 255, np.uint8), "names no object"),
    (np.ones((64, 95), np.uint8), r"\(64, 95\)"),
    (np.ones((64, 96, 1), np.uint8), r"\(64, 96, 1\)"),
    (np.ones((64, 96), np.float32), "float32"),
    (np.full((64, 96), np.nan), "NaN"),
    (np.full((64, 96), 256), "256"),
    (np.full((64, 96), -1), "-1"),
    ("mask.png", "str"),
]


@pytest.mark.parametrize(("frame", "message"), BAD_FRAMES)
def test_a_bad_frame_is_refused_and_changes_nothing(vos, clip, frame, message):
    vos.step(clip[0].image, clip[0].label_map)
    before = vos.snapshot()
    with pytest.raises(InputError, match=message):
        vos.step(frame)
    assert vos.snapshot() == before


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize(("mask", "message"), BAD_MASKS)
def test_a_bad_mask_is_refused_and_changes_nothing(vos, clip, mask, message, first):
    if not first:
        vos.step(clip[0].image, clip[0].label_map)
    before = vos.snapshot()
    with pytest.raises(InputError, match=message):
        vos.step(clip[1].image, mask)
    assert vos.snapshot() == before


def test_a_frame_before_any_mask_is_refused(vos, clip):
    with pytest.raises(InputError, match="before any mask"):
        vos.step(clip[0].image)
    vos.step(clip[0].image, clip[0].label_map)
    vos.reset()
    with pytest.raises(InputError, match="before any mask"):
        vos.step(clip[0].image)


def test_an_unknown_object_cannot_be_forgotten(vos, clip):
    vos.step(clip[0].image, clip[0].label_map)
    with pytest.raises(InputError, match=r"object 9 .*\[1, 2, 3\]"):
        vos.forget(9)


def test_254_objects_at_once():
    # a cell that sees itself alone keeps its label, whatever the weights
    vos = streamvos.load("tvos", None, device="cpu", **{**OPTIONS, "radius": 0})
    rng = np.random.Generator(np.random.PCG64(5))
    image = rng.integers(0, 256, (128, 128, 3), dtype=np.uint8)
    mask = np.zeros((128, 128), np.uint8)
    mask.reshape(16, 8, 16, 8)[:] = np.arange(256, dtype=np.uint8).reshape(16, 1, 16, 1)
    mask[mask == 255] = 0
    assert len(vos.step(image, mask).objects) == 254
    result = vos.step(image)
    assert result.probabilities.shape == (255, 128, 128)
    assert (result.mask == mask).mean() > 0.8


@pytest.mark.parametrize("size", [(16, 16), (17, 31), (16, 400), (333, 19)])
def test_odd_and_tiny_sizes(vos, size):
    rng = np.random.Generator(np.random.PCG64(5))
    image = rng.integers(0, 256, (*size, 3), dtype=np.uint8)
    mask = np.zeros(size, np.uint8)
    mask[: size[0] // 2] = 1
    vos.step(image, mask)
    assert vos.step(image).mask.shape == size


def test_a_damaged_or_foreign_snapshot_is_refused_and_changes_nothing(vos, clip):
    vos.step(clip[0].image, clip[0].label_map)
    blob = vos.snapshot()
    rng = np.random.Generator(np.random.PCG64(2))
    for bad in (b"", b"not a snapshot", blob[: len(blob) // 2], blob[:40], rng.bytes(200)):
        with pytest.raises(InputError, match="no snapshot"):
            vos.restore(bad)
    for _ in range(200):  # one bit anywhere
        bad, place = bytearray(blob), int(rng.integers(len(blob)))
        bad[place] ^= 1 << int(rng.integers(8))
        with pytest.raises(InputError, match="snapshot"):
            vos.restore(bytes(bad))
    for bad in (None, "text", 5, b"\xff" * 8 + b"[" * 10**6, blob + b"x", blob[:8] + b"[" * len(blob[8:])):
        with pytest.raises(InputError, match="snapshot"):
            vos.restore(bad)
    assert vos.snapshot() == blob
    vos.restore(memoryview(blob))
    assert vos.snapshot() == blob
    with pytest.raises(InputError, match="other options"):
        streamvos.load("tvos", None, device="cpu", **{**OPTIONS, "span": 30}).restore(blob)


def test_a_snapshot_whose_tensors_do_not_fit_is_refused_and_changes_nothing(vos, clip, monkeypatch):
    """Its checksum may be right all the same."""
    vos.step(clip[0].image, clip[0].label_map)
    blob = vos.snapshot()
    monkeypatch.setattr(state, "_checksum", lambda *_: 0)
    good = vos.snapshot()
    tensors = safetensors.torch.load(good)
    with_metadata = json.loads(good[8 : 8 + int.from_bytes(good[:8], "little")])["__metadata__"]
    description = json.loads(with_metadata[state.SNAPSHOT])
    for name in tensors:
        fewer = {key: value for key, value in tensors.items() if key != name}
        with pytest.raises(InputError, match=r"state|snapshot"):
            vos.restore(safetensors.torch.save(fewer, with_metadata))
    for change in ({"count": None}, {"size": [1]}, {"size": "ab"}, {"size": [[], 3]}, {"count": "x"}):
        metadata = {state.SNAPSHOT: json.dumps({**description, **change})}
        with pytest.raises(InputError, match=r"state|snapshot"):
            vos.restore(safetensors.torch.save(tensors, metadata))
    monkeypatch.undo()
    assert vos.snapshot() == blob


def test_unknown_names_are_refused():
    with pytest.raises(InputError, match=r"unknown method 'sam'.*tvos"):
        streamvos.load("sam")
    with pytest.raises(InputError, match="unknown backend"):
        streamvos.load("tvos", None, device="cpu", backend="magic")
    with pytest.raises(InputError, match="device"):
        streamvos.load("tvos", None, device="cuda:77")
    with pytest.raises(InputError, match="no weight file"):
        streamvos.load("tvos", "nowhere.pth")
