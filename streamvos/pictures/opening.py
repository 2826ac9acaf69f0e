"""One picture file: the pictures in it, as they are meant to be shown.

A picture is turned as its EXIF orientation says, in every format, frames and masks alike: what a viewer shows
is what is read. Some files hold a sequence (animated GIF, WebP, PNG and AVIF, stacks of TIFF), with the time
that each picture is shown where the format has one.

    with PictureFile("clip.webp") as file:
        len(file), file.size                     # 12, (480, 854)
        picture, seconds = file.read(0)          # a Pillow image, 0.04
"""

from __future__ import annotations

import struct
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, TypeVar

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

from streamvos.files import open_file
from streamvos.types import InputError

FORMATS = ("JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF", "PPM", "MPO", "AVIF", "JPEG2000")
"""Pillow's formats that are read. Others start programs (EPS) or are no pictures of a camera."""

LARGEST = 2**26
"""The largest number of pixels of a picture: 8192 x 8192."""

DEFAULT_SECONDS = 0.1
"""How long browsers show a picture of an animation that gives no time."""

Value = TypeVar("Value")

_TURNS = {
    2: (Image.Transpose.FLIP_LEFT_RIGHT,),
    3: (Image.Transpose.ROTATE_180,),
    4: (Image.Transpose.FLIP_TOP_BOTTOM,),
    5: (Image.Transpose.TRANSPOSE,),
    6: (Image.Transpose.ROTATE_270,),
    7: (Image.Transpose.TRANSVERSE,),
    8: (Image.Transpose.ROTATE_90,),
}
_TIMED = {"GIF", "WEBP", "PNG", "AVIF"}
_WIDTH, _LENGTH, _SUBFILE, _OLD_SUBFILE = 256, 257, 254, 255  # tags of TIFF


class PictureFile:
    """An open picture file; a context manager.

    Args:
        path: path of the file.
        what: what it should be, for error messages.

    Attributes:
        path: the file.
        format: Pillow's name of its format.
        mode: Pillow's name of the kind of pixels of the first picture.
        bits: bits per value as the file stores them.
        lossy: whether its format changes values.
        size: (H, W) of the first picture, turned.
        timed: whether each picture has a time.

    Raises:
        InputError: it cannot be opened, or is no picture.
    """

    def __init__(self, path: str | Path, what: str = "the picture") -> None:
        self.path, self._what = Path(path), what
        self._file = open_file(path, what)
        try:
            self._picture = self._guarded(self._open)
            self._pages = self._guarded(self._find_pages)
            self.format, self.mode = str(self._picture.format), self._picture.mode
            self.bits = self._guarded(self._find_bits)
            self.lossy = self._guarded(self._is_lossy)
            self._turn = self._guarded(self._find_turn)
            self.size = self._find_size()
        except BaseException:
            self._file.close()
            raise
        self.timed = len(self) > 1 and self.format in _TIMED

    def __len__(self) -> int:
        return len(self._pages)

    def __enter__(self) -> PictureFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the file."""
        self._picture.close()
        self._file.close()

    def read(self, number: int = 0) -> tuple[Image.Image, float]:
        """A picture, turned, and for how many seconds it is shown.

        Args:
            number: 0 is the first; reading them in order is fastest.

        Raises:
            InputError: it is damaged.
        """
        return self._guarded(lambda: self._read(number), number)

    def _read(self, number: int) -> tuple[Image.Image, float]:
        if self._pages[number] != self._picture.tell():
            self._picture.seek(self._pages[number])
        self._picture.load()
        picture = self._picture.copy()
        if self.format == "TIFF":  # some versions of Pillow turn it when it is loaded, and remove the tag
            turn = self._picture.getexif().get(ExifTags.Base.Orientation, 1)
        else:
            turn = self._turn
        for step in _TURNS.get(turn, ()):
            picture = picture.transpose(step)
        milliseconds = self._picture.info.get("duration") or 0
        return picture, milliseconds / 1000 if milliseconds > 0 else DEFAULT_SECONDS

    def _open(self) -> Image.Image:
        Image.init()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            picture = Image.open(self._file, formats=[name for name in FORMATS if name in Image.OPEN])
        width, height = picture.size
        if width * height > LARGEST:
            raise ValueError(f"{width}x{height} pixels are more than {LARGEST}")
        return picture

    def _find_pages(self) -> Sequence[int]:
        """Numbers of the pictures that make up the sequence; one for a single picture."""
        picture = self._picture
        count = getattr(picture, "n_frames", 1)
        if picture.format == "MPO":  # the others are previews or another eye's view
            return range(1)
        if picture.format == "TIFF":
            pages = []
            for page in range(count):
                picture.seek(page)
                tags = picture.tag_v2  # type: ignore[attr-defined]
                if not tags.get(_SUBFILE, 0) & 0b101 and tags.get(_OLD_SUBFILE, 1) != 2:
                    pages.append(page)  # else a thumbnail or a mask of another page
            picture.seek(pages[0] if pages else 0)
            return pages or range(1)
        if count > 1 and picture.info.get("default_image"):  # of a PNG, for viewers without animation
            return range(1, count)
        return range(count)

    def _find_bits(self) -> int:
        if self.format == "PNG":
            with self._position_kept():
                self._file.seek(24)  # 8 signature, 4 length, "IHDR", 4 width, 4 height
                return self._file.read(1)[0]
        if self.mode == "1":
            return 1
        if self.format == "TIFF":
            return int(max(self._picture.tag_v2.get(258, (1,))))  # type: ignore[attr-defined]
        return 8 if self.mode[:1] not in ("I", "F") else 32 if self.mode in ("I", "F") else 16

    def _is_lossy(self) -> bool:
        if self.format == "WEBP":
            with self._position_kept():
                return all(kind != b"VP8L" for kind, _, _ in _chunks(self._file, 12, "<4sI", _pad_to_even))
        if self.format == "TIFF":
            return self._picture.info.get("compression") in ("jpeg", "tiff_jpeg", "webp", "jpeg2000")
        return self.format in ("JPEG", "MPO", "AVIF", "JPEG2000")

    def _find_turn(self) -> int:
        if self.format != "PNG":
            return int(self._picture.getexif().get(ExifTags.Base.Orientation, 1))
        # Pillow would decode the whole picture first, as the EXIF of a PNG may follow the pixels
        with self._position_kept():
            for kind, start, length in _chunks(self._file, 8, ">I4s", lambda length: length + 4):
                if kind == b"eXIf":
                    self._file.seek(start)
                    exif = Image.Exif()
                    exif.load(self._file.read(min(length, 2**16)))
                    return int(exif.get(ExifTags.Base.Orientation, 1))
        return 1

    def _find_size(self) -> tuple[int, int]:
        width, height = self._picture.size
        if self.format == "TIFF":  # some versions of Pillow give the size after turning
            tags = self._picture.tag_v2  # type: ignore[attr-defined]
            width, height = int(tags[_WIDTH]), int(tags[_LENGTH])
        return (width, height) if self._turn in (5, 6, 7, 8) else (height, width)

    @contextmanager
    def _position_kept(self) -> Iterator[None]:
        """Within the block, the file may be read; Pillow goes on where it was."""
        position = self._file.tell()
        try:
            yield
        finally:
            self._file.seek(position)

    def _guarded(self, step: Callable[[], Value], number: int | None = None) -> Value:
        """The result of `step`; any error of a decoder becomes an InputError with one line."""
        place = f"picture {number} of {self.path}" if number else f"{self.path}"
        try:
            return step()
        except InputError:
            raise
        except UnidentifiedImageError:
            raise InputError(
                f"cannot read {self._what} {place}: it is damaged or no picture of a known format; "
                "replace or remove it"
            ) from None
        except Exception as error:  # decoders raise many kinds; each means a damaged file
            reason = " ".join(str(error).split()) or type(error).__name__
            raise InputError(
                f"cannot read {self._what} {place}: it is damaged ({reason}); replace or remove it"
            ) from error


def read_rgb(path: str | Path, what: str = "the picture") -> np.ndarray:
    """The picture in a file, (H, W, 3) uint8 RGB; see `to_rgb`.

    Raises:
        InputError: it cannot be read, has more than 8 bits per value, or the file holds a sequence.
    """
    with PictureFile(path, what) as file:
        check_single(file, what)
        check_mode(file)
        return to_rgb(file.read()[0])


def to_rgb(picture: Image.Image) -> np.ndarray:
    """(H, W, 3) uint8 RGB; what an alpha channel makes transparent keeps its color."""
    return np.array(picture.convert("RGB"))


def check_single(file: PictureFile, what: str) -> None:
    """Raise InputError if a file holds several pictures."""
    if len(file) > 1:
        raise InputError(f"{file.path} holds {len(file)} pictures; {what} is one: save it on its own")


def check_mode(file: PictureFile) -> None:
    """Raise InputError if the pixels of a frame cannot be shown as 8-bit RGB without a choice."""
    if file.mode in ("1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr"):
        return  # of RGB with 16 bits per value Pillow keeps the upper 8, as viewers do
    if file.mode.startswith(("I", "F")):
        raise InputError(
            f"{file.path} has more than 8 bits per value (mode {file.mode}); frames are 8-bit RGB: convert "
            "it, choosing the part of its range to show"
        )
    raise InputError(f"{file.path} has pixels of mode {file.mode}; expected RGB, gray, a palette or CMYK")


def _chunks(
    file: BinaryIO, start: int, header: str, taken: Callable[[int], int]
) -> Iterator[tuple[bytes, int, int]]:
    """Name, position and length of the chunks of a PNG or WebP file, without reading them.

    Args:
        file: the file.
        start: position of the first chunk.
        header: of a chunk, for `struct`: its name and length in either order.
        taken: length of a chunk -> bytes from its content to the next chunk.
    """
    while True:
        file.seek(start)
        head = file.read(8)
        if len(head) < 8:
            return
        first, second = struct.unpack(header, head)
        kind, length = (first, second) if isinstance(first, bytes) else (second, first)
        yield kind, start + 8, length
        start += 8 + taken(length)


def _pad_to_even(length: int) -> int:
    return length + length % 2
