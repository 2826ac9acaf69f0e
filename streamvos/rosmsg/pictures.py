"""Pictures in ROS messages: sensor_msgs Image and CompressedImage to RGB, and label maps to Image.

    image = rgb_of(decode(content, "sensor_msgs/msg/Image"))
    message = label_map_image(result.mask, header)

An encoding says channels and their order, the fields say the rows' length and the order of bytes. Depth and
16-bit gray are refused, as for pictures in files: how they become colors is a choice.
"""

from __future__ import annotations

import io
from typing import Any

import cv2
import numpy as np
from PIL import Image

from streamvos.pictures.opening import to_rgb
from streamvos.rosmsg.types import make
from streamvos.types import InputError

IMAGE, COMPRESSED = "sensor_msgs/msg/Image", "sensor_msgs/msg/CompressedImage"

MOST_PIXELS = 2**26
"""The largest picture that is read, as for files."""

_PLAIN = {  # encoding -> channels, and how OpenCV makes RGB of them; None: they are RGB
    "rgb8": (3, None),
    "bgr8": (3, cv2.COLOR_BGR2RGB),
    "8UC3": (3, cv2.COLOR_BGR2RGB),  # OpenCV's order
    "rgba8": (4, cv2.COLOR_RGBA2RGB),
    "bgra8": (4, cv2.COLOR_BGRA2RGB),
    "8UC4": (4, cv2.COLOR_BGRA2RGB),
    "mono8": (1, cv2.COLOR_GRAY2RGB),
    "8UC1": (1, cv2.COLOR_GRAY2RGB),
    "bayer_rggb8": (1, cv2.COLOR_BayerRGGB2RGB),
    "bayer_bggr8": (1, cv2.COLOR_BayerBGGR2RGB),
    "bayer_gbrg8": (1, cv2.COLOR_BayerGBRG2RGB),
    "bayer_grbg8": (1, cv2.COLOR_BayerGRBG2RGB),
    "yuv422": (2, cv2.COLOR_YUV2RGB_UYVY),
    "uyvy": (2, cv2.COLOR_YUV2RGB_UYVY),
    "yuv422_yuy2": (2, cv2.COLOR_YUV2RGB_YUY2),
    "yuyv": (2, cv2.COLOR_YUV2RGB_YUY2),
}
_PLANAR = {"nv12": cv2.COLOR_YUV2RGB_NV12, "nv21": cv2.COLOR_YUV2RGB_NV21}
ENCODINGS = (*_PLAIN, "rgb16", "bgr16", "rgba16", "bgra16", *_PLANAR)
"""What Image.encoding may be. Of 16 bits, the upper 8 count."""


def rgb_of(message: Any) -> np.ndarray:
    """The picture of an Image or CompressedImage, (H, W, 3) uint8 RGB, which shares no memory with it.

    Raises:
        InputError: an encoding that is not in `ENCODINGS`, a size that its data does not have, or a
            compressed picture that is neither JPEG nor PNG, or damaged.
    """
    return _decompressed(message) if message.__msgtype__ == COMPRESSED else _unpacked(message)


def label_map_image(label_map: np.ndarray, header: Any) -> Any:
    """A label map, (H, W) uint8, as a mono8 Image."""
    height, width = label_map.shape
    data = np.ascontiguousarray(label_map).reshape(-1)
    return make(IMAGE, header=header, height=height, width=width, encoding="mono8", step=width, data=data)


def rgb_image(image: np.ndarray, header: Any) -> Any:
    """A picture, (H, W, 3) uint8 RGB, as an rgb8 Image."""
    height, width, _ = image.shape
    data = np.ascontiguousarray(image).reshape(-1)
    return make(IMAGE, header=header, height=height, width=width, encoding="rgb8", step=3 * width, data=data)


def mask_of(message: Any, size: tuple[int, int]) -> np.ndarray | None:
    """The mask in an Image of one channel, (H, W) bool; None where the message has no data.

    Args:
        message: mono8 or 8UC1; not 0 on the object.
        size: (H, W) that it must have.

    Raises:
        InputError: another encoding or size.
    """
    if not len(message.data):
        return None
    if message.encoding not in ("mono8", "8UC1"):
        raise InputError(f"the mask has the encoding {message.encoding!r}; expected mono8")
    mask = _rows(message, 1)[:, : message.width]
    if mask.shape != size:
        raise InputError(
            f"the mask is {mask.shape[1]} x {mask.shape[0]}, the frames are {size[1]} x {size[0]} (W x H)"
        )
    return np.asarray(mask != 0)


def _unpacked(message: Any) -> np.ndarray:
    encoding, height, width = message.encoding, int(message.height), int(message.width)
    if encoding in _PLANAR:
        if height % 2 or width % 2:
            raise InputError(f"an {encoding} image of {width} x {height} (W x H); expected even sides")
        whole = _rows(message, 1, rows=height * 3 // 2)[:, :width]
        return np.asarray(cv2.cvtColor(np.ascontiguousarray(whole), _PLANAR[encoding]))
    if encoding.endswith("16") and encoding.removesuffix("16") + "8" in _PLAIN:
        channels, conversion = _PLAIN[encoding.removesuffix("16") + "8"]
        if channels >= 3:
            rows = _rows(message, 2 * channels)[:, : 2 * channels * width]
            upper = rows[:, 0 if message.is_bigendian else 1 :: 2]
            return _converted(upper.reshape(height, width, channels), conversion)
    if encoding not in _PLAIN:
        raise InputError(f"an image has the encoding {encoding!r}; expected one of {', '.join(ENCODINGS)}")
    channels, conversion = _PLAIN[encoding]
    if channels == 2 and width % 2:
        raise InputError(f"an image of {encoding} is {width} pixels wide; expected an even width")
    rows = _rows(message, channels)[:, : channels * width]
    return _converted(rows.reshape(height, width, channels) if channels > 1 else rows, conversion)


def _converted(pixels: np.ndarray, conversion: int | None) -> np.ndarray:
    if conversion is None:
        return pixels.copy()
    return np.asarray(cv2.cvtColor(np.ascontiguousarray(pixels), conversion))


def _rows(message: Any, bytes_per_pixel: int, rows: int | None = None) -> np.ndarray:
    """The rows of an Image as they lie in memory, (rows, step) uint8, after a check of the sizes."""
    height, width, step = int(message.height), int(message.width), int(message.step)
    rows, needed = rows or height, bytes_per_pixel * width
    if height < 1 or width < 1 or height * width > MOST_PIXELS:
        raise InputError(f"an image is {width} x {height} (W x H); expected 1 to {MOST_PIXELS} pixels")
    step = step or needed  # some drivers leave it out
    data = np.asarray(message.data, np.uint8)
    if step < needed or len(data) < step * (rows - 1) + needed:
        raise InputError(
            f"an image of {width} x {height} (W x H) in {message.encoding} has {len(data)} bytes and rows of "
            f"{step}; expected rows of at least {needed} bytes and {rows} rows"
        )
    if len(data) < step * rows:  # the last row may lack its padding
        data = np.concatenate([data, np.zeros(step * rows - len(data), np.uint8)])
    return data[: step * rows].reshape(rows, step)


def _decompressed(message: Any) -> np.ndarray:
    content = np.asarray(message.data, np.uint8).tobytes()
    try:
        with Image.open(io.BytesIO(content), formats=("JPEG", "PNG")) as picture:
            if picture.width * picture.height > MOST_PIXELS:
                raise InputError(f"a compressed image has {picture.width} x {picture.height} pixels (W x H)")
            if picture.mode.startswith(("I", "F")):
                raise InputError(
                    "a compressed image has more than 8 bits per value; expected 8-bit RGB or gray"
                )
            picture.load()
            return np.array(to_rgb(picture))
    except InputError:
        raise
    except Exception as error:  # Pillow raises errors of many kinds
        raise InputError(
            f"a compressed image of {len(content)} bytes, format {message.format!r}, cannot be read: "
            f"{' '.join(str(error).split()) or type(error).__name__}; expected JPEG or PNG"
        ) from None
