"""Odd and hostile pictures, drawn at random: what is read is right, and all else ends in one line."""

from __future__ import annotations

import io
import os
import tempfile
from pathlib import Path

import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFilter

from streamvos import InputError, open_source, read_label_map
from streamvos.masks.labelmap import davis_palette

SETTINGS = settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
SIDE = 48


@st.composite
def rectangles(draw: st.DrawFn, objects: int) -> np.ndarray:
    """A label map of rectangles with ids 1.., each of which keeps a core of its own."""
    label_map = np.zeros((SIDE, SIDE), np.uint8)
    for one in range(objects):
        top, left = draw(st.integers(2, 9)), 2 + one * (SIDE - 2) // objects
        bottom, right = draw(st.integers(30, 44)), left + (SIDE - 2) // objects - draw(st.integers(5, 7))
        label_map[top:bottom, left:right] = one + 1
    return label_map


def said(error: InputError) -> str:
    text = str(error)
    assert text
    assert "\n" not in text
    assert "Traceback" not in text
    return text


def store(picture: Image.Image, form: str, folder: Path) -> Path:
    path = folder / f"mask.{form.partition(' ')[0]}"
    picture.save(path, **({"lossless": True, "exact": True} if form == "webp" else {}))
    return path


@given(st.data(), st.integers(1, 3), st.sampled_from(["png", "webp", "tif", "bmp", "gif"]))
@SETTINGS
def test_clean_label_maps_are_read_as_they_are_meant(data, objects, form):
    label_map = data.draw(rectangles(objects))
    kinds = ["gray", "davis palette", "davis colors", "three channels", "opaque alpha", "16 bits", "paint"]
    kind = data.draw(st.sampled_from(kinds))
    equal = np.repeat(label_map[..., None], 3, 2)
    if kind in ("gray", "davis palette"):
        picture = Image.fromarray(label_map)
        if kind == "davis palette":
            picture.putpalette(davis_palette().tobytes())
    elif kind == "16 bits":
        picture, form = Image.fromarray(label_map.astype(np.uint16)), "png" if form != "tif" else "tif"
    elif kind == "paint":
        paint = [[0, 0, 0], [255, 255, 0], [255, 0, 0], [0, 255, 255]]
        picture = Image.fromarray(np.array(paint, np.uint8)[label_map])
    elif kind == "opaque alpha":
        picture, form = Image.fromarray(equal).convert("RGBA"), "png" if form == "gif" else form
    else:
        picture = Image.fromarray(davis_palette()[label_map] if kind == "davis colors" else equal)
    if form == "gif" and picture.mode != "P":  # GIF makes a palette of its own
        picture, form = picture, "png"
    with tempfile.TemporaryDirectory() as folder:
        path = store(picture, form, Path(folder))
        np.testing.assert_array_equal(read_label_map(path), label_map, f"{kind} {form}")


@given(st.data(), st.integers(1, 2), st.sampled_from(["blur", "jpeg", "resize", "noise"]))
@SETTINGS
def test_soft_masks_are_read_right_or_refused(data, objects, what):
    label_map = data.draw(rectangles(objects))
    clean = np.array([0, 255] if objects == 1 else [0, 128, 255], np.uint8)[label_map]
    picture, strength = Image.fromarray(clean), data.draw(st.integers(1, 9))
    if what == "blur":
        picture = picture.filter(ImageFilter.GaussianBlur(strength / 6))
    elif what == "resize":
        picture = picture.resize((SIDE * 3,) * 2, Image.Resampling.BICUBIC)
        picture = picture.resize((SIDE,) * 2, Image.Resampling.LANCZOS)
    elif what == "jpeg":
        content = io.BytesIO()
        picture.save(content, "JPEG", quality=45 + 6 * strength)
        picture = Image.open(content)
    else:
        seeded = np.random.default_rng(strength)
        noise = seeded.normal(0, strength / 4, clean.shape)
        picture = Image.fromarray(np.clip(clean + noise, 0, 255).astype(np.uint8))
    with tempfile.TemporaryDirectory() as folder:
        picture.save(Path(folder) / "mask.png")
        try:
            read = read_label_map(Path(folder) / "mask.png")
        except InputError as error:
            said(error)
            return
    assert set(np.unique(read)) <= set(range(objects + 1))
    for one in range(1, objects + 1):
        both, either = ((read == one) & (label_map == one)).sum(), ((read == one) | (label_map == one)).sum()
        assert both / either > 0.75, (what, strength, one)  # edges move by up to a pixel


@given(st.binary(max_size=300), st.sampled_from(["", "png", "gif", "webp", "tif", "jpg", "pgm"]), st.data())
@SETTINGS
def test_damaged_pictures_end_in_one_line_or_are_read(junk, form, data):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "mask.png"
        content = junk
        if form:
            stream, mask = io.BytesIO(), Image.fromarray(data.draw(rectangles(2)))
            kind = {"jpg": "JPEG", "pgm": "PPM", "tif": "TIFF"}.get(form, form.upper())
            mask.convert("RGB" if form == "webp" else "L").save(stream, kind)
            content = bytearray(stream.getvalue())
            for place in data.draw(st.lists(st.integers(0, len(content) - 1), max_size=6)):
                content[place] = data.draw(st.integers(0, 255))
            content = bytes(content[: data.draw(st.integers(0, len(content)))])
        path.write_bytes(content)
        lines = []
        for read in (read_label_map, lambda place: next(open_source(place))):
            try:
                read(path)
            except InputError as error:
                lines.append(said(error))
        assert all("mask.png" in line for line in lines)


NAMES = st.text(st.sampled_from("a1.0_-é F"), min_size=1, max_size=6).map("f".__add__)
STRANGERS = ["folder", "fifo", "link to itself", "device", "text", "hidden", "empty", "deep", "other size"]


@given(st.lists(NAMES, min_size=1, max_size=5, unique_by=str.casefold), st.sampled_from(["none", *STRANGERS]))
@SETTINGS
def test_folders_are_read_whole_or_refused(names, stranger):
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "frames"
        folder.mkdir()
        for number, name in enumerate(names):
            noise = np.random.default_rng(number).integers(0, 255, (20, 24, 3)).astype(np.uint8)
            Image.fromarray(noise).save(folder / f"{name}.png", "PNG")
        odd = folder / "odd.png"
        make = {
            "folder": odd.mkdir,
            "fifo": lambda: os.mkfifo(odd),
            "link to itself": lambda: odd.symlink_to(odd),
            "device": lambda: odd.symlink_to("/dev/zero"),
            "text": lambda: odd.write_text("no picture"),
            "hidden": lambda: odd.with_name("._odd.png").write_text("no picture"),
            "empty": odd.touch,
            "deep": lambda: Image.fromarray(np.zeros((20, 24), np.uint16)).save(odd),
            "other size": lambda: Image.fromarray(np.zeros((5, 24, 3), np.uint8)).save(odd),
        }
        make.get(stranger, lambda: None)()
        try:
            with open_source(folder) as source:
                frames = list(source)
        except InputError as error:
            text = said(error)
            refused = True
        else:
            refused, text = False, ""
            assert len(frames) == len(names)
        assert refused == (stranger in ("text", "empty", "deep", "other size")), text
        assert not refused or "odd.png" in text
