"""Parts: what took a network's place runs, and features come back as they went."""

from __future__ import annotations

import copy

import pytest
import torch
from small_methods import SMALL

from streamvos.methods import build
from streamvos.methods.parts import ExtractorPart, Part, assemble, outline


def test_what_takes_the_place_runs_until_it_goes():
    part = Part("part", lambda x: (x + 1,), ())
    x = torch.zeros(1)
    assert part(x)[0] == 1
    part.replace(lambda x: (x + 2,))
    assert (part(x)[0], part.plain(x)[0]) == (2, 1)
    part.replace(None)
    assert part(x)[0] == 1


@pytest.mark.parametrize("name", SMALL)
def test_features_come_back_from_their_tensors(name):
    torch.manual_seed(0)
    method = build(name, SMALL[name]).eval()
    part = method.parts()["extractor"]
    assert isinstance(part, ExtractorPart)
    (frames,) = part.example((48, 64), 2)
    with torch.no_grad():
        expected = method.extractor(frames)
        features = assemble(part.layout(frames), frames, part.plain(frames))
    assert features.size == expected.size
    assert list(features.maps) == list(expected.maps)
    assert all(torch.equal(features[name], value) for name, value in expected.maps.items())


@pytest.mark.parametrize("name", SMALL)
def test_a_copy_of_a_method_runs_its_own_networks(name):
    method = build(name, SMALL[name])
    twin = copy.deepcopy(method)
    for part, other in zip(method.parts().values(), twin.parts().values(), strict=True):
        ours = {id(tensor) for module in part.modules for tensor in module.parameters()}
        assert not ours & {id(tensor) for module in other.modules for tensor in module.parameters()}


def test_a_size_travels_without_numbers():
    tensor = outline((480, 854), torch.zeros(1, dtype=torch.float64))
    assert (tensor.shape[:2], tensor.numel(), tensor.dtype) == ((480, 854), 0, torch.float64)
