"""YouTube-VOS, in the folders of its archives.

    ROOT/train/JPEGImages/<video>/00000.jpg     frames
    ROOT/train/Annotations/<video>/00000.png    label maps, of every fifth frame
    ROOT/train/meta.json                        optional: every object's category and frames

Unlike in DAVIS, objects may appear after the first frame: each has its own first frame, at which a method
gets its mask. Without meta.json the first frames come from the label maps, and there are no categories.

    video = YouTubeVosDataset("YouTube-VOS", split="train")["003234408d"]
    video.objects[1]  # YouTubeObject(id=2, category='penguin', first_frame=15)
    for index, mask in video.given_masks():  # (0, object 1), (15, object 2)
        results = vos.step(video.image(index), mask)
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np

from streamvos.datasets.clips import (
    Video,
    VideoDataset,
    common_folders,
    frames_in,
    label_maps_in,
    listing,
    pick,
    read_labels,
)
from streamvos.files import read_json
from streamvos.masks.checks import object_ids
from streamvos.types import MAX_OBJECT_ID, InputError

META_BYTES = 2**28
"""The largest meta.json; that of YouTube-VOS has some MiB."""

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
class YouTubeVideo(Video):
    """One video.

    Attributes:
        annotation_paths: frame index -> label map, ascending; not every frame has one.
        meta: the video's entry in meta.json, if there is one.
    """

    annotation_paths: dict[int, Path]
    meta: dict[str, Any] | None

    def mask(self, index: int) -> np.ndarray:
        """(H, W) uint8 label map of frame `index`; 0 background, 255 void.

        Raises:
            InputError: the file cannot be read, or the frame has no label map.
        """
        if index not in self.annotation_paths:
            labeled = listing([str(key) for key in self.annotation_paths])
            raise InputError(f"{self.name}: frame {index} has no label map; those that have: {labeled}")
        return self.read_mask(self.annotation_paths[index])

    @cached_property
    def objects(self) -> tuple[YouTubeObject, ...]:
        """The objects in the order of their ids, from meta.json or else from the label maps.

        Raises:
            InputError: meta.json is malformed or names missing frames, or a label map cannot be read.
        """
        found = self._objects_in_meta() if self.meta is not None else self._objects_in_masks()
        if not found:
            raise InputError(f"{self.name} has no object in its label maps or meta.json")
        return tuple(sorted(found, key=lambda one: one.id))

    def given_masks(self) -> Iterator[tuple[int, np.ndarray]]:
        """The inputs of a method: frame index and label map at each first frame of objects.

        Each label map holds only the objects that start there, without void.

        Raises:
            InputError: a label map is missing or unreadable, or an object is absent at its first frame.
        """
        for index in sorted({one.first_frame for one in self.objects}):
            mask = self.mask(index)
            ids = [one.id for one in self.objects if one.first_frame == index]
            absent = [str(one) for one in ids if not (mask == one).any()]
            if absent:
                path = self.annotation_paths[index]
                raise InputError(f"{path} does not show object {listing(absent)}, which should start there")
            yield index, np.where(np.isin(mask, ids), mask, np.uint8(0))

    def read_mask(self, path: Path) -> np.ndarray:
        return read_labels(path, binary=False, merge=False)

    def training_files(self) -> list[tuple[Path, Path]]:
        return [(self.frame_paths[index], path) for index, path in self.annotation_paths.items()]

    def _objects_in_masks(self) -> list[YouTubeObject]:
        firsts: dict[int, int] = {}
        for index, path in self.annotation_paths.items():
            for label in object_ids(self.read_mask(path)):
                firsts.setdefault(label, index)
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


class YouTubeVosDataset(VideoDataset[YouTubeVideo]):
    """The videos of one split of YouTube-VOS, each listed on first use, as there are thousands.

    Consecutive frames of a clip are five frames of the video apart, as only those have label maps.
    """

    def __init__(
        self, root: str | PathLike[str], split: str = "train", videos: Sequence[str] | str | None = None
    ) -> None:
        """
        Args:
            root: the folder that holds the split's folder, or the split's folder itself.
            split: name of a folder, such as "train" or "valid".
            videos: names of the videos to use, in this order.

        Raises:
            InputError: a part of the layout is missing, a video is unknown, or meta.json cannot be read.
        """
        root = Path(root)
        self.root = root if (root / "JPEGImages").is_dir() else root / split
        for part in ("JPEGImages", "Annotations"):
            if not (self.root / part).is_dir():
                raise InputError(
                    f"there is no folder {self.root / part}; {_LAYOUT} in {root} or {root / split}"
                )
        self._meta = _read_meta(self.root / "meta.json")
        available = common_folders(self.root / "JPEGImages", self.root / "Annotations", _LAYOUT)
        self.names = tuple(pick(available, videos, str(self.root)))

    @property
    def has_meta(self) -> bool:
        """Whether there is a meta.json, and so categories."""
        return self._meta is not None

    def _find(self, name: str) -> YouTubeVideo:
        frames = frames_in(self.root / "JPEGImages" / name)
        annotations = label_maps_in(self.root / "Annotations" / name)
        index_of = {stem: index for index, stem in enumerate(frames)}
        stray = [stem for stem in annotations if stem not in index_of]
        if stray or not frames or not annotations:
            problem = (
                f"label maps without a frame: {listing(stray)}" if stray else "no frames or no label maps"
            )
            raise InputError(f"video {name} in {self.root}: {problem}; {_LAYOUT}")
        by_index = {index_of[stem]: path for stem, path in annotations.items()}
        return YouTubeVideo(name, tuple(frames.values()), by_index, (self._meta or {}).get(name))


def _read_meta(path: Path) -> dict[str, Any] | None:
    """The content of meta.json, video -> entry; None without such a file."""
    if not path.exists():
        return None
    content = read_json(path, "the descriptions of videos", META_BYTES)
    videos = content.get("videos") if isinstance(content, dict) else None
    if not isinstance(videos, dict):
        raise InputError(f'{path}: expected {{"videos": {{name: {{"objects": ...}}}}}}')
    return videos
