"""Masks and frames as clients send and get them: run lengths, PNG files, snapshots."""

from __future__ import annotations

import io
import json
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from streamvos.console.bodies import Runs
from streamvos.console.feeds import View
from streamvos.console.selecting import decoded
from streamvos.masks.checks import MASK_BYTES
from streamvos.masks.labelmap import davis_palette, read_label_map
from streamvos.masks.rle import decode_rle
from streamvos.types import InputError


def checked_size(size: tuple[int, int]) -> tuple[int, int]:
    """Height and width, if a mask may have them.

    Raises:
        InputError: no pixels, or too many.
    """
    height, width = size
    if not (height > 0 and width > 0 and height * width <= MASK_BYTES):
        raise InputError(f"a mask has 1 to {MASK_BYTES} pixels, got {width} x {height} (W x H)")
    return height, width


def decoded_runs(runs: Runs, size: tuple[int, int]) -> np.ndarray:
    """(H, W) uint8 of 0 and 1.

    Raises:
        InputError: they are not of this size, or no run lengths.
    """
    if runs.size != tuple(size):
        raise InputError(f"the mask is {list(runs.size)}, the frame {list(size)} (H, W)")
    checked_size(runs.size)
    return decode_rle({"size": list(runs.size), "counts": runs.counts})


def label_map_of(view: View) -> np.ndarray:
    """(H, W) uint8 of what is shown; 0 where nothing is followed."""
    return np.zeros(view.picture.size, np.uint8) if view.mask is None else view.mask.label_map


def png(label_map: np.ndarray) -> bytes:
    """A palette PNG whose index is the object's id."""
    picture = Image.fromarray(np.ascontiguousarray(label_map))
    picture.putpalette(davis_palette().tobytes())
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG", compress_level=4)
    return buffer.getvalue()


def read_upload(body: bytes) -> np.ndarray:
    """The label map in an uploaded file, checked as every mask is.

    Raises:
        InputError: see `read_label_map`; it names no file of this machine.
    """
    name = "the uploaded label map"
    if not body:
        raise InputError(f"{name} is empty; send a PNG as the body")
    with tempfile.TemporaryDirectory(prefix="streamvos-") as folder:
        path = Path(folder) / "upload.png"
        path.write_bytes(body)
        try:
            with Image.open(path) as picture:  # before any pixel is decompressed
                checked_size((picture.height, picture.width))
        except InputError:
            raise
        except Exception:  # Pillow raises many types; the reader says what is wrong
            pass
        try:
            return read_label_map(path)
        except InputError as error:
            raise InputError(
                str(error).replace(f"the label map {path}", name).replace(str(path), name)
            ) from None


def snapshot(view: View, described: dict[str, Any]) -> bytes:
    """A zip: the frame as PNG, its label map, and what is known of it as JSON."""
    frame = io.BytesIO()
    Image.fromarray(decoded(view.picture.jpeg)).save(frame, format="PNG", compress_level=4)
    stem = f"{view.picture.stream}-{view.picture.seq:06d}"
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:  # PNGs do not get smaller
        archive.writestr(f"{stem}.png", frame.getvalue())
        archive.writestr(f"{stem}-labels.png", png(label_map_of(view)))
        archive.writestr(f"{stem}.json", json.dumps(described, indent=1))
    return buffer.getvalue()
