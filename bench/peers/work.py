"""What a process of `bench peers` does: another project's own code on the frames of `scenes`.

JOBS["begin"](peer="xmem", root="/src/XMem", ...)   # {"first_frame_ms": ...}
JOBS["turn"](seconds=2.0)                            # {"values": [ms], "samples": [[s, MiB]]}
JOBS["end"]()                                        # {"peak_mib": ...}

The checkout is first on this process's path, and its working folder. Its networks have random weights, so
that nothing is downloaded; on a processor, calls of `.cuda()` do nothing.
"""

from __future__ import annotations

import contextlib
import importlib
import logging
import os
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from typing import Any
from unittest.mock import patch

import numpy as np
import torch

from ..machine import memory_mib
from ..scenes import Scene

Step = Callable[[np.ndarray, "np.ndarray | None"], np.ndarray]
"""(H, W, 3) uint8 RGB, and the (H, W) uint8 label map of the first frame -> (H, W) label map on the host."""

SAMPLE_SECONDS = 0.5


class Stream:
    """The scene as a peer sees it, and the clock before it."""

    def __init__(self, step: Step, size: list[int], objects: int, device: str) -> None:
        self._step, self._scene, self._device, self._t = step, Scene((size[0], size[1]), objects), device, 0
        self._began = time.monotonic()
        self._sampled = -SAMPLE_SECONDS

    def frame(self) -> float:
        """Milliseconds of the next frame, until its mask is on the host."""
        image, truth = self._scene.frame(self._t)
        mask = truth if self._t == 0 else None
        started = time.perf_counter()
        answer = self._step(image, mask)
        spent = 1e3 * (time.perf_counter() - started)
        if np.shape(answer) != truth.shape:
            raise ValueError(f"its mask is {np.shape(answer)}, the frame {truth.shape}")
        self._t += 1
        return spent

    def turn(self, seconds: float) -> dict[str, Any]:
        """Frames for so many seconds, at least one, after one with cold caches that does not count."""
        self.frame()
        values: list[float] = []
        samples: list[tuple[float, float]] = []
        end = time.monotonic() + seconds
        while not values or time.monotonic() < end:
            values.append(self.frame())
            at = time.monotonic() - self._began
            if at - self._sampled >= SAMPLE_SECONDS:
                self._sampled = at
                samples.append((at, self.memory()))
        return {"values": values, "samples": samples}

    def memory(self, peak: bool = False) -> float:
        """MiB, of the GPU if it runs there, else of this process."""
        if self._device.startswith("cuda"):
            told = torch.cuda.max_memory_allocated if peak else torch.cuda.memory_allocated
            return told() / 2**20
        return memory_mib(peak=peak) or 0.0


@contextlib.contextmanager
def random_weights() -> Iterator[None]:
    """Within the block nothing is downloaded or read: networks keep the weights that they begin with."""
    with contextlib.ExitStack() as stack:
        for name in ("torch.load", "torch.hub.load_state_dict_from_url", "torch.utils.model_zoo.load_url"):
            stack.enter_context(patch(name, lambda *a, **k: {}))
        if "torchvision" in sys.modules:
            api = "torchvision.models._api.load_state_dict_from_url"
            stack.enter_context(patch(api, lambda *a, **k: {}))
        nothing = torch.nn.modules.module._IncompatibleKeys([], [])
        stack.enter_context(patch.object(torch.nn.Module, "load_state_dict", lambda *a, **k: nothing))
        yield


def _stay_on_the_processor() -> None:
    torch.Tensor.cuda = lambda self, *a, **k: self  # type: ignore[method-assign]
    torch.nn.Module.cuda = lambda self, *a, **k: self  # type: ignore[method-assign]
    torch.cuda.synchronize = lambda *a, **k: None


def _quiet() -> None:
    sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - for the life of the process
    logging.getLogger().setLevel(logging.ERROR)
    warnings.simplefilter("ignore")


_stream: Stream | None = None


def _begin(
    peer: str, root: str | None, device: str, size: list[int], objects: int, history: int
) -> dict[str, Any]:
    """Load the peer, and take the frames that do not count."""
    global _stream
    _quiet()
    torch.manual_seed(0)
    for name, kind in (("int", int), ("float", float), ("bool", bool)):
        if name not in np.__dict__:  # older code than NumPy 1.24
            setattr(np, name, kind)
    if root is not None:
        sys.path.insert(0, root)
        os.chdir(root)
    if not device.startswith("cuda"):
        _stay_on_the_processor()
    with contextlib.suppress(ImportError):
        importlib.import_module("torchvision")
    adapter = importlib.import_module(f"{__package__}.{peer}")
    try:
        with random_weights():
            step = adapter.load(root, device)
    except ModuleNotFoundError as error:
        inside = root is not None and (error.name or "").split(".")[0] in _top_level(root)
        advice = f"the checkout lacks the module {error.name}"
        raise LookupError(
            advice if inside else f"it needs the package {error.name}, which is not installed"
        ) from error
    except (ImportError, AttributeError, FileNotFoundError) as error:
        raise LookupError(f"the checkout lacks what this adapter calls: {error}") from error
    _stream = Stream(step, size, objects, device)
    first = _stream.frame()
    for _ in range(history):
        _stream.frame()
    return {"first_frame_ms": first, "threads": torch.get_num_threads()}


def _top_level(root: str) -> set[str]:
    return {name.removesuffix(".py") for name in os.listdir(root)}


def _turn(seconds: float) -> dict[str, Any]:
    assert _stream is not None
    return _stream.turn(seconds)


def _end() -> dict[str, Any]:
    assert _stream is not None
    return {"peak_mib": _stream.memory(peak=True)}


JOBS = {"begin": _begin, "turn": _turn, "end": _end}
