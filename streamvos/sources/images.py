"""A folder of pictures (or a glob, or a single file) as a stream of frames.

Data sets such as DAVIS have one numbered JPEG per frame. `streamvos.pictures.listing` says which files of a
folder are frames, and in which order. A single file may hold a sequence: an animated GIF, WebP, PNG or AVIF,
or a stack of TIFF. Opening the source reads the headers of all files, so that a picture of another size is
found before the work begins.

    with ImagesSource("DAVIS/JPEGImages/480p/goat", fps=24) as source:
        first = next(source)
"""

from __future__ import annotations

import glob
import hashlib
import logging
import os
import re
import time
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path

from streamvos.pictures.listing import (
    IMAGE_SUFFIXES,
    choose_frames,
    is_picture,
    list_folder,
    match_pictures,
    natural_key,
)
from streamvos.pictures.opening import PictureFile, check_mode, read_rgb, to_rgb
from streamvos.sources.source import NOMINAL_FPS, Picture, Selection, Source
from streamvos.types import InputError

__all__ = ["ImagesSource", "natural_key"]

_TIMES = "times of the files"
_TIMES_BYTES = 2**16
"""Times of further pictures are not compared."""


logger = logging.getLogger(__name__)


class ImagesSource(Source):
    """Pictures from files, in natural order of their names, or the pictures of one file.

    Each is turned as its EXIF orientation says; alpha is dropped. Masks and thumbnails among the frames are
    left out, with a warning. `stem(index)` is the file's own stem, or the frame's number if any two files
    share a stem or one file holds all frames.

    Args:
        place: a folder, a glob ("shots/*.jpg", "**" goes into sub-folders), or one picture file.
        name: name of the stream; the folder's name if None.
        fps: frames per second, from which `pts` follows. If None, `fps` stays None and `pts` assumes
            `NOMINAL_FPS`. An animation has times of its own.
        selection: which frames, and how large.

    Raises:
        InputError: there is no such place or no picture in it; or a picture is damaged, has another size
            than the first, more than 8 bits per value, or is one of several in a file beside other files; or
            `fps` is given with an animation.
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
        native_size, length = _check_all(self.paths)
        self._period = 1.0 / (fps or NOMINAL_FPS)
        self._next, self._count = 0, length
        self._sequence: PictureFile | None = None
        self._seconds = 0.0  # from the start of an animation to its next picture
        if length > len(self.paths):
            self._sequence = PictureFile(self.paths[0])
            if self._sequence.timed and fps is not None:
                self._sequence.close()
                raise InputError(
                    f"{self.paths[0]} says how long each picture is shown; fps is for pictures without a time"
                )
        stems = [path.stem for path in self.paths]
        self._stems = stems if len(set(stems)) == len(stems) == length else None
        super().__init__(
            name=name or _name_of(place),
            native_size=native_size,
            fps=fps,
            native_length=length,
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
        if self._sequence is not None:
            return super().number_named(stem)
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

    def close(self) -> None:
        if self._sequence is not None and not self._closed:
            self._sequence.close()
        super().close()

    def _read(self) -> Picture | None:
        if self._next >= self._count:
            return None
        pts = self._next * self._period
        if self._sequence is None:
            image = read_rgb(self.paths[self._next])
        else:
            picture, seconds = self._sequence.read(self._next)
            image = to_rgb(picture)
            if self._sequence.timed:
                pts = self._seconds
                self._seconds += seconds
        self._next += 1
        return Picture(image, time.monotonic_ns(), pts)

    def _skip(self, count: int) -> None:
        if self._sequence is not None and self._sequence.timed:
            super()._skip(count)  # the times of later pictures follow from those of all before
        else:
            self._next += count

    def _position(self) -> str:
        if self._sequence is not None:
            return f"picture {self._next - 1} of {self.paths[0]}"
        return str(self.paths[self._next - 1])


def _find_images(place: str | Path) -> list[Path]:
    path = Path(place)
    if path.is_dir():
        inside = list_folder(path)
        found = [file for file in inside if is_picture(file)]
        if not found:
            raise InputError(f"the folder {path} holds no pictures{_what_instead(inside)}")
    elif path.is_file():
        return [path]
    else:
        found = match_pictures(str(place))
        if not found:
            raise InputError(
                f"nothing matches {place}; expected a folder of pictures, a glob that matches pictures "
                f"({', '.join(sorted(IMAGE_SUFFIXES))}), or a picture"
            )
    frames, others = choose_frames(found)
    if others:
        shown = ", ".join(one.name for one in others[:3]) + (", ..." if len(others) > 3 else "")
        logger.warning(
            "%s: %d of %d pictures are masks or previews by their names or contents, and no frames: %s",
            place,
            len(others),
            len(found),
            shown,
        )
    return frames


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


def _check_all(paths: Sequence[Path]) -> tuple[tuple[int, int], int]:
    """(H, W) that all pictures share, by their headers, and the number of pictures."""
    sizes: list[tuple[int, int]] = []
    for path in paths:
        with PictureFile(path) as file:
            check_mode(file)
            sizes.append(file.size)
            if len(file) > 1 and len(paths) > 1:
                raise InputError(
                    f"{path} holds {len(file)} pictures, the other files one each; move it elsewhere, or "
                    "give it alone to read all of its pictures"
                )
            count = len(file)
        if sizes[-1] != sizes[0]:
            (height, width), (first_height, first_width) = sizes[-1], sizes[0]
            raise InputError(
                f"{path} is {width}x{height} pixels, but {paths[0].name} is {first_width}x{first_height}; "
                "all frames of a stream must have one size: remove or resize it"
            )
    return sizes[0], count if len(paths) == 1 else len(paths)
