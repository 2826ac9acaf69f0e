"""TVOS against the outputs of the authors' code, through the doors that a user has.

Tolerances are 5e-5 for soft labels and a handful of pixels for maps, but for what
float32 itself does not hold.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from goldens import procedural, shared_path

import streamvos
from streamvos.methods import Method
from streamvos.methods.tvos import TVOS, TVOSOptions
from streamvos.segmenter import Segmenter
from streamvos.types import Features, InputError
from streamvos.weights import load_method


@pytest.fixture(scope="module")
def golden() -> dict[str, np.ndarray]:
    return dict(np.load(shared_path("goldens", "tvos.npz")))


@pytest.fixture(scope="module")
def published(golden, tmp_path_factory) -> Path:
    """A file in the layout of the authors' checkpoints, with the weights that made the goldens."""
    entries = json.loads(shared_path("methods", "keys", "tvos.json").read_text())["state_dict"]
    state = {}
    for name, shape in ((entry[0], entry[1]) for entry in entries):
        plain = name.removeprefix("module.")
        gain = (
            0.25 if plain.endswith(".bn3.weight") else 0.5 if plain in ("bn256.weight", "bn256.bias") else 1
        )
        stored = golden.get(plain.replace(".", "_")) if "running" in plain else None
        value = stored if stored is not None else procedural(plain, tuple(shape), gain)
        state[name] = torch.from_numpy(np.asarray(value))
    path = tmp_path_factory.mktemp("tvos") / "davis_train.pth.tar"
    torch.save({"epoch": 240, "state_dict": state, "optimizer": {}, "scheduler": {}}, path)
    return path


# Dot products reach 400, where float32 resolves 3e-5, and that is the relative error of a weight on either
# side. The notes saw up to 5e-5 between two float32 computations; products in tiles reached 5.02e-5.
TOLERANCE = 6e-5


def features_of(method: Method, image: np.ndarray) -> Features:
    with torch.inference_mode():
        return method.extractor(torch.from_numpy(image).permute(2, 0, 1)[None].float() / 255)


def test_the_embedding_is_the_authors(golden, published):
    method = load_method("tvos", published, {}).eval()
    for t in (0, 1):
        embedding = features_of(method, golden["frames_rgb"][t])["embedding"][0].numpy()
        expected = golden[f"feat_frame{t}"]
        # bit-equal where the authors' code ran; another library's convolutions sum in another order
        assert np.abs(embedding - expected).max() < 1e-4 * expected.std()


@pytest.fixture(scope="module")
def clip(golden, published) -> tuple[Method, list[Features]]:
    """The network and its features of all frames.

    In the memory format of the authors; channels_last sums in another order, worth 1e-5 of a feature.
    """
    method = load_method("tvos", published, {}).eval()
    return method, [features_of(method, image) for image in golden["frames_rgb"]]


@pytest.mark.parametrize("case", ["1obj", "2obj"])
def test_soft_labels_and_masks_are_the_authors(golden, clip, case):
    method, features = clip
    target = method.target()
    mask = torch.from_numpy(golden[f"mask_{case}"].astype(np.int64))
    target.annotate(features[0], mask, tuple(range(1, int(mask.max()) + 1)))
    for t in range(1, 20):
        evidence = target.read(features[t])
        probabilities = method.decoder(evidence, features[t].size)
        target.write(features[t], probabilities)
        assert np.abs(evidence["labels"].flatten(1).numpy() - golden[f"soft_{case}"][t - 1]).max() < TOLERANCE
        # "allow a handful of pixels on other BLAS"
        assert (probabilities.argmax(0).numpy() != golden[f"maps_{case}"][t]).sum() <= 5, f"frame {t}"


def test_masks_of_the_public_api_are_the_authors(golden, published):
    vos = streamvos.load("tvos", published, device="cpu")
    for t, image in enumerate(golden["frames_rgb"]):
        result = vos.step(image, golden["mask_2obj"] if t == 0 else None)
        assert (result.mask != golden["maps_2obj"][t]).sum() <= 5, f"frame {t}"


# at temperature 25 float32 itself is worth 4.5e-5: so far the golden values lie from a computation in
# float64 (this implementation: 2e-5)
@pytest.mark.parametrize(("case", "temperature", "tolerance"), [("temp25", 25.0, 7e-5), ("temp1", 1.0, 5e-5)])
def test_sixty_frames_of_propagation_are_the_authors(shared, case, temperature, tolerance):
    golden = np.load(shared / "goldens" / "tvos_propagation.npz")
    target = TVOS(TVOSOptions(temperature=temperature)).target()
    decoder = TVOS(TVOSOptions()).decoder

    def draws(name: str) -> np.random.Generator:
        import zlib

        return np.random.Generator(np.random.PCG64(zlib.crc32(name.encode())))

    base = draws("base").standard_normal((256, 30, 40))
    worst, wrong = 0.0, 0
    for t in range(60):
        values = np.roll(base, t // 3, axis=2) + 0.7 * draws(f"feat{t}").standard_normal((256, 30, 40))
        values = (values / np.linalg.norm(values, axis=0)).astype(np.float32)
        features = Features({"embedding": torch.from_numpy(values)[None]}, (240, 320))
        if t == 0:
            mask = torch.from_numpy(golden["label_full"].astype(np.int64))
            target.annotate(features, mask, (1, 2))
            continue
        evidence = target.read(features)
        probabilities = decoder(evidence, features.size)
        target.write(features, probabilities)
        worst = max(
            worst, float(np.abs(evidence["labels"].flatten(1).numpy() - golden[f"soft_{case}"][t - 1]).max())
        )
        wrong = max(wrong, int((probabilities.argmax(0).numpy() != golden[f"maps_{case}"][t - 1]).sum()))
    assert worst < tolerance
    assert wrong <= 5


def test_published_checkpoints_load_without_prefix_and_without_counters(published, tmp_path):
    content = torch.load(published, weights_only=True)["state_dict"]
    plain = {n.removeprefix("module."): v for n, v in content.items() if "num_batches" not in n}
    torch.save({"state_dict": plain}, tmp_path / "plain.pth")
    torch.save(plain, tmp_path / "bare.pth")
    expected = streamvos.load("tvos", published, device="cpu").method.extractor.state_dict()
    for name in ("plain.pth", "bare.pth"):
        got = streamvos.load("tvos", tmp_path / name, device="cpu").method.extractor.state_dict()
        assert all(torch.equal(got[n], v) for n, v in expected.items())


@pytest.mark.parametrize(("depth", "blocks"), [(18, (2, 2, 2, 2)), (101, (3, 4, 23, 3))])
def test_the_authors_other_networks_are_recognized(depth, blocks, tmp_path):
    options = {"network": {"depth": depth, "embedding": None if depth == 18 else 256}}
    extractor = streamvos.load("tvos", None, device="cpu", **options).method.extractor
    names = {"conv1": "0", "bn1": "1", "layer1": "4", "layer2": "5", "layer3": "6", "layer4": "7"}
    state = {}
    for name, value in extractor.state_dict().items():
        head, *rest = name.split(".")
        state[".".join([head, names[rest[0]], *rest[1:]]) if head == "backbone" else name] = value
    torch.save({"state_dict": state}, tmp_path / "authors.pth")
    loaded = streamvos.load("tvos", tmp_path / "authors.pth", device="cpu").method
    assert loaded.options.network.depth == depth
    assert sum(n.endswith("conv1.weight") for n in loaded.extractor.state_dict()) == 1 + sum(blocks)
    assert all(
        torch.equal(v, state_v)
        for v, state_v in zip(loaded.extractor.state_dict().values(), state.values(), strict=True)
    )


def small(**options) -> Segmenter:
    network = {"depth": 18, "stages": 2, "planes": (16, 16), "embedding": 16, "normalize": True}
    return streamvos.load("tvos", None, device="cpu", **{"network": network, "temperature": 20.0, **options})


def frames(rng: np.random.Generator, count: int, size: tuple[int, int] = (48, 64)) -> list[np.ndarray]:
    base = rng.integers(0, 256, (*size, 3), dtype=np.uint8)
    return [np.roll(base, 2 * k, axis=1) for k in range(count)]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"spatial_prior": "paper", "schedule": "paper", "history_labels": "soft"},
        {"top_k": 5, "radius": 3, "keep_first": True, "schedule": "paper", "spatial_prior": "none"},
        {"precision": "bfloat16"},
    ],
)
def test_permuting_object_ids_permutes_the_output(rng, options):
    clip = frames(rng, 5)
    mask = np.zeros((48, 64), np.uint8)
    mask[4:30, 5:25], mask[10:40, 35:60] = 1, 2
    swapped = np.array([0, 9, 4], np.uint8)[mask]
    torch.manual_seed(1)
    one = small(**options)
    other = Segmenter(one.method, "cpu")
    for t, image in enumerate(clip):
        a = one.step(image, mask if t == 0 else None)
        b = other.step(image, swapped if t == 0 else None)
        assert np.abs(a.probabilities[[0, 2, 1]] - b.probabilities).max() < 1e-5
        near_tie = np.sort(a.probabilities, axis=0)[-1] - np.sort(a.probabilities, axis=0)[-2] < 1e-5
        assert (np.array([0, 9, 4], np.uint8)[a.mask] == b.mask)[~near_tie].all()


def test_memory_does_not_grow_with_the_stream(rng):
    vos = small(history_labels="soft")
    image = frames(rng, 1, (32, 32))[0]
    mask = np.zeros((32, 32), np.uint8)
    mask[8:24, 8:24] = 1
    vos.step(image, mask)
    for _ in range(100):
        vos.step(image)
    size = len(vos.snapshot())
    for _ in range(400):
        vos.step(image)
    assert len(vos.snapshot()) == size


def test_a_still_picture_keeps_its_mask(rng):
    vos = small(spatial_prior="paper", top_k=1)  # the best match of a cell is the cell itself
    image = frames(rng, 1)[0]
    mask = np.zeros((48, 64), np.uint8)
    mask[8:40, 16:48] = 3
    vos.step(image, mask)
    for _ in range(20):
        result = vos.step(image)
    assert (result.mask == mask).mean() > 0.97


def test_options_out_of_range_are_refused():
    for options in (
        {"top_k": 0},
        {"sigma_dense": 0.0},
        {"schedule": "later"},
        {"references": 3},
        {"topk": 5},
    ):
        with pytest.raises(InputError, match=next(iter(options))):
            streamvos.load("tvos", None, device="cpu", **options)
