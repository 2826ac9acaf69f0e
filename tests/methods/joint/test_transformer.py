from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from joint_weights import draws, golden, part, relative

from streamvos.methods.joint.transformer import (
    TEMPERATURE,
    Transformer,
    attend,
    attention_sums,
    residual_norm,
)

# an independent float32 computation came within 8e-7 of the authors'; rounding of sums, nothing else
TOLERANCE = 8e-7


@torch.inference_mode()
def test_every_stage_is_the_authors():
    expected = golden("transformer")
    transformer = Transformer()
    transformer.load_state_dict(part("transformer."))
    template = np.maximum(draws("joint.tr.train", (3, 1, 1024, 8, 13)), 0)
    search = np.maximum(template[1:2] + 0.5 * draws("joint.tr.test", (1, 1, 1024, 8, 13)), 0)

    def as_maps(tokens: torch.Tensor) -> torch.Tensor:
        return tokens.transpose(-1, -2).unflatten(-1, (8, 13))

    encoded = transformer.encode(transformer.tokens(torch.from_numpy(template[:, 0]))[None])
    tokens = transformer.tokens(torch.from_numpy(search[0]))
    queries = transformer.queries(tokens)
    labels = torch.from_numpy(expected["value"][:, 0]).flatten(2).transpose(1, 2).reshape(1, -1, 16)
    carried = attend(queries, transformer.memory_keys(encoded).flatten(1, 2), labels)
    assert relative(as_maps(encoded[0]), expected["encoded"]) < TOLERANCE
    assert relative(as_maps(tokens), expected["adjusted_test"]) < TOLERANCE
    assert relative(
        as_maps(transformer.encode(tokens[:, None])[0, 0]), expected["decoder_selfattn_normed"]
    ) < (TOLERANCE)
    assert relative(as_maps(carried)[None], expected["decoded"]) < TOLERANCE


def scene(cells: int, others: int, channels: int = 6, dtype=torch.float64):
    queries, keys = (F.normalize(torch.randn(n, 8, dtype=dtype), dim=1) for n in (cells, others))
    return queries, keys, torch.randn(others, channels, dtype=dtype)


@pytest.mark.parametrize(("cells", "others"), [(1, 1), (7, 500), (192, 1536), (193, 1537), (700, 3100)])
def test_attention_in_tiles_is_a_softmax(cells, others):
    queries, keys, values = scene(cells, others)
    plain = (queries @ keys.t() / TEMPERATURE).softmax(1) @ values
    # float64 sums in another order
    assert (attend(queries[None], keys[None], values[None])[0] - plain).abs().max() < 1e-12


def test_sums_over_parts_add_up_and_can_be_taken_away():
    _, keys, values = scene(1, 90, dtype=torch.float32)
    queries = keys[:50]  # cells see themselves, as those of a memory do
    whole = attention_sums(queries, keys[:60], values[:60])
    for precision in ("float32", "bfloat16"):
        above, below = attention_sums(queries, keys, values, precision)
        gone = attention_sums(queries, keys[60:], values[60:], precision)
        rest = (above - gone[0]) / (below - gone[1])
        # what is taken away is at most about as large as what stays; bfloat16 has eight bits
        assert (rest - whole[0] / whole[1]).abs().max() < (1e-4 if precision == "float32" else 0.05)


def test_residual_norm_is_the_instance_norm():
    tokens, attended = torch.randn(2, 3, 20, 5), torch.randn(2, 3, 20, 5)
    maps = (tokens + attended).flatten(0, 1).transpose(1, 2)
    expected = F.instance_norm(maps).transpose(1, 2).view_as(tokens)
    assert (residual_norm(tokens, attended) - expected).abs().max() < 1e-5  # float32
