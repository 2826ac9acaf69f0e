"""YouTube-VOS from the folders in which it comes.

    ROOT/train/JPEGImages/<video>/00000.jpg     frames
    ROOT/train/Annotations/<video>/00000.png    label maps, of every fifth frame
    ROOT/train/meta.json                        optional: every object's category and frames

Unlike in DAVIS, objects may appear after the first frame: each has a first frame of its own, at which a
method is given its mask. Without meta.json the first frames are read off the label maps, and there are
no categories.

    video = YouTubeVosDataset("YouTube-VOS", split="train")["003234408d"]
    video.objects[1]  # YouTubeObject(id=2, category='penguin', first_frame=15)
    for index, mask in video.given_masks():  # (0, object 1), (15, object 2)
        results = vos.step(video.image(index), mask)
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np

from streamvos.datasets.clips import (
    FRAME_SUFFIXES,
    LABEL_SUFFIXES,
    Clip,
    list_folders,
    list_pictures,
    listing,
    load_clip,
    locate,
    pick,
    read_image,
    read_labels,
    starts,
    window,
)
from streamvos.types import MAX_OBJECT_ID, VOID, InputError

_LAYOUT = "expected JPEGImages/<video>/*.jpg, Annotations/<video>/*.png and optionally meta.json"


@dataclass(frozen=True)
class YouTubeObject:
    """One object of one video.

    Attributes:
        id: its id in the label maps.
        category: such as "penguin"; None without meta.json.
        first_frame: index of the frame at which its mask is given; it is judged after that.
    """

    id: int
    category: str | None
    first_frame: int


@dataclass(frozen=True, eq=False)
class YouTubeVideo:
    """One video: where its files are, and what is in them when asked.

    Attributes:
        name: of the video.
        frame_paths: one picture per frame, in order.
        annotation_paths: frame index -> label map, ascending; not every frame has one.
        meta: what meta.json says of the video's objects, if anything.
    """

    name: str
    frame_paths: tuple[Path, ...]
    annotation_paths: dict[int, Path]
    meta: dict[str, Any] | None

    def __len__(self) -> int:
        return len(self.frame_paths)

    def image(self, index: int) -> np.ndarray:
        """(H, W, 3) uint8 RGB of frame `index`, counted from 0.

        Raises:
            InputError: the file cannot be read.
        """
        return read_image(self.frame_paths[index])

    def mask(self, index: int) -> np.ndarray:
        """(H, W) uint8 label map of frame `index`; 0 background, 255 void.

        Raises:
            InputError: the file cannot be read, or the frame has no label map.
        """
        if index not in self.annotation_paths:
            raise InputError(
                f"{self.name}: frame {index} has no label map; those that have: "
                f"{listing([str(key) for key in self.annotation_paths])}"
            )
        return _read(self.annotation_paths[index])

    @cached_property
    def objects(self) -> tuple[YouTubeObject, ...]:
        """The objects in the order of their ids, from meta.json or else from the label maps.

        Raises:
            InputError: meta.json is malformed or speaks of frames that do not exist, or a label map
                that is needed cannot be read.
        """
        found = self._objects_in_meta() if self.meta is not None else self._objects_in_masks()
        if not found:
            raise InputError(f"{self.name} has no object in its label maps or meta.json")
        return tuple(sorted(found, key=lambda one: one.id))

    def given_masks(self) -> Iterator[tuple[int, np.ndarray]]:
        """What a method is given: frame index and label map wherever objects have their first frame.

        Each label map holds the objects that start there and no other (and no void).

        Raises:
            InputError: a label map is missing or unreadable, or an object is absent at its first frame.
        """
        for index in sorted({one.first_frame for one in self.objects}):
            mask = self.mask(index)
            ids = [one.id for one in self.objects if one.first_frame == index]
            absent = [str(one) for one in ids if not (mask == one).any()]
            if absent:
                raise InputError(
                    f"{self.annotation_paths[index]} does not show object {listing(absent)}, which should "
                    "start there"
                )
            yield index, np.where(np.isin(mask, ids), mask, np.uint8(0))

    def _objects_in_masks(self) -> list[YouTubeObject]:
        firsts: dict[int, int] = {}
        for index, path in self.annotation_paths.items():
            for label in np.unique(_read(path)):
                if 0 < label < VOID:
                    firsts.setdefault(int(label), index)
        return [YouTubeObject(label, None, index) for label, index in firsts.items()]

    def _objects_in_meta(self) -> list[YouTubeObject]:
        index_of = {path.stem: index for index, path in enumerate(self.frame_paths)}
        objects = self.meta.get("objects") if isinstance(self.meta, dict) else None
        if not isinstance(objects, dict):
            raise InputError(
                f'meta.json, video {self.name}: expected {{"objects": {{id: ...}}}}, got {self.meta!r:.80}'
            )
        found = []
        for key, entry in objects.items():
            where = f"meta.json, video {self.name}, object {key!r}"
            if not (key.isdecimal() and 1 <= int(key) <= MAX_OBJECT_ID):
                raise InputError(f"{where}: expected an id in 1..{MAX_OBJECT_ID}")
            frames = entry.get("frames") if isinstance(entry, dict) else None
            if not isinstance(frames, list) or not frames or not all(isinstance(one, str) for one in frames):
                raise InputError(
                    f"{where}: expected a list of frame names under 'frames', got {frames!r:.80}"
                )
            known = [index_of[name] for name in frames if name in index_of]
            if not known:
                raise InputError(f"{where}: none of its frames exists, such as {frames[0]!r}")
            category = entry.get("category")
            found.append(YouTubeObject(int(key), None if category is None else str(category), min(known)))
        return found


class YouTubeVosDataset:
    """The videos of one split of YouTube-VOS.

    Iterating gives a `YouTubeVideo` each; `dataset["003234408d"]` and `dataset[0]` give one of them.
    """

    def __init__(
        self, root: str | PathLike[str], split: str = "train", videos: Sequence[str] | str | None = None
    ) -> None:
        """
        Args:
            root: the folder that holds the split's folder, or the split's folder itself.
            split: "train", "valid" and so on; a folder's name.
            videos: these only, in this order; by name.

        Raises:
            InputError: a part of the layout is missing, a video is unknown (the message names those
                there are), or meta.json cannot be read.
        """
        root = Path(root)
        self.root = root if (root / "JPEGImages").is_dir() else root / split
        for part in ("JPEGImages", "Annotations"):
            if not (self.root / part).is_dir():
                raise InputError(
                    f"there is no folder {self.root / part}; {_LAYOUT} in {root} or {root / split}"
                )
        self._meta = _read_meta(self.root / "meta.json")
        with_labels = set(list_folders(self.root / "Annotations"))
        available = [name for name in list_folders(self.root / "JPEGImages") if name in with_labels]
        if not available:
            raise InputError(f"JPEGImages and Annotations in {self.root} have no video in common; {_LAYOUT}")
        self.names = tuple(pick(available, videos, str(self.root)))
        self._videos: dict[str, YouTubeVideo] = {}

    @property
    def has_meta(self) -> bool:
        """Whether there is a meta.json, and so categories."""
        return self._meta is not None

    def __len__(self) -> int:
        return len(self.names)

    def __iter__(self) -> Iterator[YouTubeVideo]:
        return (self[name] for name in self.names)

    def __getitem__(self, which: int | str) -> YouTubeVideo:
        if isinstance(which, str):
            (name,) = pick(self.names, which, str(self.root))
        else:
            name = self.names[which]
        if name not in self._videos:  # listed when first asked for: there are thousands
            self._videos[name] = self._video(name)
        return self._videos[name]

    @cached_property
    def _lengths(self) -> list[int]:
        return [len(video.annotation_paths) for video in self]

    @property
    def frame_count(self) -> int:
        """How many frames with a label map there are in all videos together."""
        return sum(self._lengths)

    def starts(self, count: int, stride: int = 1) -> list[int]:
        """Every `i` for which `frames(i, count, stride)` exists: the index of a training epoch."""
        return starts(self._lengths, count, stride)

    def frames(self, i: int, count: int, stride: int = 1) -> Clip:
        """The training clip that starts at annotated frame `i` of all videos in a row.

        Frames without a label map are passed over, so consecutive frames of a clip are five frames of
        the video apart. Near the end of a video the clip is shifted back until it fits. Objects that
        appear inside the clip keep their labels; `Clip.known` drops them.

        Args:
            i: 0 .. `frame_count` - 1.
            count: how many frames.
            stride: distance from one to the next, in annotated frames.

        Raises:
            InputError: `i` is out of range, the video is too short, or a file is unreadable.
        """
        which, position = locate(self._lengths, i)
        video = self[which]
        annotated = list(video.annotation_paths)
        indices = [annotated[k] for k in window(position, count, stride, len(annotated), video.name)]
        return load_clip(
            video.name,
            [video.frame_paths[index] for index in indices],
            [video.annotation_paths[index] for index in indices],
            _read,
        )

    def _video(self, name: str) -> YouTubeVideo:
        frames = list_pictures(self.root / "JPEGImages" / name, FRAME_SUFFIXES)
        annotations = list_pictures(self.root / "Annotations" / name, LABEL_SUFFIXES)
        index_of = {stem: index for index, stem in enumerate(frames)}
        stray = [stem for stem in annotations if stem not in index_of]
        if stray or not frames or not annotations:
            problem = (
                f"no frame belongs to the label maps {listing(stray)}"
                if stray
                else "no frames or no label maps"
            )
            raise InputError(f"video {name} in {self.root}: {problem}; {_LAYOUT}")
        by_index = {index_of[stem]: path for stem, path in annotations.items()}
        return YouTubeVideo(name, tuple(frames.values()), by_index, (self._meta or {}).get(name))


def _read(path: Path) -> np.ndarray:
    return read_labels(path, binary=False, merge=False)


def _read_meta(path: Path) -> dict[str, Any] | None:
    """What meta.json says, video -> entry; None where there is no such file."""
    if not path.exists():
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(
            f"cannot read {path}: {error}; correct it, or remove it to go without categories"
        ) from error
    videos = content.get("videos") if isinstance(content, dict) else None
    if not isinstance(videos, dict):
        raise InputError(f'{path}: expected {{"videos": {{name: {{"objects": ...}}}}}}')
    return videos
