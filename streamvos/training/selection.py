"""Training the selector: clicks, boxes and earlier masks are simulated on photographs and video frames.

    make_crops(Path("data"), Path("crops"))         # features of the frozen backbone, resumes
    path = train_selector(Path("crops"), TrainingOptions(**TRAINING), Path("runs/selector"))

A sample is a square window around an object, from close by to the whole picture. Every tenth photograph is
held out (`is_held_out`). Objects are pointed at in the usual way: with a click inside or with a noisy box;
further clicks fall into the largest error of the network's own mask.

Source: Sofiiuk, Petrov, Konushin, Reviving Iterative Training with Mask Guidance for Interactive
Segmentation, 2021, sections 3.3 and 3.4.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from streamvos.datasets.davis import DavisDataset
from streamvos.nn.efficientnet import EfficientNetLite0
from streamvos.selection.network import SelectorNetwork
from streamvos.selection.prompts import Window, prompt_maps
from streamvos.training.composites import LabeledClip, Photographs, random_look
from streamvos.training.disturbance import disturb
from streamvos.training.features import (
    STAGES,
    VALIDATION,
    Frames,
    StoredFeatures,
    frozen_backbone,
    store_features,
)
from streamvos.training.loop import Report, Say, TrainingOptions, say_in_log, train
from streamvos.training.losses import mask_loss, overlap
from streamvos.training.results import write_results
from streamvos.types import VOID, InputError, SinkError
from streamvos.weights import BACKBONE

SIDE = 320
"""Of a crop, in pixels."""

RENDITIONS = {"duts": 2, "voc": 10}
"""Crops of every photograph of a set; those of VOC show several objects, of which each crop has one."""

PER_FOLDER = 400

FRAMES = 24
"""Frames of every video."""

SHARES = {"duts": 0.5, "voc": 0.3, "video": 0.2}
"""Of the crops of a batch. Photographs with one object that stands out teach borders, the others teach what
was pointed at."""

TRAINING = {
    "steps": 2000,
    "batch": 16,
    "learning_rate": 1.5e-3,
    "weight_decay": 0.01,
    "warmup": 100,
    "average": 0.998,
    "clip_gradient": 1.0,
}
"""How the bundled weights were trained."""

EXTRA_CLICKS = (0.4, 0.25, 0.2, 0.15)
"""Probabilities of 0, 1, 2, 3 clicks after the first prompt."""


def is_held_out(name: str) -> bool:
    """Whether a photograph is never trained on; `name` is that of its file without the ending."""
    return zlib.crc32(name.encode()) % 10 == 0


def make_crops(data: Path, folder: Path, say: Say = say_in_log) -> None:
    """Cut windows around objects out of all photographs and videos, and store their features.

    Args:
        data: as for `streamvos.training.features.make_features`.
        folder: receives the features; work is resumed.

    Raises:
        InputError: the data cannot be read.
        SinkError: the folder cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _make_crops(data, folder, say)
    except OSError as error:
        raise SinkError(f"cannot write features below {folder}: {error.strerror or error}") from None


def _make_crops(data: Path, folder: Path, say: Say) -> None:
    photographs, network = Photographs(data), frozen_backbone()
    for kind in photographs.OBJECTS:
        samples = [
            (name, rendition)
            for name in photographs.names.get(kind, ())
            if not is_held_out(Path(name).stem)
            for rendition in range(RENDITIONS[kind])
        ]
        for number, start in enumerate(range(0, len(samples), PER_FOLDER)):
            place = folder / f"{kind}-{number:03d}"
            if not place.exists():
                found = []
                for name, rendition in samples[start : start + PER_FOLDER]:
                    rng = np.random.default_rng([3, zlib.crc32(name.encode()), rendition])
                    found.append(_crop(rng, *photographs.read(kind, name)))
                _store(place, [one for one in found if one is not None], network)
                say(f"{place.name} is stored")
    dataset = DavisDataset(data / "davis2016-train", year="2016")
    for number, video in enumerate(name for name in dataset.names if name not in VALIDATION):
        place = folder / f"video-{video}"
        if not place.exists():
            sequence, rng = dataset[video], np.random.default_rng([4, number])
            times = np.linspace(0, len(sequence) - 1, FRAMES).astype(int)
            found = [_crop(rng, sequence.image(t), sequence.mask(t)) for t in times]
            _store(place, [one for one in found if one is not None], network)
            say(f"{place.name} is stored")


def _store(place: Path, crops: list[tuple[np.ndarray, np.ndarray]], network: EfficientNetLite0) -> None:
    if crops:
        clip = LabeledClip(np.stack([image for image, _ in crops]), np.stack([mask for _, mask in crops]))
        store_features(place, Frames(clip, [(0, len(crops))]), network)


def _crop(
    rng: np.random.Generator, image: np.ndarray, regions: np.ndarray
) -> tuple[np.ndarray, np.ndarray] | None:
    """A window around a random object, (SIDE, SIDE, 3) and (SIDE, SIDE); None if the object is tiny in it."""
    ids = np.setdiff1d(np.unique(regions), [0, VOID])
    if not len(ids):
        return None
    mask = regions == rng.choice(ids)
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    height, width = mask.shape
    side = max(rows[-1] - rows[0], columns[-1] - columns[0]) + 1
    side = side * float(np.exp(rng.uniform(np.log(1.1), np.log(4.0))))
    longest = min(height, width) * float(rng.uniform(1.0, 1.3))
    h, w = (int(min(side, longest, length)) for length in (height, width))
    if min(h, w) < 24:
        return None
    corner = []
    for middle, extent, length in (
        ((rows[0] + rows[-1]) / 2, h, height),
        ((columns[0] + columns[-1]) / 2, w, width),
    ):
        start = middle - extent / 2 + rng.normal() * 0.1 * extent
        corner.append(int(np.clip(start, 0, length - extent)))
    part = np.s_[corner[0] : corner[0] + h, corner[1] : corner[1] + w]
    labels: np.ndarray = np.where(regions == VOID, VOID, mask).astype(np.uint8)[part]
    shrinks = max(h, w) > SIDE
    shown = cv2.resize(
        image[part], (SIDE, SIDE), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    )
    labels = cv2.resize(labels, (SIDE, SIDE), interpolation=cv2.INTER_NEAREST)
    if np.count_nonzero(labels == 1) < 150:
        return None
    mirror = -1 if rng.random() < 0.5 else 1
    return random_look(rng, 0.6)(shown)[:, ::mirror].copy(), labels[:, ::mirror].copy()


class SelectionCrops:
    """Batches of stored crops as a pure function of the step.

    Raises:
        InputError: the folder holds none.
    """

    def __init__(self, folder: Path, seed: int = 0):
        self.seed = seed
        self.stored = [StoredFeatures(path.parent) for path in sorted(folder.glob("[!.]*/segments.json"))]
        if not self.stored:
            raise InputError(f"{folder} holds no crops")
        self.counts = np.array([one.segments[0][1] for one in self.stored])
        kinds = [one.folder.name.partition("-")[0] for one in self.stored]
        weights = np.zeros(len(kinds))
        for kind in set(kinds):
            own = np.array([one == kind for one in kinds])
            weights[own] = SHARES[kind] * self.counts[own] / self.counts[own].sum()
        self._weights = weights / weights.sum()

    def batch(self, step: int, size: int) -> dict[str, torch.Tensor]:
        """ "stage2" ... "stage6": (B, C, h, w) bfloat16; "labels": (B, SIDE, SIDE) uint8, 1 is the object."""
        rng = np.random.default_rng([self.seed, step])
        chosen = rng.choice(len(self.stored), size, p=self._weights)
        places = [(self.stored[k], int(rng.integers(self.counts[k]))) for k in chosen]
        batch = {"labels": torch.from_numpy(np.stack([one["labels"][t] for one, t in places]))}
        for name in STAGES:
            rows = torch.from_numpy(np.stack([one[name][t] for one, t in places]))
            batch[name] = rows.view(torch.bfloat16).permute(0, 3, 1, 2)
        return batch


class SelectionLoss:
    """Simulates a user, then takes the loss of the last answer and of the guess at its quality."""

    def __call__(self, network: nn.Module, batch: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        labels = batch["labels"]
        maps = {name: value for name, value in batch.items() if name != "labels"}
        truth = labels.cpu().numpy()
        rng = np.random.default_rng(int(torch.randint(2**31, ())))
        users = [SimulatedUser(rng, one) for one in truth]
        clicks = int(rng.choice(len(EXTRA_CLICKS), p=EXTRA_CLICKS))
        for _ in range(clicks):
            with torch.no_grad():
                logits, _ = network(maps, _prompts(users, labels.device))
            found = logits.float().sigmoid().cpu().numpy()
            for user, one in zip(users, found, strict=True):
                user.correct(one)
        logits, score = network(maps, _prompts(users, labels.device))
        half = F.interpolate(logits[:, None], scale_factor=2.0, mode="bilinear", align_corners=False)[:, 0]
        mask = mask_loss(half, labels[:, 1::2, 1::2])
        quality = torch.stack(
            [overlap(a[None], b[None]) for a, b in zip(half, labels[:, 1::2, 1::2], strict=True)]
        )
        guess = F.binary_cross_entropy_with_logits(score, quality)
        return {
            "total": mask + 0.2 * guess,
            "mask": mask.detach(),
            "guess": guess.detach(),
            "overlap": quality.mean(),
        }


class SimulatedUser:
    """Points at the object of a label map, and clicks into the largest errors of the answers.

    Args:
        labels: (H, W) uint8, 1 is the object, 255 void.
        begin: "click", "box" or "mask"; None draws one.

    Attributes:
        points, box, mask: what has been given so far, in pixels of `labels`.
    """

    def __init__(self, rng: np.random.Generator, labels: np.ndarray, begin: str | None = None):
        self.rng, self.labels = rng, labels
        self.points: list[tuple[float, float, int]] = []
        self.box: tuple[float, float, float, float] | None = None
        self.mask: np.ndarray | None = None
        begin = begin or str(rng.choice(["click", "box", "mask"], p=[0.55, 0.35, 0.1]))
        if begin == "box":
            self.box = noisy_box(rng, labels == 1)
        elif begin == "click":
            self.points.append((*_inner_point(rng, labels == 1), 1))
        else:
            small = torch.from_numpy((labels[2::4, 2::4] == 1).astype(np.float32))
            self.correct(disturb(small[None])[0].numpy())

    def correct(self, found: np.ndarray) -> None:
        """Keep an answer, probabilities (h, w) at any size, and click into its largest error."""
        height, width = self.labels.shape
        large = cv2.resize(found, (width, height), interpolation=cv2.INTER_LINEAR)
        self.mask = large if self.rng.random() < 0.5 else (large > 0.5).astype(np.float32)
        click = largest_error(self.labels, large > 0.5)
        if click is not None:
            self.points.append(click)


def noisy_box(rng: np.random.Generator, mask: np.ndarray) -> tuple[float, float, float, float]:
    """The bounding box of a mask (H, W) bool, each side moved by about a twelfth of the box's length."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    top, bottom, left, right = rows[0], rows[-1] + 1, columns[0], columns[-1] + 1
    lengths = np.tile([right - left, bottom - top], 2)
    moved = np.clip(rng.normal(size=4) * 0.08, -0.2, 0.2) * lengths
    return left + moved[0], top + moved[1], right + moved[2], bottom + moved[3]


def _inner_point(rng: np.random.Generator, mask: np.ndarray) -> tuple[float, float]:
    """A random point of a mask (H, W) bool, half of the time near the middle of its thickest part."""
    depth = cv2.distanceTransform(np.pad(mask, 1).astype(np.uint8), cv2.DIST_L2, 3)[1:-1, 1:-1]
    least = depth.max() * (0.6 if rng.random() < 0.5 else 0.15)
    rows, columns = np.nonzero(depth >= least)
    k = int(rng.integers(len(rows)))
    return float(columns[k]) + 0.5, float(rows[k]) + 0.5


def largest_error(labels: np.ndarray, found: np.ndarray) -> tuple[float, float, int] | None:
    """A click into the middle of the largest connected error; None if there is none.

    Args:
        labels: (H, W) uint8, 1 is the object; errors in void (255) do not count.
        found: (H, W) bool.
    """
    known, best, click = labels != VOID, 0.0, None
    for wrong, sign in (((labels == 1) & ~found, 1), ((labels != 1) & found & known, -1)):
        depth = cv2.distanceTransform(np.pad(wrong, 1).astype(np.uint8), cv2.DIST_L2, 3)[1:-1, 1:-1]
        count, parts, statistics, _ = cv2.connectedComponentsWithStats(wrong.astype(np.uint8), connectivity=4)
        if count < 2:
            continue
        largest = 1 + int(statistics[1:, cv2.CC_STAT_AREA].argmax())
        if statistics[largest, cv2.CC_STAT_AREA] > best:
            best = float(statistics[largest, cv2.CC_STAT_AREA])
            place = int(np.where(parts == largest, depth, 0).argmax())
            row, column = divmod(place, labels.shape[1])
            click = (column + 0.5, row + 0.5, sign)
    return click


def _prompts(users: list[SimulatedUser], device: torch.device) -> torch.Tensor:
    height, width = users[0].labels.shape
    window = Window(0, 0, width, height)
    maps = [prompt_maps(window, (height, width), u.points, u.box, u.mask) for u in users]
    return torch.from_numpy(np.stack(maps)).to(device)


def train_selector(
    crops: Path, training: TrainingOptions, folder: Path, report: Report | None = None, say: Say = say_in_log
) -> Path:
    """Train the selector's network, resuming the run in `folder`; returns the path of the weights.

    Args:
        crops: what `make_crops` wrote.
    """
    data = SelectionCrops(crops, training.seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(training.seed)
        network = SelectorNetwork()
    metadata = {"backbone": BACKBONE, "recipe": {"name": "selection", "crops": int(data.counts.sum())}}
    make_batch = partial(data.batch, size=training.batch)
    trained = train(network, SelectionLoss(), make_batch, training, folder, report, metadata, say)
    weights = {name: value.half() for name, value in trained.weights.items()}
    return write_results(folder, "selector", trained, weights, training, metadata, say)
