"""Compiled networks: built once per machine, compared with the plain ones, loaded where a stream runs.

| backend | what runs |
|---|---|
| `eager` | the plain module in channels_last: the reference |
| `aoti` | an AOTInductor package |
| `tensorrt` | torch-tensorrt, on NVIDIA GPUs |
| `cuda-graph` | the plain module, recorded once as a CUDA graph, on NVIDIA GPUs |
| `auto` | of these, the fastest engine in the cache that passed; eager where none is faster |

`engines` finds and runs engines, `building` makes them, `gate` compares them with eager, `cache` keeps them.
Nothing is built where a stream runs: where an engine is missing, eager runs, and the log has the command
that builds it. This module imports nothing, so that a command line can name the backends at once.
"""

CANDIDATES = ("tensorrt", "aoti", "cuda-graph")
"""The backends among which `auto` chooses."""

BACKENDS = ("eager", "aoti", "tensorrt", "cuda-graph", "auto")
