"""What DAVIS and YouTube-VOS have in common: videos as folders of numbered pictures.

A video is a folder of pictures; its label maps are PNGs of the same names in another folder. A clip is a few
consecutive frames with their label maps, for training.

    clip = dataset.frames(10, count=3)
    clip.images.shape, clip.masks.shape  # (3, 480, 854, 3), (3, 480, 854)
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import Generic, TypeVar

import numpy as np

from streamvos.masks.labelmap import read_label_map
from streamvos.pictures.listing import choose_frames, list_folder, list_pictures
from streamvos.pictures.opening import read_rgb
from streamvos.types import VOID, InputError

LABEL_SUFFIXES = (".png",)


@dataclass(frozen=True, slots=True, eq=False)
class Clip:
    """Frames of one video with their label maps.

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


@dataclass(frozen=True, eq=False)
class Video(ABC):
    """The files of one video, read on request.

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
        return read_rgb(self.frame_paths[index])

    @abstractmethod
    def training_files(self) -> list[tuple[Path, Path]]:
        """Picture and label map of every frame that may be in a training clip, in order."""

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
        """Find the files of a video; InputError if frames and label maps do not match."""

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

    def starts(self, count: int) -> list[int]:
        """Every `i` for which `frames(i, count)` exists: the indices of a training epoch."""
        return starts(self._lengths, count)

    def frames(self, i: int, count: int) -> Clip:
        """The training clip that starts at frame `i` of the frames with label maps of all videos in a row.

        Near the end of a video the clip is shifted back until it fits, so that every frame is the index of
        a clip (as in the TVOS authors' training code). Frames without a label map are skipped.

        Raises:
            InputError: `i` is out of range, the video has fewer than `count` frames, a file cannot be read,
                or its size differs from the first frame's.
        """
        which, position = locate(self._lengths, i)
        video = self[which]
        files = video.training_files()
        chosen = [files[k] for k in window(position, count, len(files), video.name)]
        images = [read_rgb(picture) for picture, _ in chosen]
        masks = [video.read_mask(labels) for _, labels in chosen]
        height, width = images[0].shape[:2]
        paths = (path for pair in zip(*chosen, strict=True) for path in pair)
        for path, array in zip(paths, (*images, *masks), strict=True):
            if array.shape[:2] != (height, width):
                raise InputError(
                    f"{path} is {array.shape[0]} x {array.shape[1]} (height x width); expected {height} x "
                    f"{width} as {chosen[0][0]}"
                )
        names = tuple(picture.stem for picture, _ in chosen)
        return Clip(video.name, names, np.stack(images), np.stack(masks))


def frames_in(folder: Path) -> dict[str, Path]:
    """The frames in a folder: name without suffix -> path, in their order.

    The rule is that of `streamvos.pictures.listing`: masks and previews among the frames are left out.

    Raises:
        InputError: the folder cannot be read, or one name occurs with two suffixes.
    """
    return _by_stem(folder, choose_frames(list_pictures(folder))[0])


def label_maps_in(folder: Path) -> dict[str, Path]:
    """The label maps (PNG) in a folder: name without suffix -> path, in the order of the frames.

    Raises:
        InputError: the folder cannot be read, or one name occurs with two suffixes.
    """
    return _by_stem(folder, list_pictures(folder, LABEL_SUFFIXES))


def _by_stem(folder: Path, paths: Iterable[Path]) -> dict[str, Path]:
    pictures: dict[str, Path] = {}
    for path in paths:
        if path.stem in pictures:
            raise InputError(
                f"{folder} holds both {pictures[path.stem].name} and {path.name}; remove one of them"
            )
        pictures[path.stem] = path
    return pictures


def list_folders(folder: Path) -> list[str]:
    """The names of the sub-folders, sorted, without hidden ones.

    Raises:
        InputError: the folder cannot be read.
    """
    return sorted(
        path.name for path in list_folder(folder) if path.is_dir() and not path.name.startswith(".")
    )


def holds_binary_mask(raw: np.ndarray) -> bool:
    """Whether a label map as stored is a binary mask: 255 is the object, as there is no other label.

    One frame does not show whether 255 is an object or a void region, so the first label map of a video
    decides for all of it.
    """
    return bool((raw == VOID).any() and np.isin(raw, (0, VOID)).all())


def read_labels(path: Path, binary: bool, merge: bool) -> np.ndarray:
    """The label map in a file, (H, W) uint8.

    Args:
        path: the PNG.
        binary: the video's label maps are binary masks (`holds_binary_mask`): every value but 0 becomes 1.
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


def window(position: int, count: int, length: int, name: str) -> range:
    """`count` frames from `position` on, shifted back where they would pass the end.

    The TVOS authors cut their training clips like this: every frame starts one, and the last ones coincide.

    Raises:
        InputError: count is below 1, or the video `name` of `length` frames is too short.
    """
    if count < 1:
        raise InputError(f"a clip needs count >= 1, got {count}")
    if count > length:
        raise InputError(
            f"{name} has {length} frames with label maps, too few for a clip of {count}; use shorter clips, "
            f"or only the indices in starts({count})"
        )
    start = min(position, length - count)
    return range(start, start + count)


def starts(lengths: Sequence[int], count: int) -> list[int]:
    """Of all frames of videos with these lengths in a row, those whose video has `count` frames or more."""
    ends = accumulate(lengths)
    long = (range(end - length, end) for end, length in zip(ends, lengths, strict=True) if length >= count)
    return [i for frames in long for i in frames]


def locate(lengths: Sequence[int], i: int) -> tuple[int, int]:
    """The video, and the frame in it, of frame `i` of videos with these lengths in a row.

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
    """The wanted names, in that order; all names if `wanted` is None.

    Raises:
        InputError: there is none, one does not exist, or one is given twice.
    """
    if wanted is None:
        return list(names)
    chosen = [wanted] if isinstance(wanted, str) else list(wanted)
    unknown = [name for name in chosen if name not in names]
    if unknown:
        raise InputError(f"no sequence {listing(unknown)} in {where}; there are {listing(names) or 'none'}")
    if len(set(chosen)) != len(chosen):
        raise InputError(f"a sequence is given twice in {listing(chosen)}")
    if not chosen:
        raise InputError(f"the list of sequences is empty; {where} has {listing(names)}")
    return chosen


def listing(names: Sequence[str]) -> str:
    """Names for an error message, at most 20."""
    shown = ", ".join(names[:20])
    return f"{shown} and {len(names) - 20} more" if len(names) > 20 else shown


def common_folders(frames: Path, labels: Path, layout: str) -> list[str]:
    """The names of the sub-folders that are in both folders, sorted.

    Raises:
        InputError: there is none; the message ends with the expected `layout`.
    """
    both = sorted({*list_folders(frames)} & {*list_folders(labels)})
    if not both:
        raise InputError(f"{frames} and {labels} have no video in common; {layout}")
    return both
