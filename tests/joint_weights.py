"""JOINT's published layout, filled with the procedural weights that made its goldens."""

from __future__ import annotations

import json
from functools import cache

import numpy as np
import torch
from goldens import procedural, shared_path

from streamvos.weights import joint


def golden(name: str) -> dict[str, np.ndarray]:
    """The arrays of one golden file of JOINT."""
    return dict(np.load(shared_path("goldens", f"joint_{name}.npz")))


@cache
def published() -> dict[str, torch.Tensor]:
    """A state dict as the authors publish it; to be copied before it is changed."""
    state = {}
    keys = json.loads(shared_path("methods", "keys", "joint.json").read_text())["net_keys"]
    for name, shape in (entry[:2] for entry in keys):
        # the self-attention is one layer with two names; procedural values go by the encoder's
        key = name.replace("transformer.decoder.self_attn", "transformer.encoder.self_attn")
        of_stage = name.startswith("feature_extractor.layer")
        gain = 0.25 if of_stage and name.endswith("bn3.weight") else 1.0
        value = procedural(key, tuple(shape), gain)
        state[name] = torch.from_numpy(np.full(shape, 0.01, np.float32) if "filter_reg" in name else value)
    return state


def with_overrides() -> dict[str, torch.Tensor]:
    """The same, toned down as it was for the whole network and for the tracker."""
    state = {name: value.clone() for name, value in published().items()}
    state["feature_extractor.conv1.weight"] /= 64
    for name, value in state.items():
        if name.startswith("decoder.TSE.") and name.endswith("transform.0.weight"):
            value[:, -16:] *= 4
    state["decoder.project.conv2.weight"] *= 0.25
    state["decoder.project.conv2.bias"].fill_(-8)
    return state


def part(prefix: str) -> dict[str, torch.Tensor]:
    """The entries of one module of ours, such as "transformer.", without overrides."""
    converted, _ = joint.from_authors(published())
    return {n.removeprefix(prefix): v for n, v in converted.items() if n.startswith(prefix)}


def draws(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Input data that the notes call proc(name, shape): N(0, 1)."""
    import zlib

    generator = np.random.Generator(np.random.PCG64(zlib.crc32(name.encode())))
    return generator.standard_normal(shape).astype(np.float32)


def relative(value: torch.Tensor, expected: np.ndarray) -> float:
    """Largest deviation over the largest expected value."""
    assert tuple(value.shape) == expected.shape
    return float(np.abs(value.numpy() - expected).max() / np.abs(expected).max())
