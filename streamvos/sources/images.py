"""A folder of pictures (or a glob, or a single picture) as a stream of frames.

Data sets such as DAVIS have one numbered JPEG per frame. Files are read in natural order: frame2 precedes
frame10. Opening the source reads the headers of all files, so that a picture of another size is found before
the work begins.

    with ImagesSource("DAVIS/JPEGImages/480p/goat", fps=24) as source:
        first = next(source)
"""

from __future__ import annotations

import glob
import hashlib
import os
import re
import time
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from streamvos.sources.source import IMAGE_SUFFIXES, NOMINAL_FPS, Picture, Selection, Source
from streamvos.types import InputError

_EIGHT_BIT_MODES = {"1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr"}
_PHOTOGRAPHS = {"JPEG", "MPO", "TIFF", "WEBP"}  # the EXIF of a PNG is known only after decoding all of it
_EXIF_ORIENTATION = 0x0112
_TIMES = "times of the files"
_TIMES_BYTES = 2**16
"""Times of further pictures are not compared."""

_ON_ITS_SIDE = {5, 6, 7, 8}


def natural_key(path: Path) -> list[tuple[int, int, str]]:
    """Sort key under which numbers in names count as numbers: frame2 < frame10 < frame11b."""
    parts = re.split(r"(\d+)", str(path))
    # The text after the number gives 07 and 7 a fixed order too.
    return [(0, int(part), part) if part.isdecimal() else (1, 0, part) for part in parts if part]


class ImagesSource(Source):
    """Pictures from files, in natural order of their names.

    Photographs are turned as their EXIF orientation says; alpha is dropped. `stem(index)` is the file's own
    stem, or the frame's number if any two files share a stem.

    Args:
        place: a folder, a glob ("shots/*.jpg", "**" goes into sub-folders), or one picture.
        name: name of the stream; the folder's name if None.
        fps: frames per second, from which `pts` follows. If None, `fps` stays None and `pts` assumes
            `NOMINAL_FPS`.
        selection: which frames, and how large.

    Raises:
        InputError: there is no such place or no picture in it, or a picture is damaged, has another size
            than the first, or more than 8 bits per value.
    """

    def __init__(
        self,
        place: str | Path,
        *,
        name: str | None = None,
        fps: float | None = None,
        selection: Selection | None = None,
    ) -> None:
        self.paths = _find_images(place)
        native_size = _check_sizes(self.paths)
        self._period = 1.0 / (fps or NOMINAL_FPS)
        self._next = 0
        stems = [path.stem for path in self.paths]
        self._stems = stems if len(set(stems)) == len(stems) else None
        super().__init__(
            name=name or _name_of(place),
            native_size=native_size,
            fps=fps,
            native_length=len(self.paths),
            selection=selection or Selection(),
        )

    def stem(self, index: int) -> str:
        """The stem of the file that frame `index` came from, such as "00007" or "IMG_0042"."""
        place = self._selection.number(index)
        if self._stems is None or not 0 <= place < len(self._stems):
            return super().stem(index)
        return self._stems[place]

    def number_named(self, stem: str) -> int | None:
        """The place of the picture with this stem, or else of the one that has its number at the end."""
        if self.has_picture(stem):
            return [path.stem for path in self.paths].index(stem)
        match = re.fullmatch(r"(?:frame[-_. ]*)?(\d{1,9})", stem, re.IGNORECASE)
        numbers = [re.search(r"(\d+)$", path.stem) for path in self.paths]
        for place, number in enumerate(numbers if match else ()):
            if number is not None and match is not None and int(number[1]) == int(match[1]):
                return place
        return None

    def has_picture(self, stem: str) -> bool:
        """Whether exactly one picture has this name, without its suffix."""
        return [path.stem for path in self.paths].count(stem) == 1

    def identity(self) -> Mapping[str, object]:
        """Names and sizes of the files, as digests, and 4 bytes of the time of each, in order."""
        names, sizes, times = hashlib.sha256(), hashlib.sha256(), []
        for path in self.paths:
            try:
                status = path.stat()
            except OSError:  # it is gone, which reading will tell
                continue
            names.update(os.fsencode(path) + b"\0")
            sizes.update(f"{status.st_size} ".encode())
            times.append(zlib.crc32(str(status.st_mtime_ns).encode()).to_bytes(4, "big"))
        return {
            "number of pictures": len(self.paths),
            "names of the pictures": names.hexdigest(),
            "sizes of the files": sizes.hexdigest(),
            _TIMES: b"".join(times)[:_TIMES_BYTES],
        }

    def changes(self, earlier: Mapping[str, object], given: int) -> list[str]:
        """What has changed; a picture that was not given yet may have been written anew."""
        found, own = super().changes({**earlier, _TIMES: None}, given), self.identity()[_TIMES]
        was, read = earlier.get(_TIMES), 4 * min(self._selection.number(given), len(self.paths))
        if not found and isinstance(was, bytes) and isinstance(own, bytes) and was[:read] != own[:read]:
            place = next(n for n in range(read // 4) if was[4 * n : 4 * n + 4] != own[4 * n : 4 * n + 4])
            found.append(f"{self.paths[place]} was written anew")
        return found

    def _read(self) -> Picture | None:
        if self._next >= len(self.paths):
            return None
        image = _read_image(self.paths[self._next])
        pts = self._next * self._period
        self._next += 1
        return Picture(image, time.monotonic_ns(), pts)

    def _skip(self, count: int) -> None:
        self._next += count

    def _position(self) -> str:
        return str(self.paths[self._next - 1])


def _find_images(place: str | Path) -> list[Path]:
    path = Path(place)
    if path.is_dir():
        try:
            inside = list(path.iterdir())
        except OSError as error:
            raise InputError(f"cannot list the folder {path}: {error.strerror}") from error
        found = [file for file in inside if _is_image(file)]
        if not found:
            raise InputError(f"the folder {path} holds no pictures{_what_instead(inside)}")
    elif path.is_file():
        found = [path]
    else:
        found = [Path(match) for match in glob.glob(str(place), recursive=True) if _is_image(Path(match))]
        if not found:
            raise InputError(
                f"nothing matches {place}; expected a folder of pictures, a glob that matches pictures "
                f"({', '.join(sorted(IMAGE_SUFFIXES))}), or a picture"
            )
    return sorted(found, key=natural_key)


def _is_image(path: Path) -> bool:
    # Hidden files are not frames: macOS adds "._00000.jpg" to "00000.jpg".
    return path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".") and path.is_file()


def _what_instead(inside: Sequence[Path]) -> str:
    folders = sorted(path.name for path in inside if path.is_dir() and not path.name.startswith("."))
    if folders:
        shown = ", ".join(folders[:3]) + (", ..." if len(folders) > 3 else "")
        return f", but sub-folders ({shown}); give one of them"
    if inside:
        return f", but {len(inside)} other files; expected {', '.join(sorted(IMAGE_SUFFIXES))}"
    return "; it is empty"


def _name_of(place: str | Path) -> str:
    path = Path(place)
    if path.is_dir():
        return path.resolve().name or "images"
    if path.is_file():
        return path.stem
    fixed = [part for part in path.parts[:-1] if not glob.has_magic(part)]
    return Path(*fixed).resolve().name if fixed else "images"


def _check_sizes(paths: Sequence[Path]) -> tuple[int, int]:
    """(H, W) that all pictures share, by their headers."""
    sizes = []
    for path in paths:
        try:
            with Image.open(path) as picture:
                if picture.mode not in _EIGHT_BIT_MODES:
                    raise InputError(
                        f"{path} has more than 8 bits per value (mode {picture.mode}); frames are 8-bit RGB: "
                        "convert it, choosing the part of its range to show"
                    )
                width, height = picture.size
                is_photograph = picture.format in _PHOTOGRAPHS
                if is_photograph and picture.getexif().get(_EXIF_ORIENTATION) in _ON_ITS_SIDE:
                    width, height = height, width
        except InputError:
            raise
        except Exception as error:
            raise _damaged(path, error) from error
        sizes.append((height, width))
        if sizes[-1] != sizes[0]:
            raise InputError(
                f"{path} is {width}x{height} pixels, but {paths[0].name} is {sizes[0][1]}x{sizes[0][0]}; "
                "all frames of a stream must have one size: remove or resize it"
            )
    return sizes[0]


def _read_image(path: Path) -> np.ndarray:
    """(H, W, 3) uint8 RGB. Pillow, since OpenCV silently turns a truncated JPEG gray."""
    try:
        with Image.open(path) as picture:
            turned = ImageOps.exif_transpose(picture) if picture.format in _PHOTOGRAPHS else picture
            return np.array(turned.convert("RGB"))
    except Exception as error:
        raise _damaged(path, error) from error


def _damaged(path: Path, error: Exception) -> InputError:
    if isinstance(error, OSError) and error.strerror:
        return InputError(f"cannot read the picture {path}: {error.strerror}")
    if isinstance(error, UnidentifiedImageError):
        reason = "unknown format"  # Pillow's own text repeats the path
    else:
        reason = " ".join(str(error).split()) or type(error).__name__
    return InputError(f"the picture {path} is damaged or not a picture ({reason}); replace or remove it")
