"""Folders of pictures: order, names, and every way in which a picture can be wrong."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from streamvos.sources import ImagesSource, Selection
from streamvos.sources.images import natural_key
from streamvos.types import InputError


def save(path: Path, gray: int = 0, size: tuple[int, int] = (6, 8)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((*size, 3), gray, np.uint8)).save(path)
    return path


def grays(source: ImagesSource) -> list[int]:
    return [int(frame.image[0, 0, 0]) for frame in source]


def test_frames_come_in_natural_order_with_all_fields(tmp_path):
    for number in (10, 9, 100, 1):
        save(tmp_path / "clip" / f"frame{number}.png", gray=number)
    with ImagesSource(tmp_path / "clip") as source:
        assert (source.name, source.size, source.fps, source.length) == ("clip", (6, 8), None, 4)
        frames = list(source)
    assert [int(frame.image[0, 0, 0]) for frame in frames] == [1, 9, 10, 100]
    assert [frame.index for frame in frames] == [0, 1, 2, 3]
    assert [frame.pts for frame in frames] == pytest.approx([0, 1 / 24, 2 / 24, 3 / 24])
    assert {frame.stream for frame in frames} == {"clip"}
    captured = [frame.captured_ns for frame in frames]
    assert captured == sorted(captured)
    for frame in frames:
        assert frame.image.dtype == np.uint8
        assert frame.image.flags.writeable
        assert frame.image.flags.c_contiguous


@given(st.lists(st.integers(0, 10**6), min_size=2, max_size=8, unique=True))
def test_numbers_in_names_count_as_numbers(numbers):
    paths = [Path(f"shot_{number}_left.png") for number in numbers]
    in_order = sorted(paths, key=natural_key)
    assert in_order == [Path(f"shot_{number}_left.png") for number in sorted(numbers)]


def test_names_of_all_kinds_can_be_sorted_together():
    names = ["a", "1", "a1", "1a", "01", "a01", "b", "", "a1b2", "a1b10"]
    in_order = [str(path) for path in sorted(map(Path, names), key=natural_key)]
    assert in_order.index("a1b2") < in_order.index("a1b10")
    assert in_order.index("1") < in_order.index("a")


def test_other_files_are_skipped(tmp_path):
    save(tmp_path / "b.JPG", 200)
    save(tmp_path / "a.png", 100)
    save(tmp_path / "sub/c.png", 50)
    (tmp_path / "readme.txt").write_text("frames")
    (tmp_path / "._a.png").write_bytes(b"what macOS leaves")
    with ImagesSource(tmp_path) as source:
        assert grays(source) == [100, 200]


def test_globs_and_single_pictures(tmp_path):
    for index in range(3):
        save(tmp_path / "shots" / f"{index}.png", index)
        save(tmp_path / "shots" / f"{index}.bmp", 100 + index)
    with ImagesSource(str(tmp_path / "shots/*.bmp")) as source:
        assert source.name == "shots"
        assert grays(source) == [100, 101, 102]
    with ImagesSource(str(tmp_path / "**/1.png")) as source:
        assert grays(source) == [1]
    with ImagesSource(tmp_path / "shots/2.png") as source:
        assert (source.name, source.length) == ("2", 1)


def test_a_folder_with_glob_characters_in_its_name(tmp_path):
    save(tmp_path / "take[1]" / "0.png", 7)
    with ImagesSource(tmp_path / "take[1]") as source:
        assert grays(source) == [7]


def test_stems_follow_the_files(tmp_path):
    for index in range(6):
        save(tmp_path / f"IMG_{index + 40}.png", index)
    with ImagesSource(tmp_path, selection=Selection(stride=2)) as source:
        assert [source.stem(frame.index) for frame in source] == ["IMG_40", "IMG_42", "IMG_44"]


def test_stems_that_would_collide_give_way_to_numbers(tmp_path):
    save(tmp_path / "a.png")
    save(tmp_path / "a.bmp")
    with ImagesSource(tmp_path) as source:
        assert [source.stem(index) for index in range(2)] == ["00000", "00001"]


def test_stride_and_max_frames(tmp_path):
    for index in range(10):
        save(tmp_path / f"{index}.png", index)
    with ImagesSource(tmp_path, fps=30, selection=Selection(stride=3)) as source:
        assert (source.length, source.fps) == (4, 10)
        frames = list(source)
    assert [int(frame.image[0, 0, 0]) for frame in frames] == [0, 3, 6, 9]
    assert [frame.index for frame in frames] == [0, 1, 2, 3]
    assert [frame.pts for frame in frames] == pytest.approx([0, 0.1, 0.2, 0.3])
    with ImagesSource(tmp_path, selection=Selection(stride=4, max_frames=2)) as source:
        assert source.length == 2
        assert grays(source) == [0, 4]


@pytest.mark.parametrize(("height", "size"), [(3, (3, 4)), (12, (12, 16)), (5, (5, 7)), (6, (6, 8))])
def test_resizing_keeps_the_proportion(tmp_path, height, size):
    save(tmp_path / "0.png", 90)
    with ImagesSource(tmp_path, selection=Selection(height=height)) as source:
        frame = next(source)
    assert source.size == frame.size == size
    assert (frame.image == 90).all()


def test_a_source_is_read_once_and_not_after_closing(tmp_path):
    for index in range(3):
        save(tmp_path / f"{index}.png", index)
    source = ImagesSource(tmp_path)
    assert grays(source)[:1] == [0]
    assert grays(source) == []
    source.close()
    source.close()
    with pytest.raises(RuntimeError, match="closed"):
        next(source)


def test_photographs_are_turned_upright(tmp_path):
    image = np.zeros((32, 48, 3), np.uint8)
    image[:, :24] = 255  # left half white
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise by a quarter
    Image.fromarray(image).save(tmp_path / "0.jpg", exif=exif)
    with ImagesSource(tmp_path) as source:
        frame = next(source)
    assert source.size == frame.size == (48, 32)
    assert (frame.image[:24] > 250).all()
    assert (frame.image[24:] < 5).all()


def test_opening_a_folder_decodes_nothing(tmp_path):
    save(tmp_path / "0.png")
    sound = (tmp_path / "0.png").read_bytes()
    (tmp_path / "1.png").write_bytes(sound[: sound.index(b"IDAT") + 4])  # nothing but the header
    with ImagesSource(tmp_path) as source:
        assert source.length == 2


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK"])
def test_pictures_of_all_modes_become_rgb(tmp_path, mode):
    suffix = "tif" if mode == "CMYK" else "png"
    Image.fromarray(np.full((4, 5, 3), 255, np.uint8)).convert(mode).save(tmp_path / f"0.{suffix}")
    with ImagesSource(tmp_path) as source:
        image = next(source).image
    assert image.shape == (4, 5, 3)
    assert (image == 255).all()


def test_mixed_sizes_are_refused_when_opened_and_the_file_is_named(tmp_path):
    for index in range(3):
        save(tmp_path / f"{index}.png")
    save(tmp_path / "3.png", size=(6, 9))
    with pytest.raises(InputError, match=r"3\.png is 9x6 pixels, but 0\.png is 8x6"):
        ImagesSource(tmp_path)


@pytest.mark.parametrize("content", [b"", b"no picture"])
def test_a_file_that_is_not_a_picture_is_named_when_opened(tmp_path, content):
    save(tmp_path / "0.png")
    (tmp_path / "1.png").write_bytes(content)
    with pytest.raises(InputError, match=r"1\.png"):
        ImagesSource(tmp_path)


@pytest.mark.parametrize("suffix", ["jpg", "png"])
def test_a_picture_cut_off_in_the_middle_is_named_when_it_is_reached(tmp_path, suffix):
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3)).astype(np.uint8)
    for index in range(2):
        Image.fromarray(noise).save(tmp_path / f"{index}.{suffix}")
    damaged = tmp_path / f"1.{suffix}"
    damaged.write_bytes(damaged.read_bytes()[:-2000])
    with ImagesSource(tmp_path) as source:
        next(source)
        with pytest.raises(InputError, match=rf"1\.{suffix}") as caught:
            next(source)
    assert "\n" not in str(caught.value)


def test_a_picture_replaced_by_one_of_another_size_is_named(tmp_path):
    for index in range(2):
        save(tmp_path / f"{index}.png")
    with ImagesSource(tmp_path) as source:
        next(source)
        save(tmp_path / "1.png", size=(9, 9))
        with pytest.raises(InputError, match=r"1\.png is 9x9 pixels.*8x6"):
            next(source)


def test_more_than_8_bits_are_refused(tmp_path):
    Image.fromarray(np.zeros((4, 4), np.uint16)).save(tmp_path / "0.png")
    with pytest.raises(InputError, match=r"0\.png has more than 8 bits"):
        ImagesSource(tmp_path)


def test_folders_without_pictures_say_what_is_there_instead(tmp_path):
    with pytest.raises(InputError, match="empty"):
        ImagesSource(tmp_path)
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(InputError, match="other files"):
        ImagesSource(tmp_path)
    save(tmp_path / "goat" / "0.png")
    with pytest.raises(InputError, match=r"sub-folders \(goat\)"):
        ImagesSource(tmp_path)
    with pytest.raises(InputError, match="nothing matches"):
        ImagesSource(str(tmp_path / "*.png"))


@pytest.mark.parametrize(
    "options", [{"stride": 0}, {"height": 0}, {"max_frames": 0}, {"stride": 1.5}, {"height": "480"},
                {"stride": None}, {"max_frames": True}],
)  # fmt: skip
def test_invalid_selections_are_refused(options):
    with pytest.raises(InputError, match=next(iter(options))):
        Selection(**options)
