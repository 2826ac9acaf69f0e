"""Frames and results made by hand, and a disk that is full when a test wants it."""

import contextlib
import resource
from collections.abc import Callable, Iterator

import numpy as np
import pytest

from streamvos.types import Frame, ObjectResult, Result


def _objects(mask: np.ndarray, ids: tuple[int, ...], states: dict[int, str]) -> dict[int, ObjectResult]:
    objects = {}
    for key in ids:
        rows, columns = np.nonzero(mask == key)
        box = None
        if rows.size:
            box = (int(columns.min()), int(rows.min()), int(columns.max()) + 1, int(rows.max()) + 1)
        state = states.get(key, "tracking" if rows.size else "lost")
        objects[key] = ObjectResult(key, 0.875 if rows.size else 0.0, state, box, int(rows.size))
    return objects


@pytest.fixture
def make_result() -> Callable[..., Result]:
    """(mask, ids of objects even if unseen, their states) -> a result as a segmenter would give it."""

    def make(mask: np.ndarray, ids: tuple[int, ...] = (), states: dict[int, str] | None = None) -> Result:
        present = {int(key) for key in np.unique(mask) if 0 < key < 255}
        known = tuple(sorted(present | set(ids)))
        return Result(mask, 0, known, lambda: np.zeros(0), lambda: _objects(mask, known, states or {}))

    return make


@pytest.fixture
def make_pair(make_result: Callable[..., Result]) -> Callable[..., tuple[Frame, Result]]:
    """(index, (H, W)) -> a frame with a gradient and two objects that move, and its result."""

    def make(index: int, size: tuple[int, int] = (48, 64), pts: float | None = None) -> tuple[Frame, Result]:
        height, width = size
        image = np.zeros((height, width, 3), np.uint8)
        image[..., 0] = np.linspace(40, 200, width).astype(np.uint8)
        image[..., 1] = np.linspace(40, 200, height).astype(np.uint8)[:, None]
        mask = np.zeros(size, np.uint8)
        mask[5:20, 3 + index % 20 : 18 + index % 20] = 1
        mask[25:40, 30:50] = 7
        seconds = index / 24 if pts is None else pts
        return Frame(image, index, 1_000_000 + index, seconds, "clip"), make_result(mask)

    return make


@pytest.fixture
def file_size_limit() -> Callable[[int], contextlib.AbstractContextManager[None]]:
    """Within it no file may grow beyond so many bytes: a full disk that every machine can have."""

    @contextlib.contextmanager
    def limit(size: int) -> Iterator[None]:
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    return limit
