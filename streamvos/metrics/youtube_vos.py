"""The score of YouTube-VOS: G, the mean of J and F over seen and unseen categories.

Objects may appear in any frame and are judged after their first label map. Every object counts the same: its
J is the mean over its frames, the J of the seen categories the mean over their objects, and G the mean of the
four (Xu et al., "YouTube-VOS: A Large-Scale Video Object Segmentation Benchmark", 2018, section 4).

    scores = score_youtube_folders("YouTube-VOS/train", "results", seen=["penguin", "zebra"])
    scores.to_json()  # {'G': 70.2, 'J_seen': 71.0, 'J_unseen': 65.9, 'F_seen': 74.8, 'F_unseen': 69.1}

The organizers' own program is not public; the numbers of their server may differ in the decimals.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path

import numpy as np

from streamvos.datasets.clips import listing
from streamvos.datasets.youtube import YouTubeVosDataset
from streamvos.masks.checks import check_label_map
from streamvos.masks.labelmap import read_label_map
from streamvos.metrics.evaluation import check_object_ids, check_predicted, pairs
from streamvos.metrics.folders import find_predictions
from streamvos.metrics.measures import measure_objects
from streamvos.metrics.scores import ObjectScore, SequenceScore
from streamvos.types import InputError


@dataclass(frozen=True, slots=True)
class YouTubeScores:
    """The four measures and their mean, in percent; nan where no object belongs to a group.

    Attributes:
        j_seen: mean J of the objects of seen categories; likewise the others.
    """

    j_seen: float
    j_unseen: float
    f_seen: float
    f_unseen: float

    @property
    def g(self) -> float:
        """The mean of the four; nan unless there are objects of seen and of unseen categories."""
        return (self.j_seen + self.j_unseen + self.f_seen + self.f_unseen) / 4

    def to_json(self) -> dict[str, float | None]:
        """The five numbers in percent, ready for `json.dump`; None (null) where there is none."""
        names = ("G", "J_seen", "J_unseen", "F_seen", "F_unseen")
        values = {name: getattr(self, name.lower()) for name in names}
        return {name: None if math.isnan(value) else value for name, value in values.items()}


def evaluate_youtube_sequence(
    truths: Iterable[np.ndarray],
    predictions: Iterable[np.ndarray],
    first_frames: Mapping[int, int],
    *,
    name: str = "video",
) -> SequenceScore:
    """J and F of every object in every label map after the object's first one.

    Args:
        truths: (H, W) integer label maps of the annotated frames in order; 255 is void.
        predictions: (H, W) integer label maps of the same frames.
        first_frames: object id -> position of its first label map among `truths`.
        name: the video's name.

    Returns:
        One score per object, without values if the object's first label map is the last of the video.

    Raises:
        InputError: numbers of label maps or sizes differ, a value is no label, or a predicted object is not
            among `first_frames`.
    """
    ids = check_object_ids(first_frames)
    values: dict[int, list[tuple[float, float]]] = {one: [] for one in ids}
    for index, (truth, prediction) in enumerate(pairs(truths, predictions, name)):
        where = f"{name}, label map {index}"
        truth = check_label_map(truth, name=f"{where}: the truth")
        size = truth.shape[0], truth.shape[1]
        prediction = check_label_map(prediction, size, f"{where}: the prediction")
        check_predicted(prediction, ids, where)
        judged = [one for one in ids if first_frames[one] < index]
        for one, region, boundary in zip(judged, *measure_objects(truth, prediction, judged), strict=True):
            values[one].append((float(region), float(boundary)))
    scores = []
    for one in ids:
        table = np.array(values[one], np.float64).reshape(-1, 2)
        scores.append(ObjectScore(one, table[:, 0], table[:, 1]))
    return SequenceScore(name, tuple(scores))


def summarize_youtube(
    scores: Iterable[SequenceScore], categories: Mapping[str, Mapping[int, str]], seen: Iterable[str]
) -> YouTubeScores:
    """G and its parts from the scores of all videos.

    Args:
        scores: the scores of the videos; objects without a judged frame do not count.
        categories: video -> object id -> category.
        seen: the categories in the training set; every other is unseen.

    Raises:
        InputError: an object has no category, or `seen` is a single string.
    """
    if isinstance(seen, str):
        raise InputError(f"seen is the string {seen!r}; expected a list of categories")
    known = set(seen)
    groups: dict[bool, list[tuple[float, float]]] = {True: [], False: []}
    for score in scores:
        for one in score.objects:
            category = categories.get(score.name, {}).get(one.id)
            if category is None:
                raise InputError(
                    f"{score.name}: object {one.id} has no category; expected one as in meta.json"
                )
            if len(one.regions):
                groups[category in known].append((float(one.regions.mean()), float(one.boundaries.mean())))
    (j_seen, f_seen), (j_unseen, f_unseen) = (
        100 * np.mean(rows, axis=0) if rows else (math.nan, math.nan)
        for rows in (groups[True], groups[False])
    )
    return YouTubeScores(float(j_seen), float(j_unseen), float(f_seen), float(f_unseen))


def score_youtube_folders(
    split_dir: str | PathLike[str],
    pred_dir: str | PathLike[str],
    seen: Iterable[str],
    videos: Sequence[str] | str | None = None,
) -> YouTubeScores:
    """Score predicted label maps (`PRED_DIR/<video>/<frame>.png`) against a split with ground truth.

    Args:
        split_dir: holds JPEGImages, Annotations and meta.json.
        pred_dir: a folder per video, with a PNG for every annotated frame; other files are ignored.
        seen: the categories in the training set.
        videos: the ones to score; by default all.

    Raises:
        InputError: a part of the layout (or meta.json) is missing, a prediction is missing, sizes differ,
            or a predicted object does not exist.
    """
    dataset = YouTubeVosDataset(split_dir, videos=videos)
    if not dataset.has_meta:
        raise InputError(f"{dataset.root} has no meta.json; G needs the categories in it")
    found: dict[str, list[Path]] = {}  # complete before the first file is read
    for video in dataset:
        stems = [path.stem for path in video.annotation_paths.values()]
        predicted = find_predictions(video.name, stems, Path(pred_dir) / video.name)
        found[video.name] = [predicted[stem] for stem in stems]
    scores, categories = [], {}
    for video in dataset:
        position = {index: place for place, index in enumerate(video.annotation_paths)}
        absent = [str(one.id) for one in video.objects if one.first_frame not in position]
        if absent:
            raise InputError(f"{video.name}: no label map at the first frame of object {listing(absent)}")
        scores.append(
            evaluate_youtube_sequence(
                (video.mask(index) for index in video.annotation_paths),
                (read_label_map(path, binary="never") for path in found[video.name]),
                {one.id: position[one.first_frame] for one in video.objects},
                name=video.name,
            )
        )
        categories[video.name] = {one.id: one.category for one in video.objects if one.category is not None}
    return summarize_youtube(scores, categories, seen)
