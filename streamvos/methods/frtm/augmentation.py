"""More first frames than one: the object cut out, moved, turned and put back on its background.

    images, labels = augment(image, mask, count=5)       # the first is the given one

The hole that the object leaves is inpainted. Where it goes and how it is distorted is drawn from lists, in
the very order in which the authors' code consumes NumPy's random numbers, so that the same seed gives the
same pictures; of the many drawn only those that are taken are rendered.

Source: Robinson et al., CVPR 2020, section 3.4 and the authors' code, which seeds with 0 before each object.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import cv2
import numpy as np

Fill = Literal["inpaint", "grey"]

DRAWN_AT_ONCE = 19
"""The authors' code makes so many pictures and takes a few of them."""

MOST_ROUNDS = 10
"""After so many the object is taken to be impossible to place; fewer pictures than wished are returned."""

LEAST_SIDE = 10
"""Pixels; a target is not shrunk below this in height or width."""

GREY = 128

CENTER = (0.5, 0.5)
ANGLES = (0, 45, 90, 135)
TARGET = {
    "rotation": (5, -5, 10, -10, 20, -20, 30, -30, 45, -45),
    "flip": (False, False, False, False, True),
    "scale": (0.5, 0.7, 1.0, 1.5, 2.0, 2.5),
    "skew": ((0.0, 0.0), (0.0, 0.0), (0.1, 0.1)),
    "blur": (0.0, 0.0, 0.0, 2.0),
    "blur_angle": ANGLES,
}
"""What is drawn for the object, in the order of drawing, after its place. Degrees; variances in pixels."""

BACKGROUND = {
    "rotation": (0, 0, 0),
    "flip": (False,),
    "scale": (1.0, 1.0, 1.2),
    "skew": ((0.0, 0.0),),
    "blur": (0.0, 0.0, 1.0, 2.0, 5.0),
    "blur_angle": ANGLES,
}


@dataclass(frozen=True)
class Change:
    """What happens to the object, or to the background.

    Attributes:
        location: where its center goes, (x, y) as shares of the frame.
        rotation: degrees.
        flip: left and right are exchanged.
        scale: factor.
        skew: (kx, ky).
        blur: variance of the blur along its direction, in pixels squared; 0 = none.
        blur_angle: degrees.
    """

    location: tuple[float, float]
    rotation: float
    flip: bool
    scale: float
    skew: tuple[float, float]
    blur: float
    blur_angle: float


def augment(
    image: np.ndarray, mask: np.ndarray, count: int, fill: Fill = "inpaint", seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """The given picture and `count` - 1 synthetic ones.

    Args:
        image: (H, W, 3) uint8 RGB.
        mask: (H, W) bool, at least one pixel.
        count: how many pictures; fewer come back if the object cannot be placed.
        fill: what is seen where the object was: "inpaint" (Telea's method), or "grey" (the authors' code
            for YouTube-VOS).
        seed: seed of the random numbers.

    Returns:
        (n, H, W, 3) uint8 and (n, H, W) bool.
    """
    if count == 1:
        return image[None], mask[None]
    plans = choose_changes(mask, count, seed)
    hole = fill_hole(image, mask, fill)
    size = (mask.shape[1], mask.shape[0])
    cut_out = np.where(mask[..., None], image, 0).astype(np.float32)
    alpha = mask.astype(np.float32) * 255
    images, labels = [image], [mask]
    for target, background in plans:
        move = target_matrix(target, mask)
        colors, opacity = (_render(layer, move, target) for layer in (cut_out, alpha))
        behind = _render(hole.astype(np.float32), background_matrix(background, size), background)
        share = opacity[..., None] / 255
        images.append((colors * share + behind * (1 - share)).astype(np.uint8))
        labels.append(_move_mask(mask, move))
    return np.stack(images), np.stack(labels)


def choose_changes(mask: np.ndarray, count: int, seed: int = 0) -> list[tuple[Change, Change]]:
    """What happens to object and background in the `count` - 1 synthetic pictures.

    Changes that leave nothing of the object, or nothing of the background, are dropped.
    """
    wanted = count - 1
    random = np.random.RandomState(seed)
    accepted: list[tuple[Change, Change]] = []
    for _ in range(MOST_ROUNDS):
        accepted += [pair for pair in draw_changes(mask.shape, count, random) if _is_usable(mask, pair[0])]
        if len(accepted) >= wanted:
            break
    order = list(range(len(accepted)))
    if len(accepted) > wanted:
        random.shuffle(order)
    return [accepted[k] for k in order[:wanted]]


def draw_changes(
    size: tuple[int, ...], count: int, random: np.random.RandomState
) -> list[tuple[Change, Change]]:
    """`DRAWN_AT_ONCE` pairs of changes, for object and background.

    Args:
        size: (H, W).
        count: how many places the object may go to.
        random: is consumed as the authors' code consumes it.
    """
    targets = _draw({"location": _places(size, count, random), **TARGET}, random)
    backgrounds = _draw({"location": (CENTER,), **BACKGROUND}, random)
    random.shuffle([CENTER] * DRAWN_AT_ONCE)  # a list that the authors' code draws from and does not use
    return list(zip(targets, backgrounds, strict=True))


def fill_hole(image: np.ndarray, mask: np.ndarray, fill: Fill) -> np.ndarray:
    """(H, W, 3) uint8: the picture without the object."""
    if fill == "grey":
        return np.where(mask[..., None], np.uint8(GREY), image)
    element = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2, 2))
    hole = cv2.dilate(mask.astype(np.uint8), element)
    return np.asarray(cv2.inpaint(np.ascontiguousarray(image), hole, 1, cv2.INPAINT_TELEA))


def target_matrix(change: Change, mask: np.ndarray) -> np.ndarray:
    """(3, 3) float64, source to destination in homogeneous pixels, about the center of the object's box.

    The object is kept as small as the frame, and then no smaller than `LEAST_SIDE`.
    """
    height, width = mask.shape
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    top, left = int(rows[0]), int(columns[0])
    tall, wide = int(rows[-1]) - top + 1, int(columns[-1]) - left + 1
    scale = min(change.scale, width / wide, height / tall)
    scale = max(scale, LEAST_SIDE / wide, LEAST_SIDE / tall)
    return _matrix(change, scale, (left + wide / 2, top + tall / 2), (width, height))


def background_matrix(change: Change, size: tuple[int, int]) -> np.ndarray:
    """(3, 3) float64, about the center of the frame, of `size` (W, H)."""
    return _matrix(change, change.scale, (size[0] / 2, size[1] / 2), size)


def blur_kernel(variance: float, angle: float) -> np.ndarray:
    """(n, n) float32, summing to one: a Gaussian along a direction, of variance 0.1 across it."""
    if variance == 0:
        return np.ones((1, 1), np.float32)
    half = int(variance / 2 + 0.5) | 1
    radians = math.radians(angle)
    cosine, sine = math.cos(radians), math.sin(radians)
    turn = np.array([[cosine, sine], [-sine, cosine]])  # y points down, angles are counted upwards
    precision = turn @ np.diag([1 / variance, 1 / 0.1]) @ turn.T
    axis = np.arange(-half, half + 1)
    places = np.stack(np.meshgrid(axis, axis), axis=-1)  # (x, y)
    kernel = np.exp(-0.5 * np.einsum("yxa,ab,yxb->yx", places, precision, places))
    return (kernel / kernel.sum()).astype(np.float32)


def _places(
    size: tuple[int, ...], count: int, random: np.random.RandomState
) -> Sequence[tuple[float, float]]:
    """`count` of the cells of a grid of about square cells, each center a little off."""
    aspect = size[1] / size[0]
    rows = math.ceil(math.sqrt(count / aspect))
    columns = math.ceil(aspect * rows)
    places = []
    for row in range(rows):
        for column in range(columns):
            x = random.normal((column + 0.5) / columns, 0.5 / columns / 4)
            y = random.normal((row + 0.5) / rows, 0.5 / rows / 4)
            places.append((round(float(x), 3), round(float(y), 3)))
    random.shuffle(places)
    return places[:count]


def _draw(lists: dict[str, Sequence[Any]], random: np.random.RandomState) -> list[Change]:
    """Changes whose values exhaust every list before one of its entries comes again, as far as that goes."""
    columns = {}
    for name, values in lists.items():
        column = list(values) * math.ceil(DRAWN_AT_ONCE / len(values))
        random.shuffle(column)
        columns[name] = column[:DRAWN_AT_ONCE]
    return [Change(**{name: column[k] for name, column in columns.items()}) for k in range(DRAWN_AT_ONCE)]


def _matrix(change: Change, scale: float, center: tuple[float, float], size: tuple[int, int]) -> np.ndarray:
    radians = math.radians(change.rotation)
    cosine, sine = math.cos(radians), math.sin(radians)
    linear = (
        np.array([[1, change.skew[0]], [change.skew[1], 1]])
        @ np.array([[cosine, sine], [-sine, cosine]])
        @ np.diag([-scale if change.flip else scale, scale])
    )
    matrix = np.eye(3)
    matrix[:2, :2] = linear
    matrix[:2, 2] = np.multiply(change.location, size) - linear @ center
    return matrix


def _is_usable(mask: np.ndarray, change: Change) -> bool:
    moved = _move_mask(mask, target_matrix(change, mask))
    return bool(moved.any() and (mask.all() or not moved.all()))


def _move_mask(mask: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    height, width = mask.shape
    moved = cv2.warpAffine(
        mask.astype(np.uint8), matrix[:2].astype(np.float32), (width, height), flags=cv2.INTER_NEAREST
    )
    return np.asarray(moved) > 0


def _render(layer: np.ndarray, matrix: np.ndarray, change: Change) -> np.ndarray:
    """A layer (H, W[, 3]) float32 moved and blurred; zero where nothing came from."""
    height, width = layer.shape[:2]
    moved = cv2.warpAffine(layer, matrix[:2].astype(np.float32), (width, height), flags=cv2.INTER_CUBIC)
    moved = np.clip(moved, 0, 255)
    if change.blur == 0:
        return moved
    kernel = blur_kernel(change.blur, change.blur_angle)
    return np.asarray(cv2.filter2D(moved, -1, kernel, borderType=cv2.BORDER_CONSTANT))
