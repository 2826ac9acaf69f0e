"""Pictures: masks of every kind, folders of frames and what else is in them, EXIF, sequences in one file."""

from __future__ import annotations

import io
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
from inputs.table import SIZE, Case, row, scene
from PIL import Image, ImageFilter
from small_videos import write_video

FRAMES, TRUTH = scene(3)
FIRST = TRUTH[0]
FOLLOWS = r"object 1 \(\d+ pixels\)"


def frames_in(
    folder: Path, suffix: str = "png", images: list[np.ndarray] = FRAMES, **options: object
) -> None:
    """frames/0.png and so on."""
    (folder / "frames").mkdir()
    for t, image in enumerate(images):
        Image.fromarray(image).save(folder / "frames" / f"{t}.{suffix}", **options)


def gray(*levels: int) -> np.ndarray:
    """The first label map with these values for its objects."""
    return np.array([0, *levels], np.uint8)[FIRST]


def blurred(mask: np.ndarray, radius: float = 1.0) -> np.ndarray:
    return np.array(Image.fromarray(mask).filter(ImageFilter.GaussianBlur(radius)))


def as_jpeg(mask: np.ndarray, quality: int) -> np.ndarray:
    """What JPEG makes of a picture."""
    content = io.BytesIO()
    Image.fromarray(mask).save(content, "JPEG", quality=quality)
    return np.array(Image.open(content))


def mask_row(name: str, says: str = "", error: str = "") -> Callable[[Callable[[Path], object]], None]:
    """A row of a mask: the function writes it, and returns the label map that is meant."""

    def put(write: Callable[[Path], object]) -> None:
        @row(name)
        def make(folder: Path) -> Case:
            frames_in(folder)
            meant = write(folder)
            file = next(path for path in folder.iterdir() if path.stem == "mask")
            first = meant if isinstance(meant, np.ndarray) else None
            return Case("frames", mask=file, first=first, says=says, error=error)

    return put


DISK = (np.hypot(*np.mgrid[-24:24, -32:32]) < 15).astype(np.uint8)
TWO = np.zeros(SIZE, np.uint8)
TWO[4:40, 4:30], TWO[10:44, 36:60] = 1, 2


@mask_row("a mask with soft edges is one object", says="edges are soft.*0, 255")
def soft(folder: Path) -> np.ndarray:
    Image.fromarray(blurred(DISK * 255)).save(folder / "mask.png")
    return (blurred(DISK * 255) >= 128).astype(np.uint8)


for quality in (60, 90, 98, 100):

    @mask_row(f"a mask that was a JPEG of quality {quality} is one object")
    def was_jpeg(folder: Path, quality: int = quality) -> np.ndarray:
        noisy = as_jpeg(DISK * 255, quality)
        Image.fromarray(noisy).save(folder / "mask.png")
        return (noisy >= 128).astype(np.uint8)


@mask_row("a JPEG mask is one object", says="strong values 0, 255")
def jpeg(folder: Path) -> np.ndarray:
    Image.fromarray(DISK * 255).save(folder / "mask.jpg", quality=90)
    return (as_jpeg(DISK * 255, 90) >= 128).astype(np.uint8)


@mask_row("gray levels 128 and 255 with a fringe are two objects", says="gray levels 0, 128, 255 are 0, 1, 2")
def levels(folder: Path) -> np.ndarray:
    soft = blurred(np.array([0, 128, 255], np.uint8)[TWO])
    Image.fromarray(soft).save(folder / "mask.png")
    # the rim of object 2 passes 128 on its way to black, and is not object 1
    return np.where(np.arange(64) < 33, soft > 64, 2 * (soft >= 128)).astype(np.uint8)


@mask_row("gray levels 128 and 255 without a fringe are two objects", says="gray levels")
def clean_levels(folder: Path) -> np.ndarray:
    Image.fromarray(gray(128, 255)).save(folder / "mask.png")
    return FIRST


@mask_row("0 and 255 are one object", says=FOLLOWS)
def binary(folder: Path) -> np.ndarray:
    Image.fromarray(gray(255, 255)).save(folder / "mask.png")
    return gray(1, 1)


@mask_row("1 and 255 are an object and void", says=FOLLOWS)
def void(folder: Path) -> None:
    Image.fromarray(gray(1, 255)).save(folder / "mask.png")


@mask_row("a palette that begins with white has its background at black", says="background, though not first")
def white_first(folder: Path) -> np.ndarray:
    picture = Image.fromarray((1 - DISK).astype(np.uint8))
    picture.putpalette([255, 255, 255, 0, 0, 0])  # white is index 0
    picture.save(folder / "mask.png")
    return DISK


@mask_row("a palette of red, black and green keeps green's index", says="index 0 is object 1")
def red_first(folder: Path) -> np.ndarray:
    index = np.array([1, 0, 2], np.uint8)[FIRST]
    picture = Image.fromarray(index)
    picture.putpalette([255, 0, 0, 0, 0, 0, 0, 255, 0])
    picture.save(folder / "mask.png")
    return FIRST


@mask_row("a palette whose transparent entry is not the first")
def transparent_entry(folder: Path) -> np.ndarray:
    picture = Image.fromarray(np.array([2, 0, 1], np.uint8)[FIRST])
    picture.putpalette([200, 0, 0, 0, 200, 0, 255, 255, 255])
    picture.save(folder / "mask.png", transparency=2)
    return gray(2, 1)


@mask_row("a palette of many colors that begins with black is read by its index")
def indexed(folder: Path) -> np.ndarray:
    picture = Image.fromarray(gray(7, 9))
    picture.putpalette(np.random.default_rng(0).integers(1, 255, (256, 3)).astype(np.uint8).tobytes())
    palette = picture.getpalette()
    picture.putpalette([0, 0, 0, *palette[3:]])
    picture.save(folder / "mask.png")
    return gray(7, 9)


@mask_row("ids in three equal channels")
def three_channels(folder: Path) -> np.ndarray:
    Image.fromarray(np.repeat(FIRST[..., None], 3, 2)).save(folder / "mask.png")
    return FIRST


@mask_row("ids in lossless WebP")
def webp(folder: Path) -> np.ndarray:
    Image.fromarray(np.repeat(FIRST[..., None], 3, 2)).save(folder / "mask.webp", lossless=True)
    return FIRST


@mask_row("ids in lossy WebP are refused", error="lossy|lossless")
def lossy_webp(folder: Path) -> None:
    Image.fromarray(np.repeat(FIRST[..., None], 3, 2)).save(folder / "mask.webp", quality=60)


@mask_row("ids in PGM")
def pgm(folder: Path) -> np.ndarray:
    Image.fromarray(FIRST).save(folder / "mask.pgm")
    return FIRST


@mask_row("small ids with 16 bits")
def deep(folder: Path) -> np.ndarray:
    Image.fromarray(FIRST.astype(np.uint16)).save(folder / "mask.png")
    return FIRST


@mask_row("0 and 65535 are one object")
def deep_binary(folder: Path) -> np.ndarray:
    Image.fromarray((FIRST > 0).astype(np.uint16) * 65535).save(folder / "mask.png")
    return gray(1, 1)


@mask_row("ids above 255 are numbered anew", says="ids 1001, 26004 are objects 1, 2")
def large_ids(folder: Path) -> np.ndarray:
    Image.fromarray(np.array([0, 1001, 26004], np.uint16)[FIRST]).save(folder / "mask.png")
    return FIRST


@mask_row("an opaque alpha channel says nothing")
def opaque(folder: Path) -> np.ndarray:
    Image.fromarray(np.repeat(FIRST[..., None], 3, 2)).convert("RGBA").save(folder / "mask.png")
    return FIRST


@mask_row("a photograph that is cut out by its alpha is one object", says="transparent is background")
def cut_out(folder: Path) -> np.ndarray:
    noise = np.random.default_rng(0).integers(0, 255, (*SIZE, 3)).astype(np.uint8)
    Image.fromarray(np.dstack([noise, gray(255, 255)])).save(folder / "mask.png")
    return gray(1, 1)


@mask_row("colors on transparent ground are objects", says="transparent is background.*is object 2")
def painted(folder: Path) -> np.ndarray:
    colors = np.array([[255, 255, 255], [255, 0, 0], [0, 0, 255]], np.uint8)[FIRST]
    Image.fromarray(np.dstack([colors, gray(255, 255)])).save(folder / "mask.png")
    return FIRST


@mask_row("gray with alpha")
def gray_alpha(folder: Path) -> np.ndarray:
    Image.fromarray(np.dstack([gray(0, 0), gray(255, 255)]), "LA").save(folder / "mask.png")
    return gray(1, 1)


@mask_row("one bit")
def one_bit(folder: Path) -> np.ndarray:
    Image.fromarray(gray(255, 255)).convert("1").save(folder / "mask.png")
    return gray(1, 1)


@mask_row("painted colors with soft edges", says=r"\(255, 0, 0\) is object 1, \(0, 0, 255\) is object 2")
def soft_colors(folder: Path) -> np.ndarray:
    colors = np.array([[0, 0, 0], [255, 0, 0], [0, 0, 255]], np.uint8)
    soft = blurred(colors[TWO], 0.8)
    Image.fromarray(soft).save(folder / "mask.png")
    return np.abs(soft[:, :, None].astype(int) - colors).sum(3).argmin(2).astype(np.uint8)


def refused_mask(name: str, error: str, suffix: str = "png") -> Callable[[Callable[[], np.ndarray]], None]:
    def put(paint: Callable[[], np.ndarray]) -> None:
        @mask_row(name, error=error)
        def write(folder: Path) -> None:
            Image.fromarray(paint()).save(folder / f"mask.{suffix}")

    return put


@refused_mask("a photograph is no mask", r"\d+ pixels have colors outside")
def photograph() -> np.ndarray:
    rng = np.random.default_rng(1)
    return np.array(Image.fromarray(rng.integers(0, 255, (6, 8, 3)).astype(np.uint8)).resize(SIZE[::-1]))


@refused_mask("a depth map is no mask", r"different values")
def depth() -> np.ndarray:
    return np.add.outer(np.arange(48), np.arange(64)).astype(np.uint8)


@refused_mask("a heat map is no mask", r"different values")
def heat() -> np.ndarray:
    return (255 * np.exp(-(np.hypot(*np.mgrid[-24:24, -32:32]) ** 2) / 200)).astype(np.uint8)


@refused_mask("16 bits of depth are no mask", r"more than 8 bits.*different values")
def deep_depth() -> np.ndarray:
    return (np.add.outer(np.arange(48), np.arange(64)) * 97).astype(np.uint16)


@refused_mask("gray levels that may be ids are refused", r"40, 255: 255 may be void or an object")
def ambiguous() -> np.ndarray:
    return gray(40, 255)


@mask_row("a FIFO is no mask", error="mask.png is a FIFO")
def fifo(folder: Path) -> None:
    os.mkfifo(folder / "mask.png")


@mask_row("a device is no mask", error="mask.png is a device")
def device(folder: Path) -> None:
    (folder / "mask.png").symlink_to("/dev/zero")


@mask_row("a folder is no mask", error="mask.png is a folder")
def a_folder(folder: Path) -> None:
    (folder / "mask.png").mkdir()


@mask_row("an animation is no mask", error="holds 2 pictures")
def animation(folder: Path) -> None:
    first, second = Image.fromarray(FIRST * 100), Image.fromarray(TRUTH[1] * 100)
    first.save(folder / "mask.gif", save_all=True, append_images=[second])


# ---- frames

TURNED = {
    1: None,
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}
"""EXIF orientation -> how a picture is stored that has to be turned so."""


def save_turned(image: np.ndarray, path: Path, orientation: int, **options: object) -> None:
    exif, how = Image.Exif(), TURNED[orientation]
    exif[0x0112] = orientation
    picture = Image.fromarray(image)
    (picture if how is None else picture.transpose(how)).save(path, exif=exif, **options)


for orientation in TURNED:
    for suffix, options in (
        ("jpg", {"quality": 95}),
        ("png", {}),
        ("webp", {"lossless": True}),
        ("tif", {}),
        ("tif", {"compression": "tiff_lzw"}),
    ):

        @row(f"EXIF orientation {orientation} in {suffix} {options}", doors=["api", "run"])
        def turned(
            folder: Path, number: int = orientation, suffix: str = suffix, options: dict = options
        ) -> Case:
            for t, image in enumerate(FRAMES[:2]):
                save_turned(image, folder / f"{t}.{suffix}", number, **options)
            tolerance = 6.0 if suffix == "jpg" else 0
            return Case(f"*.{suffix}", first=FIRST, pictures=FRAMES[:2], tolerance=tolerance)


@row("a mask is turned as its own EXIF orientation says")
def turned_mask(folder: Path) -> Case:
    frames_in(folder)
    save_turned(FIRST, folder / "mask.png", 6)
    return Case("frames", mask=folder / "mask.png", first=FIRST)


@row("numbers with decimals are sorted as such")
def decimals(folder: Path) -> Case:
    images, label_maps = scene(5)
    stems = ["t0.25", "t0.5", "t1.5", "t2", "t10.125"]
    for stem, image in zip(stems, images, strict=True):
        Image.fromarray(image).save(folder / f"{stem}.bmp")
    return Case("*.bmp", first=label_maps[0], pictures=images, tolerance=0)


@row("points between counters are no decimals")
def counters(folder: Path) -> Case:
    images, label_maps = scene(4)
    (folder / "frames").mkdir()
    for stem, image in zip(["2.8", "2.9", "2.10", "2.11"], images, strict=True):
        Image.fromarray(image).save(folder / f"frames/{stem}.bmp")
    return Case(
        "frames", first=label_maps[0], pictures=images, tolerance=0, stems=["2.8", "2.9", "2.10", "2.11"]
    )


@row("a mask by its name, hidden files and thumbnails are no frames")
def strangers(folder: Path) -> Case:
    frames_in(folder)
    Image.fromarray(FIRST).save(folder / "frames/0_mask.png")
    Image.fromarray(FRAMES[0]).resize((8, 6)).save(folder / "frames/thumb_0.png")
    (folder / "frames/._0.png").write_bytes(b"of macOS")
    (folder / "frames/Thumbs.db").write_bytes(b"of Windows")
    return Case(
        "frames",
        mask=folder / "frames/0_mask.png",
        first=FIRST,
        pictures=FRAMES,
        says="no frames: 0_mask.png",
    )


@row("a mask of any name is no frame")
def lone_mask(folder: Path) -> Case:
    frames_in(folder)
    Image.fromarray(FIRST).save(folder / "frames/begin.png")
    return Case(
        "frames", mask=folder / "frames/begin.png", first=FIRST, pictures=FRAMES, says="no frames: begin.png"
    )


@row("a mask beside every frame is no frame")
def masks_beside(folder: Path) -> Case:
    frames_in(folder, "jpg", quality=95)
    for t, label_map in enumerate(TRUTH):
        Image.fromarray(label_map).save(folder / f"frames/{t}.png")
    return Case("frames", mask=folder / "frames/0.png", first=FIRST, pictures=FRAMES, says="3 of 6 pictures")


@row("a folder of masks alone is read as frames")
def only_masks(folder: Path) -> Case:
    pictures = [np.repeat(one[..., None] * 100, 3, 2) for one in TRUTH]
    frames_in(folder, images=pictures)
    return Case("frames", first=FIRST, pictures=pictures, tolerance=0)


SEQUENCES = {"webp": {"lossless": True}, "png": {}, "apng": {"format": "PNG"}, "gif": {}}
DURATIONS = [40, 80, 200]

for suffix, options in SEQUENCES.items():

    @row(f"all pictures of an animated {suffix}, with its times")
    def animated(folder: Path, suffix: str = suffix, options: dict = options) -> Case:
        first, *others = map(Image.fromarray, FRAMES)
        first.save(
            folder / f"clip.{suffix}", save_all=True, append_images=others, duration=DURATIONS, **options
        )
        return Case(f"clip.{suffix}", first=FIRST, pictures=FRAMES, stamps=[0, 0.04, 0.12])


@row("an animated PNG's picture for other viewers is no frame")
def default_image(folder: Path) -> Case:
    still, *others = map(Image.fromarray, [255 - FRAMES[0], *FRAMES])
    still.save(folder / "clip.png", save_all=True, append_images=others, default_image=True, duration=50)
    return Case("clip.png", first=FIRST, pictures=FRAMES, stamps=[0, 0.05, 0.1])


@row("all pictures of a stack of TIFF")
def stack(folder: Path) -> Case:
    first, *others = map(Image.fromarray, FRAMES)
    first.save(folder / "clip.tif", save_all=True, append_images=others)
    options = {"fps": 10.0}
    return Case("clip.tif", first=FIRST, pictures=FRAMES, tolerance=0, stamps=[0, 0.1, 0.2], options=options)


@row("an animation alone in a folder is read whole")
def lone_animation(folder: Path) -> Case:
    (folder / "frames").mkdir()
    first, *others = map(Image.fromarray, FRAMES)
    first.save(folder / "frames/clip.webp", save_all=True, append_images=others, duration=40, lossless=True)
    return Case("frames", first=FIRST, pictures=FRAMES)


@row("stride and maximum of an animation", doors=["api", "run"])
def stride(folder: Path) -> Case:
    images, label_maps = scene(7)
    first, *others = map(Image.fromarray, images)
    first.save(folder / "clip.png", save_all=True, append_images=others, duration=list(range(10, 80, 10)))
    options = {"stride": 2, "max_frames": 3}
    return Case(
        "clip.png", first=label_maps[0], pictures=images[:6:2], stamps=[0, 0.03, 0.1], options=options
    )


@row("an animation among frames is refused")
def animation_among_frames(folder: Path) -> Case:
    frames_in(folder)
    first, second, _ = map(Image.fromarray, FRAMES)
    first.save(folder / "frames/7.webp", save_all=True, append_images=[second], duration=40, lossless=True)
    return Case("frames", first=FIRST, error=r"7\.webp holds 2 pictures")


@row("a rate for an animation is refused")
def rate(folder: Path) -> Case:
    first, second, _ = map(Image.fromarray, FRAMES)
    first.save(folder / "clip.gif", save_all=True, append_images=[second], duration=40)
    return Case("clip.gif", first=FIRST, error="fps is for pictures without", options={"fps": 9.0})


for mode in ("L", "LA", "RGBA", "P", "CMYK"):

    @row(f"frames of mode {mode}")
    def modes(folder: Path, mode: str = mode) -> Case:
        (folder / "frames").mkdir()
        pictures = []
        for t, image in enumerate(FRAMES):
            picture = Image.fromarray(image).convert(mode)
            picture.save(folder / f"frames/{t}.{'tif' if mode == 'CMYK' else 'png'}")
            pictures.append(np.array(picture.convert("RGB")))
        return Case("frames", first=FIRST, pictures=pictures, tolerance=0)


@row("frames of 16 bits in color keep their upper 8")
def deep_colors(folder: Path) -> Case:
    import cv2

    (folder / "frames").mkdir()
    for t, image in enumerate(FRAMES):
        deep = image[..., ::-1].astype(np.uint16) * 256 + 77
        assert cv2.imwrite(str(folder / f"frames/{t}.png"), deep)
    return Case("frames", first=FIRST, pictures=FRAMES, tolerance=0)


@row("frames of 16 bits in gray are refused")
def deep_frames(folder: Path) -> Case:
    frames_in(folder, images=[one[..., 0].astype(np.uint16) * 40 for one in FRAMES])
    return Case("frames", first=FIRST, error="more than 8 bits")


@row("a walk meets every picture once, through links too", doors=["api", "run"])
def walk(folder: Path) -> Case:
    frames_in(folder)
    (folder / "frames/loop").symlink_to(".")
    Image.fromarray(FIRST).save(folder / "mask.pgm")
    return Case("frames/**/*.png", first=FIRST, mask=folder / "mask.pgm", pictures=FRAMES)


@row("a polygon of CVAT's export")
def cvat(folder: Path) -> Case:
    images, _ = scene(3)
    write_video(folder / "clip.mp4", images)
    first = np.zeros(SIZE, np.uint8)
    first[10:30, 20:50] = 1
    (folder / "annotations.xml").write_text(
        '<annotations><version>1.1</version><image id="0" name="frame_000000.PNG" width="64" height="48">'
        '<polygon label="goat" points="20,10;50,10;50,30;20,30"/></image></annotations>'
    )
    return Case("clip.mp4", first=first, mask=Path("annotations.xml"), says="has the objects 1 goat")
