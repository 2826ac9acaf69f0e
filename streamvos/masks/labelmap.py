"""Label maps as picture files: which object a pixel of a picture means, and how to write one.

Label maps come in many forms: DAVIS 2017 and YouTube-VOS use palette PNGs whose index is the label; DAVIS
2016 uses gray PNGs of 0 and 255; drawing programs give colors, smooth edges and alpha. Reading turns all of
them into one (H, W) uint8 array: 0 is the background, 1..254 are object ids, 255 is void. Writing always
gives a palette PNG, which image viewers show in color and other tools read as these numbers.

    write_label_map("00000.png", mask)
    read_label_map("00000.png")  # the same mask

What was decided about a file that is no plain label map is logged as one warning.
"""

from __future__ import annotations

import logging
import os
import secrets
from pathlib import Path

import numpy as np
from PIL import Image

from streamvos.masks.checks import MASK_BYTES, check_label_map
from streamvos.masks.exports import is_export, label_map_of_export
from streamvos.masks.painting import Binary, Painting, davis_palette
from streamvos.pictures.opening import PictureFile, check_single
from streamvos.types import InputError, SinkError

__all__ = ["Binary", "davis_palette", "read_label_map", "write_label_map"]

logger = logging.getLogger(__name__)


def read_label_map(path: str | Path, binary: Binary = "auto") -> np.ndarray:
    """Read a label map from a picture file.

    What a pixel means depends on how the file stores it:

    - palette: the index is the label, 255 is void. Where the palette does not begin with black but has
      black (else white, else a transparent entry) elsewhere, that color is the background.
    - one bit: white is object 1.
    - gray, also as three equal channels: the value is the label and 255 is void, but see `binary`. More than
      8 bits are read where the values are few; ids above 254 are numbered anew.
    - RGB: the colors of `davis_palette()` are the labels of their rows; a few other colors on black or white
      are objects 1, 2, ..., in descending order of (red, green, blue).
    - alpha: what is transparent is background; if nothing else is painted, what is opaque is object 1. An
      alpha channel of one value says nothing.

    Smooth edges and the noise of lossy formats are recognized by the histogram: where a few strong values
    fill regions and others form thin fringes, each pixel of a fringe goes to the closest strong value.

    In gray files 255 is ambiguous: "void" where labels are small numbers, "the object" in the masks of DAVIS
    2016 and of most drawing programs. `binary="auto"` decides per file: 255 is object 1 if it is alone, one
    of two to four objects beside levels such as 128, and void beside ids up to 31. "auto" reads one map
    wrongly, a gray one of void and background without any object; save it as a palette PNG, or read it with
    "never".

    A mask is turned as its own EXIF orientation says, like a frame: draw it on the frame as viewers show it.

    Args:
        path: a picture file of one picture; or an export of CVAT or Label Studio (`streamvos.masks.exports`).
        binary: for gray and black-and-white files: "auto" as above; "always" makes every value other than 0
            object 1; "never" keeps the values, 255 is void.

    Returns:
        (H, W) uint8, a fresh array: 0 background, 1..254 object ids, 255 void.

    Raises:
        InputError: no such file, not a picture, damaged, several pictures; or its histogram is not that of a
            label map, or can be read in two ways.
    """
    if binary not in ("auto", "always", "never"):
        raise InputError(f"binary must be 'auto', 'always' or 'never', got {binary!r}")
    if is_export(Path(path)):
        return label_map_of_export(Path(path))
    painting = _open(Path(path))
    labels = painting.labels(binary)
    if painting.remarks:
        logger.warning("%s: %s", path, "; ".join(painting.remarks))
    return labels


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


def _open(path: Path) -> Painting:
    with PictureFile(path, "the label map") as file:
        check_single(file, "a label map")
        if file.size[0] * file.size[1] > MASK_BYTES:
            raise InputError(
                f"{path} has {file.size[1]} x {file.size[0]} pixels; masks have at most {MASK_BYTES}"
            )
        if file.bits > 8 and file.mode in ("RGB", "RGBA", "LA"):
            raise InputError(
                f"{path} has more than 8 bits per value in several channels; save it with 8 bits"
            )
        picture = file.read()[0]
        bits = file.bits if file.format == "PNG" and picture.mode == "L" else 8
        return Painting(path, picture, bits, file.lossy)
