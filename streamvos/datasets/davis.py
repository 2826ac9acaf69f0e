"""DAVIS 2016 and 2017, in the folders of their archives.

    ROOT/JPEGImages/480p/<sequence>/00000.jpg     frames
    ROOT/Annotations/480p/<sequence>/00000.png    label maps, one per frame (test sets: the first only)
    ROOT/ImageSets/<2016 | 2017 | 480p>/val.txt   optional; without it, every sequence

The 2016 task has one object per sequence. Its masks are stored as 0 and 255. If the label maps are those of
2017, whose objects have ids, the 2016 task merges all objects into one.

    dataset = DavisDataset("DAVIS", year="2016", sequences=["goat"])
    sequence = dataset["goat"]
    len(sequence), sequence.object_ids, sequence.first_mask().shape  # 90, (1,), (480, 854)
    dataset.frames(12, count=10).images.shape  # a training clip, frames 12..21: (10, 480, 854, 3)
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from os import PathLike
from pathlib import Path

import numpy as np

from streamvos.datasets.clips import (
    Video,
    VideoDataset,
    common_folders,
    frames_in,
    holds_binary_mask,
    label_maps_in,
    list_folders,
    listing,
    pick,
    read_labels,
)
from streamvos.files import read_text
from streamvos.masks.checks import object_ids
from streamvos.masks.labelmap import read_label_map
from streamvos.types import InputError

YEARS = ("2016", "2017")

_LAYOUT = (
    "expected JPEGImages/{resolution}/<sequence>/*.jpg and Annotations/{resolution}/<sequence>/*.png, and "
    "optionally ImageSets/<2016, 2017 or 480p>/<split>.txt"
)


@dataclass(frozen=True, eq=False)
class DavisSequence(Video):
    """One sequence.

    Attributes:
        annotation_paths: one label map per frame, or that of the first frame alone (test sets).
        merge: all objects count as one, object 1 (DAVIS 2016).
    """

    annotation_paths: tuple[Path, ...]
    merge: bool

    @property
    def annotated(self) -> bool:
        """Whether every frame has a label map, so that the sequence can be scored and trained on."""
        return len(self.annotation_paths) == len(self.frame_paths)

    def mask(self, index: int) -> np.ndarray:
        """(H, W) uint8 label map of frame `index`; 0 background, 255 void; 2016: the object is 1.

        Raises:
            InputError: the file cannot be read, or the frame has no label map.
        """
        if not self.annotated and index != 0:
            raise InputError(f"{self.name}: only the first frame has a label map; asked for frame {index}")
        return self.read_mask(self.annotation_paths[index])

    def first_mask(self) -> np.ndarray:
        """(H, W) uint8 label map of the first frame, the input of a method.

        Raises:
            InputError: the file cannot be read, or it holds no object.
        """
        mask = self.mask(0)
        if not object_ids(mask):
            raise InputError(
                f"{self.annotation_paths[0]} holds no object; the first frame must show what to track"
            )
        return mask

    def masks(self) -> Iterator[np.ndarray]:
        """Every label map in order, read one at a time."""
        return (self.read_mask(path) for path in self.annotation_paths)

    @cached_property
    def object_ids(self) -> tuple[int, ...]:
        """The ids in the first label map, ascending."""
        return tuple(object_ids(self.first_mask()))

    @cached_property
    def _binary(self) -> bool:
        return holds_binary_mask(read_label_map(self.annotation_paths[0], binary="never"))

    def read_mask(self, path: Path) -> np.ndarray:
        return read_labels(path, self._binary, self.merge)

    def training_files(self) -> list[tuple[Path, Path]]:
        return list(zip(self.frame_paths, self.annotation_paths, strict=True)) if self.annotated else []


class DavisDataset(VideoDataset[DavisSequence]):
    """The sequences of a DAVIS folder. Clips are cut from those with a label map for every frame."""

    def __init__(
        self,
        root: str | PathLike[str],
        year: str = "2016",
        split: str | None = None,
        sequences: Sequence[str] | str | None = None,
        resolution: str = "480p",
    ) -> None:
        """
        Args:
            root: the folder that holds JPEGImages and Annotations.
            year: "2016" (one object, merged) or "2017" (the ids as they are).
            split: name of a list in ImageSets, such as "train". By default "val" if that list exists, else
                every sequence that has both folders.
            sequences: names of the sequences to use, in this order. Without `split` they may be in any list.
            resolution: name of the folders inside JPEGImages and Annotations.

        Raises:
            InputError: a part of the layout is missing, a sequence is unknown, or its frames and label maps
                do not match.
        """
        self._layout = _LAYOUT.format(resolution=resolution)
        self.root = Path(root)
        self.year = str(year)
        if self.year not in YEARS:
            raise InputError(f"year is {year!r}; expected one of {', '.join(YEARS)}")
        self._frames = self._folder("JPEGImages", resolution)
        self._annotations = self._folder("Annotations", resolution)
        available = common_folders(self._frames, self._annotations, self._layout)
        if split is not None or sequences is None:
            available = self._split(available, split)
        self.names = tuple(pick(available, sequences, str(self.root)))
        for name in self.names:
            self._found[name] = self._find(name)

    def _folder(self, part: str, resolution: str) -> Path:
        folder = self.root / part / resolution
        if folder.is_dir():
            return folder
        found = "that folder does not exist"
        for parent, name in ((self.root / part, part), (self.root, "the folder")):
            if parent.is_dir():
                found = f"{name} holds {listing(list_folders(parent)) or 'no folder'}"
                break
        raise InputError(f"no {part}/{resolution} in {self.root}: {found}; {self._layout}")

    def _split(self, available: list[str], split: str | None) -> list[str]:
        """The sequences of a split, in the order of its list."""
        folders = (self.year, "480p") if self.year == "2016" else (self.year,)
        candidates = [self.root / "ImageSets" / folder / f"{split or 'val'}.txt" for folder in folders]
        path = next((candidate for candidate in candidates if candidate.is_file()), None)
        if path is None:
            if split is None:
                return available
            raise InputError(
                f"there is no list of the split '{split}'; looked for {' and '.join(map(str, candidates))}. "
                "Omit the split to use every sequence, or name the sequences"
            )
        names = _names_in(path)
        missing = [name for name in names if name not in available]
        if missing or not names:
            raise InputError(
                f"{path} lists {listing(missing) or 'no sequence'}, which {self.root} does not have in both "
                f"JPEGImages and Annotations; there are {listing(available)}. Name the sequences to use"
            )
        return names

    def _find(self, name: str) -> DavisSequence:
        frames = frames_in(self._frames / name)
        annotations = label_maps_in(self._annotations / name)
        if not frames:
            raise InputError(f"{self._frames / name} holds no .jpg or other picture")
        stray = [stem for stem in annotations if stem not in frames]
        if stray:
            raise InputError(
                f"{self._annotations / name}: no frame belongs to the label maps {listing(stray)}"
            )
        missing = [stem for stem in frames if stem not in annotations]
        if list(annotations) != [next(iter(frames))] and missing:
            raise InputError(
                f"{self._annotations / name}: no label map for {listing(missing)}; expected one per frame, "
                "or that of the first frame alone"
            )
        return DavisSequence(
            name, tuple(frames.values()), tuple(annotations.values()), merge=self.year == "2016"
        )


def _names_in(path: Path) -> list[str]:
    """The sequences in a list, which has a name or (DAVIS 2016) a frame and its label map per line."""
    lines = read_text(path, "the list of sequences").splitlines()
    first_words = (line.split()[0] for line in lines if line.strip())
    names = (Path(word).parent.name if "/" in word else word for word in first_words)
    return list(dict.fromkeys(names))
