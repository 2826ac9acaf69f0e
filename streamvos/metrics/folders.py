"""Score masks in folders, from any program.

    GT_DIR/<sequence>/00000.png  or, with a single sequence,  GT_DIR/00000.png
    PRED_DIR/<sequence>/00000.png                             PRED_DIR/00000.png

Frames are matched by name. A frame without a prediction is an error and not a zero, so that an interrupted
run is not mistaken for a bad one; the folders are compared before the first file is read.

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
    LABEL_SUFFIXES,
    holds_binary_mask,
    list_folders,
    list_pictures,
    listing,
    read_labels,
)
from streamvos.masks.checks import object_ids
from streamvos.masks.labelmap import read_label_map
from streamvos.metrics.evaluation import SequenceScorer
from streamvos.metrics.measures import TOLERANCE
from streamvos.metrics.scores import Scores, SequenceScore, summarize
from streamvos.types import VOID, InputError

DATASETS = ("davis2016", "davis2017")


def score_folders(
    gt_dir: str | PathLike[str],
    pred_dir: str | PathLike[str],
    dataset: str = "davis2016",
    sequences: Sequence[str] | str | None = None,
    *,
    tolerance: float = TOLERANCE,
    on_sequence: Callable[[SequenceScore], None] | None = None,
) -> Scores:
    """Score predicted label maps against true ones by the semi-supervised protocol.

    Only PNG files are read, so a video or a log may lie beside the predictions.

    Args:
        gt_dir: true label maps: one sequence (PNGs right inside) or a folder per sequence. Masks stored
            as 0 and 255 are recognized by their first frame.
        pred_dir: predicted label maps, likewise; one for every true one, first and last frame included.
        dataset: "davis2016" merges all objects into one, in truth and prediction; "davis2017" scores
            each object of the first true label map.
        sequences: the only ones to score; by default every one in `gt_dir`.
        tolerance: boundary tolerance; below 1 a part of the diagonal, from 1 upwards pixels.
        on_sequence: called with each sequence's score, for a progress bar.

    Raises:
        InputError: a folder holds no label maps, a prediction is missing, a prediction belongs to no true
            label map, sizes differ, a file is unreadable, or a predicted object does not exist.
    """
    if dataset not in DATASETS:
        raise InputError(f"dataset is {dataset!r}; expected one of {', '.join(DATASETS)}")
    matched = match_folders(Path(gt_dir), Path(pred_dir), sequences)
    scores = []
    for one in matched:
        score = _score(one, merge=dataset == "davis2016", tolerance=tolerance)
        scores.append(score)
        if on_sequence is not None:
            on_sequence(score)
    return summarize(scores)


@dataclass(frozen=True)
class MatchedSequence:
    """One sequence whose every true label map has a prediction.

    Attributes:
        name: the sequence's name.
        truths: true label maps in order.
        predictions: the predictions for them, in the same order.
    """

    name: str
    truths: tuple[Path, ...]
    predictions: tuple[Path, ...]


def match_folders(
    gt_dir: Path, pred_dir: Path, sequences: Sequence[str] | str | None = None
) -> list[MatchedSequence]:
    """Find the files that `score_folders` compares, without reading any.

    Raises:
        InputError: as `score_folders`, as far as names tell.
    """
    truth = _label_folders(gt_dir, "true")
    predicted = _label_folders(pred_dir, "predicted")
    wanted = [sequences] if isinstance(sequences, str) else None if sequences is None else list(sequences)
    truth_is_single, prediction_is_single = gt_dir in truth.values(), pred_dir in predicted.values()
    if truth_is_single and wanted is not None and wanted != list(truth):
        raise InputError(f"{gt_dir} is the single sequence '{gt_dir.name}'; asked for {listing(wanted)}")
    names = list(truth) if wanted is None else wanted
    if not names or len(set(names)) != len(names):
        raise InputError(f"the sequences are [{listing(names)}]; expected at least one, each once")
    unknown = [name for name in names if name not in truth]
    if unknown:
        raise InputError(f"{gt_dir} has no sequence {listing(unknown)}; there are {listing(list(truth))}")
    if prediction_is_single:
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
            "Name the sequences to score a part"
        )
    extra = [name for name in predicted if name not in names]
    if extra and wanted is None:
        raise InputError(
            f"{pred_dir} has predictions for {listing(extra)}, of which {gt_dir} holds no truth; name the "
            "sequences to score a part"
        )
    return [_match(name, truth[name], predicted[name]) for name in names]


def _label_folders(folder: Path, what: str) -> dict[str, Path]:
    """Name of the sequence -> the folder that holds its PNGs."""
    own = list_pictures(folder, LABEL_SUFFIXES)
    inside = {name: folder / name for name in list_folders(folder)}
    inside = {name: path for name, path in inside.items() if list_pictures(path, LABEL_SUFFIXES)}
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
    true_files = list_pictures(truth, LABEL_SUFFIXES)
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
    found = list_pictures(folder, LABEL_SUFFIXES)
    missing = [stem for stem in stems if stem not in found]
    if missing:
        raise InputError(
            f"{name}: {len(missing)} of {len(stems)} predictions are missing in {folder}: {listing(missing)}"
        )
    return found


def _score(sequence: MatchedSequence, merge: bool, tolerance: float) -> SequenceScore:
    first = sequence.truths[0]
    binary = holds_binary_mask(read_label_map(first, binary="never"))
    ids = object_ids(read_labels(first, binary, merge))
    if not ids:
        raise InputError(f"{first} holds no object; the first frame must show what was to be tracked")
    scorer = SequenceScorer(sequence.name, ids, tolerance)
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
