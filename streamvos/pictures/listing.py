"""Which files of a folder are frames of a video, and in which order: one rule for all who ask.

Order: numbers in names count as numbers, with decimals: frame2 < frame10, t0.25 < t0.5 < t10.

Membership: a hidden file, one that is no regular file and one without a picture's suffix is none. Where
labelling tools leave masks or thumbnails among the frames, these are left out: by their names ("00000_mask",
"thumb_00000"), or since they are painted in a few values while another series of the folder is not.

    frames, others = choose_frames(list_pictures(Path("shots")))
"""

from __future__ import annotations

import fnmatch
import glob
import itertools
import os
import re
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path

import numpy as np

from streamvos.pictures.opening import PictureFile
from streamvos.pictures.regions import UnclearError, find_regions
from streamvos.types import InputError

IMAGE_SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".apng", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".pgm"}
    | {".pbm", ".pnm", ".gif", ".avif", ".jp2"}
)
"""File names that count as pictures; all others in a folder are skipped."""

LONGEST_WALK = 200_000
"""Files and folders that a "**" looks at before it gives up."""

_NUMBER = re.compile(r"(\d+(?:\.\d+)?)")
_WHOLE_NUMBER = re.compile(r"(\d+)")
_WORD = re.compile(r"[a-z]+")
_MASK_WORDS = {"mask", "masks", "label", "labels", "labelmap", "seg", "segmentation", "annotation", "gt"}
_MASK_WORDS |= {"annotations", "groundtruth", "matte", "alpha", "instance", "instances"}
_DERIVED_WORDS = {"thumb", "thumbs", "thumbnail", "thumbnails", "preview", "previews", "overlay", "overlays"}
_MOST_SERIES = 64

Key = list[tuple[list[tuple[int, int, str]], str]]


def natural_key(path: str | Path, decimals: bool = True) -> Key:
    """Sort key under which numbers in names count as numbers: frame2 < frame10 < frame11b.

    Args:
        path: a path; its folders are compared first, its suffix last.
        decimals: whether "0.25" is one number, smaller than "0.5".
    """
    path = Path(path)
    return [_key(part, decimals) for part in (*path.parts[:-1], path.stem, path.suffix)]


def natural_order(paths: Iterable[Path]) -> list[Path]:
    """Paths in natural order.

    Points separate counters instead of decimals (1.9 < 1.10) where some number has more digits behind its
    point than others and ends in 0, as decimals that a program writes do not.
    """
    paths = list(paths)
    ends = [number.partition(".")[2] for path in paths for number in _NUMBER.findall(path.stem)]
    lengths = {len(end) for end in ends if end}
    counters = len(lengths) > 1 and any(len(end) > 1 and end.endswith("0") for end in ends)
    return sorted(paths, key=lambda path: natural_key(path, not counters))


def list_pictures(folder: Path, suffixes: Collection[str] = IMAGE_SUFFIXES) -> list[Path]:
    """The pictures in a folder by their names, in natural order; InputError if it cannot be read."""
    return [path for path in list_folder(folder) if is_picture(path, suffixes)]


def list_folder(folder: Path) -> list[Path]:
    """Everything in a folder, in natural order; InputError if it cannot be read."""
    try:
        return natural_order(folder.iterdir())
    except OSError as error:
        raise InputError(f"cannot read the folder {folder}: {error.strerror or error}") from error


def is_picture(path: Path, suffixes: Collection[str] = IMAGE_SUFFIXES) -> bool:
    """Whether a path leads to a regular file with such a suffix that is not hidden."""
    # macOS adds "._00000.jpg" to "00000.jpg"
    if path.suffix.lower() not in suffixes or path.name.startswith("."):
        return False
    try:
        return path.is_file()
    except OSError:
        return False


def match_pictures(pattern: str) -> list[Path]:
    """The pictures that a glob matches, in natural order; "**" goes into sub-folders.

    Raises:
        InputError: "**" meets more than `LONGEST_WALK` files and folders.
    """
    path = Path(pattern)
    found: Iterable[Path] = [Path(path.anchor)]
    parts = path.parts[1:] if path.anchor else path.parts
    for number, part in enumerate(parts, 1):
        if part == "**":
            found = _below(found, number == len(parts), pattern)
        elif glob.has_magic(part):
            found = _matching(found, part)
        else:
            found = [folder / part for folder in found]
    return natural_order({path for path in found if is_picture(path)})


def _matching(folders: Iterable[Path], pattern: str) -> Iterator[Path]:
    for folder in folders:
        try:
            names = os.listdir(folder)
        except OSError:
            continue
        hidden = pattern.startswith(".")
        yield from (folder / n for n in fnmatch.filter(names, pattern) if hidden or not n.startswith("."))


def _below(folders: Iterable[Path], with_files: bool, pattern: str) -> Iterator[Path]:
    """Folders and all folders below them, without hidden ones, each once; and their files if asked for."""
    met, seen = itertools.count(1), set()
    for folder in folders:
        for place, inner, files in os.walk(folder, followlinks=True):
            state = os.stat(place)
            if (state.st_dev, state.st_ino) in seen:  # a link that leads back
                inner.clear()
                continue
            seen.add((state.st_dev, state.st_ino))
            inner[:] = [name for name in inner if not name.startswith(".")]
            if any(next(met) > LONGEST_WALK for _ in (*inner, *files)):
                raise InputError(
                    f"{pattern} leads to more than {LONGEST_WALK} files and folders; name a folder closer to "
                    "the pictures"
                )
            yield Path(place)
            if with_files:
                yield from (Path(place, name) for name in files)


def choose_frames(paths: Iterable[Path]) -> tuple[list[Path], list[Path]]:
    """The frames among pictures, and the masks and thumbnails that were left among them, in natural order."""
    frames, others = natural_order(paths), list[Path]()
    for words in (_DERIVED_WORDS, _MASK_WORDS):
        named = {path for path in frames if words & set(_WORD.findall(path.stem.lower()))}
        if 2 * len(named) <= len(frames):
            frames, others = [path for path in frames if path not in named], [*others, *named]
    series = _series(frames)
    if 1 < len(series) <= _MOST_SERIES:
        painted = [one for one in series if all(map(_is_painted, (one[0], one[len(one) // 2])))]
        masks = {path for one in painted for path in one}
        if len(masks) < len(frames) and all(len(one) <= len(frames) - len(masks) for one in painted):
            frames, others = [path for path in frames if path not in masks], [*others, *masks]
    return frames, natural_order(others)


def _series(paths: Iterable[Path]) -> list[list[Path]]:
    """Pictures grouped by the form of their names: the stem without its numbers, and the kind of file."""
    series: dict[tuple[str, str], list[Path]] = {}
    for path in paths:
        suffix = path.suffix.lower()
        kind = ".jpg" if suffix in (".jpeg", ".jpe", ".jfif") else suffix
        series.setdefault((_WHOLE_NUMBER.sub("#", path.stem), kind), []).append(path)
    return list(series.values())


def _is_painted(path: Path) -> bool:
    """Whether a picture is painted in two or more values, as a mask is; one that cannot be read is not."""
    try:
        with PictureFile(path) as file:
            picture = file.read()[0]
        return 2 <= len(find_regions(np.array(picture.convert("RGB"))).colors) <= 64
    except (InputError, UnclearError, ValueError):
        return False


def _key(text: str, decimals: bool) -> tuple[list[tuple[int, int, str]], str]:
    parts = (_NUMBER if decimals else _WHOLE_NUMBER).split(text)
    key = []
    for part in filter(None, parts):
        whole, _, end = part.partition(".") if part[0].isdecimal() else ("", "", "")
        key.append((0, int(whole), end.rstrip("0")) if whole else (1, 0, part.casefold()))
    return key, text  # the text gives 07 and 7 a fixed order too
