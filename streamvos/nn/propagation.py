"""Carries labels from reference frames to a target frame by affinity attention.

Every cell j of the target looks at the cells i of n reference frames and takes the mean of their labels,
weighted by how alike their features are and how close they lie:

    label_j = sum_i w_ij label_i,    w_ij ~ exp(temperature * f_i . f_j) * exp(-d_ij^2 / sigma^2)

(Zhang et al., "A Transductive Approach for Video Object Segmentation", CVPR 2020, equations 4 to 6). At 480p
with nine references the weights are a matrix of 57780 x 6420, 1.5 GB. Here it never exists: tiles of target
cells meet chunks of reference cells small enough that all passes over their product stay in the cache.

    >>> options = PropagationOptions(temperature=14.0, spatial_prior="none", top_k=10, radius=15)
    >>> soft = propagate(query, keys, labels, sigmas=(), grid=(60, 107), options=options)  # (L, 60, 107)

How it is made fast, in the order of what it brings:
  - keys lie as (h*w, C), so a window of rows is a view and `keys @ query.T` is the product that BLAS likes;
  - whole tiles run in parallel, not single operations (`workers`);
  - powers are of two, log2(e) being part of the temperature: `exp2` costs a third of `exp`;
  - a bias inside the product subtracts each target's similarity to its own place in the last reference. The
    similarities that matter are then small numbers, which bfloat16 holds well, and where |q| |k| proves that
    no other can be so much larger as to overflow, no row maximum is needed;
  - the k best of 10^4 similarities are found in two exact steps: the k best groups by their maxima, then the
    k best within those.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from itertools import accumulate
from typing import Literal, get_args

import torch
from torch import Tensor

from streamvos.nn.selection import group_size, largest
from streamvos.nn.tiling import LOG2_E, Box, cover, log_prior, reach
from streamvos.nn.workers import run_tiles, run_whole
from streamvos.types import InputError

SpatialPrior = Literal["authors", "paper", "none"]
Precision = Literal["float32", "bfloat16"]

NEGLIGIBLE = 1e-6
"""`spatial_prior="paper"`: the share of a target's total weight that may be left out, proven, not assumed."""

_HEADROOM = 64.0  # bits by which a shifted similarity may exceed 0: 2^64 times many cells fits float32
_CELLS = {"cpu": 640, "gpu": 2048}  # of a tile that looks everywhere
_CHUNK = {"cpu": 1 << 19, "gpu": 1 << 25}  # weights at once; on the CPU 2 MB, what a core finds close by
_SELECT = {"cpu": 1 << 23, "gpu": 1 << 26}  # similarities of a tile from which the k best are chosen
_COMPUTE: dict[str, torch.dtype] = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class PropagationOptions:
    """How labels travel.

    Attributes:
        temperature: multiplies the dot products. The authors use 1 on features that are not normalized.
        spatial_prior: where exp(-d^2 / sigma^2) enters. "authors": the softmax is over appearance alone and
            the prior multiplies its result, so that the weights of a target sum to less than 1. "paper": the
            prior is part of the softmax (equation 6). "none": it does not enter.
        top_k: keep only the k largest similarities of a target over all its references (with "paper", the
            prior counts) and let the softmax be over those; None keeps all.
        radius: a target looks only at cells at most so many rows and columns away; None: everywhere.
        precision: in which the products of features are formed and rounded; sums are in float32 always.

    Raises:
        InputError: a value out of its range.
    """

    temperature: float = 1.0
    spatial_prior: SpatialPrior = "authors"
    top_k: int | None = None
    radius: int | None = None
    precision: Precision = "float32"

    def __post_init__(self) -> None:
        if not (math.isfinite(self.temperature) and self.temperature > 0):
            raise InputError(f"temperature must be finite and above 0, got {self.temperature}")
        if self.spatial_prior not in get_args(SpatialPrior):
            raise InputError(f"spatial_prior is one of {get_args(SpatialPrior)}, got {self.spatial_prior!r}")
        if self.precision not in get_args(Precision):
            raise InputError(f"precision is one of {get_args(Precision)}, got {self.precision!r}")
        if self.top_k is not None and self.top_k < 1:
            raise InputError(f"top_k must be at least 1, or None for all, got {self.top_k}")
        if self.radius is not None and self.radius < 0:
            raise InputError(f"radius must be at least 0, or None for everywhere, got {self.radius}")


def propagate(
    query: Tensor,
    keys: Sequence[Tensor],
    labels: Sequence[Tensor],
    sigmas: Sequence[float],
    grid: tuple[int, int],
    options: PropagationOptions,
    radii: Sequence[int | None] | None = None,
) -> Tensor:
    """Labels of the target frame, as its references have them.

    Cells are counted row by row: cell i lies at row i // w, column i % w. All tensors live on one device. No
    gradient is recorded. On a GPU nothing waits for the host.

    With `spatial_prior="paper"` on the CPU, reference cells so far away that together they provably hold less
    than `NEGLIGIBLE` of a target's weight are not looked at: the result is off by at most that share of the
    largest label. With "authors" nothing may be left out, since the denominator knows no distance and labels
    as small as 1e-12 still decide which is the largest.

    Args:
        query: (h*w, C) features of the target, floating point.
        keys: per reference (h*w, C); the last one is taken to be the most recent (only speed depends on it).
            Nothing is copied where their dtype is `options.precision` and they are looked at in full rows;
            otherwise each is cast once per call, so a history does well to store them in that dtype.
        labels: per reference (h*w, L), soft or one-hot, floating point; L counts the background.
        sigmas: per reference the reach of the prior in cells; not read with `spatial_prior="none"`.
        grid: (h, w).
        options: see there.
        radii: per reference a radius in place of `options.radius`, for example None for the first frame only.

    Returns:
        (L, h, w) float32. Weights sum to 1 per cell, except with "authors".

    Raises:
        InputError: shapes, counts or values that do not fit together.
    """
    _check(query, keys, labels, sigmas, grid, options, radii)
    parallel = query.device.type == "cpu"
    dtype = _COMPUTE[options.precision]

    def prepare(reference: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        key = reference[0].to(dtype)
        return key, _norms(key).amax(), reference[1].float()

    with torch.no_grad(), _without_autocast(query.device.type):
        references = run_tiles(list(zip(keys, labels, strict=True)), lambda: prepare, parallel)
        scene = run_whole(lambda: _Scene(query, references, sigmas, grid, options, radii), parallel)
        if scene.shared_labels is None:
            tiles, make_work = _softmax_tiles(scene), partial(_softmax_work, scene)
        else:
            tiles, make_work = _selection_tiles(scene), partial(_selection_work, scene, scene.shared_labels)
        answers = run_tiles(tiles, make_work, parallel)
        out = query.new_empty(labels[0].shape[1], *grid, dtype=torch.float32)
        for tile, answer in zip(tiles, answers, strict=True):
            out[:, tile.top : tile.bottom, tile.left : tile.right] = answer.unflatten(
                1, (tile.rows, tile.columns)
            )
    return out


def _without_autocast(device: str) -> AbstractContextManager[object]:
    """The dtypes here are chosen; a caller's autocast would change them."""
    if torch.amp.is_autocast_available(device):
        return torch.autocast(device, enabled=False)
    return nullcontext()


class _Scene:
    """What all tiles of one call share, made once: similarities are in bits from here on."""

    def __init__(
        self,
        query: Tensor,
        references: Sequence[tuple[Tensor, Tensor, Tensor]],
        sigmas: Sequence[float],
        grid: tuple[int, int],
        options: PropagationOptions,
        radii: Sequence[int | None] | None,
    ) -> None:
        self.grid, self.options = grid, options
        self.device = query.device
        self.kind = "cpu" if query.device.type == "cpu" else "gpu"
        self.dtype = _COMPUTE[options.precision]
        self.keys = [key for key, _, _ in references]
        self.labels = [label for _, _, label in references]
        self.radii = [options.radius] * len(references) if radii is None else list(radii)
        self.sigmas: list[float | None] = [None] * len(references)
        if options.spatial_prior != "none":
            self.sigmas = [float(sigma) for sigma in sigmas]
        # (n*h*w, L), or None where no choice is to be made among the keys
        self.shared_labels: Tensor | None = None
        if options.top_k is not None and options.top_k < len(references) * len(query):
            self.shared_labels = torch.cat(self.labels)

        # Beyond 1e30 bits a softmax is a maximum; the limit keeps the products themselves finite.
        longest = torch.stack([norm for _, norm, _ in references]).amax()
        norms = _norms(query.float())
        scale = torch.clamp(1e30 / (norms.amax() * longest), max=min(options.temperature * LOG2_E, 1e38))
        self.query = (query.float() * scale).to(self.dtype)
        # Subtracting any number that is the same for all keys of a target leaves its softmax as it is.
        self.bias = -(self.query * self.keys[-1]).sum(1, dtype=torch.float32).to(self.dtype)
        # Bits by which another key may lie above the cell's own place: Cauchy-Schwarz, and 1 % for rounding.
        self.excess = norms * scale * longest * 1.01 + self.bias.float()

    def groups(self) -> dict[tuple[float | None, int | None], list[int]]:
        """The references by (sigma, radius): those of a group share window and prior."""
        groups: dict[tuple[float | None, int | None], list[int]] = {}
        for index, key in enumerate(zip(self.sigmas, self.radii, strict=True)):
            groups.setdefault(key, []).append(index)
        return groups

    def worst_excess(self, tile: Box) -> float:
        """Bound on the shifted similarities of a tile; infinite on a GPU, which would have to wait for it."""
        if self.device.type != "cpu":
            return math.inf
        return float(tile.take(self.excess, self.grid).amax())

    def similarities(self, tile: Box, room: int) -> Callable[[Box, int, Tensor | None, Tensor], Tensor]:
        """What fills `out`, (window.cells, tile.cells) float32, with shifted similarities in bits.

        `room` is the largest window in cells. The function returned takes the window, the reference, what is
        to be added (or None) and `out`, which it returns.
        """
        queries = tile.take(self.query, self.grid).t()
        bias = tile.take(self.bias, self.grid)
        narrow = None
        if self.dtype != torch.float32:
            narrow = torch.empty(room, tile.cells, dtype=self.dtype, device=self.device)

        def fill(window: Box, reference: int, extra: Tensor | None, out: Tensor) -> Tensor:
            keys = window.take(self.keys[reference], self.grid)
            if narrow is None:
                torch.addmm(bias, keys, queries, out=out)
                return out if extra is None else out.add_(extra)
            product = torch.addmm(bias, keys, queries, out=narrow[: window.cells])
            return out.copy_(product) if extra is None else torch.add(product, extra, out=out)

        return fill

    def log_weight(self, window: Box, tile: Box, sigma: float | None, radius: int | None) -> Tensor | None:
        """What is added to the similarities before the softmax, in bits; None where it is 0 everywhere."""
        inside = sigma if self.options.spatial_prior == "paper" else None
        if inside is None and radius is None:
            return None
        return log_prior(window, tile, inside, radius, self.device)


def _norms(features: Tensor) -> Tensor:
    """Euclidean norm of each row, float32."""
    return torch.linalg.vector_norm(features, dim=1).float()


# --- all keys: softmax ------------------------------------------------------------------------------------


def _softmax_tiles(scene: _Scene) -> list[Box]:
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


def _softmax_work(scene: _Scene) -> Callable[[Box], Tensor]:
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


def _window_radius(scene: _Scene, sigma: float | None, radius: int | None, worst: float) -> int | None:
    """The radius beyond which a tile need not look at a reference; `worst` bounds its excess in bits."""
    if scene.options.spatial_prior != "paper" or sigma is None or not worst < 500:
        return radius
    # The cell's own place in the last reference has weight 2^0, every other at most 2^worst times its prior.
    enough = reach(sigma, NEGLIGIBLE / len(scene.keys) * 2.0 ** -max(worst, 0.0))
    return enough if radius is None else min(radius, enough)


# --- the k best keys --------------------------------------------------------------------------------------


def _selection_tiles(scene: _Scene) -> list[Box]:
    """Small squares: the similarities of a tile to all its references are held at once."""
    height, width = scene.grid
    for side in (8, 4, 2) if scene.kind == "cpu" else (64, 32, 16, 8, 4):
        tiles = cover(scene.grid, math.ceil(height / side), math.ceil(width / side))
        middle = tiles[len(tiles) // 2]
        if middle.cells * sum(middle.grow(r, scene.grid).cells for r in scene.radii) <= _SELECT[scene.kind]:
            break
    return tiles


def _selection_work(scene: _Scene, shared_labels: Tensor) -> Callable[[Box], Tensor]:
    """The function that gives (L, tile.cells) with the k best keys in the softmax.

    Args:
        shared_labels: (n*h*w, L), the labels of all references.
    """
    assert scene.options.top_k is not None
    top_k, count = scene.options.top_k, scene.query.shape[0]
    width = scene.grid[1]
    cells = torch.arange(count, device=scene.device)
    inverse_squares = [0.0 if sigma is None else LOG2_E / sigma**2 for sigma in scene.sigmas]
    inverse = torch.tensor(inverse_squares, dtype=torch.float32).to(scene.device, non_blocking=True)
    at_once = max(1, _SELECT[scene.kind] // (top_k * shared_labels.shape[1]))
    scratch = torch.empty(0, dtype=torch.float32, device=scene.device)

    def work(tile: Box) -> Tensor:
        nonlocal scratch
        windows = [tile.grow(radius, scene.grid) for radius in scene.radii]
        ends = list(accumulate((window.cells for window in windows), initial=0))
        best = min(top_k, ends[-1])
        group = group_size(ends[-1], best)
        padded = math.ceil(ends[-1] / group) * group
        if scratch.numel() < padded * tile.cells:
            scratch = scratch.new_empty(padded * tile.cells)
        bits = scratch[: padded * tile.cells].view(padded, tile.cells)
        bits[ends[-1] :] = -math.inf
        source = torch.zeros(padded, dtype=torch.int64, device=scene.device)  # row of `bits` -> row of labels
        similarities = scene.similarities(tile, max(window.cells for window in windows))
        for (sigma, radius), references in scene.groups().items():
            window = windows[references[0]]
            inside = scene.log_weight(window, tile, sigma, radius)
            here = window.take(cells, scene.grid)
            for reference in references:
                rows = slice(ends[reference], ends[reference + 1])
                similarities(window, reference, inside, bits[rows])
                torch.add(here, reference * count, out=source[rows])
        values, chosen = largest(bits, best, group)
        weights = torch.softmax(values * math.log(2), dim=1)
        chosen = source[chosen]
        if scene.options.spatial_prior == "authors":
            there, here = chosen % count, tile.take(cells, scene.grid)[:, None]
            down, right = there // width - here // width, there % width - here % width
            weights *= torch.exp2(-(down.square() + right.square()) * inverse[chosen // count])
        pieces = zip(weights.split(at_once), chosen.split(at_once), strict=True)
        return torch.cat([torch.bmm(w[:, None], shared_labels[c])[:, 0] for w, c in pieces]).t()

    return work


# --- input ------------------------------------------------------------------------------------------------


def _check(
    query: Tensor,
    keys: Sequence[Tensor],
    labels: Sequence[Tensor],
    sigmas: Sequence[float],
    grid: tuple[int, int],
    options: PropagationOptions,
    radii: Sequence[int | None] | None,
) -> None:
    """Shapes, counts and dtypes; what lies in the tensors is not looked at."""
    height, width = grid
    if height < 1 or width < 1:
        raise InputError(f"grid is (h, w), both at least 1, got {grid}")
    count = height * width
    if query.ndim != 2 or query.shape[0] != count or query.shape[1] < 1:
        raise InputError(f"query of a {height} x {width} grid is ({count}, C), got {tuple(query.shape)}")
    if len(keys) == 0:
        raise InputError("no reference: keys is empty; propagation needs at least one labeled frame")
    if len(labels) != len(keys):
        raise InputError(f"each of {len(keys)} references needs its labels, got {len(labels)}")
    for name, tensors, columns in (
        ("keys", keys, query.shape[1]),
        ("labels", labels, labels[0].shape[-1] if labels[0].ndim else 0),
    ):
        for index, tensor in enumerate(tensors):
            if tuple(tensor.shape) != (count, columns) or columns < 1:
                raise InputError(
                    f"{name}[{index}] has shape {tuple(tensor.shape)}, expected ({count}, {max(columns, 1)})"
                )
    for tensor in (query, *keys, *labels):
        if not tensor.is_floating_point():
            raise InputError(f"features and labels are floating point, got {tensor.dtype}; convert first")
        if tensor.device != query.device:
            raise InputError(f"all tensors belong on {query.device} with the query, got {tensor.device}")
    if options.spatial_prior != "none":
        if len(sigmas) != len(keys):
            raise InputError(f"each of {len(keys)} references needs a sigma, got {len(sigmas)}")
        if not all(math.isfinite(sigma) and sigma > 0 for sigma in sigmas):
            raise InputError(f"sigmas are cells, finite and above 0, got {list(sigmas)}")
    if radii is not None:
        if len(radii) != len(keys):
            raise InputError(f"radii, if given, has one entry per reference ({len(keys)}), got {len(radii)}")
        if any(radius is not None and radius < 0 for radius in radii):
            raise InputError(f"each radius is at least 0, or None for everywhere, got {list(radii)}")
