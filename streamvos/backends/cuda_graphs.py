"""A callable recorded once as a CUDA graph and replayed: one launch instead of hundreds.

    run = graphed_when_called(compiled)         # on a GPU, for tensors of one signature
    outputs = run(*tensors)                     # copies in, replays, copies out

Small frames leave a GPU waiting for the processor to launch kernels; a graph takes that away. Outputs are
copied out of the graph's own memory, since the next replay writes there again. Recording is
thread-local, so that other threads may use the GPU meanwhile; it is done once, at the first call, which is
before the parity gate looks at an engine. Never run yet: no GPU was at hand.
"""

from __future__ import annotations

import logging

import torch

from streamvos.methods.parts import Run, Tensors

log = logging.getLogger(__name__)

WARM_UP = 3
"""Calls before recording, in which libraries choose their kernels and allocate."""


def graphed_when_called(run: Run) -> Run:
    """Record at the first call; where that fails, the callable stays as it is.

    Args:
        run: as for `graphed`, always called with tensors of one signature.
    """
    ready: list[Run] = []

    def call(*tensors: torch.Tensor) -> Tensors:
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

    Raises:
        RuntimeError: something in it cannot be recorded.
    """
    given = tuple(tensor.clone(memory_format=torch.preserve_format) for tensor in inputs)
    device = given[0].device
    side = torch.cuda.Stream(device)
    side.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(side):
        for _ in range(WARM_UP):
            run(*given)
    torch.cuda.current_stream(device).wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        kept = run(*given)

    def replay(*tensors: torch.Tensor) -> Tensors:
        for own, tensor in zip(given, tensors, strict=True):
            own.copy_(tensor, non_blocking=True)
        graph.replay()
        return tuple(value.clone(memory_format=torch.preserve_format) for value in kept)

    return replay
