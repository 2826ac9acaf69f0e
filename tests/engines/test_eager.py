"""The eager backend: the same numbers as the plain module."""

from __future__ import annotations

import pytest
import torch

from streamvos.engines.eager import choose_device, eager_run
from streamvos.methods import build
from streamvos.types import InputError


def test_eager_gives_what_the_module_gives():
    network = {"depth": 18, "stages": 3, "planes": (16, 24, 32), "embedding": 16, "normalize": True}
    extractor = build("tvos", {"network": network}).extractor.eval()
    frames = torch.rand(2, 3, 40, 56)
    with torch.inference_mode():
        expected = extractor(frames)["embedding"]
    got = eager_run(extractor, torch.device("cpu"))(frames)["embedding"]
    # another memory format, another order of summation
    assert torch.allclose(got, expected, atol=1e-5)
    assert not got.requires_grad


def test_a_batch_equals_its_frames_one_by_one():
    network = {"depth": 18, "stages": 2, "planes": (16, 24), "embedding": 16}
    run = eager_run(build("tvos", {"network": network}).extractor, torch.device("cpu"))
    frames = torch.rand(3, 3, 32, 48)
    together = run(frames)["embedding"]
    for k in range(3):
        assert torch.allclose(run(frames[k : k + 1])["embedding"][0], together[k], atol=1e-5)


def test_unknown_devices_are_refused():
    with pytest.raises(InputError, match="'toaster'"):
        choose_device("toaster")
    assert choose_device("auto").type in ("cpu", "cuda")
