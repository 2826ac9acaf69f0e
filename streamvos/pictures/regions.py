"""Whether a picture is painted in a few values, as masks are, and which values these are.

Where a value fills a region, most of its pixels lie in the middle of a 3 x 3 square of the same value (a
*core*). Smooth edges and the noise of lossy formats add further values, but thin fringes of them: next to no
cores, and many pixels whose value lies between those of two opposite neighbors. Photographs, depth maps and
heat maps have such pixels everywhere, and their cores belong to no few values.

    regions = find_regions(gray[..., None])
    regions.colors[:, 0], regions.fringe    # array([0, 255]), 1804
    regions.index                           # (H, W): 0 or 1, the fringe too
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

MOST = 9
"""Values that a picture with soft edges may have; one of them is usually the background."""

_TOLERANCE = 12  # of 255; lossy formats move a value by up to this
_RAMPS = 0.06  # of the pixels at edges; label maps have less than 0.03, masks with soft edges more than 0.15
_GRADUAL = 0.6  # of the steps between neighbors
_LARGEST_FRINGE = 0.25  # of the picture
_CORES = 0.5  # of all cores outside of the background that must belong to the few values
_SMALL = 0.01  # of the picture; an object that small needs no core
_FAINTEST = 64  # the brightest value of such an object

_RADII = (2, 4, 8)  # in which a fringe looks for the regions that it lies between
_AXES = ((0, 1), (1, 0), (1, 1), (1, -1))  # of opposite neighbors, as (rows, columns)


class UnclearError(ValueError):
    """The picture is not painted in a few values; the text says what was seen."""


@dataclass(frozen=True)
class Regions:
    """The values that a picture is painted in.

    Attributes:
        colors: (K, C) uint8, ascending.
        index: (H, W) integer: the row of `colors` that a pixel has or, in a fringe, is closest to.
        fringe: the number of pixels that have none of the values.
    """

    colors: np.ndarray
    index: np.ndarray
    fringe: int


def find_regions(pixels: np.ndarray) -> Regions:
    """The values that a picture is painted in: all of them, or the strong ones where edges are soft.

    Args:
        pixels: (H, W, C) uint8, C is 1 or 3.

    Raises:
        UnclearError: there are no few values with thin fringes.
    """
    colors, index, counts = _histogram(pixels)
    if len(colors) <= 2 or min(pixels.shape[:2]) < 3:
        return Regions(colors.astype(np.uint8), index, 0)
    core, ramp = _cores_and_ramps(pixels, index)
    cores = np.bincount(index[1:-1, 1:-1][core], minlength=len(colors))
    ramps = ramp.sum() / max((~core).sum(), 1)
    is_noisy = (
        _is_gradual(pixels, len(colors)) or _has_halos(colors, counts, cores) or _is_nearly_white(colors)
    )
    if ramps <= _RAMPS and not is_noisy:
        return Regions(colors.astype(np.uint8), index, 0)
    strong = _strong(colors, counts, cores)
    fringe = _check(colors, counts, cores, strong)
    chosen = colors[sorted(strong)]  # ascending, as the histogram is
    distances = np.abs(colors[:, None] - chosen).sum(2)  # (values, strong values)
    firm = np.abs(colors[:, None] - chosen).max(2) <= _tolerance(colors)
    _check_fringe(pixels, ~firm.any(1)[index], _tolerance(colors))
    return Regions(chosen.astype(np.uint8), _assign(index, distances, firm), fringe)


def _assign(index: np.ndarray, distances: np.ndarray, firm: np.ndarray) -> np.ndarray:
    """The strong value of each pixel, (H, W): the closest of those that fill a region near it.

    Between white and black an edge has gray pixels, though gray may be another object, far away.
    """
    closest = distances.argmin(1)[index]
    if distances.shape[1] == 2:
        return closest
    regions = []
    for row in range(distances.shape[1]):
        own = firm[index, row]
        regions.append(own & _near(~_near(~own, 1), 1))  # without what is thinner than 3 pixels
    is_open = ~np.any(regions, axis=0)
    result = np.where(is_open, closest, np.argmax(regions, axis=0))
    for radius in _RADII:
        near = np.stack([_near(region, radius) for region in regions], axis=2)
        found = is_open & (near.sum(2) >= 2)
        result[found] = np.where(near[found], distances[index[found]], np.inf).argmin(1)
        is_open &= ~found
    return result


def _near(mask: np.ndarray, radius: int) -> np.ndarray:
    """Where `mask` holds within a square of this radius, (H, W) bool."""
    sums = np.zeros((mask.shape[0] + 2 * radius + 1, mask.shape[1] + 2 * radius + 1), np.int32)
    sums[1:, 1:] = np.pad(mask, radius).cumsum(0, dtype=np.int32).cumsum(1)
    side = 2 * radius + 1
    return (sums[side:, side:] - sums[:-side, side:] - sums[side:, :-side] + sums[:-side, :-side]) > 0


def _histogram(pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The colors of a picture, (K, C) int64 ascending, the row of each pixel, and the pixels of each row."""
    if pixels.shape[2] == 1:
        all_counts = np.bincount(pixels.ravel(), minlength=256)
        values = np.flatnonzero(all_counts)
        rows = np.cumsum(all_counts > 0) - 1
        return values[:, None], rows[pixels[..., 0]], all_counts[values]
    red, green, blue = (pixels[..., channel].astype(np.int32) for channel in range(3))
    packed = red << 16 | green << 8 | blue
    values, counts = np.unique(packed, return_counts=True)
    rows = np.zeros(1 << 24, np.int32)  # a look-up, which is faster than unique's inverse
    rows[values] = np.arange(len(values))
    colors = np.stack([values >> 16, values >> 8 & 255, values & 255], axis=1).astype(np.int64)
    return colors, rows[packed], counts


def _cores_and_ramps(pixels: np.ndarray, index: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Which inner pixels are equal to all neighbors, and which lie between two opposite ones; (H-2, W-2)."""
    height, width = index.shape
    middle, own = pixels[1:-1, 1:-1], index[1:-1, 1:-1]
    core, ramp = np.ones(own.shape, bool), np.zeros(own.shape, bool)
    for down, right in _AXES:
        one = np.s_[1 + down : height - 1 + down, 1 + right : width - 1 + right]
        other = np.s_[1 - down : height - 1 - down, 1 - right : width - 1 - right]
        as_one, as_other = index[one] == own, index[other] == own
        between = ~as_one & ~as_other
        for channel in range(pixels.shape[2]):
            first, second, own_value = (part[..., channel] for part in (pixels[one], pixels[other], middle))
            between &= (np.minimum(first, second) <= own_value) & (own_value <= np.maximum(first, second))
        ramp |= between
        core &= as_one & as_other
    return core, ramp


def _is_gradual(pixels: np.ndarray, count: int) -> bool:
    """Whether many values follow one another in steps of 1 or 2, as in slow gradients."""
    if count < 32:
        return False
    steps = np.concatenate(
        [np.abs(np.diff(pixels.astype(np.int16), axis=axis)).max(2).ravel() for axis in (0, 1)]
    )
    return bool((steps[steps > 0] <= 2).mean() > _GRADUAL)


def _has_halos(colors: np.ndarray, counts: np.ndarray, cores: np.ndarray) -> bool:
    """Whether every large region has a few pixels that differ by 1, as lossy formats of high quality add."""
    large = np.flatnonzero((cores >= 0.3 * counts) & (counts >= 0.0005 * counts.sum()))
    faint = cores <= 0.05 * counts
    halos = [
        (np.abs(colors - colors[k]).max(1) == 1) & faint & (counts <= 0.05 * counts[k]) for k in large[:64]
    ]
    return len(large) > 1 and all(halo.any() for halo in halos)


def _is_nearly_white(colors: np.ndarray) -> bool:
    """Whether gray values lie right below 255, where no ids do unless there are very many."""
    values = colors[:, 0]
    return bool(
        colors.shape[1] == 1 and len(values) < 100 and values[-1] == 255 and values[-2] >= 255 - _TOLERANCE
    )


def _strong(colors: np.ndarray, counts: np.ndarray, cores: np.ndarray) -> list[int]:
    """Rows of the strong values: those with the most cores, each far from the others."""
    tolerance = _tolerance(colors)
    strong: list[int] = []
    least = 1.0
    for row in np.argsort(-cores, kind="stable"):
        if cores[row] < least or len(strong) > MOST:
            break
        if not strong or np.abs(colors[strong] - colors[row]).max(1).min() > tolerance:
            strong.append(int(row))
            if len(strong) == 2:
                least = max(1.0, 0.002 * cores[row])
    if len(strong) == 1 and colors[-1].max() >= _FAINTEST:  # a small object may have no core
        others = counts[np.abs(colors - colors[strong]).max(1) > tolerance].sum()
        if others < _SMALL * counts.sum():
            strong.append(len(colors) - 1)
    return strong


def _check(colors: np.ndarray, counts: np.ndarray, cores: np.ndarray, strong: list[int]) -> int:
    """The number of fringe pixels; UnclearError if the strong values do not explain the picture."""
    seen = f"{len(colors)} different values"
    if not 2 <= len(strong) <= MOST:
        raise UnclearError(
            f"{seen}, few of which fill a region" if strong else f"{seen}, none of which does so"
        )
    distances = np.abs(colors[:, None] - colors[strong]).max(2).min(1)
    tolerance = _tolerance(colors)
    fringe = int(counts[distances > tolerance].sum())
    solid = (cores > 0.5 * counts) & (counts > 0.0003 * counts.sum())
    crowded = solid & (distances > 0) & (distances <= tolerance)
    if crowded.any():
        near = ", ".join(
            str(tuple(color.tolist()) if len(color) > 1 else color[0]) for color in colors[crowded][:3]
        )
        raise UnclearError(f"{seen}, with regions of {near} beside soft edges")
    if fringe > _LARGEST_FRINGE * counts.sum():
        share = 100 * fringe / counts.sum()
        raise UnclearError(
            f"{seen}, and {share:.0f} % of the pixels have none of the {len(strong)} strongest"
        )
    top = int(np.argmax(cores))
    rest = int(cores.sum() - cores[top])
    if rest and cores[[row for row in strong if row != top]].sum() < _CORES * rest:
        raise UnclearError(f"{seen}, few of which fill a region")
    return int(counts.sum() - counts[strong].sum())


def _check_fringe(pixels: np.ndarray, far: np.ndarray, tolerance: int) -> None:
    """Unclear if the pixels (H, W) that are far from all strong values are flat, as regions of noise are."""
    flat = np.ones(np.subtract(far.shape, 2), bool)
    height, width = far.shape
    middle = pixels[1:-1, 1:-1].astype(np.int16)
    for down, right in _AXES:
        for sign in (1, -1):
            y, x = 1 + sign * down, 1 + sign * right
            other = pixels[y : height - 2 + y, x : width - 2 + x]
            for channel in range(pixels.shape[2]):
                flat &= np.abs(middle[..., channel] - other[..., channel]) <= tolerance
    fringe = int(far.sum())
    if fringe > 0.001 * far.size and (flat & far[1:-1, 1:-1]).sum() > 0.5 * fringe:
        raise UnclearError("few values that fill a region, and whole regions of others")


def _tolerance(colors: np.ndarray) -> int:
    return int(min(_TOLERANCE, colors.max() // 4))
