"""CUDA graphs: a callable recorded once and replayed, with one launch instead of hundreds.

    run = graphed_when_called(compiled)         # on a GPU
    outputs = run(*tensors)                     # copies in, replays, copies out

With small frames a GPU waits for the processor to launch kernels; a graph saves that time. On a GPU the
engines of `aoti` and `tensorrt` are graphs too. The backend `cuda-graph` records the plain network: there is
nothing to compile, and the file of such an engine only says that it was compared and measured.

Outputs are copied out of the graph's own memory, since the next replay overwrites it. Recording is
thread-local, so that other threads may use the GPU meanwhile. Never run yet: no GPU was available.
"""

from __future__ import annotations

import logging
import threading
from contextlib import suppress
from pathlib import Path

import torch
from torch.export import ExportedProgram

from streamvos.engines.exporting import copied, first_line
from streamvos.engines.signature import Signature
from streamvos.methods.parts import Run, Tensors

log = logging.getLogger(__name__)

WARM_UP = 3
"""Calls before recording, in which libraries choose their kernels and allocate."""


def missing(device: torch.device) -> str | None:
    return None if device.type == "cuda" else f"CUDA graphs need an NVIDIA GPU, not {device.type!r}"


cannot_build = missing


def build(program: ExportedProgram, path: Path, signature: Signature, freezing: bool) -> None:
    path.write_text('{"recorded": "eager"}')


def load(path: Path, device: torch.device, plain: Run) -> Run:
    return graphed_when_called(plain)


def graphed_when_called(run: Run) -> Run:
    """Record at the first call of every batch; where that fails, the callable is called as it is.

    Streams that share a method call the same recording from their threads: one call at a time, since they
    share its input. Tensors of one batch have the same signature in every call.
    """
    recorded: dict[tuple[torch.Size, ...], Run] = {}
    one_at_a_time = threading.Lock()

    def call(*tensors: torch.Tensor) -> Tensors:
        shapes = tuple(tensor.shape for tensor in tensors)
        with one_at_a_time:
            if shapes not in recorded:
                try:
                    recorded[shapes] = graphed(run, tensors)
                except RuntimeError as error:
                    log.warning("no CUDA graph: %s", first_line(error))
                    recorded[shapes] = run
            return recorded[shapes](*tensors)

    return call


def graphed(run: Run, inputs: Tensors) -> Run:
    """Record a callable, which neither reads tensors' values nor copies to the processor, for these inputs.

    Returns:
        A callable for one thread at a time, on any stream of the device.

    Raises:
        RuntimeError: an operation cannot be recorded.
    """
    device = inputs[0].device
    # a recording that fails leaves torch's current stream as it was while recording (torch 2.11 to 2.13)
    with torch.cuda.device(device), torch.cuda.stream(torch.cuda.current_stream(device)):
        given = tuple(copied(tensor) for tensor in inputs)
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
        outputs = tuple(copied(value) for value in kept)
        free.record(current)
        return outputs

    replay(*inputs)  # raises now, if outputs overlap themselves and cannot be copied as they are
    return replay
