"""The choice of arithmetic."""

from __future__ import annotations

import torch

import streamvos
from streamvos.nn.precision import resolve_precision


def test_a_choice_stands_and_auto_becomes_one():
    cpu = torch.device("cpu")
    assert resolve_precision("float32", cpu) == "float32"
    assert resolve_precision("bfloat16", cpu) == "bfloat16"
    assert resolve_precision("auto", cpu) in ("float32", "bfloat16")
    assert resolve_precision("auto", torch.device("meta")) == "float32"


def test_half_precision_embeddings_are_close_and_the_output_is_float32():
    network = {"depth": 18, "stages": 3, "planes": (16, 24, 32), "embedding": 16, "normalize": True}
    frames = torch.rand(1, 3, 64, 64)
    torch.manual_seed(0)
    full = streamvos.load("tvos", None, device="cpu", network=network).method.extractor
    half = streamvos.load("tvos", None, device="cpu", network=network, precision="bfloat16").method.extractor
    half.load_state_dict(full.state_dict())
    with torch.inference_mode():
        a, b = full(frames)["embedding"], half(frames)["embedding"]
    assert b.dtype == torch.float32
    # bfloat16 keeps 8 bits; over a dozen layers the direction of an embedding turns by a few percent
    assert torch.nn.functional.cosine_similarity(a, b, dim=1).min() > 0.99
    assert not torch.equal(a, b)
