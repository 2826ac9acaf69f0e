"""Label maps: what a pixel of each kind of picture means, and that writing is exact and atomic."""

import contextlib
import resource
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from goldens import shared_path
from PIL import Image

from streamvos.masks.labelmap import davis_palette, read_label_map, write_label_map
from streamvos.types import InputError, SinkError


def random_labels(seed: int, shape: tuple[int, int] = (13, 17), high: int = 256) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, high, shape).astype(np.uint8)


@contextlib.contextmanager
def file_size_limit(size: int) -> Iterator[None]:
    """No file may grow beyond `size` bytes: what a full disk looks like, on every machine."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def png(width: int, height: int, depth: int, color: int, rows: bytes) -> bytes:
    """A PNG of a kind that Pillow does not write."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def test_palette_is_that_of_davis():
    palette = davis_palette()
    assert palette.dtype == np.uint8
    assert palette.shape == (256, 3)
    assert palette[[0, 1, 2, 3, 4, 8, 255]].tolist() == [
        [0, 0, 0], [128, 0, 0], [0, 128, 0], [128, 128, 0], [0, 0, 128], [64, 0, 0], [224, 224, 192],
    ]  # fmt: skip
    assert len({tuple(color) for color in palette.tolist()}) == 256


@pytest.mark.parametrize("dtype", [np.uint8, np.int64, np.uint16, bool])
def test_what_is_written_is_read_again(tmp_path, dtype):
    mask = random_labels(1, high=2 if dtype is bool else 256).astype(dtype)
    write_label_map(tmp_path / "a.png", mask)
    read = read_label_map(tmp_path / "a.png")
    assert read.dtype == np.uint8
    assert read.flags.writeable
    np.testing.assert_array_equal(read, mask)


def test_views_that_are_not_contiguous_are_written_right(tmp_path):
    mask = random_labels(2, (20, 30))[::2, ::-3].T
    write_label_map(tmp_path / "a.png", mask)
    np.testing.assert_array_equal(read_label_map(tmp_path / "a.png"), mask)


def test_files_are_palette_pngs_and_the_same_each_time(tmp_path):
    mask = random_labels(3)
    write_label_map(tmp_path / "a.png", mask)
    write_label_map(tmp_path / "b.png", mask.astype(np.int32))
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    with Image.open(tmp_path / "a.png") as picture:
        assert picture.mode == "P"
        np.testing.assert_array_equal(np.array(picture.convert("RGB")), davis_palette()[mask])


@pytest.mark.parametrize(
    ("values", "binary", "meaning"),
    [
        ([0, 255], "auto", [0, 1]),  # DAVIS 2016
        ([255, 255], "auto", [1, 1]),
        ([0, 0], "auto", [0, 0]),
        ([0, 1], "auto", [0, 1]),
        ([1, 255], "auto", [1, 255]),  # another label beside it: void
        ([3, 0], "auto", [3, 0]),
        ([0, 255], "never", [0, 255]),
        ([7, 255], "always", [1, 1]),
    ],
)
def test_gray_values(tmp_path, values, binary, meaning):
    gray = Image.fromarray(np.array([values], np.uint8))
    gray.save(tmp_path / "gray.png")
    np.testing.assert_array_equal(read_label_map(tmp_path / "gray.png", binary), [meaning])
    if set(values) <= {0, 255}:  # black and white in color files mean the same
        gray.convert("RGB").save(tmp_path / "rgb.png")
        np.testing.assert_array_equal(read_label_map(tmp_path / "rgb.png", binary), [meaning])


def test_void_in_a_palette_stays_void(tmp_path):
    write_label_map(tmp_path / "a.png", np.array([[0, 255]]))
    assert read_label_map(tmp_path / "a.png").tolist() == [[0, 255]]


def test_indices_count_whatever_the_palette(tmp_path):
    mask = random_labels(4, high=4)
    picture = Image.fromarray(mask)
    picture.putpalette(bytes(12))  # all black, so stored with 2 bits per pixel
    picture.save(tmp_path / "a.png")
    np.testing.assert_array_equal(read_label_map(tmp_path / "a.png"), mask)


def test_colors_of_the_palette_are_labels(tmp_path):
    mask = np.arange(256, dtype=np.uint8).reshape(16, 16)
    Image.fromarray(davis_palette()[mask]).save(tmp_path / "a.png")
    np.testing.assert_array_equal(read_label_map(tmp_path / "a.png"), mask)


def test_a_color_outside_the_palette_is_named(tmp_path):
    colors = davis_palette()[random_labels(5)]
    colors[2, 3] = 1, 2, 3
    Image.fromarray(colors).save(tmp_path / "a.png")
    with pytest.raises(InputError, match=r"1 pixels .*\(1, 2, 3\)"):
        read_label_map(tmp_path / "a.png")


def test_one_bit_pictures(tmp_path):
    mask = random_labels(6, high=2)
    Image.fromarray(mask * 255).convert("1").save(tmp_path / "a.png")
    np.testing.assert_array_equal(read_label_map(tmp_path / "a.png"), mask)


@pytest.mark.parametrize(
    ("depth", "rows", "labels"), [(2, b"\x00\x1b", [0, 1, 2, 3]), (4, b"\x00\x0f", [0, 15])]
)
def test_gray_of_few_bits_is_not_stretched(tmp_path, depth, rows, labels):
    (tmp_path / "a.png").write_bytes(png(len(labels), 1, depth, 0, rows))
    assert read_label_map(tmp_path / "a.png").tolist() == [labels]


def refused_pictures(folder: Path) -> dict[str, str]:
    """File -> what the message must speak of."""
    mask = random_labels(7)
    sound = folder / "sound.png"
    write_label_map(sound, mask)
    Image.fromarray(mask.astype(np.uint16) * 256).save(folder / "deep_gray.png")
    (folder / "deep_color.png").write_bytes(png(1, 1, 16, 2, b"\x00" + b"\x80\x00" * 3))
    Image.fromarray(mask).convert("RGBA").save(folder / "alpha.png")
    Image.fromarray(mask).convert("LA").save(folder / "gray_alpha.png")
    Image.fromarray(mask).save(folder / "lossy.jpg")
    (folder / "cut.png").write_bytes(sound.read_bytes()[:-60])
    (folder / "empty.png").write_bytes(b"")
    (folder / "text.png").write_text("no picture")
    (folder / "folder.png").mkdir()
    return {
        "deep_gray.png": "8 bits", "deep_color.png": "8 bits", "alpha.png": "alpha",
        "gray_alpha.png": "alpha", "lossy.jpg": "lossless", "cut.png": "cannot read",
        "empty.png": "cannot read", "text.png": "cannot read", "folder.png": "folder",
        "absent.png": "no such file",
    }  # fmt: skip


def test_what_is_no_label_map_is_refused_by_name(tmp_path):
    for name, word in refused_pictures(tmp_path).items():
        with pytest.raises(InputError) as caught:
            read_label_map(tmp_path / name)
        message = str(caught.value)
        assert name in message, name
        assert word in message, (name, message)
        assert "\n" not in message


@pytest.mark.parametrize(
    "mask",
    [np.zeros((2, 2), np.float32), np.zeros((2, 2, 1), np.uint8), np.zeros((0, 4), np.uint8),
     np.full((2, 2), 256), np.full((2, 2), -1)],
)  # fmt: skip
def test_masks_that_are_none_are_refused_and_nothing_is_written(tmp_path, mask):
    with pytest.raises(InputError):
        write_label_map(tmp_path / "a.png", mask)
    assert list(tmp_path.iterdir()) == []


def test_a_failed_write_leaves_the_old_file_alone(tmp_path):
    old, new = random_labels(8, high=3), random_labels(9, (200, 200))
    write_label_map(tmp_path / "a.png", old)
    with file_size_limit(1000), pytest.raises(SinkError, match=r"a\.png"):
        write_label_map(tmp_path / "a.png", new)
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]
    np.testing.assert_array_equal(read_label_map(tmp_path / "a.png"), old)


def test_a_missing_folder_is_an_error_of_the_sink(tmp_path):
    with pytest.raises(SinkError, match="absent"):
        write_label_map(tmp_path / "absent" / "a.png", random_labels(10))


def test_real_masks_of_davis_2016_are_objects():
    folder = shared_path("data/davis2016-dev/Annotations/480p/goat")
    mask = read_label_map(folder / "00000.png")
    assert mask.shape == (480, 854)
    assert np.unique(mask).tolist() == [0, 1]
