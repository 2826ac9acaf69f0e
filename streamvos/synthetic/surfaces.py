"""The surfaces of synthetic videos: flat pieces with a texture, an outline and regions.

A surface is cut out of a photograph along the borders of its regions, or it is a drawn shape filled with a
piece of a photograph, or it is entirely drawn.

    >>> surface = drawn_surface(np.random.default_rng(0), 80)
    >>> surface.texture.shape[2], surface.regions.dtype
    (4, dtype('uint16'))
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from math import ceil
from pathlib import Path

import cv2
import numpy as np

from streamvos.synthetic.textures import (
    Size,
    bar_outline,
    fractal_noise,
    outline,
    procedural_texture,
    scenery,
    voronoi_cells,
)
from streamvos.types import InputError

Array = np.ndarray

LARGEST_ENLARGEMENT = 1.3
"""Largest enlargement of a photograph, so that its detail stays that of a sharp video."""


@dataclass(frozen=True)
class Surface:
    """One flat piece.

    Attributes:
        texture: (h, w, 4) uint8, RGB multiplied by alpha, and alpha.
        regions: (h, w) uint16, 0..region_count - 1.
        region_count: number of reserved region numbers.
    """

    texture: Array
    regions: Array
    region_count: int

    @property
    def middle(self) -> Array:
        """(2,) x, y."""
        height, width = self.texture.shape[:2]
        return np.array([width - 1, height - 1]) / 2

    @property
    def radius(self) -> float:
        """Half its diagonal in pixels."""
        return float(np.hypot(*self.texture.shape[:2])) / 2

    @property
    def area(self) -> int:
        """Pixels that count as inside."""
        return int(np.count_nonzero(self.texture[..., 3] >= 128))


@dataclass(frozen=True)
class Still:
    """A photograph, (h, w, 3) uint8 RGB, and its region map, (h, w) uint16 in 0..count - 1."""

    image: Array
    regions: Array
    count: int


@lru_cache(maxsize=48)
def read_still(folder: Path, name: str) -> Still:
    """One photograph and its regions; the last few are cached.

    Raises:
        InputError: a file cannot be decoded, or the two differ in size.
    """
    image_path, region_path = folder / "images" / f"{name}.jpg", folder / "regions" / f"{name}.png"
    image = cv2.imread(str(image_path), cv2.IMREAD_COLOR)
    regions = cv2.imread(str(region_path), cv2.IMREAD_UNCHANGED)
    if image is None or regions is None:
        broken = image_path if image is None else region_path
        raise InputError(f"stills: {broken} cannot be decoded; replace or remove it")
    if regions.ndim != 2 or regions.shape != image.shape[:2]:
        raise InputError(
            f"stills: {region_path} has shape {regions.shape}, its photograph {image.shape[:2]}; "
            "a region map is one channel of the photograph's size"
        )
    counts = np.bincount(regions.ravel())
    compact = (np.cumsum(counts > 0) - 1).astype(np.uint16)
    return Still(cv2.cvtColor(image, cv2.COLOR_BGR2RGB), compact[regions], int(np.count_nonzero(counts)))


def _finish(texture: Array, mask: Array, regions: Array, count: int, softness: float = 0.9) -> Surface:
    """Pad the piece, soften its outline and multiply the colors by it."""
    pad = 3
    texture = cv2.copyMakeBorder(texture, pad, pad, pad, pad, cv2.BORDER_REPLICATE)
    mask = cv2.copyMakeBorder(mask, pad, pad, pad, pad, cv2.BORDER_CONSTANT, value=0)
    regions = cv2.copyMakeBorder(regions, pad, pad, pad, pad, cv2.BORDER_REPLICATE)
    alpha = cv2.GaussianBlur(mask, (0, 0), softness) if min(mask.shape) > 12 else mask
    premultiplied = cv2.multiply(texture, cv2.cvtColor(alpha, cv2.COLOR_GRAY2RGB), scale=1 / 255)
    return Surface(np.dstack([premultiplied, alpha]), regions.astype(np.uint16), count)


def _largest_piece(mask: Array) -> Array:
    """The largest connected piece of a 0/255 mask, its holes filled."""
    _, labels, stats, _ = cv2.connectedComponentsWithStats(mask, connectivity=4)
    piece = (labels == 1 + int(np.argmax(stats[1:, cv2.CC_STAT_AREA]))).astype(np.uint8)
    contours, _ = cv2.findContours(piece, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    return cv2.drawContours(np.zeros_like(piece), contours, -1, 255, -1)


def _resize(image: Array, scale: float, nearest: bool = False) -> Array:
    size = (max(4, round(image.shape[1] * scale)), max(4, round(image.shape[0] * scale)))
    if nearest:
        return cv2.resize(image, size, interpolation=cv2.INTER_NEAREST)
    return cv2.resize(image, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC)


def cut_out(rng: np.random.Generator, still: Still, diameter: float) -> Surface | None:
    """An object-shaped piece of a photograph; None if a few tries did not find one.

    It is a region, sometimes joined with neighbors, that is connected, not too thin, and about `diameter`
    pixels across after a change of scale that does not blur it.
    """
    image, regions = still.image, still.regions
    height, width = regions.shape
    areas = np.bincount(regions.ravel(), minlength=still.count)
    border = np.concatenate([regions[0], regions[-1], regions[:, 0], regions[:, -1]])
    touching = np.bincount(border, minlength=still.count)
    largest = 0.3 * height * width
    weights = np.where((areas > 250) & (areas < largest), np.sqrt(areas), 0) / (1 + 0.15 * touching)
    if not weights.any():
        return None
    for _ in range(5):
        chosen = int(rng.choice(still.count, p=weights / weights.sum()))
        mask = (regions == chosen).astype(np.uint8) * 255
        if rng.random() < 0.5:
            ring = cv2.dilate(mask, np.ones((3, 3), np.uint8)) > mask
            neighbors = np.bincount(regions[ring], minlength=still.count)
            neighbors[areas + areas[chosen] > largest] = 0
            for extra in np.argsort(-neighbors)[: int(rng.integers(1, 3))]:
                if neighbors[extra] > 12:
                    mask[regions == extra] = 255
        mask = _largest_piece(mask)
        left, top, w, h = cv2.boundingRect(mask)
        box = np.s_[top : top + h, left : left + w]
        piece = mask[box]
        scale = diameter / max(w, h)
        if scale > LARGEST_ENLARGEMENT:
            scale = LARGEST_ENLARGEMENT * rng.uniform(0.8, 1.0)
        thickness = 2 * float(cv2.distanceTransform(np.pad(piece, 1), cv2.DIST_L2, 3).max())
        if max(w, h) * scale < 0.45 * diameter or thickness < 0.2 * max(w, h):
            continue
        if _liveliness(image[box], piece) < 9 and rng.random() < 0.8:
            continue
        # One pixel less, so that the photograph's own surroundings do not shine through the soft edge.
        inner = cv2.erode(np.pad(piece, 1), np.ones((3, 3), np.uint8))[1:-1, 1:-1] if scale > 0.5 else piece
        texture, outer = _resize(image[box], scale), _resize(regions[box], scale, True)
        return _finish(texture, _resize(inner, scale), outer, still.count, float(rng.uniform(0.6, 1.3)))
    return None


def filled_shape(rng: np.random.Generator, still: Still, mask: Array) -> Surface:
    """The outline `mask`, (h, w) uint8, filled with a piece of a photograph, the liveliest of three."""
    h, w = mask.shape
    least = max(h / still.image.shape[0], w / still.image.shape[1])
    scale = max(least * 1.02, min(rng.uniform(0.6, 1.2), LARGEST_ENLARGEMENT))
    tall, wide = ceil(h / scale), ceil(w / scale)
    boxes = []
    for _ in range(3):
        top = int(rng.integers(0, max(1, still.image.shape[0] - tall + 1)))
        left = int(rng.integers(0, max(1, still.image.shape[1] - wide + 1)))
        boxes.append(np.s_[top : top + tall, left : left + wide])
    box = max(boxes, key=lambda box: _liveliness(still.image[box]))
    method = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
    texture = cv2.resize(still.image[box], (w, h), interpolation=method)
    regions = cv2.resize(still.regions[box], (w, h), interpolation=cv2.INTER_NEAREST)
    return _finish(texture, mask, regions, still.count, float(rng.uniform(0.6, 1.3)))


def _liveliness(image: Array, mask: Array | None = None) -> float:
    """Standard deviation of the green channel in gray levels: near 0 for a piece of clear sky."""
    return float(cv2.meanStdDev(np.ascontiguousarray(image[..., 1]), mask=mask)[1][0, 0])


def camouflage(rng: np.random.Generator, surface: Surface, background: Surface) -> Surface:
    """The same object in colors nearer to those of a random place of the background."""
    texture = surface.texture
    inside = np.ascontiguousarray((texture[..., 3] > 250).astype(np.uint8))
    h, w = background.texture.shape[:2]
    side = max(8, min(h, w) // 3)
    top, left = int(rng.integers(0, max(1, h - side))), int(rng.integers(0, max(1, w - side)))
    goal, spread = cv2.meanStdDev(background.texture[top : top + side, left : left + side])
    mean, deviation = cv2.meanStdDev(texture, mask=inside)
    share = rng.uniform(0.3, 0.9)
    gain = np.clip((spread[:3, 0] + 8) / (deviation[:3, 0] + 8), 0.7, 1.6) ** share
    shift = share * (goal[:3, 0] - mean[:3, 0]) + mean[:3, 0] * (1 - gain)
    # Colors are multiplied by alpha, so the shift is too, and they may not exceed it.
    alpha = texture[..., 3:].astype(np.float32) / 255
    color = np.clip(texture[..., :3] * gain + shift * alpha, 0, texture[..., 3:])
    return replace(surface, texture=np.dstack([color.astype(np.uint8), texture[..., 3]]))


def photograph_background(rng: np.random.Generator, still: Still, size: Size, mirror: bool) -> Surface:
    """A moderately enlarged photograph, cropped or continued by reflection to `size`."""
    image, regions = still.image, still.regions
    if mirror:
        image, regions = image[:, ::-1], regions[:, ::-1]
    wanted = max(size[0] / image.shape[0], size[1] / image.shape[1]) * rng.uniform(1.0, 1.25)
    scale = float(np.clip(wanted, 0.4, LARGEST_ENLARGEMENT))
    image, regions = _resize(image, scale), _resize(regions, scale, True)
    rows, row_tiles = _reflected(rng, regions.shape[0], size[0])
    columns, column_tiles = _reflected(rng, regions.shape[1], size[1])
    image, regions = image[np.ix_(rows, columns)], regions[np.ix_(rows, columns)]
    # A reflected region is a different place and has its own number, as far as 16 bits suffice.
    tiles = (row_tiles[:, None] * (column_tiles.max() + 1) + column_tiles) % max(1, 65536 // still.count)
    regions = regions + tiles.astype(np.uint16) * np.uint16(still.count)
    return Surface(cv2.cvtColor(image, cv2.COLOR_RGB2RGBA), regions, still.count * (int(tiles.max()) + 1))


def _reflected(rng: np.random.Generator, length: int, wanted: int) -> tuple[Array, Array]:
    """`wanted` indices into an axis of `length`, a random crop or reflected; and the tile of each, from 0."""
    spare = wanted - length
    start = int(rng.integers(0, -spare + 1)) if spare < 0 else -(spare // 2)
    places = np.arange(start, start + wanted)
    period = max(1, 2 * (length - 1))
    tiles = places // length
    return np.minimum(places % period, -places % period), tiles - tiles.min()


def drawn_background(rng: np.random.Generator, size: Size) -> Surface:
    """A procedural background."""
    cells, _ = voronoi_cells(rng, size, max(12.0, min(size) / 8))
    texture = cv2.cvtColor(scenery(rng, size), cv2.COLOR_RGB2RGBA)
    return Surface(texture, cells.astype(np.uint16), int(cells.max()) + 1)


def drawn_surface(rng: np.random.Generator, diameter: float, mask: Array | None = None) -> Surface:
    """A procedural object about `diameter` pixels across, or of the outline `mask`, shaded to its rim."""
    mask = outline(rng, max(6, round(diameter))) if mask is None else mask
    h, w = mask.shape
    texture = procedural_texture(rng, (h, w), float(np.clip(rng.uniform(0.08, 0.2) * max(h, w), 4, 26)))
    depth = cv2.distanceTransform((mask > 127).astype(np.uint8), cv2.DIST_L2, 5)
    shade = 0.62 + 0.43 * np.sqrt(np.clip(depth / max(float(depth.max()), 1.0), 0, 1))
    texture = np.clip(texture * shade[..., None], 0, 255).astype(np.uint8)
    cells, _ = voronoi_cells(rng, (h, w), max(4.0, max(h, w) / 4))
    return _finish(texture, mask, cells.astype(np.uint16), int(cells.max()) + 1)


def object_surface(rng: np.random.Generator, still: Still | None, diameter: float) -> Surface:
    """An object about `diameter` pixels across, from a photograph if there is one, else drawn."""
    if still is None:
        return drawn_surface(rng, diameter)
    surface = cut_out(rng, still, diameter) if rng.random() < 0.72 else None
    return surface or filled_shape(rng, still, outline(rng, max(6, round(diameter))))


def occluder_surface(rng: np.random.Generator, still: Still | None, diameter: float, size: Size) -> Surface:
    """An occluder: a pole as high as the frame, or an object."""
    if rng.random() < 0.4:
        mask = bar_outline(rng, max(8, round(min(1.3 * min(size), 420))))
        return drawn_surface(rng, diameter, mask) if still is None else filled_shape(rng, still, mask)
    return object_surface(rng, still, diameter)


def look_alike(rng: np.random.Generator, surface: Surface) -> Surface:
    """A surface of the same kind: mirrored or not, slightly tinted, stretched and marked differently."""
    texture, regions = surface.texture, surface.regions
    if rng.random() < 0.5:
        texture, regions = texture[:, ::-1], regions[:, ::-1]
    h, w = regions.shape
    stretch = rng.uniform(0.85, 1.15, 2)
    size = (max(4, round(w * stretch[0])), max(4, round(h * stretch[1])))
    texture = cv2.resize(np.ascontiguousarray(texture), size, interpolation=cv2.INTER_LINEAR)
    regions = cv2.resize(np.ascontiguousarray(regions), size, interpolation=cv2.INTER_NEAREST)
    markings = 1 + 0.25 * (fractal_noise(rng, size[::-1], max(size) / 2, 3) - 0.5)
    color = texture[..., :3] * (markings[..., None] * rng.uniform(0.93, 1.07, 3))
    # Colors are multiplied by alpha: they may not exceed it.
    color = np.minimum(color, texture[..., 3:])
    return Surface(np.dstack([color.astype(np.uint8), texture[..., 3]]), regions, surface.region_count)
