"""FEELVOS: what its target remembers and reads, and the whole method through the doors that a user has.

The authors' numbers for matching are held in tests/nn/matching/test_matching.py, and once more here through
the target. A head that passes one of its maps on shows what the target gives to it.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import nn

from streamvos.methods.feelvos.method import FEELVOS
from streamvos.methods.feelvos.networks import grid_size, sample_nearest
from streamvos.methods.feelvos.options import FEELVOSNetwork, FEELVOSOptions
from streamvos.methods.feelvos.target import FEELVOSTarget
from streamvos.segmenter import Segmenter
from streamvos.types import VOID, Annotation, Features, InputError

SMALL = FEELVOSNetwork(
    backbone="resnet18",
    planes=(8, 8, 16, 16),
    features=12,
    low_features=6,
    embedding=8,
    head_channels=10,
    head_layers=2,
)
GLOBAL, PREVIOUS, LOCAL = range(3)


class Passes(nn.Module):
    """A head whose logits are one of the maps that it is given."""

    def __init__(self, cue: int):
        super().__init__()
        self.cue = cue

    def forward(self, shared: torch.Tensor, cues: torch.Tensor) -> torch.Tensor:
        return cues[:, self.cue]


def showing(cue: int, **options) -> FEELVOSTarget:
    return FEELVOSTarget(FEELVOSOptions(**options), Passes(cue))


def features_of(embedding: torch.Tensor, size: tuple[int, int] | None = None) -> Features:
    """(h, w, C) as the features of a frame, by default of h x w pixels."""
    maps = {"embedding": embedding.permute(2, 0, 1)[None], "shared": embedding.permute(2, 0, 1)[None]}
    return Features(maps, size or (embedding.shape[0], embedding.shape[1]))


def scenes(count: int, grid: tuple[int, int] = (9, 11), channels: int = 5) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    return [0.4 * torch.randn(*grid, channels, generator=generator) for _ in range(count)]


def certain(labels: torch.Tensor, ids: tuple[int, ...]) -> torch.Tensor:
    return (labels[None] == torch.tensor((0, *ids))[:, None, None]).float()


def boxes(size: tuple[int, int], **places: tuple[int, int, int, int]) -> torch.Tensor:
    """A label map with a rectangle (top, left, bottom, right) per object, `id4=...`."""
    labels = torch.zeros(size, dtype=torch.int64)
    for name, (top, left, bottom, right) in places.items():
        labels[top:bottom, left:right] = int(name.removeprefix("id"))
    return labels


def nearest(query: torch.Tensor, candidates: torch.Tensor) -> torch.Tensor:
    """The definition of the distance to one object: (h, w)."""
    if not len(candidates):
        return torch.ones(query.shape[:2])
    squared = (query[:, :, None].double() - candidates.double()).square().sum(-1).amin(-1)
    return torch.tanh(squared / 2).float()


# --- the authors' numbers -----------------------------------------------------------------------------------

# of the notes' cases one has two grids and one has void in the previous frame; a stream has neither
CASES = [
    ("basic_2obj", (0, 1, 3, 15)),
    ("wide_window15", (15,)),
    ("one_object_bg_only", (2, 15)),
    ("prev_lost_object", (1, 4, 15)),
    ("corner_objects", (3, 7, 15)),
    ("sparse_ids", (2,)),
    ("id_absent_in_ref", (3,)),
    ("saturated", (1, 4)),
    ("identical_frames", (0, 2)),
    ("dim100", (4, 15)),
    ("eleven_objects", (3, 15)),
    ("single_pixel", (0, 15)),
    ("thin_strip", (15,)),
    ("cancellation", (4,)),
]


@pytest.mark.parametrize(("case", "windows"), CASES)
def test_the_target_matches_as_the_authors_do(shared, case, windows):
    golden = np.load(shared / "goldens" / "feelvos_matching.npz")
    first, before, now = (
        features_of(torch.from_numpy(golden[f"{case}/{name}_emb"])) for name in ("ref", "prev", "cur")
    )
    given, predicted = (
        torch.from_numpy(golden[f"{case}/{name}_lab"].astype(np.int64)) for name in ("ref", "prev")
    )
    ids = tuple(int(i) for i in golden[f"{case}/ids"])[1:]
    for cue, window, name in [(GLOBAL, 15, "global"), *((LOCAL, k, f"local_k{k}") for k in windows)]:
        target = showing(cue, window=window)
        target.annotate(first, given, ids)
        target.write(before, certain(predicted, ids))
        ours = target.read(now)["logits"].numpy()
        assert np.abs(ours - golden[f"{case}/{name}"]).max() <= 1e-6  # as the notes ask for float32


# --- the previous frame -------------------------------------------------------------------------------------


def test_soft_probabilities_of_cells_come_back_exactly():
    size = (34, 47)  # no cell but the corners lies on a pixel
    grid = grid_size(size)
    target = showing(GLOBAL, previous="soft")
    first, second, third = (features_of(scene, size) for scene in scenes(3, grid))
    target.annotate(first, boxes(size, id2=(3, 3, 20, 20)), (2,))
    evidence = target.read(second)
    probabilities = FEELVOS(FEELVOSOptions(network=SMALL)).decoder(evidence, second.size)
    target.write(second, probabilities)
    target.head = Passes(PREVIOUS)
    assert torch.equal(target.read(third)["logits"], evidence["logits"].softmax(0))


def test_soft_starts_from_the_given_labels():
    labels = boxes((9, 11), id2=(0, 0, 4, 4), id7=(5, 5, 8, 8))
    labels[8] = VOID
    target = showing(PREVIOUS, previous="soft")
    first, second = map(features_of, scenes(2))
    target.annotate(first, labels, (2, 7))
    assert torch.equal(target.read(second)["logits"], certain(labels, (2, 7)))


def test_hard_probabilities_are_the_label_map_of_the_pixels():
    size = (34, 47)
    target = showing(PREVIOUS)
    first, second, third = (features_of(scene, size) for scene in scenes(3, grid_size(size)))
    target.annotate(first, boxes(size, id2=(3, 3, 20, 20), id9=(22, 10, 30, 40)), (2, 9))
    target.read(second)
    probabilities = torch.randn(3, *size).softmax(0)
    target.write(second, probabilities)
    winners = sample_nearest(probabilities.argmax(0), grid_size(size))
    assert torch.equal(target.read(third)["logits"], certain(winners, (1, 2)))


# --- references ---------------------------------------------------------------------------------------------


def test_a_new_object_renews_the_background_and_leaves_the_others_their_reference():
    labels = boxes((9, 11), id2=(0, 0, 4, 4), id5=(5, 0, 8, 4))
    target = showing(GLOBAL)
    first, second, now = scenes(3)
    target.annotate(features_of(first), labels, (2, 5))
    # in the second frame object 2 is predicted elsewhere, object 5 is corrected and object 7 is new
    later = boxes((9, 11), id2=(0, 1, 4, 5), id5=(6, 0, 9, 3), id7=(4, 6, 8, 10))
    target.annotate(features_of(second), later, (2, 5, 7), (5, 7), certain(later, (2, 5, 7)))
    expected = [
        nearest(now, second[later == 0]),
        nearest(now, first[labels == 2]),
        nearest(now, second[later == 5]),
        nearest(now, second[later == 7]),
    ]
    assert (target.read(features_of(now))["logits"] - torch.stack(expected)).abs().max() < 1e-6


@pytest.mark.parametrize("previous", ["hard", "soft"])
@pytest.mark.parametrize("cue", [GLOBAL, PREVIOUS, LOCAL])
def test_a_forgotten_object_might_never_have_been_there(cue, previous):
    first, second, third, now = map(features_of, scenes(4))
    labels = boxes((9, 11), id2=(0, 0, 4, 4), id5=(5, 0, 8, 4))
    later = boxes((9, 11), id2=(0, 1, 4, 5), id5=(6, 0, 9, 3), id7=(4, 6, 8, 10))
    last = boxes((9, 11), id2=(1, 1, 5, 5), id5=(6, 1, 9, 4), id7=(4, 5, 8, 9))

    def followed(ids: tuple[int, ...]) -> FEELVOSTarget:
        def known(label_map: torch.Tensor) -> torch.Tensor:
            return label_map.where(torch.isin(label_map, torch.tensor(ids)), 0)

        target = showing(cue, previous=previous)
        early = tuple(i for i in ids if i != 7)
        target.annotate(first, known(labels), early)
        target.annotate(second, known(later), ids, (7,), certain(known(later), ids))
        target.write(third, certain(known(last), ids))
        return target

    forgetful = followed((2, 5, 7))
    forgetful.forget(5)
    assert forgetful.object_ids == (2, 7)
    expected = followed((2, 7)).read(now)["logits"]
    assert torch.equal(forgetful.read(now)["logits"], expected)
    with pytest.raises(InputError, match="object 5 is not followed"):
        forgetful.forget(5)


def test_a_mistaken_object_takes_nothing_with_it_when_it_is_forgotten():
    first, second = map(features_of, scenes(2))
    labels = boxes((9, 11), id2=(0, 0, 4, 4))
    mistake = boxes((9, 11), id7=(0, 0, 4, 4))  # drawn over object 2
    target = showing(GLOBAL, previous="hard")
    target.annotate(first, labels, (2,))
    target.annotate(second, mistake, (2, 7), (7,), certain(mistake, (2, 7)))
    target.forget(7)
    # what may be object 2 did not become an example of the background
    assert target.object_ids == (2,)
    cells, owners = target._memory.candidates()
    where = (mistake == 7).flatten()
    assert not torch.isin(cells[owners == 0], target._memory.annotated[where]).all(1).any()


def test_an_object_without_a_cell_is_far_from_everything():
    size = (41, 41)  # 11 x 11 cells, every fourth pixel
    labels = boxes(size, id3=(10, 10, 20, 20), id8=(21, 26, 24, 28))
    first, now = scenes(2, (11, 11))
    for cue in (GLOBAL, LOCAL):
        target = showing(cue)
        target.annotate(features_of(first, size), labels, (3, 8))
        assert (target.read(features_of(now, size))["logits"][2] == 1).all()


def test_an_object_corrected_to_less_than_a_cell_keeps_its_reference():
    size = (41, 41)
    first, second, now = scenes(3, (11, 11))
    labels, later = boxes(size, id3=(10, 10, 20, 20)), boxes(size, id3=(21, 25, 23, 27))
    target = showing(GLOBAL)
    target.annotate(features_of(first, size), labels, (3,))
    target.annotate(features_of(second, size), later, (3,), (3,), certain(later, (3,)))
    small = sample_nearest(labels, (11, 11)) == 3
    ours = target.read(features_of(now, size))["logits"]
    assert (ours[1] - nearest(now, first[small])).abs().max() < 1e-6


def test_void_is_no_reference_of_anybody():
    labels = boxes((9, 11), id2=(0, 0, 4, 4))
    labels[6:] = VOID
    first, now = scenes(2)
    target = showing(GLOBAL)
    target.annotate(features_of(first), labels, (2,))
    expected = torch.stack([nearest(now, first[labels == 0]), nearest(now, first[labels == 2])])
    assert (target.read(features_of(now))["logits"] - expected).abs().max() < 1e-6


# --- the state ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("previous", ["hard", "soft"])
def test_a_state_continues_bit_identically(previous):
    method = FEELVOS(FEELVOSOptions(network=SMALL, previous=previous)).eval()
    clip = torch.rand(5, 3, 50, 61)
    labels = boxes((50, 61), id2=(4, 4, 30, 30), id9=(20, 35, 45, 55))
    with torch.inference_mode():
        frames = [method.extractor(image[None]) for image in clip]
        target = method.target()
        target.annotate(frames[0], labels, (2, 9))
        later = boxes((50, 61), id2=(6, 6, 32, 32), id4=(1, 40, 12, 60), id9=(20, 30, 45, 50))
        target.annotate(frames[1], later, (2, 4, 9), (4,), certain(later, (2, 4, 9)))
        evidence = target.read(frames[2])
        target.write(frames[2], method.decoder(evidence, frames[2].size))
        other = method.target()
        other.load_state_dict({name: value.clone() for name, value in target.state_dict().items()})
        assert other.object_ids == (2, 4, 9)
        for features in frames[3:]:
            one, two = target.read(features), other.read(features)
            assert torch.equal(one["logits"], two["logits"])
            target.write(features, method.decoder(one, features.size))
            other.write(features, method.decoder(two, features.size))


def test_an_empty_state_is_a_state():
    target = showing(GLOBAL)
    target.load_state_dict(showing(GLOBAL).state_dict())
    assert target.object_ids == ()


def test_states_that_cannot_be_right_are_refused_and_change_nothing():
    first, now = map(features_of, scenes(2))
    target = showing(GLOBAL)
    target.annotate(first, boxes((9, 11), id2=(0, 0, 4, 4)), (2,))
    expected = target.read(now)["logits"]
    good = target.state_dict()
    for name, value in (
        ("previous", None),
        ("object_ids", torch.tensor([2, 2])),
        ("object_ids", torch.tensor([3])),
        ("given", torch.tensor([9])),
        ("grid", torch.tensor([9])),
        ("grid", torch.tensor([9, 12])),
        ("annotated", good["annotated"][:-1]),
        ("annotated", torch.tensor(0.0)),
        ("annotated", good["annotated"].long()),
        ("annotated_labels", good["annotated_labels"] + 300),
        ("previous_labels", good["previous_labels"].float()),
        ("older", torch.zeros(3, 5)),
        ("older", torch.tensor(0.0)),
        ("previous_probabilities", torch.zeros(2, 99)),
    ):
        bad = {**good, name: value}
        if value is None:
            del bad[name]
        with pytest.raises(InputError):
            target.load_state_dict(bad)
        assert torch.equal(target.read(now)["logits"], expected)


def test_what_comes_at_the_wrong_time_or_in_the_wrong_size_is_refused():
    first, now = map(features_of, scenes(2))
    target = showing(GLOBAL)
    with pytest.raises(InputError, match="annotate a frame first"):
        target.read(now)
    with pytest.raises(InputError, match="annotate a frame first"):
        target.write(now, torch.ones(1, 9, 11))
    with pytest.raises(InputError, match="label map"):
        target.annotate(first, boxes((9, 12), id2=(0, 0, 4, 4)), (2,))
    target.annotate(first, boxes((9, 11), id2=(0, 0, 4, 4)), (2,))
    with pytest.raises(InputError, match="grid"):
        target.read(features_of(scenes(1, (9, 12))[0]))
    with pytest.raises(InputError, match="2 probabilities, got 3"):
        target.write(now, torch.ones(3, 9, 11))
    assert target.object_ids == (2,)


# --- the whole method ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(16, 16), (33, 50), (48, 64), (61, 47)])
@pytest.mark.parametrize("output_stride", [8, 16])
def test_everything_lies_on_the_grid_of_stride_4(size, output_stride):
    method = FEELVOS(FEELVOSOptions(network=SMALL, output_stride=output_stride)).eval()
    with torch.inference_mode():
        features = method.extractor(torch.rand(2, 3, *size))
    assert features["embedding"].shape == (2, 8, *grid_size(size))
    assert features["shared"].shape == (2, 10, *grid_size(size))
    assert (features["embedding"] >= 0).all()


def test_batches_of_frames_are_frames():
    method = FEELVOS(FEELVOSOptions(network=SMALL)).double().eval()
    frames = torch.rand(3, 3, 40, 50, dtype=torch.float64)
    with torch.inference_mode():
        together = method.extractor(frames)
        for k in range(3):
            alone = method.extractor(frames[k : k + 1])
            for name, value in alone.maps.items():
                assert value.dtype == torch.float64
                assert (together[name][k] - value[0]).abs().max() < 1e-10


def test_xception_in_its_full_width_follows_two_objects(rng):
    method = FEELVOS(FEELVOSOptions(network=FEELVOSNetwork(middle=1)))
    vos = Segmenter(method, "cpu")
    image = rng.integers(0, 256, (48, 64, 3), dtype=np.uint8)
    mask = boxes((48, 64), id1=(5, 5, 25, 25), id6=(30, 30, 44, 60)).numpy()
    vos.step(image, mask)
    result = vos.step(image)
    assert result.probabilities.shape == (3, 48, 64)
    assert np.isfinite(result.probabilities).all()


def test_decoding_enlarges_logits_and_inserts_what_is_given():
    method = FEELVOS(FEELVOSOptions(network=SMALL))
    size = (34, 47)
    first, now = (features_of(scene, size) for scene in scenes(2, grid_size(size)))
    target = showing(GLOBAL)
    target.annotate(first, boxes(size, id2=(3, 3, 20, 20)), (2,))
    evidence = target.read(now)
    plain = method.decoder(evidence, now.size)
    logits = nn.functional.interpolate(evidence["logits"][None], size, mode="bilinear", align_corners=True)[0]
    assert torch.equal(plain, logits.softmax(0))
    given = boxes(size, id1=(25, 25, 30, 30))
    both = method.decoder(evidence, now.size, Annotation(given, (1,)))
    assert both.shape == (3, *size)
    assert (both[1, 25:30, 25:30] == 1).all()
    assert (both.sum(0) - 1).abs().max() < 1e-5
    assert torch.equal(both[2][given == 0], plain[1][given == 0])


def clip_of(rng: np.random.Generator, count: int, size: tuple[int, int] = (50, 61)) -> list[np.ndarray]:
    base = rng.integers(0, 256, (*size, 3), dtype=np.uint8)
    return [np.roll(base, 2 * k, axis=1) for k in range(count)]


def matching_only(**options) -> FEELVOS:
    """A network whose head adds up both distances: the nearest object wins."""
    network = SMALL.model_copy(update={"head_layers": 1})
    method = FEELVOS(FEELVOSOptions(network=network, **options))
    head = method.head
    with torch.no_grad():
        for parameter in (*head.parameters(), *method.extractor.stem.parameters()):
            parameter.zero_()
        head.cues.depthwise.weight[:, 0, 3, 3] = 1
        head.cues.pointwise.weight[0, GLOBAL] = head.cues.pointwise.weight[0, LOCAL] = 1
        head.logit.weight[0, 0] = -50
        # random embeddings lie close together, and distances are felt between 0.1 and 3
        method.extractor.embedding.pointwise.weight *= 30
    return method


@pytest.mark.parametrize("previous", ["hard", "soft"])
def test_a_still_picture_keeps_its_mask(rng, previous):
    vos = Segmenter(matching_only(previous=previous), "cpu")
    image = clip_of(rng, 1, (49, 61))[0]
    mask = boxes((49, 61), id3=(8, 8, 40, 30), id9=(10, 36, 45, 56)).numpy()
    vos.step(image, mask)
    for _ in range(5):
        result = vos.step(image)
    # of these sides every cell lies on a pixel, so no neighbor has a say in it
    assert (result.mask[::4, ::4] == mask[::4, ::4]).all()


@pytest.mark.parametrize(
    "options",
    [{}, {"previous": "soft"}, {"window": 2}, {"precision": "bfloat16"}],
)
def test_permuting_object_ids_permutes_the_output(rng, options):
    clip = clip_of(rng, 4)
    mask = boxes((50, 61), id1=(4, 5, 30, 25), id2=(10, 35, 40, 60)).numpy().astype(np.uint8)
    renamed = np.array([0, 9, 4], np.uint8)
    method = FEELVOS(FEELVOSOptions(network=SMALL, **options))
    one, other = Segmenter(method, "cpu"), Segmenter(method, "cpu")
    # bfloat16 keeps 8 bits, so a sum in another order may end one step away; logits are of order 0.01, and
    # what float32 rounds feeds back through the frames
    tolerance = 1e-3 if "precision" in options else 5e-5
    for t, image in enumerate(clip):
        a = one.step(image, mask if t == 0 else None)
        b = other.step(image, renamed[mask] if t == 0 else None)
        assert np.abs(a.probabilities[[0, 2, 1]] - b.probabilities).max() < tolerance
        if t == 0:
            continue
        ordered = np.sort(a.probabilities, axis=0)
        clear = ordered[-1] - ordered[-2] > 2 * tolerance
        assert (renamed[a.mask] == b.mask)[clear].all()


def test_memory_does_not_grow_with_the_stream(rng):
    vos = Segmenter(FEELVOS(FEELVOSOptions(network=SMALL, previous="soft")), "cpu")
    image = clip_of(rng, 1, (32, 32))[0]
    vos.step(image, boxes((32, 32), id1=(8, 8, 24, 24)).numpy())
    sizes = set()
    for _ in range(60):
        vos.step(image)
        sizes.add(sum(value.nbytes for value in vos._state.target.state_dict().values()))
    assert len(sizes) == 1


def test_sixty_objects_are_followed(rng):
    vos = Segmenter(FEELVOS(FEELVOSOptions(network=SMALL)), "cpu")
    image = clip_of(rng, 1, (64, 80))[0]
    mask = np.zeros((64, 80), np.uint8)
    ids = rng.permutation(np.arange(1, 255))[:60]
    for k, i in enumerate(ids):
        row, column = divmod(k, 10)
        mask[10 * row : 10 * row + 8, 8 * column : 8 * column + 6] = i
    vos.step(image, mask)
    assert vos.step(image).object_ids == tuple(sorted(int(i) for i in ids))


def test_options_of_the_paper_leave_out_the_relus():
    network = SMALL.model_copy(update={"embedding_activation": "paper", "head_activation": "paper"})
    method = FEELVOS(FEELVOSOptions(network=network)).eval()
    with torch.inference_mode():
        features = method.extractor(torch.rand(1, 3, 40, 40))
    assert (features["embedding"] < 0).any()
    assert not method.extractor.stem.relu_between
    assert not any(layer.relu_between for layer in (method.head.cues, *method.head.layers))


def test_options_out_of_range_are_refused():
    for options in (
        {"window": -1},
        {"previous": "both"},
        {"prev": "hard"},
        {"rates": (6, 0, 1)},
        {"output_stride": 4},
    ):
        with pytest.raises(ValidationError, match=next(iter(options))):
            FEELVOSOptions(**options)
    for network in ({"head_kernel": 6}, {"planes": (8, 8, 8)}, {"planes": (8, 8, 8, 0)}, {"middle": -1}):
        with pytest.raises(ValidationError, match=next(iter(network))):
            FEELVOSNetwork(**network)
