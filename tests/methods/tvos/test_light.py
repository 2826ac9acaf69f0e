"""TVOS on EfficientNet-Lite0: what is embedded, refined and remembered. The contract is in test_contract."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from small_methods import VARIANTS

from streamvos.methods import Method, build
from streamvos.methods.tvos import EFFICIENTNET, TVOSOptions
from streamvos.types import InputError


def small(**options) -> Method:
    torch.manual_seed(0)
    return build("tvos", {**VARIANTS["tvos/efficientnet"], **options}).eval()


def frame(size: tuple[int, int] = (72, 100), seed: int = 0) -> torch.Tensor:
    return torch.rand(1, 3, *size, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("size", [(32, 32), (72, 100), (33, 71)])
@torch.inference_mode()
def test_every_cell_has_a_unit_vector_whatever_the_size(size):
    features = small().extractor(frame(size))
    grid = (-(-size[0] // 8), -(-size[1] // 8))
    assert features["embedding"].shape == (1, 16, *grid)
    assert torch.allclose(features["embedding"].norm(dim=1), torch.ones(1, *grid), atol=1e-3)
    assert list(features.maps) == ["embedding", "stage5", "stage3", "stage2"]


@torch.inference_mode()
def test_without_refiner_labels_are_enlarged_and_only_they_travel():
    method = small(refiner=None)
    target = method.target()
    label_map = torch.zeros(72, 100, dtype=torch.int64)
    label_map[20:50, 30:60] = 4
    target.annotate(method.extractor(frame()), label_map, (4,))
    evidence = target.read(method.extractor(frame()))
    assert list(evidence.maps) == ["labels"]
    found = method.decoder(evidence, (72, 100)).argmax(0) == 1
    # the frame is the same, so every cell finds itself
    assert (found == (label_map == 4)).float().mean() > 0.9
    assert {name.partition(".")[0] for name in method.networks.state_dict()} == {"backbone", "embedding"}


@torch.inference_mode()
def test_the_history_holds_what_was_decoded():
    method = small(precision="float32")
    target = method.target()
    label_map = torch.zeros(72, 104, dtype=torch.int64)
    label_map[8:16, 16:28], label_map[:, 64:72] = 1, 255
    target.annotate(method.extractor(frame((72, 104))), label_map, (1,))
    labels = target.history[0]["labels"].view(5, 7, 4, 2)
    assert labels[0, 1, 2].tolist() == [0, 1]  # the cell in row 1, column 2
    assert labels[0, 4, 0].tolist() == [0, 0]  # void has no label
    features = method.extractor(frame((72, 104), seed=1))
    evidence = target.read(features)
    decoded = method.decoder(evidence, (72, 104))
    target.write(features, decoded)
    held = (
        target.history[1]["labels"].view(5, 7, 2, 2, 2).permute(4, 0, 2, 1, 3).reshape(2, 10, 14)[:, :9, :13]
    )
    expected = F.adaptive_avg_pool2d(decoded, (9, 13))
    assert torch.allclose(held, expected / expected.sum(0), atol=1e-5)


@torch.inference_mode()
def test_a_given_mask_is_certain_and_others_lose_its_pixels():
    from streamvos.types import Annotation

    method = small()
    target = method.target()
    label_map = torch.zeros(72, 100, dtype=torch.int64)
    label_map[10:40, 10:40] = 1
    target.annotate(method.extractor(frame()), label_map, (1,))
    given = torch.zeros(72, 100, dtype=torch.int64)
    given[30:60, 30:60] = 2
    evidence = target.read(method.extractor(frame(seed=2)))
    probabilities = method.decoder(evidence, (72, 100), Annotation(given, (2,)))
    assert probabilities.shape == (3, 72, 100)
    assert (probabilities[2][given == 2] > 0.999).all()
    assert (probabilities[2][given == 0] < 0.001).all()


def test_a_refiner_needs_the_backbone_and_widths():
    for options in (
        {"refiner": (8, 8)},
        {**EFFICIENTNET, "refiner": (8, 0)},
        {**EFFICIENTNET, "refiner": ()},
    ):
        with pytest.raises(InputError, match="refiner"):
            build("tvos", options)
    assert TVOSOptions(**{**EFFICIENTNET, "refiner": (8, 8, 8, 4)}).levels[0] == "stage6"
