"""What DAVIS and YouTube-VOS have in common: videos as folders of numbered pictures.

A video is a folder of JPEGs; its label maps are PNGs of the same names in another folder. A clip is a
short run of frames with their label maps, cut out for training.

    clip = dataset.frames(10, count=3)
    clip.images.shape, clip.masks.shape, clip.object_ids  # (3, 480, 854, 3), (3, 480, 854), (1,)
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import Generic, TypeVar

import numpy as np
from PIL import Image

from streamvos.masks.labelmap import read_label_map
from streamvos.types import VOID, InputError

FRAME_SUFFIXES = (".jpg", ".jpeg")
LABEL_SUFFIXES = (".png",)


@dataclass(frozen=True, slots=True, eq=False)
class Clip:
    """Some frames of one video with their label maps.

    Attributes:
        name: name of the video.
        frame_names: one per frame, such as "00010".
        images: (N, H, W, 3) uint8, RGB.
        masks: (N, H, W) uint8 label maps; 0 background, 255 void.
    """

    name: str
    frame_names: tuple[str, ...]
    images: np.ndarray
    masks: np.ndarray

    def __len__(self) -> int:
        return len(self.frame_names)

    @property
    def object_ids(self) -> tuple[int, ...]:
        """The ids in the first label map, ascending: all that a method can know of at its start."""
        present = np.flatnonzero(np.bincount(self.masks[0].ravel(), minlength=VOID + 1))
        return tuple(int(label) for label in present if 0 < label < VOID)

    def known(self) -> Clip:
        """The clip with every object that is absent from the first label map turned into background."""
        keep = np.zeros(VOID + 1, np.uint8)
        for label in (*self.object_ids, VOID):
            keep[label] = label
        return replace(self, masks=keep[self.masks])


@dataclass(frozen=True, eq=False)
class Video(ABC):
    """One video: where its files are, and what is in them when asked.

    Attributes:
        name: name of its folder.
        frame_paths: one picture per frame, in order.
    """

    name: str
    frame_paths: tuple[Path, ...]

    def __len__(self) -> int:
        return len(self.frame_paths)

    def image(self, index: int) -> np.ndarray:
        """(H, W, 3) uint8 RGB of frame `index`, counted from 0.

        Raises:
            InputError: the file cannot be read.
        """
        return read_image(self.frame_paths[index])

    @abstractmethod
    def training_files(self) -> list[tuple[Path, Path]]:
        """Picture and label map of every frame that a training clip may hold, in order."""

    @abstractmethod
    def read_mask(self, path: Path) -> np.ndarray:
        """The label map in one of the video's files, (H, W) uint8."""


VideoType = TypeVar("VideoType", bound=Video)


class VideoDataset(ABC, Generic[VideoType]):
    """The videos of a data set.

    Iterating gives each video; `dataset["goat"]` and `dataset[0]` give one of them.

    Attributes:
        root: folder of the data set.
        names: names of the videos, in order.
    """

    root: Path
    names: tuple[str, ...]

    @abstractmethod
    def _find(self, name: str) -> VideoType:
        """Find the files of a video; refuse it where frames and label maps do not match."""

    @cached_property
    def _found(self) -> dict[str, VideoType]:
        return {}

    def __len__(self) -> int:
        return len(self.names)

    def __iter__(self) -> Iterator[VideoType]:
        return (self[name] for name in self.names)

    def __getitem__(self, which: int | str) -> VideoType:
        name = pick(self.names, which, str(self.root))[0] if isinstance(which, str) else self.names[which]
        if name not in self._found:
            self._found[name] = self._find(name)
        return self._found[name]

    @cached_property
    def _lengths(self) -> list[int]:
        return [len(video.training_files()) for video in self]

    @property
    def frame_count(self) -> int:
        """How many frames of all videos together can be trained on."""
        return sum(self._lengths)

    def starts(self, count: int, stride: int = 1) -> list[int]:
        """Every `i` for which `frames(i, count, stride)` exists: the indices of a training epoch."""
        return starts(self._lengths, count, stride)

    def frames(self, i: int, count: int, stride: int = 1) -> Clip:
        """The training clip that starts at frame `i` of the frames with label maps of all videos in a row.

        Near the end of a video the clip is shifted back until it fits, so that every frame is the index of
        a clip (as in the TVOS authors' training code). Frames without a label map are skipped. Objects
        that appear inside the clip keep their labels; `Clip.known` drops them.

        Args:
            i: 0 .. `frame_count` - 1.
            count: number of frames.
            stride: distance from one to the next, in frames with label maps; 1 for consecutive ones.

        Raises:
            InputError: `i` is out of range, the video is too short, or a file is unreadable.
        """
        which, position = locate(self._lengths, i)
        video = self[which]
        files = video.training_files()
        chosen = [files[k] for k in window(position, count, stride, len(files), video.name)]
        return load_clip(video.name, chosen, video.read_mask)


def list_pictures(folder: Path, suffixes: Sequence[str]) -> dict[str, Path]:
    """The pictures in a folder: name without suffix -> path, in the order of the frames.

    Names that are numbers are ordered as numbers, so that 9 comes before 10; others as text.

    Hidden files are skipped (macOS leaves `._00000.png` beside `00000.png`).

    Raises:
        InputError: the folder cannot be read, or one name occurs with two suffixes.
    """
    pictures: dict[str, Path] = {}
    # sorted, so that of two files it is always the same that is refused
    for path in sorted(children(folder), key=lambda path: path.name):
        if path.suffix.lower() in suffixes and not path.name.startswith("."):
            if path.stem in pictures:
                raise InputError(
                    f"{folder} holds both {pictures[path.stem].name} and {path.name}; remove one of them"
                )
            pictures[path.stem] = path
    if all(stem.isdecimal() for stem in pictures):
        return dict(sorted(pictures.items(), key=lambda item: int(item[0])))
    return pictures


def list_folders(folder: Path) -> list[str]:
    """The names of the sub-folders, sorted, hidden ones left out.

    Raises:
        InputError: the folder cannot be read.
    """
    return sorted(path.name for path in children(folder) if path.is_dir() and not path.name.startswith("."))


def children(folder: Path) -> list[Path]:
    """The files and folders in a folder.

    Raises:
        InputError: the folder cannot be read.
    """
    try:
        return list(folder.iterdir())
    except OSError as error:
        raise InputError(f"cannot read the folder {folder}: {error.strerror or error}") from error


def read_image(path: Path) -> np.ndarray:
    """(H, W, 3) uint8 RGB of a picture file.

    Pillow decodes it, as in the TVOS authors' code; no orientation tag is applied.

    Raises:
        InputError: the file is missing or is not a readable picture.
    """
    try:
        with Image.open(path) as picture:
            return np.array(picture.convert("RGB"))
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise InputError(f"cannot read the picture {path}: {reason}") from error


def holds_binary_mask(raw: np.ndarray) -> bool:
    """Whether a label map as stored is a binary mask: 255 is the object, for nothing else is labeled.

    One frame cannot tell an object stored as 255 from a void region, so this is asked of the first
    label map of a video and holds for all of it.
    """
    present = np.flatnonzero(np.bincount(raw.ravel(), minlength=VOID + 1))
    return VOID in present and all(label in (0, VOID) for label in present)


def read_labels(path: Path, binary: bool, merge: bool) -> np.ndarray:
    """The label map in a file, (H, W) uint8.

    Args:
        path: the PNG.
        binary: the video's label maps are binary masks (`holds_binary_mask`): what is not 0 becomes 1.
        merge: all objects become object 1; void stays 255.

    Raises:
        InputError: the file is missing or is not a label map.
    """
    labels = read_label_map(path, binary="never")
    if binary:
        return (labels != 0).view(np.uint8)
    if merge:
        return np.where((labels > 0) & (labels != VOID), np.uint8(1), labels)
    return labels


def load_clip(name: str, files: Sequence[tuple[Path, Path]], read: Callable[[Path], np.ndarray]) -> Clip:
    """Read frames and their label maps, the latter by `read`, into one clip.

    Raises:
        InputError: a file cannot be read, or its size is not that of the first frame.
    """
    images = [read_image(picture) for picture, _ in files]
    masks = [read(labels) for _, labels in files]
    size = images[0].shape[:2]
    for pair, arrays in zip(files, zip(images, masks, strict=True), strict=True):
        for path, array in zip(pair, arrays, strict=True):
            if array.shape[:2] != size:
                raise InputError(
                    f"{path} is {array.shape[0]} x {array.shape[1]} (height x width); expected {size[0]} x "
                    f"{size[1]} as {files[0][0]}"
                )
    return Clip(name, tuple(picture.stem for picture, _ in files), np.stack(images), np.stack(masks))


def window(position: int, count: int, stride: int, length: int, name: str) -> range:
    """`count` places `stride` apart from `position` on, shifted back where they would pass the end.

    So the TVOS authors cut their training clips: every frame starts one, and the last ones coincide.

    Raises:
        InputError: count or stride is below 1, or the video `name` of `length` frames is too short.
    """
    if count < 1 or stride < 1:
        raise InputError(f"a clip needs count >= 1 and stride >= 1, got count={count}, stride={stride}")
    span = (count - 1) * stride + 1
    if span > length:
        raise InputError(
            f"{name} has {length} frames with label maps; a clip of {count}, {stride} apart, spans {span}. "
            f"Ask for fewer, or take only the indices that starts({count}, {stride}) gives"
        )
    start = min(position, length - span)
    return range(start, start + span, stride)


def starts(lengths: Sequence[int], count: int, stride: int) -> list[int]:
    """Of all frames of videos with these lengths in a row, those whose video has room for such a clip."""
    span = (count - 1) * stride + 1
    ends = list(accumulate(lengths))
    roomy = (range(end - length, end) for end, length in zip(ends, lengths, strict=True) if length >= span)
    return [i for frames in roomy for i in frames]


def locate(lengths: Sequence[int], i: int) -> tuple[int, int]:
    """Which video, and which frame of it, is frame `i` of videos with these lengths in a row.

    Raises:
        InputError: there is no such frame.
    """
    ends = list(accumulate(lengths))
    total = ends[-1] if ends else 0
    if not 0 <= i < total:
        raise InputError(f"there is no frame {i}; expected 0..{total - 1}")
    which = bisect_right(ends, i)
    return which, i - (ends[which] - lengths[which])


def pick(names: Sequence[str], wanted: Sequence[str] | str | None, where: str) -> list[str]:
    """The wanted names, in that order; all of them if `wanted` is None.

    Raises:
        InputError: one of them does not exist, or occurs twice; the message lists those that exist.
    """
    if wanted is None:
        return list(names)
    chosen = [wanted] if isinstance(wanted, str) else list(wanted)
    unknown = [name for name in chosen if name not in names]
    if unknown:
        raise InputError(f"no sequence {listing(unknown)} in {where}; there are {listing(names) or 'none'}")
    if len(set(chosen)) != len(chosen):
        raise InputError(f"a sequence is named twice in {listing(chosen)}")
    if not chosen:
        raise InputError(f"the list of sequences is empty; {where} has {listing(names)}")
    return chosen


def listing(names: Sequence[str], most: int = 20) -> str:
    """Names for an error message, cut short after `most`."""
    shown = ", ".join(names[:most])
    return f"{shown} and {len(names) - most} more" if len(names) > most else shown
