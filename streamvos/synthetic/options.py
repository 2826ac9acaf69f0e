"""Options of synthetic videos, and their checks.

>>> validate(SyntheticOptions(size=(96, 128), objects=3))
"""

from __future__ import annotations

import re
from dataclasses import dataclass, fields
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from streamvos.types import MAX_OBJECT_ID, InputError

SMALLEST_SIDE, LARGEST_SIDE = 16, 8192
"""Sides of a frame in pixels; OpenCV's remap ends at 32767, margins included."""

PIXELS_PER_OBJECT = 36
"""Smallest number of pixels of a frame per labelled object, so that each is visible in frame 0."""

COUNTS = {"length": 1, "objects": 1, "distractors": 0, "occluders": 0}
"""Smallest value of every option that is a number of things."""

LARGEST = {"motion": 20, "deformation": 2, "leave": 1, "blur": 4, "noise": 10, "exposure": 2, "same_still": 1}
"""Largest value of every option that is a strength or a probability; the smallest is 0."""


@dataclass(frozen=True)
class SyntheticOptions:
    """Contents of a synthetic video.

    Attributes:
        size: (H, W) in pixels, each 16..8192.
        length: number of frames.
        objects: labelled objects, ids 1..objects; at most 254.
        distractors: look-alikes of the objects, not labelled.
        occluders: layers that pass in front of the objects, not labelled.
        motion: scale of all speeds, 0..20; with 0 nothing moves.
        deformation: strength of bending, articulation and foreshortening, 0..2; 0 is rigid.
        leave: probability that an object leaves the frame once and returns; only in videos
            that move and have 24 frames or more.
        blur: shutter time as a share of the frame time, 0..4; it smears along the motion.
        noise: sensor noise, 0..10; 1 is about 5 gray levels.
        exposure: drift of brightness, contrast, white balance and of the light over the frame, 0..2;
            1 is about +-25 %.
        same_still: probability that an object is cut from the background's own photograph.
        stills: folder with images/NAME.jpg and regions/NAME.png; None draws everything.
    """

    size: tuple[int, int] = (480, 854)
    length: int = 60
    objects: int = 2
    distractors: int = 1
    occluders: int = 1
    motion: float = 1.0
    deformation: float = 1.0
    leave: float = 0.25
    blur: float = 0.4
    noise: float = 0.5
    exposure: float = 0.5
    same_still: float = 0.25
    stills: Path | None = None


@dataclass(frozen=True)
class PhotographOptions:
    """Contents of a video made of photographs.

    Attributes:
        size: (H, W) in pixels, each 16..8192.
        length: number of frames.
    """

    size: tuple[int, int] = (360, 640)
    length: int = 80


def validate(options: SyntheticOptions | PhotographOptions) -> None:
    """Check every option.

    Raises:
        InputError: one has the wrong type or is out of range, or the stills cannot be used.
    """
    size = options.size
    if not (isinstance(size, (tuple, list)) and len(size) == 2 and all(_is_integer(n) for n in size)):
        raise InputError(f"size: expected a pair of integers (H, W), got {size!r}")
    if min(size) < SMALLEST_SIDE or max(size) > LARGEST_SIDE:
        raise InputError(f"size: expected {SMALLEST_SIDE}..{LARGEST_SIDE} pixels on each side, got {size!r}")
    for name, least in COUNTS.items():
        value = getattr(options, name, least)
        if not _is_integer(value) or value < least:
            raise InputError(f"{name}: expected an integer >= {least}, got {value!r}")
    if isinstance(options, PhotographOptions):
        return
    if options.objects > MAX_OBJECT_ID or options.objects + options.distractors + options.occluders > 255:
        raise InputError(
            f"expected at most {MAX_OBJECT_ID} objects and 255 layers besides the background, got "
            f"{options.objects} objects, {options.distractors} distractors, {options.occluders} occluders"
        )
    if size[0] * size[1] < PIXELS_PER_OBJECT * options.objects:
        raise InputError(
            f"{options.objects} objects do not fit into {size[0]}x{size[1]}; "
            f"use a larger size or at most {size[0] * size[1] // PIXELS_PER_OBJECT} objects"
        )
    for name, largest in LARGEST.items():
        value = getattr(options, name)
        is_number = isinstance(value, (int, float, np.number)) and not isinstance(value, bool)
        if not is_number or not 0 <= value <= largest:  # NaN is in no range
            raise InputError(f"{name}: expected a number in 0..{largest}, got {value!r}")
    if options.stills is not None:
        list_stills(Path(options.stills))


def validate_seed(seed: object) -> None:
    """Raises `InputError` if a seed is not an integer >= 0."""
    if not _is_integer(seed) or seed < 0:  # type: ignore[operator]
        raise InputError(f"seed: expected an integer >= 0, got {seed!r}")


def parse_parameters(text: str) -> tuple[int, SyntheticOptions | PhotographOptions]:
    """Seed and options from "seed=3,objects=2,size=480x854,length=60" or "photographs,seed=3,length=60".

    `size` is HEIGHTxWIDTH. Other options keep their defaults; the default seed is 0.

    Raises:
        InputError: an unknown name, a name given twice, or a value of the wrong type.
    """
    entries = [part.strip() for part in text.split(",") if part.strip()]
    kind: type[SyntheticOptions] | type[PhotographOptions] = SyntheticOptions
    if entries[:1] == ["photographs"]:
        kind, entries = PhotographOptions, entries[1:]
    defaults = {field.name: field.default for field in fields(kind)}
    values: dict[str, Any] = {}
    for entry in entries:
        name, equals, value = (part.strip() for part in entry.partition("="))
        if not equals or (name != "seed" and name not in defaults):
            known = ", ".join(["seed", *defaults])
            raise InputError(
                f"synthetic: cannot use {entry!r}; expected name=value, the name one of: {known}"
            )
        if name in values:
            raise InputError(f"synthetic: {name} is given twice")
        values[name] = _parse(name, value, 0 if name == "seed" else defaults[name])
    return values.pop("seed", 0), kind(**values)


@lru_cache(maxsize=8)
def list_stills(folder: Path) -> tuple[str, ...]:
    """Names, without suffix, of the photographs in `folder`/images that have a map in `folder`/regions.

    Raises:
        InputError: the folder is absent or holds no such pair.
    """
    images, regions = folder / "images", folder / "regions"
    if not images.is_dir() or not regions.is_dir():
        raise InputError(f"stills: expected images/ and regions/ in {folder}; give another folder")
    names = {path.stem for path in images.glob("*.jpg")} & {path.stem for path in regions.glob("*.png")}
    if not names:
        raise InputError(f"stills: no images/NAME.jpg with regions/NAME.png in {folder}; give another folder")
    return tuple(sorted(names))


def _is_integer(value: object) -> bool:
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool)


def _parse(name: str, text: str, default: object) -> object:
    if name == "size":
        match = re.fullmatch(r"(\d+)x(\d+)", text)
        if match is None:
            raise InputError(f"synthetic: size must be HEIGHTxWIDTH such as 480x854, got {text!r}")
        return int(match[1]), int(match[2])
    if default is None:
        return Path(text)
    kind = float if isinstance(default, float) else int
    try:
        return kind(text)
    except ValueError:
        wanted = "a number" if kind is float else "a whole number"
        raise InputError(f"synthetic: {name} must be {wanted}, got {text!r}") from None
