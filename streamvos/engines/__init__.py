"""A network part to a callable that runs it: how, and on what device.

    engines = Engines(method, torch.device("cpu"), backend="aoti")
    run = engines.switch(method.parts()["extractor"], eager)
    outputs = run(frames)                       # the engine, or eager where there is none
    engines.describe()

| backend | what it is |
|---|---|
| `eager` | the plain module in channels_last: the reference |
| `inductor` | torch.compile, in the process that uses it |
| `aoti` | an AOTInductor package, compiled once per machine |
| `tensorrt` | torch-tensorrt, NVIDIA GPUs |
| `auto` | of these, the fastest that gives eager's masks, measured once per machine |

Each has a module with `missing(device)` (why it cannot be used here), `build(program, path, settings)` and
`load(path, device, module)`. Nothing is built where a stream runs: a missing engine means eager now, and a
build beside it (`streamvos.engines.beside`).
"""

from streamvos.engines.cache import EngineCache
from streamvos.engines.devices import choose_device
from streamvos.engines.eager import eager_run
from streamvos.engines.engines import BACKENDS, CANDIDATES, COMPILED, Engines, check_backend, why_missing
from streamvos.engines.switch import Engine, Switch

__all__ = [
    "BACKENDS",
    "CANDIDATES",
    "COMPILED",
    "Engine",
    "EngineCache",
    "Engines",
    "Switch",
    "check_backend",
    "choose_device",
    "eager_run",
    "why_missing",
]
