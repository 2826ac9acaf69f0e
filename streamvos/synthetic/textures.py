"""Procedural textures and outlines for synthetic videos without photographs.

A texture must look like an object to a person who watches the demo, and a network must be able to recognize
its patches. Regular patterns (stripes, dots, checks, weave) repeat themselves, so every pattern here is bent
and mottled with noise of several octaves.

    >>> texture = procedural_texture(np.random.default_rng(0), (120, 160), cell=12)
    >>> texture.shape, texture.dtype
    ((120, 160, 3), dtype('uint8'))
"""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np

Array = np.ndarray

Size = tuple[int, int]
"""Height and width in pixels."""


def fractal_noise(
    rng: np.random.Generator, size: Size, cell: float, octaves: int = 4, persistence: float = 0.55
) -> Array:
    """Smooth noise of several octaves.

    Args:
        cell: wavelength of the coarsest octave in pixels; each further octave halves it.
        octaves: number of octaves at most; those finer than 2 px are left out.
        persistence: amplitude of an octave relative to the previous one.

    Returns:
        (height, width) float32, about 0..1, mean 0.5.
    """
    height, width = size
    count = int(np.clip(1 + np.floor(np.log2(max(cell, 2.0) / 2)), 1, max(1, octaves)))
    shares = persistence ** np.arange(count)
    shares /= shares.sum()
    # One more cell on each side keeps the cubic interpolation inside the grid.
    rows, columns = int(height / cell) + 4, int(width / cell) + 4
    total = shares[0] * rng.random((rows, columns), np.float32)
    for share in shares[1:]:
        # Each octave is added on its own coarse grid; the sum is enlarged from octave to octave.
        rows, columns, cell = 2 * rows, 2 * columns, cell / 2
        total = np.asarray(cv2.resize(total, (columns, rows), interpolation=cv2.INTER_CUBIC))
        total += share * rng.random((rows, columns), np.float32)
    margin = cell * 2 ** (count - 1)
    grid = np.array([[1 / cell, 0, margin / cell], [0, 1 / cell, margin / cell]])
    total = cv2.warpAffine(total, grid, (width, height), flags=cv2.INTER_CUBIC | cv2.WARP_INVERSE_MAP)
    # Averaging octaves shrinks the spread; stretch it so that patterns reach both ends of the palette.
    return np.clip((total - 0.5) * 1.5 + 0.5, 0, 1)


def _shades(rng: np.random.Generator, hues: Array, saturation: float, dark: float, light: float) -> Array:
    """(N, 3) float32 RGB, one color per hue (0..180), from dark to light (0..1)."""
    saturations = np.clip(rng.normal(saturation, 0.1, len(hues)), 0.04, 0.95) * 255
    values = np.linspace(dark, light, len(hues)) * 255
    colors = np.stack([hues % 180, saturations, values], 1).astype(np.uint8)[None]
    return np.asarray(cv2.cvtColor(colors, cv2.COLOR_HSV2RGB))[0].astype(np.float32)


def vivid_palette(rng: np.random.Generator) -> Array:
    """Colors of an object: (4, 3) float32 RGB 0..255, from dark to light; one hue, or two opposed ones."""
    hues = rng.uniform(0, 180) + rng.normal(0, 6, 4)
    if rng.random() < 0.5:
        hues[2:] += rng.choice([30.0, 60.0, 90.0])
    return _shades(rng, hues, rng.uniform(0.45, 0.8), rng.uniform(0.2, 0.4), rng.uniform(0.8, 1.0))


def natural_palette(rng: np.random.Generator) -> Array:
    """Colors of ground, plants, stone or water: (4, 3) float32 RGB 0..255, from dark to light."""
    kind = int(rng.integers(len(NATURAL_HUES)))
    hues = NATURAL_HUES[kind] + rng.normal(0, 5, 4)
    return _shades(rng, hues, NATURAL_SATURATIONS[kind], rng.uniform(0.32, 0.5), rng.uniform(0.65, 0.9))


# Hue (0..180) and saturation (0..1) of earth, sand, straw, leaves, grass, moss, water, sky and stone.
NATURAL_HUES = (12, 18, 24, 42, 50, 60, 98, 108, 20)
NATURAL_SATURATIONS = (0.35, 0.4, 0.3, 0.45, 0.4, 0.25, 0.35, 0.3, 0.1)


def _colorize(field: Array, colors: Array) -> Array:
    """Paint a 0..1 field with a palette, blending between neighbors: (H, W) -> (H, W, 3) uint8."""
    positions = np.linspace(0, 1, len(colors))
    ramp = np.stack([np.interp(np.linspace(0, 1, 256), positions, colors[:, c]) for c in range(3)], 1)
    table = ramp.astype(np.uint8)[:, None]
    index = np.clip(field * 255, 0, 255).astype(np.uint8)
    return cv2.LUT(cv2.cvtColor(index, cv2.COLOR_GRAY2RGB), np.ascontiguousarray(table))


def voronoi_cells(rng: np.random.Generator, size: Size, cell: float) -> tuple[Array, Array]:
    """Split a rectangle into cells around jittered grid points.

    Returns:
        index of the cell (height, width) int32 from 0 without gaps at the seeds, and the distance to
        the cell's seed (height, width) float32 in pixels.
    """
    height, width = size
    ys, xs = np.meshgrid(np.arange(0, height + cell, cell), np.arange(0, width + cell, cell), indexing="ij")
    points = np.stack([ys, xs], -1).reshape(-1, 2) + rng.uniform(-0.45, 0.45, (ys.size, 2)) * cell
    points = np.clip(points, 0, [height - 1, width - 1]).astype(int)
    seeds = np.full(size, 255, np.uint8)
    seeds[points[:, 0], points[:, 1]] = 0
    distance, labels = cv2.distanceTransformWithLabels(
        seeds, cv2.DIST_L2, cv2.DIST_MASK_5, labelType=cv2.DIST_LABEL_PIXEL
    )
    return labels - 1, distance


def _bent_grid(rng: np.random.Generator, size: Size, cell: float) -> tuple[Array, Array]:
    """Pattern coordinates in units of `cell`, turned by a random angle and bent by slow noise."""
    angle = rng.uniform(0, np.pi)
    ys, xs = np.mgrid[: size[0], : size[1]].astype(np.float32)
    bend = cell * rng.uniform(0.3, 1.2)
    dx = (fractal_noise(rng, size, 6 * cell, 2) - 0.5) * bend * 2
    dy = (fractal_noise(rng, size, 6 * cell, 2) - 0.5) * bend * 2
    u = (np.cos(angle) * (xs + dx) + np.sin(angle) * (ys + dy)) / cell
    v = (-np.sin(angle) * (xs + dx) + np.cos(angle) * (ys + dy)) / cell
    return u, v


def _stripes(rng: np.random.Generator, size: Size, cell: float) -> Array:
    u, _ = _bent_grid(rng, size, cell)
    sharpness = rng.uniform(1, 4)
    return 0.5 + 0.5 * np.tanh(sharpness * np.sin(2 * np.pi * u))


def _checks(rng: np.random.Generator, size: Size, cell: float) -> Array:
    u, v = _bent_grid(rng, size, cell * 1.4)
    return 0.5 + 0.5 * np.tanh(4 * np.sin(2 * np.pi * u) * np.sin(2 * np.pi * v))


def _dots(rng: np.random.Generator, size: Size, cell: float) -> Array:
    _, distance = voronoi_cells(rng, size, cell)
    radius = cell * rng.uniform(0.22, 0.36)
    return 1 / (1 + np.exp(np.clip((distance - radius) * 1.2, -30, 30)))


def _weave(rng: np.random.Generator, size: Size, cell: float) -> Array:
    u, v = _bent_grid(rng, size, cell * 0.8)
    over = (np.floor(u) + np.floor(v)) % 2
    across, along = np.abs(np.sin(np.pi * u)), np.abs(np.sin(np.pi * v))
    return np.where(over > 0, across, along * 0.75).astype(np.float32)


def _pebbles(rng: np.random.Generator, size: Size, cell: float) -> Array:
    index, distance = voronoi_cells(rng, size, cell * 1.3)
    tone = rng.random(index.max() + 1, np.float32)[index]
    return np.clip(tone * 0.8 + 0.25 - 0.5 * (distance / (cell * 1.3)) ** 2, 0, 1)


def _clouds(rng: np.random.Generator, size: Size, cell: float) -> Array:
    return fractal_noise(rng, size, cell * 3, 5, 0.6)


def _marble(rng: np.random.Generator, size: Size, cell: float) -> Array:
    noise = fractal_noise(rng, size, cell * 4, 5, 0.6)
    return 1 - np.abs(np.sin(noise * np.pi * rng.uniform(2.5, 5)))


PATTERNS: dict[str, Callable[[np.random.Generator, Size, float], Array]] = {
    "stripes": _stripes,
    "checks": _checks,
    "dots": _dots,
    "weave": _weave,
    "pebbles": _pebbles,
    "clouds": _clouds,
    "marble": _marble,
}


def procedural_texture(
    rng: np.random.Generator, size: Size, cell: float, pattern: str | None = None, colors: Array | None = None
) -> Array:
    """A textured picture.

    Args:
        cell: size of the pattern's unit in pixels.
        pattern: a key of `PATTERNS`; None draws one.
        colors: (N, 3) RGB 0..255 from dark to light; None draws a vivid palette.

    Returns:
        (height, width, 3) uint8 RGB.
    """
    name = pattern or str(rng.choice(list(PATTERNS)))
    field = PATTERNS[name](rng, size, cell)
    mottle = fractal_noise(rng, size, max(cell * 4, 24), 6, 0.7)
    field = 0.72 * field + 0.28 * mottle
    picture = _colorize(field, vivid_palette(rng) if colors is None else colors).astype(np.float32)
    # Brightness that varies slowly and grain that varies fast keep two patches of one pattern apart.
    slow = fractal_noise(rng, size, max(size) / 2.5, 3)
    picture *= (0.72 + 0.45 * slow + 0.22 * (mottle - 0.5))[..., None]
    return np.clip(picture, 0, 255).astype(np.uint8)


def scenery(rng: np.random.Generator, size: Size) -> Array:
    """A background of three textured areas with soft, irregular borders: (height, width, 3) uint8 RGB."""
    kinds = rng.choice(["clouds", "pebbles", "marble", "weave", "dots"], 3, replace=False)
    areas = [
        procedural_texture(rng, size, float(rng.uniform(9, 24)), str(kind), natural_palette(rng))
        for kind in kinds
    ]
    picture = areas[0].astype(np.float32)
    for area in areas[1:]:
        border = fractal_noise(rng, size, max(size) / 3, 5, 0.5)
        share = np.clip((border - rng.uniform(0.42, 0.62)) * 18, 0, 1)[..., None]
        picture += share * (area - picture)
    return picture.astype(np.uint8)


def _draw(points: Array, size: Size) -> Array:
    """The polygon with corners `points`, (N, 2) x and y: (height, width) uint8, 255 inside."""
    mask = np.zeros(size, np.uint8)
    cv2.fillPoly(mask, [np.round(points * 16).astype(np.int32)], 255, lineType=cv2.LINE_AA, shift=4)
    return mask


def _creature(rng: np.random.Generator, side: int) -> Array:
    """A body with a head, a tail and legs, all ellipses."""
    mask = np.zeros((side, side), np.uint8)
    middle, body = side / 2, side * rng.uniform(0.26, 0.34)
    thick = body * rng.uniform(0.45, 0.75)

    def ellipse(x: float, y: float, a: float, b: float, degrees: float) -> None:
        center, axes = (int(x * 16), int(y * 16)), (int(max(a, 1.5) * 16), int(max(b, 1.5) * 16))
        cv2.ellipse(mask, center, axes, degrees, 0, 360, 255, -1, cv2.LINE_AA, shift=4)

    ellipse(middle, middle, body, thick, rng.uniform(-10, 10))
    head = thick * rng.uniform(0.6, 0.9)
    neck, tail = middle - thick * rng.uniform(0.2, 0.9), middle - thick * rng.uniform(-0.2, 0.8)
    ellipse(middle + body * 1.05, neck, head, head * 0.85, rng.uniform(-30, 30))
    ellipse(middle - body * 1.1, tail, body * 0.45, thick * 0.25, rng.uniform(0, 60))
    for leg in np.linspace(-0.65, 0.65, int(rng.integers(2, 5))):
        length = thick * rng.uniform(0.7, 1.0)
        ellipse(middle + leg * body, middle + thick * 0.8, body * 0.13, length, rng.uniform(-20, 20))
    return mask


def ellipse_outline(side: int) -> Array:
    """A disc, (side, side) uint8, 255 inside."""
    turns = np.linspace(0, 2 * np.pi, 64, endpoint=False)
    points = np.stack([np.cos(turns), np.sin(turns)], 1) * (side / 2 - 0.5) + (side - 1) / 2
    return _draw(points, (side, side))


def bar_outline(rng: np.random.Generator, length: int) -> Array:
    """A long bar such as a pole or a trunk, (length, width) uint8, 255 inside."""
    width = max(3, int(length * rng.uniform(0.08, 0.22)))
    ys = np.linspace(2, length - 3, 12)
    wobble = np.cumsum(rng.normal(0, width * 0.05, (12, 2)), 0)
    left, right = 3 + np.clip(wobble[:, 0], -2, 2), 3 + width + np.clip(wobble[:, 1], -width / 4, 2)
    points = np.concatenate([np.stack([left, ys], 1), np.stack([right, ys], 1)[::-1]])
    return _draw(points, (length, width + 6))


def outline(rng: np.random.Generator, side: int) -> Array:
    """A random blob, polygon, star or creature: (side, side) uint8, 255 inside, smooth at the border."""
    kind = rng.choice(["blob", "polygon", "star", "creature"], p=[0.4, 0.2, 0.12, 0.28])
    if kind == "creature":
        return _creature(rng, side)
    if kind == "blob":
        turns = np.linspace(0, 2 * np.pi, 90, endpoint=False)
        radius = np.ones(90)
        for k in range(2, 6):
            radius += rng.normal(0, 0.32 / k) * np.cos(k * turns + rng.uniform(0, 2 * np.pi))
        radius = np.clip(radius, 0.35, None)
    elif kind == "polygon":
        radius = rng.uniform(0.6, 1.0, int(rng.integers(4, 9)))
    else:
        tips = int(rng.integers(4, 8))
        radius = np.tile([1.0, rng.uniform(0.45, 0.7)], tips)
    turns = np.linspace(0, 2 * np.pi, len(radius), endpoint=False) + rng.uniform(0, 2 * np.pi)
    radius = radius / radius.max() * (side / 2 - 1.5)
    squeeze = rng.uniform(0.55, 1.0)
    points = np.stack([np.cos(turns) * radius, np.sin(turns) * radius * squeeze], 1)
    angle = rng.uniform(0, np.pi)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    return _draw(points @ turn.T + side / 2, (side, side))
