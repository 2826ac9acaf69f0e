"""A callable recorded once as a CUDA graph and replayed: one launch instead of hundreds.

    run = graphed_when_called(compiled)         # on a GPU, for tensors of one signature
    outputs = run(*tensors)                     # copies in, replays, copies out

Engines of `aoti` and `tensorrt` are replayed so. And it is a backend by itself, `cuda-graph`: the plain
network, recorded. There is nothing to compile and nothing to keep; the file of such an engine says only that
it was compared and measured.

Small frames leave a GPU waiting for the processor to launch kernels; a graph takes that away. Outputs are
copied out of the graph's own memory, since the next replay writes there again; a copy has the strides of what
it was copied from. Recording is thread-local, so that other threads may use the GPU meanwhile; it is done
once, at the first call, which is before the parity gate looks at an engine. Never run yet: no GPU was at
hand.
"""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import nn

from streamvos.methods.parts import Run, Tensors
from streamvos.types import InputError

log = logging.getLogger(__name__)

WARM_UP = 3
"""Calls before recording, in which libraries choose their kernels and allocate."""

FILE = "engine.json"


def missing(device: torch.device) -> str | None:
    """Why the backend cannot be used on this device; None if it can."""
    return None if device.type == "cuda" else f"CUDA graphs are for NVIDIA GPUs, not for {device.type!r}"


cannot_build = missing


def build(program: torch.export.ExportedProgram, path: Path, settings: Mapping[str, Any]) -> None:
    """Write that it was built.

    Args:
        program: of the part.
        path: of the file.
        settings: none.

    Raises:
        InputError: there are settings.
    """
    if settings:
        raise InputError(f"the backend 'cuda-graph' has no options, got {sorted(settings)}")
    path.write_text(json.dumps({"recorded": "eager"}))


def load(path: Path, device: torch.device, module: nn.Module) -> Run:
    """The network as it is, recorded when it is first called, without any check of what it is given.

    Args:
        path: as `build` wrote it; not needed.
        device: where it runs.
        module: tensors -> tuple of tensors.
    """
    return graphed_when_called(module)


def graphed_when_called(run: Run) -> Run:
    """Record at the first call; where that fails, the callable stays as it is.

    Streams that share a method call the same one from threads of their own: one call at a time, since all use
    the graph's one input, and the runners below are for one thread.

    Args:
        run: as for `graphed`, always called with tensors of one signature.
    """
    ready: list[Run] = []
    one_at_a_time = threading.Lock()

    def call(*tensors: torch.Tensor) -> Tensors:
        with one_at_a_time:
            if not ready:
                try:
                    ready.append(graphed(run, tensors))
                except RuntimeError as error:
                    log.warning("no CUDA graph: %s", str(error).splitlines()[0])
                    ready.append(run)
            return ready[0](*tensors)

    return call


def graphed(run: Run, inputs: Tensors) -> Run:
    """Record a callable for inputs of these shapes.

    Args:
        run: tensors -> tensors, without a look at their values and without a copy to the processor.
        inputs: example, on a GPU.

    Returns:
        For one thread at a time, on any stream of the device.

    Raises:
        RuntimeError: something in it cannot be recorded.
    """
    device = inputs[0].device
    # a recording that fails leaves torch's current stream as it was while recording (torch 2.11 to 2.13)
    with torch.cuda.device(device), torch.cuda.stream(torch.cuda.current_stream(device)):
        given = tuple(_copied(tensor) for tensor in inputs)
        side = torch.cuda.Stream(device)
        side.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(side):
            for _ in range(WARM_UP):
                run(*given)
        torch.cuda.current_stream(device).wait_stream(side)
        graph, pool = torch.cuda.CUDAGraph(), torch.cuda.graph_pool_handle()
        try:
            # on a stream of this device: the one that torch would take is of the device that recorded first
            with torch.cuda.graph(graph, pool, side, capture_error_mode="thread_local"):
                kept = run(*given)
        except Exception:
            # torch 2.11 does not do this, and its allocator would never free anything again
            with suppress(RuntimeError):
                torch._C._cuda_endAllocateToPool(torch.cuda.current_device(), pool)
            raise

    free = torch.cuda.Event()  # what the call before had queued, on whichever stream, is done

    def replay(*tensors: torch.Tensor) -> Tensors:
        current = torch.cuda.current_stream(device)
        current.wait_event(free)
        # they were made in whichever mode the first call came in, and may be written to in this one only
        with torch.inference_mode():
            for own, tensor in zip(given, tensors, strict=True):
                own.copy_(tensor, non_blocking=True)
            graph.replay()
        outputs = tuple(_copied(value) for value in kept)
        free.record(current)
        return outputs

    replay(*inputs)  # raises now, if outputs overlap themselves and cannot be copied as they are
    return replay


def _copied(tensor: torch.Tensor) -> torch.Tensor:
    """A copy with the same strides, also where they leave gaps, which `clone` closes."""
    same = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device=tensor.device)
    return same.copy_(tensor)
