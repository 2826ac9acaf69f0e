"""What holds for every method, whatever its weights."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch
from growth import allocated
from small_methods import SMALL, VARIANTS, small

from streamvos import InputError, Segmenter
from streamvos.methods import METHODS
from streamvos.synthetic.synthetic import SyntheticOptions, SyntheticVideo
from streamvos.types import Evidence

METHOD = pytest.mark.parametrize("method", sorted([*SMALL, *VARIANTS]))


def video(
    size: tuple[int, int] = (64, 96), length: int = 10, objects: int = 3, seed: int = 3
) -> SyntheticVideo:
    return SyntheticVideo(seed, SyntheticOptions(size=size, length=length, objects=objects, leave=0.0))


@pytest.fixture(scope="module")
def clip() -> SyntheticVideo:
    return video()


def follow(vos: Segmenter, clip: SyntheticVideo, frames: range, first: np.ndarray | None = None):
    """Results of the frames; `first` is the mask of the first of them."""
    return [vos.step(clip[t].image, first if t == frames[0] else None) for t in frames]


def same(a, b) -> bool:
    return np.array_equal(a.mask, b.mask) and np.array_equal(a.probabilities, b.probabilities)


def test_every_method_is_held_to_the_contract():
    assert set(SMALL) == set(METHODS)


@METHOD
def test_probabilities_are_distributions_whose_winner_is_the_mask(method, clip):
    for result in follow(small(method), clip, range(6), clip[0].label_map):
        assert result.probabilities.shape == (4, 64, 96)
        assert result.probabilities.dtype == np.float32
        assert result.probabilities.min() >= 0
        assert np.allclose(result.probabilities.sum(0), 1, atol=1e-5)
        assert np.array_equal(result.probabilities.argmax(0), result.mask)


class Watched(dict):
    """Maps that remember which of them were read."""

    def __init__(self, maps):
        super().__init__(maps)
        self.read = set()

    def __getitem__(self, name):
        self.read.add(name)
        return super().__getitem__(name)


@METHOD
@torch.inference_mode()
def test_evidence_holds_what_is_decoded_and_nothing_else(method, clip):
    """Between processes every map of it is sent for every frame."""
    vos = small(method)
    vos.step(clip[0].image, clip[0].label_map)
    features = vos.extraction([torch.from_numpy(clip[1].image)])
    evidence = vos._state.target.read(features)
    maps = Watched(evidence.maps)
    decoded = vos.method.decoder(Evidence(maps, evidence.object_ids), features.size)
    assert maps.read == maps.keys()
    assert torch.equal(decoded, vos.method.decoder(evidence, features.size))


@METHOD
def test_ids_are_names_only(method, clip):
    """Permuting the ids permutes the output and does nothing else."""
    ids = np.array([0, 200, 7, 30], np.uint8)
    plain = follow(small(method), clip, range(6), clip[0].label_map)
    renamed = follow(small(method), clip, range(6), ids[clip[0].label_map])
    for a, b in zip(plain, renamed, strict=True):
        # Sums over objects run in another order, worth some units in the last place. With random weights
        # many pixels are all but ties (in FEELVOS all of them), where a unit decides who wins; in FRTM the
        # winner takes all.
        order = [0, *(1 + sorted(ids[1:]).index(i) for i in ids[1:])]
        assert (np.abs(a.probabilities - b.probabilities[order]).max(0) > 2e-3).mean() < 0.02
        ranked = np.sort(a.probabilities, axis=0)
        clear = ranked[-1] - ranked[-2] > 2e-3
        assert (ids[a.mask] != b.mask)[clear].sum() < 0.02 * clear.size


@METHOD
def test_a_stream_continues_bit_identically_from_its_snapshot(method, clip):
    vos = small(method)
    follow(vos, clip, range(5), clip[0].label_map)
    other = Segmenter(vos.method, "cpu")
    other.restore(vos.snapshot())
    assert other.object_ids == (1, 2, 3)
    for a, b in zip(follow(vos, clip, range(5, 10)), follow(other, clip, range(5, 10)), strict=True):
        assert same(a, b)
    assert vos.snapshot() == other.snapshot()


@METHOD
def test_a_snapshot_can_be_taken_after_every_frame(method, clip):
    """Also of the first one, when much of what a target remembers is the same."""
    vos, other = small(method), small(method)
    for t in range(4):
        vos.step(clip[t].image, clip[0].label_map if t == 0 else None)
        other.restore(vos.snapshot())
        assert other.snapshot() == vos.snapshot()


@METHOD
def test_two_runs_are_the_same_run(method, clip):
    vos = small(method)
    a = follow(vos, clip, range(5), clip[0].label_map)
    vos.reset()
    b = follow(vos, clip, range(5), clip[0].label_map)
    c = follow(small(method), clip, range(5), clip[0].label_map)
    assert all(same(x, y) and same(x, z) for x, y, z in zip(a, b, c, strict=True))


@METHOD
def test_an_object_forgotten_at_once_was_never_there(method, clip):
    vos, never = small(method), small(method)
    vos.step(clip[0].image, clip[0].label_map)
    vos.forget(2)
    never.step(clip[0].image, np.where(clip[0].label_map == 2, 0, clip[0].label_map))
    for t in range(1, 5):
        a, b = vos.step(clip[t].image), never.step(clip[t].image)
        assert a.object_ids == b.object_ids == (1, 3)
        assert (np.abs(a.probabilities - b.probabilities).max(0) > 2e-3).mean() < 0.02  # ties, as above
        assert (a.mask != b.mask).mean() < 0.02


OF_AN_OBJECT = {
    "tvos": lambda evidence, k: evidence["labels"][1 + k],
    "rgmp": lambda evidence, k: evidence["runs"][-len(evidence.object_ids) :][k],
    "rgmp/light": lambda evidence, k: evidence["logits"][k],
    "frtm": lambda evidence, k: evidence["scores"][k],
    "frtm-fast": lambda evidence, k: evidence["scores"][k],
    "joint": lambda evidence, k: evidence["encoding"][k],
    "feelvos": lambda evidence, k: evidence["logits"][1 + k],
    "feelvos/efficientnet": lambda evidence, k: evidence["cues"][k, ::2],  # not the distances to others
}
"""What the evidence says of the k-th object, before objects compete; a variant may have its own line."""


@METHOD
def test_before_they_compete_objects_together_are_objects_alone(method, clip):
    """The frame after the annotation; later ones depend on who won."""
    network = small(method).method
    of_an_object = OF_AN_OBJECT.get(method) or OF_AN_OBJECT[method.partition("/")[0]]
    frames = [torch.from_numpy(clip[t].image).permute(2, 0, 1)[None].float() / 255 for t in (0, 1)]
    label_map = torch.from_numpy(clip[0].label_map.astype(np.int64))

    def evidence_of(*ids: int):
        target = network.target()
        named = torch.tensor(ids)
        target.annotate(network.extractor(frames[0]), label_map * torch.isin(label_map, named), ids)
        return target.read(network.extractor(frames[1]))

    with torch.inference_mode():
        together = evidence_of(1, 2, 3)
        for k, i in enumerate((1, 2, 3)):
            alone = of_an_object(evidence_of(i), 0)
            assert torch.allclose(of_an_object(together, k), alone, rtol=1e-4, atol=1e-4)


@METHOD
def test_objects_are_added_corrected_and_forgotten_mid_stream(method, clip):
    vos = small(method)
    vos.step(clip[0].image, np.where(clip[0].label_map == 1, 1, 0))
    vos.step(clip[1].image)
    before = Segmenter(vos.method, "cpu")
    before.restore(vos.snapshot())
    predicted = before.step(clip[2].image).mask
    added = np.where(clip[2].label_map == 2, 2, 0)
    result = vos.step(clip[2].image, added)
    assert result.object_ids == (1, 2)
    assert (result.mask[added == 2] == 2).all()
    # elsewhere the first object is where it would have been, but where it now competes
    assert (result.mask[added == 0] != predicted[added == 0]).mean() < 0.2
    assert vos.step(clip[3].image).probabilities.shape[0] == 3

    corrected = np.zeros((64, 96), np.uint8)
    corrected[20:30, 40:60] = 1
    result = vos.step(clip[4].image, corrected)
    assert np.array_equal(result.mask == 1, corrected == 1)
    assert vos.object_ids == (1, 2)
    assert vos.step(clip[5].image).object_ids == (1, 2)

    vos.forget(1)
    result = vos.step(clip[6].image)
    assert result.object_ids == (2,)
    assert 1 not in result.mask
    vos.forget(2)
    assert not vos.step(clip[7].image).mask.any()
    result = vos.step(clip[8].image, clip[8].label_map)
    assert result.object_ids == (1, 2, 3)
    assert vos.step(clip[9].image).object_ids == (1, 2, 3)


@METHOD
def test_a_snapshot_in_the_middle_of_changes_is_whole(method, clip):
    vos = small(method)
    vos.step(clip[0].image, np.where(clip[0].label_map == 1, 9, 0))
    vos.step(clip[1].image)
    vos.step(clip[2].image, np.where(clip[2].label_map == 2, 4, 0))
    other = Segmenter(vos.method, "cpu")
    other.restore(vos.snapshot())
    vos.forget(9)
    other.forget(9)
    for t in range(3, 7):
        assert same(vos.step(clip[t].image), other.step(clip[t].image))


@METHOD
@pytest.mark.parametrize("size", [(16, 16), (33, 47), (17, 90), (121, 64)])
def test_any_size_works(method, size):
    clip = video(size, 4, objects=1)
    first = np.zeros(size, np.uint8)
    first[2 : size[0] // 2, 3 : size[1] // 2] = 1
    for result in follow(small(method), clip, range(4), first):
        assert result.mask.shape == size


@METHOD
def test_one_pixel_is_an_object(method, clip):
    first = np.zeros((64, 96), np.uint8)
    first[10, 10] = 1
    first[0, 95] = 2
    for result in follow(small(method), clip, range(4), first):
        assert np.isfinite(result.probabilities).all()
        assert result.object_ids == (1, 2)


@METHOD
def test_the_whole_frame_is_an_object(method, clip):
    for result in follow(small(method), clip, range(4), np.ones((64, 96), np.uint8)):
        assert np.isfinite(result.probabilities).all()


@METHOD
def test_many_objects_at_once(method, clip):
    first = np.zeros((64, 96), np.uint8)
    for k in range(40):
        row, column = divmod(k, 8)
        first[row * 12 : row * 12 + 6, column * 12 : column * 12 + 7] = 5 * k + 1
    vos = small(method)
    for result in follow(vos, clip, range(3), first):
        assert len(result.object_ids) == 40
        assert result.probabilities.shape[0] == 41


@METHOD
def test_a_state_that_is_none_is_refused_and_changes_nothing(method, clip):
    vos, twin = small(method), small(method)
    follow(vos, clip, range(3), clip[0].label_map)
    follow(twin, clip, range(3), clip[0].label_map)
    state = vos._state.target.state_dict()
    for damaged in (
        {},
        {"nothing": torch.zeros(3)},
        {name: value for name, value in state.items() if "ids" not in name},
        *({n: v for n, v in state.items() if n != missing} for missing in list(state)[:12]),
    ):
        with pytest.raises(InputError):
            vos._state.target.load_state_dict(damaged)
    assert same(vos.step(clip[3].image), twin.step(clip[3].image))


@pytest.mark.parametrize("method", sorted({*SMALL, *VARIANTS} - {"frtm-fast"}))  # frtm with fewer iterations
def test_memory_is_flat_however_long_the_stream(method):
    clip = video((32, 48), 20, objects=2)
    vos = small(method)
    vos.step(clip[0].image, clip[0].label_map)
    state, memory, objects = [], [], []
    for t in range(1, 251):
        vos.step(clip[t % 20].image)
        if t in (100, 150, 250):
            state.append(sum(value.nbytes for value in vos._state.target.state_dict().values()))
            memory.append(allocated())
            objects.append(sys.getallocatedblocks())
    assert state[0] == state[1] == state[2]
    # for each of the last 100 frames 400 bytes, or 10 of Python's objects; a frame is 4.6 kB of pixels alone
    assert memory[2] - memory[1] < 40_000
    assert objects[2] - objects[1] < 1000
