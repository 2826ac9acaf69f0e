"""Label maps as picture files: which number a pixel of a PNG means, and how to write one.

Label maps come in several formats: DAVIS 2017 and YouTube-VOS use palette PNGs whose index is the
label; DAVIS 2016 uses gray PNGs of 0 and 255; other tools save the palette's colors as RGB. Reading
turns all of them into one (H, W) uint8 array: 0 is the background, 1..254 are object ids, 255 is void.
Writing always gives a palette PNG, which image viewers show in color and other tools read as these numbers.

    write_label_map("00000.png", mask)
    read_label_map("00000.png")  # the same mask
"""

from __future__ import annotations

import os
import secrets
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image, UnidentifiedImageError

from streamvos.masks.checks import check_label_map
from streamvos.types import InputError, SinkError

Binary = Literal["auto", "always", "never"]

_LOSSLESS_FORMATS = {"PNG", "BMP", "GIF", "TIFF"}


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


def read_label_map(path: str | Path, binary: Binary = "auto") -> np.ndarray:
    """Read a label map from a picture file.

    What a pixel means depends on how the file stores it:

    - palette ("P"): the index is the label, whatever the palette's colors. 255 is void.
    - one bit ("1"): white is object 1.
    - gray ("L"): the value is the label and 255 is void; but see `binary`.
    - RGB: each pixel must have a color of `davis_palette()`, whose row is the label; a picture in black and
      white only is read as gray.

    Gray files are ambiguous: 255 is "void" where labels are small numbers, but "the object" in the
    two-valued masks of DAVIS 2016 and of most drawing programs. `binary="auto"` decides per file: 255 means
    object 1 if every pixel is 0 or 255, and void otherwise. "auto" reads one map wrongly, a gray one of void
    and background without any object; save it as a palette PNG, or read it with "never".

    Args:
        path: a PNG, BMP, GIF or TIFF file. JPEG and WebP are refused, since they blur labels.
        binary: for gray and black-and-white RGB files: "auto" as above; "always" makes every value other
            than 0 object 1; "never" keeps the values, 255 is void.

    Returns:
        (H, W) uint8, a fresh array: 0 background, 1..254 object ids, 255 void.

    Raises:
        InputError: no such file, not a picture, damaged, 16 bits per value, with alpha, lossy, or RGB
            with a color that is not in the palette.
    """
    if binary not in ("auto", "always", "never"):
        raise InputError(f"binary must be 'auto', 'always' or 'never', got {binary!r}")
    path = Path(path)
    try:
        with Image.open(path) as picture:
            _check_format(path, picture)
            depth = _gray_bits(path, picture)
            picture.load()
            mode, values = picture.mode, np.array(picture)
    except InputError:
        raise
    except IsADirectoryError:
        raise InputError(f"{path} is a folder; a label map is one file, such as 00000.png in it") from None
    except FileNotFoundError:
        raise InputError(f"no label map at {path}: there is no such file") from None
    except Exception as error:  # Pillow's decoders raise many kinds; each means a damaged picture
        reason = " ".join(str(error).split()) or type(error).__name__
        if isinstance(error, UnidentifiedImageError):
            reason = "it is not a picture"
        elif isinstance(error, OSError) and error.strerror:
            reason = error.strerror.lower()
        raise InputError(f"cannot read the label map {path}: {reason}; expected a PNG file") from error
    if mode in ("P", "1"):
        return values.astype(np.uint8)
    if mode == "L":
        return _from_gray(values // (255 // (2**depth - 1)), binary)
    return _from_colors(path, values, binary)


def write_label_map(path: str | Path, mask: np.ndarray, temporary: Path | None = None) -> None:
    """Write a label map as a palette PNG with the DAVIS palette.

    The file appears whole or not at all: it is written under a temporary name in the same folder and then
    renamed. The same mask always gives the same bytes (with the same Pillow and zlib).

    Args:
        path: file to write or replace; its folder must exist.
        mask: (H, W) of any integer dtype or bool, values 0..255 (255 is void).
        temporary: the temporary name, in the same folder and not taken; None draws one.

    Raises:
        InputError: `mask` has another shape or dtype, is empty, or has values outside 0..255.
        SinkError: the file cannot be written (full disk, missing folder or permission).
    """
    path = Path(path)
    picture = Image.fromarray(check_label_map(mask))
    picture.putpalette(davis_palette().tobytes())
    # Hidden, so that *.png does not match it; unique, so that two writers do not mix.
    temporary = temporary or path.with_name(f".{secrets.token_hex(8)}.tmp")
    try:
        try:
            with open(temporary, "xb") as file:  # neither a file nor a link that is there already
                picture.save(file, format="PNG", compress_level=6, optimize=False)
            os.replace(temporary, path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
    except OSError as error:
        raise SinkError(f"cannot write the label map {path}: {error.strerror or error}") from error


def _check_format(path: Path, picture: Image.Image) -> None:
    if picture.format not in _LOSSLESS_FORMATS:
        raise InputError(
            f"{path} is a {picture.format} file; a label map needs a lossless format, since lossy ones blur "
            "labels: save it as PNG"
        )
    if picture.mode in ("RGBA", "LA", "PA", "La", "RGBa"):
        raise InputError(
            f"{path} has an alpha channel (mode {picture.mode}), so the label of a pixel is unclear; "
            "save it as a palette, gray or RGB PNG without alpha"
        )
    if picture.mode.startswith(("I", "F")) or _png_bits(path, picture) == 16:
        raise InputError(f"{path} has more than 8 bits per value; labels are 0..255: save it with 8 bits")
    if picture.mode not in ("P", "1", "L", "RGB"):
        raise InputError(f"{path} has the mode {picture.mode}; expected a palette, gray or RGB picture")


def _png_bits(path: Path, picture: Image.Image) -> int:
    """Bits per value as the PNG's header says; Pillow narrows 16-bit RGB to 8 bits silently."""
    if picture.format != "PNG":
        return 8
    with open(path, "rb") as file:
        header = file.read(25)  # 8 signature, 4 length, "IHDR", 4 width, 4 height, 1 bit depth
    return header[24] if header[12:16] == b"IHDR" else 8


def _gray_bits(path: Path, picture: Image.Image) -> int:
    """Bits that a gray picture's values had in the file; Pillow stretches 2 and 4 bits to 0..255."""
    bits = _png_bits(path, picture) if picture.mode == "L" else 8
    return bits if bits in (2, 4) else 8


def _from_gray(values: np.ndarray, binary: Binary) -> np.ndarray:
    is_mask = binary == "always" or (binary == "auto" and np.isin(values, (0, 255)).all())
    return (values > 0 if is_mask else values).astype(np.uint8)


def _from_colors(path: Path, values: np.ndarray, binary: Binary) -> np.ndarray:
    packed = _pack(values)
    if set(np.unique(packed).tolist()) <= {0x000000, 0xFFFFFF}:
        return _from_gray(values[..., 0], binary)
    palette = _pack(davis_palette())
    order = np.argsort(palette)
    labels = order[np.minimum(np.searchsorted(palette[order], packed), 255)]
    unknown = palette[labels] != packed
    if unknown.any():
        color = tuple(int(value) for value in values[unknown][0])
        raise InputError(
            f"{path} is an RGB picture in which {int(unknown.sum())} pixels have colors outside the DAVIS "
            f"palette (the first is {color}); save it as a palette PNG whose index is the label"
        )
    return labels.astype(np.uint8)


def _pack(colors: np.ndarray) -> np.ndarray:
    red, green, blue = (colors[..., channel].astype(np.int64) for channel in range(3))
    return (red << 16) | (green << 8) | blue
