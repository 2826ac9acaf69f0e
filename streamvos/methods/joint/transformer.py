"""Transduction: every cell of the present frame attends to the labels of remembered frames.

    transformer = Transformer()
    tokens = transformer.tokens(layer3)                    # (B, h*w, 512)
    encoded = transformer.encode(memory[None])             # (1, N, h*w, 512) -> the same
    keys = transformer.memory_keys(encoded)                # (1, N, h*w, 128)
    queries = transformer.queries(tokens)                  # (B, h*w, 128)
    carried = attend(queries, keys.flatten(1, 2), labels)  # labels (1, N*h*w, 16) -> (1, h*w, 16)

It is a lean transformer: one head, queries and keys through the same layer, values as they are, neither
positions nor feed-forward layers. Similarities are cosines over a temperature of 1/30, so their exponentials
are bounded, and a softmax needs no maximum: it is a sum over remembered frames divided by another. Sums can
be added to. `attention_sums` gives both, so that a memory adds the share of a new frame and subtracts that of
an old one, instead of attending from all frames to all frames anew.

Source: Mao et al., section 3.2; the layers are those of the authors' code.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from streamvos.nn.precision import Precision
from streamvos.nn.workers import run_tiles

TEMPERATURE = 1 / 30
EPSILON = 1e-5
TILE = 192
"""Queries at once on a CPU: their similarities to a frame stay in the cache of one core."""


class Transformer(nn.Module):
    """The weights of the transformer, and what they compute of one frame.

    Args:
        inputs: channels of the backbone's map.
        channels: C.
        keys: channels of queries and keys.
    """

    def __init__(self, inputs: int = 1024, channels: int = 512, keys: int = 128):
        super().__init__()
        self.adjust = nn.Conv2d(inputs, channels, 3, padding=1, bias=False)
        self.self_attention = nn.Linear(channels, keys)  # of the memory and of the present frame alike
        self.cross_attention = nn.Linear(channels, keys)

    def tokens(self, features: torch.Tensor) -> torch.Tensor:
        """The backbone's map (B, inputs, h, w) to (B, h*w, C) in the dtype of the weights."""
        x = self.adjust(features).to(self.adjust.weight.dtype)
        return x.flatten(2).transpose(1, 2).contiguous()

    def self_keys(self, tokens: torch.Tensor) -> torch.Tensor:
        """(..., h*w, C) to (..., h*w, keys) of unit length, queries and keys of the self-attention."""
        return F.normalize(self.self_attention(tokens), dim=-1)

    def memory_keys(self, encoded: torch.Tensor) -> torch.Tensor:
        """(..., h*w, C) of encoded frames to (..., h*w, keys) of unit length, for the cross-attention."""
        return F.normalize(self.cross_attention(encoded), dim=-1)

    def encode(self, tokens: torch.Tensor, precision: Precision = "float32") -> torch.Tensor:
        """Remembered frames, each cell having attended to all cells of all of them.

        Args:
            tokens: (S, N, h*w, C).
            precision: see `attention_sums`.

        Returns:
            the same shape.
        """
        keys = self.self_keys(tokens).flatten(1, 2)  # (S, N*h*w, keys)
        attended = attend(keys, keys, tokens.flatten(1, 2), precision)
        return residual_norm(tokens, attended.view_as(tokens))

    def queries(self, tokens: torch.Tensor, precision: Precision = "float32") -> torch.Tensor:
        """Queries of present frames, each frame having attended to itself.

        Args:
            tokens: (B, h*w, C).
            precision: see `attention_sums`.

        Returns:
            (B, h*w, keys) of unit length.
        """
        return self.memory_keys(self.encode(tokens[:, None], precision)[:, 0])


def residual_norm(tokens: torch.Tensor, attended: torch.Tensor) -> torch.Tensor:
    """Their sum, every channel of every frame to zero mean and unit variance over its cells.

    Args:
        tokens, attended: (..., h*w, C).
    """
    x = tokens + attended
    variance, mean = torch.var_mean(x, dim=-2, correction=0, keepdim=True)  # (..., 1, C)
    return (x - mean) * (variance + EPSILON).rsqrt()


def attend(
    queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, precision: Precision = "float32"
) -> torch.Tensor:
    """Softmax attention of S sequences, without gradient; the M x L matrix is never held.

    Args:
        queries: (S, M, E), unit length.
        keys: (S, L, E), unit length.
        values: (S, L, D).
        precision: see `attention_sums`.

    Returns:
        (S, M, D).
    """
    sums = [attention_sums(*each, precision) for each in zip(queries, keys, values, strict=True)]
    return torch.stack([numerator / denominator for numerator, denominator in sums])


def attention_sums(
    queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, precision: Precision = "float32"
) -> tuple[torch.Tensor, torch.Tensor]:
    """Numerator and denominator of a softmax attention, to be added to those over other keys.

    The exponentials lie between exp(-30) and exp(30), and float32 reaches 8e24 times further, so no largest
    similarity is subtracted: a sum over other keys has the same unit. Without gradient.

    Args:
        queries: (M, E), unit length.
        keys: (L, E), unit length.
        values: (L, D).
        precision: "bfloat16" rounds values and weights before they are multiplied, but not similarities. The
            same arguments give the same sums, so what was added can be subtracted.

    Returns:
        (M, D) and (M, 1).
    """
    on_cpu = queries.device.type == "cpu"
    rows, columns = (TILE, 8 * TILE) if on_cpu else (1 << 13, 1 << 14)
    transposed = keys.t()
    half = precision == "bfloat16" and values.dtype == torch.float32
    rounded = values.bfloat16() if half else values

    def work(start: int) -> tuple[torch.Tensor, torch.Tensor]:
        scaled = queries[start : start + rows] / TEMPERATURE
        numerator = values.new_zeros(len(scaled), values.shape[1])
        denominator = values.new_zeros(len(scaled), 1)
        for first in range(0, len(keys), columns):
            weights = (scaled @ transposed[:, first : first + columns]).exp_()  # (rows, columns)
            if half:
                numerator += weights.bfloat16() @ rounded[first : first + columns]
            else:
                numerator.addmm_(weights, values[first : first + columns])
            denominator += weights.sum(1, keepdim=True)
        return numerator, denominator

    with torch.no_grad():
        tiles = run_tiles(range(0, len(queries), rows), lambda: work, parallel=on_cpu)
    numerators, denominators = zip(*tiles, strict=True)
    return torch.cat(numerators), torch.cat(denominators)
