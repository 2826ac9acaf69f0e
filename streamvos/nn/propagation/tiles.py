"""Propagation in tiles of torch's operations, on any device.

How the tiles are made fast, most effective first:
  - keys are (h*w, C), so a window of rows is a view and `keys @ query.T` is the product that BLAS likes;
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
from functools import partial
from itertools import accumulate

import torch
from torch import Tensor

from streamvos.nn.propagation.options import Propagation
from streamvos.nn.tiling import LOG2_E, Box, cover, log_prior, paste, reach
from streamvos.nn.transfer import send
from streamvos.nn.workers import run_tiles, run_whole

NEGLIGIBLE = 1e-6
"""`spatial_prior="paper"`: the largest share of a target's total weight that may be left out."""

_HEADROOM = 64.0  # bits by which a shifted similarity may exceed 0: 2^64 times many cells fits float32
_CELLS = {"cpu": 640, "gpu": 2048}  # cells of a tile that looks everywhere
_CHUNK = {"cpu": 1 << 19, "gpu": 1 << 25}  # weights at once; on the CPU 2 MB, which a core's cache holds
_SELECT = {"cpu": 1 << 23, "gpu": 1 << 26}  # similarities of a tile from which the k best are chosen


def propagate_in_tiles(call: Propagation) -> Tensor:
    """The labels that `propagate` returns."""
    parallel = call.query.device.type == "cpu"

    def prepare(reference: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        key = reference[0].to(call.options.dtype)
        return key, norms_of(key).amax(), reference[1].float()

    references = run_tiles(list(zip(call.keys, call.labels, strict=True)), lambda: prepare, parallel)
    scene = run_whole(lambda: Scene(call, references), parallel)
    if call.selects:
        tiles, make_work = selection_tiles(scene), partial(selection_work, scene, torch.cat(scene.labels))
    else:
        tiles, make_work = softmax_tiles(scene), partial(softmax_work, scene)
    answers = run_tiles(tiles, make_work, parallel)
    return paste(tiles, answers, call.grid)


class Scene:
    """What all tiles of one call share, made once. Similarities are in bits (powers of two) from here on."""

    def __init__(self, call: Propagation, references: Sequence[tuple[Tensor, Tensor, Tensor]]) -> None:
        query, options = call.query, call.options
        self.grid, self.options = call.grid, options
        self.device = query.device
        self.kind = "cpu" if query.device.type == "cpu" else "gpu"
        self.dtype = options.dtype
        self.keys = [key for key, _, _ in references]
        self.labels = [label for _, _, label in references]
        self.radii = call.reaches
        self.sigmas: list[float | None] = [None] * len(references)
        if options.spatial_prior != "none":
            self.sigmas = [float(sigma) for sigma in call.sigmas]

        # Beyond 1e30 bits a softmax is a maximum; the limit keeps the products themselves finite.
        longest = torch.stack([norm for _, norm, _ in references]).amax()
        norms = norms_of(query.float())
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
        """Bound on the shifted similarities of a tile; infinite on a GPU, where reading it would wait."""
        if self.device.type != "cpu":
            return math.inf
        return float(tile.take(self.excess, self.grid).amax())

    def similarities(self, tile: Box, room: int) -> Callable[[Box, int, Tensor | None, Tensor], Tensor]:
        """A function that fills `out`, (window.cells, tile.cells) float32, with shifted similarities in bits.

        `room` is the largest window in cells. The function takes the window, the reference, a summand (or
        None) and `out`, which it returns.
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
        """The summand of the similarities before the softmax, in bits; None where it is 0 everywhere."""
        inside = sigma if self.options.spatial_prior == "paper" else None
        if inside is None and radius is None:
            return None
        return log_prior(window, tile, inside, radius, self.device)


def norms_of(features: Tensor) -> Tensor:
    """Euclidean norm of each row, float32."""
    return torch.linalg.vector_norm(features, dim=1).float()


def softmax_tiles(scene: Scene) -> list[Box]:
    """Bands of full rows, or small squares if windows are so small that squares cost less."""
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
    """The radius within which a tile looks at a reference; `worst` bounds its excess in bits."""
    if scene.options.spatial_prior != "paper" or sigma is None or not worst < 500:
        return radius
    # The cell's own place in the last reference has weight 2^0, every other at most 2^worst times its prior.
    enough = reach(sigma, NEGLIGIBLE / len(scene.keys) * 2.0 ** -max(worst, 0.0))
    return enough if radius is None else min(radius, enough)


def selection_tiles(scene: Scene) -> list[Box]:
    """Small squares, as the similarities of a tile to all its references are in memory at once."""
    height, width = scene.grid
    for side in (8, 4, 2) if scene.kind == "cpu" else (64, 32, 16, 8, 4):
        tiles = cover(scene.grid, math.ceil(height / side), math.ceil(width / side))
        middle = tiles[len(tiles) // 2]
        if middle.cells * sum(middle.grow(r, scene.grid).cells for r in scene.radii) <= _SELECT[scene.kind]:
            break
    return tiles


def best_keys(scene: Scene) -> Callable[[Box], tuple[Tensor, Tensor]]:
    """The function that finds the k best keys of every target of a tile.

    It gives their similarities in bits, (tile.cells, k) float32, and their rows in all references one after
    the other, (tile.cells, k) int64.
    """
    assert scene.options.top_k is not None
    top_k, count = scene.options.top_k, scene.query.shape[0]
    cells = torch.arange(count, device=scene.device)
    scratch = torch.empty(0, dtype=torch.float32, device=scene.device)

    def find(tile: Box) -> tuple[Tensor, Tensor]:
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
        return values, source[chosen]

    return find


def selection_work(scene: Scene, labels: Tensor) -> Callable[[Box], Tensor]:
    """The function that gives (L, tile.cells) with the k best keys in the softmax; labels: (n*h*w, L)."""
    count, width = scene.query.shape[0], scene.grid[1]
    cells = torch.arange(count, device=scene.device)
    inverse_squares = [0.0 if sigma is None else LOG2_E / sigma**2 for sigma in scene.sigmas]
    inverse = send(inverse_squares, torch.float32, scene.device)
    at_once = max(1, _SELECT[scene.kind] // ((scene.options.top_k or 1) * labels.shape[1]))
    find = best_keys(scene)

    def work(tile: Box) -> Tensor:
        values, chosen = find(tile)  # (cells, best): rows of the labels
        weights = torch.softmax(values * math.log(2), dim=1)
        if scene.options.spatial_prior == "authors":
            there, here = chosen % count, tile.take(cells, scene.grid)[:, None]
            down, right = there // width - here // width, there % width - here % width
            weights *= torch.exp2(-(down.square() + right.square()) * inverse[chosen // count])
        pieces = zip(weights.split(at_once), chosen.split(at_once), strict=True)
        return torch.cat([torch.bmm(w[:, None], labels[c])[:, 0] for w, c in pieces]).t()

    return work


def group_size(count: int, best: int) -> int:
    """Number of keys with one common maximum: the two steps cost about count / group + best * group."""
    if count <= 64 * best:
        return 1
    return int(2 ** round(math.log2(math.sqrt(count / best) / 2)))


def largest(bits: Tensor, best: int, group: int) -> tuple[Tensor, Tensor]:
    """Values and rows of the `best` largest entries of every column.

    The k best groups by their maxima hold the k best entries: all entries of any other group are at most as
    large as each of k maxima. Which of equal entries is taken is open.

    Args:
        bits: (group * m, T).

    Returns:
        (T, best) float32 and (T, best) int64.
    """
    rows, columns = bits.shape
    if group == 1:
        values, found = bits.t().topk(best, dim=1, sorted=False)
        return values, found
    grouped = bits.view(rows // group, group, columns)
    maxima = grouped.amax(1).t()  # (T, m)
    chosen = maxima.topk(min(best, maxima.shape[1]), dim=1, sorted=False).indices
    column = torch.arange(columns, device=bits.device)[:, None]
    candidates = grouped[chosen, :, column].flatten(1)  # (T, k * group)
    values, found = candidates.topk(best, dim=1, sorted=False)
    return values, chosen.gather(1, found // group) * group + found % group
