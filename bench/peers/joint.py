"""JOINT's own code (Mao et al., ICCV 2021), from a checkout: a tracker of pytracking.

Its parameters name the file with its weights, which pytracking wants to find; they are not loaded.
"""

from __future__ import annotations

from collections import OrderedDict
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from .work import Step

FILES = (
    "pytracking/evaluation/multi_object_wrapper.py",
    "pytracking/tracker/joint/__init__.py",
    "pytracking/parameter/joint/__init__.py",
)
PACKAGE = None


def load(root: str | None, device: str) -> Step:
    """Float32, with the first of its parameter files."""
    from pytracking.evaluation.multi_object_wrapper import MultiObjectWrapper

    names = sorted(one.stem for one in Path(root or ".", "pytracking/parameter/joint").glob("[!_]*.py"))
    if not names:
        raise FileNotFoundError("a file of parameters in pytracking/parameter/joint")
    parameters = import_module(f"pytracking.parameter.joint.{names[0]}").parameters()
    parameters.use_gpu = device.startswith("cuda")
    tracker = MultiObjectWrapper(
        import_module("pytracking.tracker.joint").get_tracker_class(), parameters, None
    )
    ids: list[str] = []
    last: dict[str, Any] = {}

    def step(image: np.ndarray, mask: np.ndarray | None) -> np.ndarray:
        nonlocal last
        if mask is None:
            last = tracker.track(image, OrderedDict(previous_output=last, object_ids=ids))
            return np.asarray(last["segmentation"], np.uint8)
        ids[:] = [str(one) for one in np.unique(mask)[1:].tolist()]
        told = {"init_object_ids": ids, "object_ids": ids, "sequence_object_ids": ids, "init_mask": mask}
        boxes = {one: box_of(mask == int(one)) for one in ids}
        last = tracker.initialize(image, OrderedDict(**told, init_bbox=boxes)) or {}
        return mask

    return step


def box_of(pixels: np.ndarray) -> list[int]:
    """[left, top, width, height]."""
    rows, columns = np.flatnonzero(pixels.any(1)), np.flatnonzero(pixels.any(0))
    return [int(columns[0]), int(rows[0]), int(np.ptp(columns)) + 1, int(np.ptp(rows)) + 1]
