"""Clips with known masks, made of photographs and videos: objects are cut out and moved over other pictures.

    photographs = Photographs(Path("data"))
    clip = still_clip(np.random.default_rng(0), photographs, size=(320, 480), frames=4)
    clip.images.shape, clip.labels.shape        # (4, 320, 480, 3) uint8, (4, 320, 480) uint8

A clip of stills has a photograph as its background, which moves as a camera would move it, and cut-outs of
other photographs that move, turn, bend, cover each other, leave and return. A composed video is a real one
over which such cut-outs move, among them objects of other real videos. The truth stays exact for all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from streamvos.synthetic.cutouts import Cutout, MovingCutout
from streamvos.synthetic.options import list_stills
from streamvos.types import VOID, InputError

Rng = np.random.Generator
Look = Callable[[np.ndarray], np.ndarray]
"""Changes the colors of an image (H, W, 3) uint8."""

LEAST_AREA = 0.004
"""Cut-outs cover at least this share of their photograph."""


@dataclass(frozen=True)
class LabeledClip:
    """Frames with label maps.

    Attributes:
        images: (T, H, W, 3) uint8 RGB.
        labels: (T, H, W) uint8; 0 background, 255 void.
    """

    images: np.ndarray
    labels: np.ndarray


class Photographs:
    """The photographs of a data folder: NAME/images and NAME/regions for each of `FOLDERS` that is there.

    Args:
        folder: holds at least one of the folders.

    Raises:
        InputError: it holds none.
    """

    OBJECTS = ("duts", "voc")
    BACKGROUNDS = ("stills",)

    def __init__(self, folder: Path):
        self.folder = folder
        found = [name for name in (*self.OBJECTS, *self.BACKGROUNDS) if (folder / name / "images").is_dir()]
        self.names = {name: list_stills(folder / name) for name in found}
        if not any(name in self.names for name in self.OBJECTS):
            raise InputError(
                f"{folder} holds no photographs of objects; expected {' or '.join(self.OBJECTS)}, each with "
                "images/ and regions/"
            )

    def read(self, kind: str, name: str) -> tuple[np.ndarray, np.ndarray]:
        """An image (h, w, 3) uint8 RGB and its regions (h, w) uint8; those of backgrounds are all 0."""
        stem = Path(name).stem
        path = self.folder / kind / "images" / f"{stem}.jpg"
        image = cv2.imread(str(path), cv2.IMREAD_COLOR)
        if image is None:
            raise InputError(f"cannot read the photograph {path}")
        regions = np.zeros(image.shape[:2], np.uint8)
        if kind in self.OBJECTS:
            path = self.folder / kind / "regions" / f"{stem}.png"
            stored = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
            if stored is None or stored.shape != regions.shape:
                raise InputError(f"{path} is no region map of {regions.shape}, the size of its photograph")
            regions = stored
        return cv2.cvtColor(image, cv2.COLOR_BGR2RGB), regions

    def background(self, rng: Rng) -> tuple[np.ndarray, np.ndarray]:
        """A photograph with the objects in it; three in five have none that are known."""
        kinds = [k for k in self.BACKGROUNDS if k in self.names]
        if not kinds or rng.random() < 0.4:
            kinds = [k for k in self.OBJECTS if k in self.names]
        kind = kinds[int(rng.integers(len(kinds)))]
        return self.read(kind, str(rng.choice(self.names[kind])))

    def cutout(self, rng: Rng) -> Cutout:
        """An object of a photograph; the larger set is drawn from more often."""
        kinds = [k for k in self.OBJECTS if k in self.names]
        counts = np.sqrt([len(self.names[k]) for k in kinds])
        while True:
            kind = kinds[int(rng.choice(len(kinds), p=counts / counts.sum()))]
            image, regions = self.read(kind, str(rng.choice(self.names[kind])))
            ids = np.setdiff1d(np.unique(regions), [0, VOID])
            if len(ids):
                found = cut_out(image, regions == rng.choice(ids))
                if found is not None:
                    return found


def cut_out(image: np.ndarray, mask: np.ndarray) -> Cutout | None:
    """The object under a mask (h, w) bool with a soft border; None if it is tiny."""
    if mask.mean() < LEAST_AREA:
        return None
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    box = (slice(max(rows[0] - 2, 0), rows[-1] + 3), slice(max(columns[0] - 2, 0), columns[-1] + 3))
    alpha = cv2.GaussianBlur(mask[box].astype(np.float32), (0, 0), 0.7)
    return Cutout(np.ascontiguousarray(image[box]), alpha)


class Path2D:
    """A smooth random path: values at times 0..T-1 that drift and swing.

    Args:
        drift, swing: how far a value goes over the whole path, and to both sides.
    """

    def __init__(self, rng: Rng, start: float, drift: float, swing: float):
        self.start = start
        self.drift = rng.normal() * drift
        self.swing, self.phase, self.turns = rng.uniform(0, swing), rng.uniform(0, 6.3), rng.uniform(0.3, 1.5)

    def __call__(self, u: float) -> float:
        """The value at `u` in 0..1 of the path."""
        wave = np.sin(self.phase + 6.283 * self.turns * u) - np.sin(self.phase)
        return float(self.start + self.drift * u + self.swing * wave)


def random_motion(rng: Rng, size: tuple[int, int], speed: float) -> MovingCutout:
    """A smooth random motion over frames of `size` (H, W); speed 1 crosses about a third of the frame."""
    height, width = size
    share = float(np.exp(rng.uniform(np.log(0.15), np.log(0.8))))
    x = Path2D(rng, rng.uniform(0, 1) * width, 0.35 * speed * width, 0.1 * speed * width)
    y = Path2D(rng, rng.uniform(0, 1) * height, 0.3 * speed * height, 0.08 * speed * height)
    zoom = Path2D(rng, 0, 0.4 * speed, 0.1)
    angle = Path2D(rng, rng.normal() * 10, 25 * speed, 6)
    stretch = Path2D(rng, rng.normal() * 0.1, 0.15 * speed, 0.1)
    mirror = bool(rng.random() < 0.5)
    bends = rng.normal(size=(2, 2, 4, 4)).astype(np.float32) * 0.035 * min(speed, 2)
    return MovingCutout(
        size, share, x, y, zoom, angle, stretch, mirror, lambda u: np.asarray(bends[0] + u * bends[1])
    )


Camera = Callable[[np.ndarray, float, int], np.ndarray]
"""Shows a picture (h, w) or (h, w, 3) uint8 as a moving camera sees it at `u` in 0..1 of its path, with an
interpolation of OpenCV."""


def random_camera(
    rng: Rng, picture_size: tuple[int, int], size: tuple[int, int], speed: float, zoom_drift: float
) -> Camera:
    """A camera that pans, zooms and turns over pictures of one size (h, w); its frames are `size` (H, W).

    What lies beyond a picture's border is its mirror image. `zoom_drift` is the typical change of the
    logarithm of the zoom over the whole path.
    """
    (h, w), (height, width) = picture_size, size
    cover = max(height / h, width / w)
    zoom = Path2D(rng, rng.uniform(0.0, 0.5), zoom_drift, 0.05)
    x, y = (Path2D(rng, rng.normal() * 0.05, 0.12 * speed, 0.03) for _ in range(2))
    angle = Path2D(rng, rng.normal() * 4, 6 * speed, 2)

    def show(picture: np.ndarray, u: float, interpolation: int) -> np.ndarray:
        matrix = cv2.getRotationMatrix2D((w / 2, h / 2), angle(u), float(cover * np.exp(zoom(u))))
        matrix[0, 2] += width / 2 - w / 2 + x(u) * width
        matrix[1, 2] += height / 2 - h / 2 + y(u) * height
        return cv2.warpAffine(
            picture, matrix, (width, height), flags=interpolation, borderMode=cv2.BORDER_REFLECT_101
        )

    return show


def random_look(rng: Rng, strength: float = 1.0) -> Look:
    """A change of color, and at times blur or compression, common to the frames of a clip."""
    gains = np.exp(rng.normal(size=3) * 0.06 * strength + rng.normal() * 0.12 * strength).astype(np.float32)
    gamma = float(np.exp(rng.normal() * 0.15 * strength))
    saturation = np.float32(np.exp(rng.normal() * 0.25 * strength) if rng.random() > 0.04 else 0)
    sigma = float(rng.uniform(0.5, 1.6)) if rng.random() < 0.25 * strength else 0.0
    quality = int(rng.integers(35, 90)) if rng.random() < 0.4 * strength else 0
    curve = (255 * (np.arange(256, dtype=np.float32) / 255) ** gamma)[:, None] * gains
    table = np.clip(curve, 0, 255).astype(np.float32)  # (256, 3)

    def look(image: np.ndarray) -> np.ndarray:
        colors = np.stack([table[:, c][image[..., c]] for c in range(3)], axis=-1)
        gray = colors.mean(-1, keepdims=True)
        changed = np.clip(gray + saturation * (colors - gray), 0, 255).astype(np.uint8)
        if sigma:
            changed = cv2.GaussianBlur(changed, (0, 0), sigma)
        if quality:
            _, packed = cv2.imencode(".jpg", changed[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, quality])
            changed = np.asarray(cv2.imdecode(packed, cv2.IMREAD_COLOR))[..., ::-1]
        return np.ascontiguousarray(changed)

    return look


def still_clip(rng: Rng, photographs: Photographs, size: tuple[int, int], frames: int) -> LabeledClip:
    """A clip of stills; ids of its objects are 1, 2, ..., in the order from the back to the front."""
    picture, regions = photographs.background(rng)
    known = {int(i): n for n, i in enumerate(np.setdiff1d(np.unique(regions), [0, VOID])[:3], start=1)}
    table = np.zeros(256, np.uint8)
    table[VOID] = VOID
    for stored, label in known.items():
        table[stored] = label
    regions = table[regions]
    cutouts = [photographs.cutout(rng) for _ in range(int(rng.integers(0 if known else 1, 4)))]
    speed = float(rng.uniform(0.3, 1.8))
    movers = [random_motion(rng, size, speed * float(rng.uniform(0.5, 1.5))) for _ in cutouts]
    camera = random_camera(rng, (picture.shape[0], picture.shape[1]), size, speed, 0.15 * speed)
    mirror = -1 if rng.random() < 0.5 else 1
    look = random_look(rng)
    images, labels = [], []
    for u in np.linspace(0, 1, frames):
        image = camera(picture, float(u), cv2.INTER_LINEAR)
        label_map = camera(regions, float(u), cv2.INTER_NEAREST)
        for number, (cutout, mover) in enumerate(zip(cutouts, movers, strict=True), start=1 + len(known)):
            mover.paste(cutout, float(u), image, label_map, number)
        images.append(look(image)[:, ::mirror])
        labels.append(label_map[:, ::mirror])
    return LabeledClip(np.stack(images), np.stack(labels))


def composed_video(
    rng: Rng,
    video: LabeledClip,
    others: Sequence[LabeledClip],
    photographs: Photographs | None,
    size: tuple[int, int],
) -> LabeledClip:
    """A real video at another size, in other colors, perhaps mirrored, with objects moving over it.

    Most are seen by a camera of their own that comes closer or goes away, so that objects grow, shrink, and
    enter the frame part by part.

    Args:
        video: its labels are kept; pasted objects get the next ids.
        others: videos whose objects, if any, may be pasted; they play forward and backward.
        photographs: where still cut-outs come from; None = nothing still is pasted.
        size: (H, W) of the result.
    """
    count, (height, width) = len(video.images), size
    picture_size = (video.images.shape[1], video.images.shape[2])
    camera = random_camera(rng, picture_size, size, 2.0, 0.4) if rng.random() < 0.7 else None
    mirror = -1 if rng.random() < 0.5 else 1
    look, first = random_look(rng), int(video.labels[video.labels != VOID].max()) + 1
    speed = float(rng.uniform(0.5, 2.5)) * min(1.0, count / 30)
    playing: list[tuple[MovingCutout, Callable[[int], Cutout | None]]] = []
    if others and rng.random() < 0.7:
        other, begin = others[int(rng.integers(len(others)))], int(rng.integers(1000))
        playing.append((random_motion(rng, size, speed), lambda t: _played(other, begin + t)))
    for _ in range(int(rng.integers(0, 3)) if photographs is not None else 0):
        assert photographs is not None
        still = photographs.cutout(rng)
        playing.append((random_motion(rng, size, speed), lambda _, still=still: still))  # type: ignore[misc]
    images, labels = [], []
    for t in range(count):
        u = t / max(count - 1, 1)
        if camera is None:
            image = cv2.resize(video.images[t], (width, height), interpolation=cv2.INTER_AREA)
            label_map = cv2.resize(video.labels[t], (width, height), interpolation=cv2.INTER_NEAREST)
        else:
            image = camera(video.images[t], u, cv2.INTER_LINEAR)
            label_map = camera(video.labels[t], u, cv2.INTER_NEAREST)
        image, label_map = image[:, ::mirror].copy(), label_map[:, ::mirror].copy()
        for label, (mover, cutout_at) in enumerate(playing, start=first):
            cutout = cutout_at(t)
            if cutout is not None:
                mover.paste(cutout, u, image, label_map, label)
        images.append(look(image))
        labels.append(label_map)
    return LabeledClip(np.stack(images), np.stack(labels))


def _played(video: LabeledClip, t: int) -> Cutout | None:
    """The first object of a video that plays forward and backward, at time `t`."""
    last = len(video.images) - 1
    t = t % (2 * last) if last else 0
    t = min(t, 2 * last - t)
    return cut_out(video.images[t], video.labels[t] == 1)
