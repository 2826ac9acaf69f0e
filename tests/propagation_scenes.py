"""Frames to propagate labels between, options of every kind, and the definition of the answer."""

from __future__ import annotations

import math

import torch

from streamvos.nn.propagation import PropagationOptions


def dense(query, keys, labels, sigmas, grid, options, radii=None) -> torch.Tensor:
    """The definition, in float64, with the whole matrix."""
    height, width = grid
    place = torch.stack(torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij"), -1).view(
        -1, 2
    )
    apart = (place[:, None] - place[None]).abs()
    squared = apart.double().square().sum(-1)
    logits, priors = [], []
    for k, key in enumerate(keys):
        similarity = options.temperature * key.double() @ query.double().t()
        prior = torch.exp(-squared / sigmas[k] ** 2) if sigmas else torch.ones_like(squared)
        if options.spatial_prior == "paper":
            similarity = similarity - squared / sigmas[k] ** 2
        radius = options.radius if radii is None else radii[k]
        if radius is not None:
            similarity = similarity.masked_fill(apart.amax(-1) > radius, -math.inf)
        logits.append(similarity)
        priors.append(prior)
    stacked = torch.cat(logits)
    if options.top_k is not None and options.top_k < len(stacked):
        least = stacked.topk(options.top_k, dim=0).values[-1]
        stacked = stacked.masked_fill(stacked < least, -math.inf)
    weights = stacked.softmax(0)
    if options.spatial_prior == "authors":
        weights = weights * torch.cat(priors)
    return (torch.cat(list(labels)).double().t() @ weights).view(-1, height, width)


def scene(grid, references=3, channels=16, labels=2, scale=1.0, seed=0):
    generator = torch.Generator().manual_seed(seed)
    cells = grid[0] * grid[1]
    keys = [scale * torch.randn(cells, channels, generator=generator) for _ in range(references)]
    query = keys[-1] + 0.3 * scale * torch.randn(cells, channels, generator=generator)
    soft = [torch.rand(cells, labels, generator=generator).softmax(1) for _ in range(references)]
    return query, keys, soft, [21.0] * (references - 1) + [3.0]


OPTIONS = [
    PropagationOptions(spatial_prior=prior, top_k=top_k, radius=radius, temperature=0.7)
    for prior in ("authors", "paper", "none")
    for top_k in (None, 1, 7)
    for radius in (None, 0, 4)
]
"""Every prior, all keys and few, near and everywhere."""
