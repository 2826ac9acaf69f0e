"""Propagation in tiles, all keys of a target in the softmax.

tiles = softmax_tiles(scene)
answers = run_tiles(tiles, partial(softmax_work, scene))
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from streamvos.nn.propagation.scene import Scene
from streamvos.nn.tiling import Box, cover, log_prior, reach

NEGLIGIBLE = 1e-6
"""`spatial_prior="paper"`: the share of a target's total weight that may be left out, proven, not assumed."""

_HEADROOM = 64.0  # bits by which a shifted similarity may exceed 0: 2^64 times many cells fits float32
_CELLS = {"cpu": 640, "gpu": 2048}  # of a tile that looks everywhere
_CHUNK = {"cpu": 1 << 19, "gpu": 1 << 25}  # weights at once; on the CPU 2 MB, what a core finds close by


def softmax_tiles(scene: Scene) -> list[Box]:
    """Bands of full rows, or small squares where the windows are so small that these have less to do."""
    height, width = scene.grid
    threads = torch.get_num_threads() if scene.kind == "cpu" else 1
    across = math.ceil(width / _CELLS[scene.kind])
    down = math.ceil(height * math.ceil(width / across) / _CELLS[scene.kind])
    choices = [cover(scene.grid, math.ceil(down / threads) * threads, across)]  # no thread is left waiting
    for side in (8, 16) if scene.kind == "cpu" else (32,):
        choices.append(cover(scene.grid, math.ceil(height / side), math.ceil(width / side)))

    guess = 0.0 if scene.kind == "cpu" else math.inf
    radii = [(_window_radius(scene, *pair, guess), len(refs)) for pair, refs in scene.groups().items()]

    def cost(tiles: list[Box]) -> int:
        # A key is read once per tile, which costs about as much as ten more targets.
        return sum(
            (t.cells + 10) * t.grow(radius, scene.grid).cells * n for t in tiles for radius, n in radii
        )

    return min(choices, key=cost)


def softmax_work(scene: Scene) -> Callable[[Box], Tensor]:
    """The function that gives (L, tile.cells) with all keys in the softmax."""
    authors = scene.options.spatial_prior == "authors"
    scratch = torch.empty(0, dtype=torch.float32, device=scene.device)

    def work(tile: Box) -> Tensor:
        nonlocal scratch
        worst = scene.worst_excess(tile)
        room = max(_CHUNK[scene.kind] // tile.cells, scene.grid[1])  # at least one row of keys
        if scratch.numel() < room * tile.cells:
            scratch = scratch.new_empty(room * tile.cells)
        similarities = scene.similarities(tile, room)
        total = scratch.new_zeros(tile.cells)
        carried = scratch.new_zeros(scene.labels[0].shape[1], tile.cells)
        top = None if worst <= _HEADROOM else torch.full_like(total, torch.finfo(torch.float32).min)
        for (sigma, radius), references in scene.groups().items():
            window = tile.grow(_window_radius(scene, sigma, radius, worst), scene.grid)
            for chunk in window.bands(room // window.columns):
                inside = scene.log_weight(chunk, tile, sigma, radius)
                outside = log_prior(chunk, tile, sigma, None, scene.device).exp2_() if authors else None
                weights = scratch[: chunk.cells * tile.cells].view(chunk.cells, tile.cells)
                for reference in references:
                    similarities(chunk, reference, inside, weights)
                    if top is not None:
                        new = torch.maximum(top, weights.amax(0))
                        shrink = torch.exp2(top - new)
                        total *= shrink
                        carried *= shrink
                        weights -= new
                        top = new
                    total += weights.exp2_().sum(0)
                    if outside is not None:
                        weights *= outside
                    carried.addmm_(chunk.take(scene.labels[reference], scene.grid).t(), weights)
        return carried / total

    return work


def _window_radius(scene: Scene, sigma: float | None, radius: int | None, worst: float) -> int | None:
    """The radius beyond which a tile need not look at a reference; `worst` bounds its excess in bits."""
    if scene.options.spatial_prior != "paper" or sigma is None or not worst < 500:
        return radius
    # The cell's own place in the last reference has weight 2^0, every other at most 2^worst times its prior.
    enough = reach(sigma, NEGLIGIBLE / len(scene.keys) * 2.0 ** -max(worst, 0.0))
    return enough if radius is None else min(radius, enough)
