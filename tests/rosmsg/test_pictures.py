"""Pictures in ROS messages: every encoding, rows with padding, both byte orders, and what is refused."""

from __future__ import annotations

import io

import cv2
import numpy as np
import pytest
from PIL import Image

pytest.importorskip("rosbags", reason="needs rosbags, of the extra ros2")

from streamvos.rosmsg.pictures import ENCODINGS, label_map_image, mask_of, rgb_image, rgb_of
from streamvos.rosmsg.types import decode, encode, make
from streamvos.types import InputError

HEIGHT, WIDTH = 24, 32


def picture() -> np.ndarray:
    """Smooth colors, so that what subsamples color comes close."""
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    return np.stack([60 + 4 * x, 200 - 5 * y, 90 + x + 2 * y], axis=-1).astype(np.uint8)


def bayer(rgb: np.ndarray, pattern: str) -> np.ndarray:
    """What a sensor behind such a filter sees; the pattern is that of the first two rows."""
    mosaic = np.zeros(rgb.shape[:2], np.uint8)
    for place, color in enumerate(pattern):
        row, column = divmod(place, 2)
        mosaic[row::2, column::2] = rgb[row::2, column::2, "rgb".index(color)]
    return mosaic


def yuv(rgb: np.ndarray) -> np.ndarray:
    """(H, W, 3) of BT.601 in limited range."""
    red, green, blue = (rgb[..., k].astype(float) for k in range(3))
    luma = 16 + 0.257 * red + 0.504 * green + 0.098 * blue
    u = 128 - 0.148 * red - 0.291 * green + 0.439 * blue
    v = 128 + 0.439 * red - 0.368 * green - 0.071 * blue
    return np.stack([luma, u, v], axis=-1).round().astype(np.uint8)


def packed(rgb: np.ndarray, order: str) -> np.ndarray:
    planes = yuv(rgb)
    chroma = {"u": planes[:, ::2, 1], "v": planes[:, ::2, 2]}
    luma = iter((planes[:, ::2, 0], planes[:, 1::2, 0]))
    return np.stack([next(luma) if one == "y" else chroma[one] for one in order], axis=-1).reshape(HEIGHT, -1)


def planar(rgb: np.ndarray, order: str) -> np.ndarray:
    planes = yuv(rgb)
    chroma = np.stack([planes[::2, ::2, 1 if one == "u" else 2] for one in order], axis=-1)
    return np.concatenate([planes[..., 0], chroma.reshape(HEIGHT // 2, WIDTH)])


def pixels(rgb: np.ndarray, encoding: str) -> np.ndarray:
    """The rows of a picture in an encoding, (rows, bytes) uint8."""
    alpha = np.full((HEIGHT, WIDTH, 1), 9, np.uint8)
    if encoding.endswith("16"):
        eight = pixels(rgb, encoding.removesuffix("16") + "8").reshape(HEIGHT, -1)
        return np.stack([np.full_like(eight, 77), eight], axis=-1).reshape(HEIGHT, -1)
    found = {
        "rgb8": lambda: rgb,
        "bgr8": lambda: rgb[..., ::-1],
        "8UC3": lambda: rgb[..., ::-1],
        "rgba8": lambda: np.concatenate([rgb, alpha], axis=-1),
        "bgra8": lambda: np.concatenate([rgb[..., ::-1], alpha], axis=-1),
        "8UC4": lambda: np.concatenate([rgb[..., ::-1], alpha], axis=-1),
        "mono8": lambda: rgb[..., 0],
        "8UC1": lambda: rgb[..., 0],
        "yuv422": lambda: packed(rgb, "uyvy"),
        "uyvy": lambda: packed(rgb, "uyvy"),
        "yuv422_yuy2": lambda: packed(rgb, "yuyv"),
        "yuyv": lambda: packed(rgb, "yuyv"),
        "nv12": lambda: planar(rgb, "uv"),
        "nv21": lambda: planar(rgb, "vu"),
    }
    if encoding.startswith("bayer_"):
        return bayer(rgb, encoding[6:10])
    made = found[encoding]()
    return made.reshape(len(made), -1)


def image(encoding: str, padding: int = 0, /, **changes):
    rows = pixels(picture(), encoding)
    padded = np.pad(rows, ((0, 0), (0, padding)), constant_values=201)
    fields = {
        "height": HEIGHT,
        "width": WIDTH,
        "encoding": encoding,
        "step": padded.shape[1],
        "data": np.ascontiguousarray(padded).reshape(-1),
    }
    return decode(encode(make("sensor_msgs/msg/Image", **{**fields, **changes})), "sensor_msgs/msg/Image")


@pytest.mark.parametrize("padding", [0, 5])
@pytest.mark.parametrize("encoding", ENCODINGS)
def test_every_encoding(encoding, padding):
    found = rgb_of(image(encoding, padding))
    expected = picture()
    if encoding in ("mono8", "8UC1"):
        expected = np.repeat(expected[..., :1], 3, axis=-1)
    assert found.shape == expected.shape
    assert found.dtype == np.uint8
    inner = np.s_[2:-2, 2:-2]  # a mosaic's edge has fewer neighbors
    # color of 2 x 2 pixels is taken for all of them, and the picture rises by up to 5 a pixel
    subsampled = {"yuv422": 9, "uyvy": 9, "yuv422_yuy2": 9, "yuyv": 9, "nv12": 9, "nv21": 9}
    tolerance = 5 if encoding.startswith("bayer_") else subsampled.get(encoding, 0)
    assert np.abs(found[inner].astype(int) - expected[inner]).max() <= tolerance


def test_sixteen_bits_in_both_byte_orders():
    message = image("bgr16")
    swapped = image("bgr16", is_bigendian=1, data=message.data.reshape(-1, 2)[:, ::-1].reshape(-1).copy())
    assert np.array_equal(rgb_of(message), picture())
    assert np.array_equal(rgb_of(swapped), picture())


def test_a_step_of_zero_and_a_last_row_without_padding():
    assert np.array_equal(rgb_of(image("rgb8", step=0)), picture())
    padded = image("rgb8", 7)
    padded.data = padded.data[:-7]
    assert np.array_equal(rgb_of(padded), picture())


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"encoding": "16UC1"}, "encoding '16UC1'; expected one of rgb8"),
        ({"encoding": "32FC1"}, "'32FC1'"),
        ({"encoding": "mono16"}, "'mono16'"),
        ({"encoding": ""}, "encoding ''"),
        ({"height": HEIGHT + 1}, "expected rows of at least 96 bytes and 25 rows"),
        ({"width": WIDTH + 1}, "expected rows of at least 99 bytes"),
        ({"step": 95}, "rows of 95"),
        ({"height": 0}, "expected 1 to"),
        ({"width": 2**31, "height": 2**31}, "expected 1 to"),
        ({"encoding": "nv12", "height": 15}, "even sides"),
        ({"encoding": "yuyv", "width": 15}, "even width"),
    ],
)
def test_what_cannot_be_read_is_one_line(changes, said):
    with pytest.raises(InputError, match=said):
        rgb_of(image("rgb8", **changes))


def compressed(kind: str, mode: str = "RGB", data: bytes | None = None):
    file = io.BytesIO()
    Image.fromarray(picture()).convert(mode).save(file, kind)
    content = np.frombuffer(file.getvalue() if data is None else data, np.uint8)
    return make("sensor_msgs/msg/CompressedImage", format=f"rgb8; {kind} compressed bgr8", data=content)


def test_jpeg_and_png():
    assert np.array_equal(rgb_of(compressed("png")), picture())
    near = np.abs(rgb_of(compressed("jpeg")).astype(int) - picture())
    assert near.mean() < 4  # JPEG of quality 75
    assert rgb_of(compressed("jpeg", "L")).shape == picture().shape


@pytest.mark.parametrize("data", [b"", b"no picture", b"\xff\xd8\xff\xe0 broken"])
def test_damaged_compressed_images_are_one_line(data):
    with pytest.raises(InputError, match="expected JPEG or PNG"):
        rgb_of(compressed("jpeg", data=data))


def test_half_a_picture_is_refused():
    whole = compressed("png").data.tobytes()
    with pytest.raises(InputError, match="cannot be read"):
        rgb_of(compressed("png", data=whole[: len(whole) // 2]))


def test_depth_in_a_png_is_refused():
    ok, content = cv2.imencode(".png", np.full((8, 8), 4000, np.uint16))
    assert ok
    with pytest.raises(InputError, match="more than 8 bits"):
        rgb_of(compressed("png", data=content.tobytes()))


def test_label_maps_and_masks_go_there_and_back():
    label_map = (np.arange(HEIGHT * WIDTH).reshape(HEIGHT, WIDTH) % 5).astype(np.uint8)
    header = make("std_msgs/msg/Header", frame_id="optical")
    message = decode(encode(label_map_image(label_map, header)), "sensor_msgs/msg/Image")
    assert (message.encoding, message.step, message.header.frame_id) == ("mono8", WIDTH, "optical")
    assert np.array_equal(message.data.reshape(HEIGHT, WIDTH), label_map)
    assert np.array_equal(mask_of(message, (HEIGHT, WIDTH)), label_map != 0)
    assert mask_of(make("sensor_msgs/msg/Image"), (HEIGHT, WIDTH)) is None
    with pytest.raises(InputError, match="32 x 24, the frames are 10 x 9"):
        mask_of(message, (9, 10))
    with pytest.raises(InputError, match="expected mono8"):
        mask_of(rgb_image(picture(), header), (HEIGHT, WIDTH))
    assert np.array_equal(rgb_of(rgb_image(picture(), header)), picture())
