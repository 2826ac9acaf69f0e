"""Score masks in folders, from any program.

    GT_DIR/<sequence>/00000.png  or, with a single sequence,  GT_DIR/00000.png
    PRED_DIR/<sequence>/00000.png                             PRED_DIR/00000.png

Frames are matched by name. A frame without a prediction is an error and not a score of 0, so that an
interrupted run is not mistaken for a bad one; the folders are compared before the first file is read.

    scores = score_folders("DAVIS/Annotations/480p", "results", dataset="davis2017")
    scores.to_json()["mean"]["J&F"]  # 71.3
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path

import numpy as np

from streamvos.datasets.clips import (
    holds_binary_mask,
    label_maps_in,
    list_folders,
    listing,
    pick,
    read_labels,
)
from streamvos.masks.checks import object_ids
from streamvos.masks.labelmap import read_label_map
from streamvos.metrics.evaluation import SequenceScorer
from streamvos.metrics.scores import Scores, SequenceScore, summarize
from streamvos.types import VOID, InputError

DATASETS = ("davis2016", "davis2017")


def score_folders(
    gt_dir: str | PathLike[str],
    pred_dir: str | PathLike[str],
    dataset: str = "davis2016",
    sequences: Sequence[str] | str | None = None,
    *,
    on_sequence: Callable[[SequenceScore], None] | None = None,
) -> Scores:
    """Score predicted label maps against true ones by the semi-supervised protocol.

    Only PNG files are read, so the folder of predictions may hold a video or a log as well.

    Args:
        gt_dir: true label maps: one sequence (PNGs right inside) or a folder per sequence. Masks stored
            as 0 and 255 are recognized by their first frame.
        pred_dir: predicted label maps, likewise; one for every true one, first and last frame included.
        dataset: "davis2016" merges all objects into one, in truth and prediction; "davis2017" scores
            each object of the first true label map.
        sequences: the ones to score; by default all in `gt_dir`.
        on_sequence: called with each sequence's score, for a progress bar.

    Raises:
        InputError: a folder holds no label maps, a prediction is missing, a prediction belongs to no true
            label map, sizes differ, a file is unreadable, or a predicted object does not exist.
    """
    if dataset not in DATASETS:
        raise InputError(f"dataset is {dataset!r}; expected one of {', '.join(DATASETS)}")
    scores = []
    for one in _match_folders(Path(gt_dir), Path(pred_dir), sequences):
        score = _score(one, merge=dataset == "davis2016")
        scores.append(score)
        if on_sequence is not None:
            on_sequence(score)
    return summarize(scores)


@dataclass(frozen=True)
class MatchedSequence:
    """The true label maps of a sequence, and the prediction for each."""

    name: str
    truths: tuple[Path, ...]
    predictions: tuple[Path, ...]


def _match_folders(
    gt_dir: Path, pred_dir: Path, sequences: Sequence[str] | str | None
) -> list[MatchedSequence]:
    """Find the files to compare, without reading any."""
    truth = _label_folders(gt_dir, "true")
    predicted = _label_folders(pred_dir, "predicted")
    names = pick(list(truth), sequences, str(gt_dir))
    if pred_dir in predicted.values():  # a single sequence
        if len(names) > 1:
            raise InputError(
                f"{pred_dir} holds the PNGs of a single sequence, but {len(names)} are to be scored "
                f"({listing(names)}); name the one it belongs to, or give a folder with one sub-folder per "
                "sequence"
            )
        predicted = {names[0]: pred_dir}
    missing = [name for name in names if name not in predicted]
    if missing:
        raise InputError(
            f"{pred_dir} has no predictions for {listing(missing)}; there are {listing(list(predicted))}. "
            "Name the sequences to score some of them"
        )
    extra = [name for name in predicted if name not in names]
    if extra and sequences is None:
        raise InputError(
            f"{pred_dir} has predictions for {listing(extra)}, but {gt_dir} has no true label maps for them; "
            "name the sequences to score some of them"
        )
    return [_match(name, truth[name], predicted[name]) for name in names]


def _label_folders(folder: Path, what: str) -> dict[str, Path]:
    """Name of the sequence -> the folder that holds its PNGs."""
    own = label_maps_in(folder)
    inside = {name: folder / name for name in list_folders(folder)}
    inside = {name: path for name, path in inside.items() if label_maps_in(path)}
    if own and inside:
        raise InputError(
            f"{folder} holds PNGs itself and in {listing(list(inside))}; expected the {what} label maps of "
            "one sequence, or one sub-folder per sequence"
        )
    if own:
        return {folder.resolve().name: folder}
    if inside:
        return inside
    nested = folder / "Annotations" / "480p"
    hint = f"; did you mean {nested}?" if nested.is_dir() else ""
    raise InputError(
        f"{folder} holds no {what} label maps; expected PNGs in it, or one sub-folder of PNGs per "
        f"sequence{hint}"
    )


def _match(name: str, truth: Path, prediction: Path) -> MatchedSequence:
    true_files = label_maps_in(truth)
    predicted_files = find_predictions(name, list(true_files), prediction)
    extra = [stem for stem in predicted_files if stem not in true_files]
    if extra:
        raise InputError(
            f"{name}: {prediction} holds files without a true label map in {truth}: {listing(extra)}"
        )
    predictions = tuple(predicted_files[stem] for stem in true_files)
    return MatchedSequence(name, tuple(true_files.values()), predictions)


def find_predictions(name: str, stems: Sequence[str], folder: Path) -> dict[str, Path]:
    """The label maps in a folder by their names without suffix.

    Raises:
        InputError: one of `stems` is missing.
    """
    found = label_maps_in(folder)
    missing = [stem for stem in stems if stem not in found]
    if missing:
        raise InputError(
            f"{name}: {len(missing)} of {len(stems)} predictions are missing in {folder}: {listing(missing)}"
        )
    return found


def _score(sequence: MatchedSequence, merge: bool) -> SequenceScore:
    first = sequence.truths[0]
    binary = holds_binary_mask(read_label_map(first, binary="never"))
    ids = object_ids(read_labels(first, binary, merge))
    if not ids:
        raise InputError(f"{first} holds no object; the first frame must show what was to be tracked")
    scorer = SequenceScorer(sequence.name, ids)
    for true_path, path in zip(sequence.truths, sequence.predictions, strict=True):
        prediction = _read_prediction(path, merge, len(ids))
        scorer.add(read_labels(true_path, binary, merge), prediction, frame=true_path.stem)
    return scorer.result()


def _read_prediction(path: Path, merge: bool, count: int) -> np.ndarray:
    """A predicted label map. Predictions have no void: 255 is the object if there is only one."""
    labels = read_label_map(path, binary="never")
    if merge:
        return (labels != 0).view(np.uint8)
    if count == 1 and holds_binary_mask(labels):
        return (labels == VOID).view(np.uint8)
    return labels
