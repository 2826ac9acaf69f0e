"""What the pixels of a painted label map mean: which are background, which belong to which object.

`streamvos.masks.labelmap.read_label_map` states the rules.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image

from streamvos.pictures.regions import Regions, UnclearError, find_regions
from streamvos.types import MAX_OBJECT_ID, VOID, InputError

Binary = Literal["auto", "always", "never"]

MOST_COLORS = 32
"""Colors that are taken for objects, where they are not those of the DAVIS palette."""

_BLACK, _WHITE = (0, 0, 0), (255, 255, 255)
_NEAR = 32  # of 255 in each channel; lossy formats move black and white by less
_LARGEST_ID = 31  # gray ids beside which 255 is void
_SMALLEST_LEVEL, _MOST_LEVELS = 64, 4  # gray levels beside which 255 is an object
_LOSSY_GAP = 48  # between gray levels in a lossy file; smaller differences do not survive
_SPECKS = 0.001  # of the picture


def davis_palette() -> np.ndarray:
    """The colors of DAVIS and PASCAL VOC for the labels 0..255, all different: (256, 3) uint8 RGB.

    The bits of the label, lowest first, go in turn to red, green and blue, in each channel from its highest
    bit down.
    """
    labels = np.arange(256)
    palette = np.zeros((256, 3), np.uint8)
    for bit in range(8):
        palette[:, bit % 3] |= (((labels >> bit) & 1) << (7 - bit // 3)).astype(np.uint8)
    return palette


@dataclass
class Painting:
    """A picture of a label map, and what was decided about it.

    Attributes:
        path: its file, for error messages.
        picture: as Pillow decodes it.
        bits: bits per value of a gray picture; Pillow stretches 2 and 4 bits to 0..255.
        lossy: whether the file's format changes values.
        remarks: what was decided, if it is no plain label map.
    """

    path: Path
    picture: Image.Image
    bits: int
    lossy: bool
    remarks: list[str] = field(default_factory=list)

    def labels(self, binary: Binary) -> np.ndarray:
        """(H, W) uint8; InputError if the picture is no label map, or may be read in two ways."""
        picture, mode = self.picture, self.picture.mode
        if mode == "1":
            return np.array(picture).astype(np.uint8)
        if mode == "P":
            return self._from_palette(binary)
        if mode.startswith(("I", "F")):
            return self._from_numbers(np.array(picture), binary)
        if mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in picture.info:
            rgba = np.array(picture.convert("RGBA"))
            return self._from_alpha(rgba[..., :3], rgba[..., 3], binary)
        if mode == "L":
            stretched = 255 // (2**self.bits - 1)  # 1 for 8 bits
            return self._from_gray(np.array(picture) // np.uint8(stretched), binary)
        if mode in ("RGB", "RGBX", "YCbCr"):
            return self._from_colors(np.array(picture.convert("RGB")), binary)
        raise InputError(f"{self.path} has the mode {mode}; expected a palette, gray or RGB picture")

    def _from_palette(self, binary: Binary) -> np.ndarray:
        index = np.array(self.picture)
        used = np.flatnonzero(np.bincount(index.ravel(), minlength=256)).tolist()
        colors = np.zeros((256, 3), np.uint8)
        stored = np.array(self.picture.getpalette("RGB"), np.uint8).reshape(-1, 3)[:256]
        colors[: len(stored)] = stored
        if np.array_equal(colors[used], davis_palette()[used]) or len(np.unique(colors[used], axis=0)) < len(
            used
        ):
            return index
        if (colors[used] == np.array(used)[:, None]).all():
            return self._from_gray(index, binary)  # a gray picture in another form
        if self._regions(colors[index]).fringe:
            return self._from_colors(colors[index], binary)
        clear = [one for one in used if _opacity(self.picture.info.get("transparency"), one) < 128]
        black, white = ([one for one in used if tuple(colors[one]) == color] for color in (_BLACK, _WHITE))
        begins_black = tuple(colors[0]) == _BLACK
        background = clear or ([0] if begins_black else black or white or [0])
        labels = index.copy()
        labels[np.isin(index, background)] = 0
        if 0 in used and 0 not in background:
            free = next(one for one in range(1, 256) if one in background or one not in used)
            labels[index == 0] = free
            what = "what is transparent" if clear else f"the color {_shown(colors[background[0]])}"
            self.remarks.append(
                f"{what} is background, though not first in its palette; index 0 is object {free}"
            )
        return labels

    def _from_numbers(self, values: np.ndarray, binary: Binary) -> np.ndarray:
        """From gray values of 16 or 32 bits."""
        with np.errstate(invalid="ignore"):
            whole = np.isfinite(values).all() and (values == np.trunc(values)).all()
        if not whole or values.min() < 0:
            raise InputError(
                f"{self.path} holds numbers from {values.min():g} to {values.max():g}; a label map holds "
                "whole numbers from 0 on"
            )
        if values.max() > 2**32:
            raise InputError(f"{self.path} holds {values.max():g}; labels are 0..{MAX_OBJECT_ID}")
        values = values.astype(np.int64)
        if VOID < values.max() <= 0xFFFF and (values % 257 == 0).all():
            values //= 257  # 8 bits stretched to 16
        if values.max() <= VOID:
            return self._from_gray(values.astype(np.uint8), binary)
        present, index = np.unique(values, return_inverse=True)
        ids, index = present[present > 0], index.reshape(values.shape)
        if len(ids) > MAX_OBJECT_ID or not _is_clean(index):
            raise InputError(
                f"{self.path} has more than 8 bits per value and {len(present)} different values up to "
                f"{present[-1]}, which are not those of a label map; labels are 0..{MAX_OBJECT_ID}: save it "
                "with 8 bits"
            )
        self.remarks.append(f"its ids {_listed(ids)} are objects {_listed(range(1, len(ids) + 1))}")
        return (index + (present[0] > 0)).astype(np.uint8)

    def _from_alpha(self, colors: np.ndarray, alpha: np.ndarray, binary: Binary) -> np.ndarray:
        if (alpha == alpha.flat[0]).all():
            return self._from_colors(colors, binary)
        covered = self._regions(alpha[..., None])
        opaque = covered.colors[covered.index, 0] >= 128
        try:
            labels = self._from_colors(np.where(opaque[..., None], colors, np.uint8(0)), binary)
        except InputError:  # a cut-out photograph
            labels = np.zeros_like(alpha)
        if labels.any():
            self.remarks.insert(0, "what is transparent is background")
            return labels
        self.remarks = ["what is transparent is background, the rest is object 1"]
        return opaque.astype(np.uint8)

    def _from_colors(self, colors: np.ndarray, binary: Binary) -> np.ndarray:
        spread = int((colors.max(2) - colors.min(2)).max())
        if spread == 0 or (self.lossy and spread <= _NEAR // 4):
            return self._from_gray(np.ascontiguousarray(colors[..., 1]), binary)
        rows = _rows_of_palette(colors)
        if (rows >= 0).all():
            return rows.astype(np.uint8)
        try:
            regions = find_regions(colors)
        except UnclearError as seen:
            raise self._unknown_colors(colors, rows, str(seen)) from None
        known = _rows_of_palette(regions.colors[None], 8 if regions.fringe else 0)[0]
        self._tell_fringe(regions)
        if (known >= 0).all():
            return known.astype(np.uint8)[regions.index]
        low, high = regions.colors.max(1) <= _NEAR, regions.colors.min(1) >= 255 - _NEAR
        background = low if low.any() else high
        if not background.any() or len(regions.colors) > MOST_COLORS:
            raise self._unknown_colors(colors, rows, f"{len(regions.colors)} colors fill regions")
        objects = np.flatnonzero(~background)[::-1]  # regions.colors is ascending
        table = np.zeros(len(background), np.uint8)
        table[objects] = np.arange(1, len(objects) + 1)
        numbers = _listed([f"{_shown(regions.colors[one])} is object {table[one]}" for one in objects])
        self.remarks.append(f"{_shown(regions.colors[background][0])} is background, {numbers}")
        return table[regions.index]

    def _unknown_colors(self, colors: np.ndarray, rows: np.ndarray, seen: str) -> InputError:
        return InputError(
            f"{self.path} is an RGB picture in which {int((rows < 0).sum())} pixels have colors outside the "
            f"DAVIS palette (the first is {_shown(colors[rows < 0][0])}), and no label map of a few colors "
            f"on black or white ({seen}); save it as a palette PNG whose index is the label"
        )

    def _from_gray(self, values: np.ndarray, binary: Binary) -> np.ndarray:
        regions = self._regions(values[..., None])
        table = regions.colors[:, 0].copy()
        if self.lossy and len(table) > 1 and np.diff(table).min() < _LOSSY_GAP:
            raise InputError(
                f"{self.path} has the gray values {_listed(table)} in a lossy format, which blurs labels; "
                "save it in a lossless format such as PNG"
            )
        self._tell_fringe(regions)
        if (regions.fringe or self.lossy) and len(table) > 1:  # noise moves black and white
            if table[0] <= _NEAR < table[1]:
                table[0] = 0
            if table[-1] >= 250:
                table[-1] = VOID
        if binary == "always":
            table = (table > 0).astype(np.uint8)
        elif binary == "auto" and table[-1] == VOID:
            table = self._ids_beside_255(table, np.bincount(regions.index.ravel(), minlength=len(table)))
        return table[regions.index]

    def _ids_beside_255(self, values: np.ndarray, counts: np.ndarray) -> np.ndarray:
        """Labels of ascending gray values that end with 255, (K,), and of which each has so many pixels."""
        others = values[(values > 0) & (values < VOID)]
        painted = int(counts[(values > 0) & (values < VOID)].sum())
        if painted < _SPECKS * counts.sum() and 50 * painted < counts[-1] and values[0] == 0:
            if painted:
                self.remarks.append(f"{painted} stray pixels of {_listed(others)} are given to 0 or 255")
            return (values >= 128).astype(np.uint8)
        if len(others) and others[0] <= _LARGEST_ID:
            return values
        if len(others) >= _MOST_LEVELS or (len(others) and others[0] < _SMALLEST_LEVEL):
            raise InputError(
                f"{self.path} has the gray values {_listed(values)}: 255 may be void or an object; save it "
                "as a palette PNG whose index is the label, or number the objects 1, 2, ..."
            )
        numbers = np.cumsum(values > 0).astype(np.uint8)
        if len(others):
            self.remarks.append(f"its gray levels {_listed(values)} are {_listed(numbers)}")
        return numbers

    def _regions(self, pixels: np.ndarray) -> Regions:
        try:
            return find_regions(pixels)
        except UnclearError as seen:
            raise InputError(
                f"{self.path} is no label map: it has {seen}; paint each object evenly with its id, 1.."
                f"{MAX_OBJECT_ID}, on black, and save it in a lossless format such as PNG"
            ) from None

    def _tell_fringe(self, regions: Regions) -> None:
        if regions.fringe:
            share, strong = 100 * regions.fringe / regions.index.size, map(_shown, regions.colors)
            self.remarks.append(
                f"its edges are soft, or it was stored in a lossy format: {regions.fringe} pixels "
                f"({share:.1g} %) are given the closest of its strong values {_listed(list(strong))}"
            )


def _is_clean(index: np.ndarray) -> bool:
    """Whether numbers of at most 255 values form regions without soft edges."""
    try:
        return not find_regions(index.astype(np.uint8)[..., None]).fringe
    except UnclearError:
        return False


def _opacity(transparency: object, index: int) -> int:
    """Alpha of an entry of a palette, 0..255, from what Pillow says of its transparency."""
    if isinstance(transparency, bytes):
        return transparency[index] if index < len(transparency) else 255
    return 0 if transparency == index else 255


def _shown(color: np.ndarray) -> int | tuple[int, ...]:
    return int(color[0]) if len(color) == 1 else tuple(int(value) for value in color)


def _listed(values: Sequence[object] | np.ndarray) -> str:
    """Values for a message, at most eight."""
    texts = [str(one) for one in values]
    return ", ".join([*texts[:6], "...", texts[-1]] if len(texts) > 8 else texts)


def _rows_of_palette(colors: np.ndarray, tolerance: int = 0) -> np.ndarray:
    """(H, W) int: the row of `davis_palette()` that has each color of (H, W, 3), -1 where there is none."""
    if tolerance:
        distances = np.abs(colors.astype(int)[..., None, :] - davis_palette().astype(int)).max(-1)
        return np.where(distances.min(-1) <= tolerance, distances.argmin(-1), -1)
    palette, packed = _pack(davis_palette()), _pack(colors)
    order = np.argsort(palette)
    labels = order[np.minimum(np.searchsorted(palette[order], packed), 255)]
    return np.where(palette[labels] == packed, labels, -1)


def _pack(colors: np.ndarray) -> np.ndarray:
    red, green, blue = (colors[..., channel].astype(np.int64) for channel in range(3))
    return (red << 16) | (green << 8) | blue
