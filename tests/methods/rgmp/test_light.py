"""RGMP on EfficientNet-Lite0: what the reference and the previous mask decide, and how objects compete."""

from __future__ import annotations

import pytest
import torch
from small_methods import small

from streamvos.methods import build
from streamvos.methods.rgmp import EFFICIENTNET
from streamvos.types import Evidence, Features, InputError
from streamvos.weights import without_backbone

SIZE = (64, 96)


@pytest.fixture(scope="module")
def method():
    return small("rgmp/light").method


def frames(count: int = 2, seed: int = 0) -> torch.Tensor:
    return torch.rand((count, 3, *SIZE), generator=torch.Generator().manual_seed(seed))


def label_map(top: int = 10, left: int = 20) -> torch.Tensor:
    labels = torch.zeros(SIZE, dtype=torch.int64)
    labels[top : top + 30, left : left + 40] = 1
    return labels


def features_of(method, frame: torch.Tensor) -> Features:
    with torch.inference_mode():
        return method.extractor(frame[None])


def test_the_default_is_the_authors_network_and_heads_hold_no_backbone():
    with torch.device("meta"):
        assert not any("backbone.stem" in n for n in build("rgmp").networks.state_dict())
        state = build("rgmp", EFFICIENTNET).networks.state_dict()
    assert "backbone.stem.weight" in state
    assert {n.split(".")[0] for n in without_backbone(state)} == {"network"}


def test_one_object_keeps_its_probability_and_several_share_by_odds(method):
    logits = torch.tensor([2.0, 0.0]).view(2, 1, 1).expand(2, 16, 24)
    alone = method.decoder(Evidence({"logits": logits[:1]}, (1,)), SIZE)
    assert torch.allclose(alone[1], torch.tensor(2.0).sigmoid())
    both = method.decoder(Evidence({"logits": logits}, (1, 2)), SIZE)
    odds = torch.tensor([1.0, 2.0, 0.0]).where(torch.tensor([True, False, False]), logits.new_ones(3))
    odds[1:] = logits[:, 0, 0].exp()
    assert torch.allclose(both[:, 0, 0], odds / odds.sum())


def test_both_the_reference_and_the_previous_mask_matter(method):
    first, later = (features_of(method, frame) for frame in frames())
    with torch.inference_mode():
        target = method.target()
        target.annotate(first, label_map(), (1,))
        plain = target.read(later)["logits"]
        target.write(first, torch.stack([torch.ones(SIZE), torch.zeros(SIZE)]))
        emptied = target.read(later)["logits"]
        other = method.target()
        other.annotate(first, label_map(30, 50), (1,))
        other.write(first, torch.stack([torch.ones(SIZE), torch.zeros(SIZE)]))
        elsewhere = other.read(later)["logits"]
    assert not torch.allclose(plain, emptied, atol=1e-4)
    assert not torch.allclose(emptied, elsewhere, atol=1e-4)


def test_values_follow_the_cells_that_look_alike(method):
    """The attention: cells of the present frame that are those of the reference, moved, get its values."""
    network = method.runs.network
    keys = torch.nn.functional.normalize(
        torch.randn((1, 8, 4, 6), generator=torch.Generator().manual_seed(1)), dim=1
    )
    values = torch.arange(24.0).view(1, 1, 4, 6).expand(1, 8, 4, 6)
    moved = keys.roll(2, dims=3)
    sharp = network.log_sharpness.data.clone()
    try:
        network.log_sharpness.data.fill_(6.0)
        found = network._moved(moved, torch.cat([keys, values], dim=1))
    finally:
        network.log_sharpness.data.copy_(sharp)
    assert torch.allclose(found, values.roll(2, dims=3), atol=1e-3)


def test_what_an_object_looked_like_last_outlives_its_absence(method):
    features = features_of(method, frames()[0])
    there = torch.stack([1.0 - (label_map() == 1).float(), (label_map() == 1).float()])
    absent = torch.stack([torch.ones(SIZE), torch.zeros(SIZE)])
    target = method.target()
    target.annotate(features, label_map(30, 50), (1,))
    states = []
    with torch.inference_mode():
        for probabilities in (there, absent, there.roll(8, dims=2)):
            target.write(features, probabilities)
            states.append(target.state_dict())
    assert torch.equal(states[0]["recent.0"], states[1]["recent.0"])
    assert not torch.equal(states[1]["recent.0"], states[2]["recent.0"])
    assert not states[1]["previous"].any()


def test_frames_of_another_size_are_refused(method):
    target = method.target()
    target.annotate(features_of(method, frames()[0]), label_map(), (1,))
    with pytest.raises(InputError, match="this one is"), torch.inference_mode():
        target.read(method.extractor(torch.rand(1, 3, 32, 48)))


def test_the_state_is_small():
    """At 480p: reference, frame before, and a mask at a quarter of the size."""
    vos = small("rgmp", **{"network": {"depth": 18}, **EFFICIENTNET, "precision": "float32"})
    target = vos.method.target()
    labels = torch.zeros((480, 854), dtype=torch.int64)
    labels[100:200, 100:300] = 1
    with torch.inference_mode():
        target.annotate(vos.method.extractor(torch.rand(1, 3, 480, 854)), labels, (1,))
    assert sum(value.nbytes for value in target.state_dict().values()) < 700_000
