"""Features of the frozen backbone for a whole training set, computed once and kept on disk; clips of them.

    make_features(Path("data"), Path("features"), FeatureOptions())     # resumes where it stopped
    clips = FeatureClips(Path("features"), FeatureClipOptions(), seed=0)
    batch = clips.batch(step=0, size=4)
    batch["stage5"].shape                   # (4, 4, 112, 20, 30) bfloat16
    batch["labels"].shape                   # (4, 4, 320, 480) uint8

What remains of a method is small, so two processor cores train it at tens of frames a second. The set has
each training sequence of DAVIS 2016 as it is and in several composed renditions
(`streamvos.training.composites`), and clips made of photographs. The sequences of `VALIDATION` are never part
of it.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field, field_validator

from streamvos.datasets.davis import DavisDataset
from streamvos.files import read_json, read_text
from streamvos.nn.efficientnet import EfficientNetLite0
from streamvos.training.composites import LabeledClip, Photographs, composed_video, still_clip
from streamvos.training.loop import Say, say_in_log
from streamvos.types import VOID, InputError, SinkError
from streamvos.weights import BACKBONE, bundled_backbone

STAGES = {"stage2": 4, "stage3": 8, "stage4": 16, "stage5": 16, "stage6": 32}
"""The stages of EfficientNet-Lite0 that are kept -> their strides."""

ALIGNMENT = 32
"""Crops begin and end at multiples of the largest stride, in pixels."""

VALIDATION = ("bmx-bumps", "dance-jump", "drift-turn", "horsejump-low", "mallard-fly", "scooter-gray")
"""Sequences of the training set of DAVIS 2016 on which options and stopping points are chosen."""

STILLS = "stills-"
"""Begin of the names of sources that are made of photographs."""

SMALLEST = 150
"""The followed object has at least so many pixels in a crop's reference frame."""


class FeatureOptions(BaseModel):
    """What a set of features is made of.

    Attributes:
        scales: of the composed renditions of every video; one rendition each.
        every: renditions take every so many frames, the plain videos all.
        still_clips: clips made of photographs.
        still_frames: frames of each.
        still_size: (H, W) of their frames.
        seed: of everything random.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    scales: tuple[float, ...] = (0.75, 1.0, 1.25)
    every: int = Field(default=2, ge=1)
    still_clips: int = Field(default=2400, ge=0)
    still_frames: int = Field(default=4, ge=2)
    still_size: tuple[int, int] = (320, 480)
    seed: int = Field(default=0, ge=0)


class FeatureClipOptions(BaseModel):
    """How clips are drawn from a set of features.

    Attributes:
        size: (H, W) of the crops in pixels, multiples of 32.
        frames: of a clip; the first is the reference. What has fewer plays forward and backward.
        largest_gap: between neighboring frames of a clip, in stored frames; small gaps are more frequent.
        stills: share of clips made of photographs.
        stills_first: during so many steps that share is 0.85.
        dropout: share of the channels of every stage that are zero in all frames of a clip; the others are
            enlarged to make up for it.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    size: tuple[int, int] = (320, 480)
    frames: int = Field(default=4, ge=2)
    largest_gap: int = Field(default=12, ge=1)
    stills: float = Field(default=0.25, ge=0, le=1)
    stills_first: int = Field(default=0, ge=0)
    dropout: float = Field(default=0.0, ge=0, lt=1)

    @field_validator("size")
    @classmethod
    def _must_be_whole_cells(cls, size: tuple[int, int]) -> tuple[int, int]:
        if min(size) < ALIGNMENT or any(side % ALIGNMENT for side in size):
            raise ValueError(f"size must be two multiples of {ALIGNMENT}, got {size}")
        return size


class Frames(NamedTuple):
    """Frames to be stored; `segments` are (first, count) of frames that belong together."""

    clip: LabeledClip
    segments: list[tuple[int, int]]


def make_features(data: Path, folder: Path, options: FeatureOptions, say: Say = say_in_log) -> None:
    """Compute the features of a training set that are not on disk yet.

    Args:
        data: holds davis2016-train (in DAVIS's layout), and duts, voc, stills (images/ and regions/ each), as
            far as they are wanted.
        folder: receives a folder for each video and each hundred clips of stills.
        options: what to make; a folder that was begun with others is refused.

    Raises:
        InputError: the data cannot be read, or the folder holds another set.
        SinkError: the folder cannot be written.
    """
    identity = options.model_dump(mode="json")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "set.json").touch()
        before = read_text(folder / "set.json", "the description of features")
        if before and read_json(folder / "set.json", "the description of features") != identity:
            raise InputError(
                f"{folder} holds features made with other options ({before}); choose another folder"
            )
        (folder / "set.json").write_text(json.dumps(identity), encoding="utf-8")
        network = frozen_backbone()
        for name, make in _sources(data, options).items():
            if not (folder / name).exists():
                store_features(folder / name, make(), network)
                say(f"{name} is stored")
    except OSError as error:
        raise SinkError(f"cannot write features below {folder}: {error.strerror or error}") from None


def frozen_backbone() -> EfficientNetLite0:
    network = EfficientNetLite0(stages=6)
    network.load_state_dict(bundled_backbone())
    return network.eval().to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def _sources(data: Path, options: FeatureOptions) -> dict[str, Callable[[], Frames]]:
    """Name -> what makes the source. Everything random depends on the seed and the name alone."""
    photographs = Photographs(data)
    dataset = DavisDataset(data / "davis2016-train", year="2016")
    names = [name for name in dataset.names if name not in VALIDATION]
    sources: dict[str, Callable[[], Frames]] = {}

    def read(name: str, every: int) -> LabeledClip:
        sequence = dataset[name]
        kept = range(0, len(sequence), every)
        return LabeledClip(
            np.stack([sequence.image(t) for t in kept]), np.stack([sequence.mask(t) for t in kept])
        )

    def plain(name: str) -> Frames:
        clip = read(name, 1)
        return Frames(clip, [(0, len(clip.images))])

    def composed(name: str, rendition: int) -> Frames:
        rng = np.random.default_rng([options.seed, 2, names.index(name), rendition])
        video = read(name, options.every)
        others = [other for other in names if other != name]
        playing = [read(str(rng.choice(others)), options.every)] if others else []
        height, width = (round(options.scales[rendition] * side) for side in video.labels.shape[1:])
        clip = composed_video(rng, video, playing, photographs, (height, width))
        return Frames(clip, [(0, len(clip.images))])

    def stills(number: int) -> Frames:
        count, length = min(100, options.still_clips - 100 * number), options.still_frames
        rngs = [np.random.default_rng([options.seed, 1, number, k]) for k in range(count)]
        clips = [still_clip(rng, photographs, options.still_size, length) for rng in rngs]
        joined = LabeledClip(
            np.concatenate([clip.images for clip in clips]), np.concatenate([clip.labels for clip in clips])
        )
        return Frames(joined, [(k * length, length) for k in range(count)])

    for name in names:
        sources[name] = partial(plain, name)
        for rendition in range(len(options.scales)):
            sources[f"{name}-{rendition}"] = partial(composed, name, rendition)
    for number in range(-(-options.still_clips // 100)):
        sources[f"{STILLS}{number:03d}"] = partial(stills, number)
    return sources


def store_features(folder: Path, source: Frames, network: EfficientNetLite0) -> None:
    """Write the features of a source under another name, and rename the folder when it is complete."""
    part = folder.with_name(f".{folder.name}.{os.getpid()}")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir()
    files: dict[str, np.ndarray] = {}
    images, count = source.clip.images, len(source.clip.images)
    for start in range(0, count, 4):
        frames = torch.from_numpy(images[start : start + 4]).permute(0, 3, 1, 2).float().div_(255)
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
            maps = network(frames.contiguous(memory_format=torch.channels_last))
        for name in STAGES:
            rows = maps[name].bfloat16().permute(0, 2, 3, 1).contiguous().view(torch.uint16).numpy()
            if name not in files:
                shape = (count, *rows.shape[1:])
                files[name] = np.lib.format.open_memmap(part / f"{name}.npy", "w+", np.uint16, shape)
            files[name][start : start + len(rows)] = rows
    del files
    np.save(part / "labels.npy", source.clip.labels)
    (part / "segments.json").write_text(json.dumps(source.segments), encoding="utf-8")
    if not folder.exists():
        os.replace(part, folder)
    shutil.rmtree(part, ignore_errors=True)


class StoredFeatures:
    """The features of one source, mapped into memory when they are first used."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.is_still = folder.name.startswith(STILLS)
        self.segments: list[tuple[int, int]] = read_json(folder / "segments.json", "the list of segments")
        self._arrays: dict[str, np.ndarray] = {}

    def __getitem__(self, name: str) -> np.ndarray:
        if name not in self._arrays:
            self._arrays[name] = np.lib.format.open_memmap(self.folder / f"{name}.npy", "r")
        return self._arrays[name]


class FeatureClips:
    """Batches of clips as a pure function of the step.

    Args:
        folder: what `make_features` wrote.
        options: see `FeatureClipOptions`.
        seed: of the choice.

    Raises:
        InputError: the folder holds no features.
    """

    def __init__(self, folder: Path, options: FeatureClipOptions | None = None, seed: int = 0):
        self.options, self.seed = options or FeatureClipOptions(), seed
        stored = [StoredFeatures(path.parent) for path in sorted(folder.glob("[!.]*/segments.json"))]
        self.stills = [s for s in stored if s.is_still]
        self.videos = [s for s in stored if not s.is_still]
        if not stored or not (folder / "set.json").exists():
            raise InputError(f"{folder} holds no features; make them with `streamvos train features`")
        self.made_of: dict[str, Any] = read_json(folder / "set.json", "the description of features")

    def describe(self) -> dict[str, Any]:
        """What defines the clips besides the seed, in JSON types."""
        counts = {"videos": len(self.videos), "stills": sum(len(s.segments) for s in self.stills)}
        return {
            "features": self.made_of,
            "backbone": BACKBONE,
            **counts,
            **self.options.model_dump(mode="json"),
        }

    def batch(self, step: int, size: int) -> dict[str, torch.Tensor]:
        """The clips of one step.

        Returns:
            "stage2" ... "stage6": (B, T, C, h, w) bfloat16, channels last in memory; "labels": (B, T, H, W)
            uint8, where 1 is the followed object, 2, 3, ... are others, 0 is background and 255 void. The
            first frame is the reference.
        """
        clips = [self.clip(step, step * size + k) for k in range(size)]
        batch = {name: torch.from_numpy(np.stack([clip[name] for clip in clips])) for name in clips[0]}
        for name in STAGES:
            features = batch[name].view(torch.bfloat16).permute(0, 1, 4, 2, 3)
            if dropout := self.options.dropout:
                rng = np.random.default_rng([self.seed, step, features.shape[2]])
                kept = torch.from_numpy(rng.random((size, 1, features.shape[2], 1, 1)) >= dropout)
                features = features * (kept / (1 - dropout)).bfloat16()
            batch[name] = features
        return batch

    def clip(self, step: int, number: int) -> dict[str, np.ndarray]:
        """One clip; features as the bits of bfloat16, (T, h, w, C) uint16."""
        rng = np.random.default_rng([self.seed, number])
        share = 0.85 if step < self.options.stills_first else self.options.stills
        while True:
            are_stills = bool(self.stills) and (not self.videos or rng.random() < share)
            some = self.stills if are_stills else self.videos
            stored = some[int(rng.integers(len(some)))]
            first, count = stored.segments[int(rng.integers(len(stored.segments)))]
            times = [first + t for t in self._times(rng, count)]
            labels = stored["labels"][times]
            clip = self._crop(rng, stored, times, labels)
            if clip is not None:
                return clip

    def _times(self, rng: np.random.Generator, count: int) -> list[int]:
        frames = self.options.frames
        if count <= frames:  # forward, backward, forward, ...
            walk = [*range(count), *range(count - 2, 0, -1)]
            times = [walk[t % len(walk)] for t in range(frames)]
        else:
            room = count - 1
            gaps = 1 + np.floor(self.options.largest_gap * rng.random(frames - 1) ** 2.5).astype(int)
            if rng.random() < 0.5:  # the reference is far away, as it is in the middle of a stream
                gaps[0] = rng.integers(1, max(room - gaps[1:].sum(), 1) + 1)
            while gaps.sum() > room:
                gaps = np.maximum(1, gaps // 2)
            start = int(rng.integers(count - gaps.sum()))
            times = [start + int(t) for t in (0, *np.cumsum(gaps))]
        return times if rng.random() < 0.5 else times[::-1]

    def _crop(
        self, rng: np.random.Generator, stored: StoredFeatures, times: list[int], labels: np.ndarray
    ) -> dict[str, np.ndarray] | None:
        """A crop around an object of the reference frame; None if it has none that is large enough."""
        counts = np.bincount(labels[0].ravel(), minlength=256)
        visible = [i for i in range(1, VOID) if counts[i] >= SMALLEST]
        if not visible:
            return None
        chosen = int(rng.choice(visible))
        height, width = self.options.size
        corner = []
        for axis, side in ((0, height), (1, width)):
            length = labels.shape[1 + axis]
            if length < side:
                raise InputError(
                    f"frames of {stored.folder.name} are smaller than crops of {self.options.size}"
                )
            centers = [
                np.flatnonzero((frame == chosen).any(1 - axis)).mean()
                for frame in labels
                if (frame == chosen).any()
            ]
            start = np.mean(centers) - side / 2 + rng.normal() * side / 8
            start = int(np.clip(np.round(start / ALIGNMENT), 0, (length - side) // ALIGNMENT)) * ALIGNMENT
            corner.append(start)
        top, left = corner
        cropped = labels[:, top : top + height, left : left + width]
        if np.count_nonzero(cropped[0] == chosen) < SMALLEST:
            return None
        others = [i for i in np.unique(cropped) if i not in (0, chosen, VOID)]
        table = np.zeros(256, np.uint8)
        table[chosen], table[VOID] = 1, VOID
        table[others] = np.arange(2, 2 + len(others))
        clip = {"labels": table[cropped]}
        for name, stride in STAGES.items():
            rows = slice(top // stride, (top + height) // stride)
            columns = slice(left // stride, (left + width) // stride)
            clip[name] = np.stack([stored[name][t, rows, columns] for t in times])
        return clip
