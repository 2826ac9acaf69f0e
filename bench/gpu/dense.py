"""The dense formulation of propagation, which kernels and tiles are compared with, and inputs for it.

query, keys, labels = scene()
truth = dense_rows(query, keys, labels, SIGMAS, GRID)
"""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

GRID, REFERENCES, CHANNELS, LABELS = (60, 107), 9, 256, 2
"""Of 480 x 854 pixels."""

SIGMAS = (21.0,) * 5 + (8.0,) * 4


def scene(
    grid: tuple[int, int] = GRID, channels: int = CHANNELS, references: int = REFERENCES, scale: float = 3.0
) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    """Features that resemble their neighbors in time, as those of a video do; norms as after a BatchNorm."""
    generator = torch.Generator().manual_seed(0)
    cells = grid[0] * grid[1]
    base = torch.randn(cells, channels, generator=generator)
    frames = [base + 0.5 * torch.randn(cells, channels, generator=generator) for _ in range(references + 1)]
    frames = [scale * torch.nn.functional.normalize(frame, dim=1) for frame in frames]
    labels = [torch.rand(cells, LABELS, generator=generator).softmax(1) for _ in range(references)]
    return frames[-1], frames[:-1], labels


@cache
def spatial_prior(grid: tuple[int, int], sigma: float) -> torch.Tensor:
    """(h*w, h*w); made once per video, as the authors do, so it is in the memory but not in the time."""
    rows, columns = torch.meshgrid(*(torch.arange(float(side)) for side in grid), indexing="ij")
    places = torch.stack([rows.flatten(), columns.flatten()], dim=1)
    return torch.exp(-torch.cdist(places, places).square() / sigma**2)


def dense(
    query: Tensor, keys: list[Tensor], labels: list[Tensor], sigmas: tuple[float, ...], grid: tuple[int, int]
) -> Tensor:
    """What the authors' code does: one matrix, references x targets."""
    weights = (torch.cat(list(keys)) @ query.t()).softmax(0)
    for part, sigma in zip(weights.split(len(query)), sigmas, strict=True):
        part.mul_(spatial_prior(grid, sigma))
    return (torch.cat(list(labels)).t() @ weights).view(-1, *grid)


def dense_rows(
    query: Tensor, keys: list[Tensor], labels: list[Tensor], sigmas: tuple[float, ...], grid: tuple[int, int]
) -> Tensor:
    """The same with a target's weights in a row, which is the faster way to write it."""
    weights = (query @ torch.cat(list(keys)).t()).softmax(1)
    for part, sigma in zip(weights.split(len(query), dim=1), sigmas, strict=True):
        part.mul_(spatial_prior(grid, sigma))
    return (weights @ torch.cat(list(labels))).t().reshape(-1, *grid)
