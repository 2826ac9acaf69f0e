"""The aoti backend: AOTInductor packages, compiled once, loaded in any process in some milliseconds.

    build(program, Path("engine.pt2"), {}, signature)
    run = load(Path("engine.pt2"), torch.device("cpu"), part.plain)

A package is a zip archive with a shared library in it: loading one runs its code. So it comes from a cache
that nobody else can write to, and only if its digest is the manifest's (`streamvos.engines.cache`).
"""

from __future__ import annotations

import shutil
import zipfile
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch.export import ExportedProgram

from streamvos.engines.cuda_graphs import graphed_when_called
from streamvos.engines.cuda_toolkit import cuda_toolkit, missing_headers
from streamvos.engines.exporting import compiler_folders, environment_variables, first_line, quiet
from streamvos.engines.signature import Signature
from streamvos.methods.parts import Run
from streamvos.types import InputError

FILE = "engine.pt2"

MODEL = "model"
"""Name of the function in a package, as torch gives it."""

DEFAULTS: dict[str, Any] = {
    # weights become constants: batch norms fold into convolutions, bfloat16 weights are converted once
    "freezing": True,
    # else the number of threads at the build is compiled in
    "cpp.dynamic_threads": True,
}
"""Options of Inductor that differ from its own; a recipe may set others."""

FOREIGN = ("/data/weights/", "/data/constants/", "/data/sample_inputs/", "/models/")
"""Parts of an archive that torch would read with Python's serializer; packages of ours do not have them."""


def missing(device: torch.device) -> str | None:
    """Why engines cannot be used on this device; None if they can."""
    return None if device.type in ("cpu", "cuda") else f"AOTInductor is not supported on {device.type!r}"


def cannot_build(device: torch.device) -> str | None:
    """Why engines cannot be built here, though they may be loaded; None if they can."""
    if shutil.which("g++") is None and shutil.which("clang++") is None:
        return "it needs a C++ compiler to build: install g++"
    if device.type == "cuda" and (headers := missing_headers()):
        return (
            f"it needs headers of CUDA that are not here ({', '.join(headers)}): install a CUDA toolkit, or "
            "pip install nvidia-cuda-runtime nvidia-cuda-cccl nvidia-cuda-crt, of torch's version of CUDA"
        )
    return missing(device)


def build(program: ExportedProgram, path: Path, settings: Mapping[str, Any], signature: Signature) -> None:
    """Compile and write a package; `settings` are options of Inductor that differ from `DEFAULTS`."""
    from torch._inductor import aoti_compile_and_package

    # Inductor's own cache would be read with Python's serializer
    configs = {**DEFAULTS, **settings, "fx_graph_cache": False, "fx_graph_remote_cache": False}
    arguments = program.example_inputs[0] if program.example_inputs else ()
    on_gpu = any(isinstance(one, torch.Tensor) and one.is_cuda for one in arguments)
    toolkit = cuda_toolkit() if on_gpu else nullcontext()
    with torch.no_grad(), compiler_folders(path.parent), quiet(), toolkit:
        aoti_compile_and_package(program, package_path=str(path), inductor_configs=configs)


def load(path: Path, device: torch.device, plain: Run) -> Run:
    """The compiled function.

    Raises:
        InputError: the package holds more than a compiled function, or torch cannot load it.
    """
    # `torch._inductor.aoti_load_package` calls this too, but first compiles small programs to examine the
    # processor: seconds of a stream, with a compiler, in a folder whose name anybody can guess. Here the
    # processor is part of the engine's plan.
    from torch._C._aoti import AOTIModelPackageLoader

    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
        strange = [name for name in names if any(part in f"/{name}" for part in FOREIGN)]
        if strange or not any(name.endswith(".so") for name in names):
            raise InputError(
                f"{path} is no package of a compiled function (it holds {(strange or names)[:3]})"
            )
        index = -1 if device.index is None else device.index
        on_gpu = device.type == "cuda"
        unpacked = TemporaryDirectory(prefix="streamvos-engine-", ignore_cleanup_errors=True)
        with environment_variables(TMPDIR=unpacked.name):
            # one runner: more would have threads, which a CUDA graph cannot record
            compiled = AOTIModelPackageLoader(str(path), MODEL, on_gpu, 1, index)
    except (RuntimeError, OSError, zipfile.BadZipFile) as error:
        raise InputError(f"{path} cannot be loaded: {first_line(error)}") from None
    # what is loaded needs no file; torch would delete them at the end, and never after a kill
    if not on_gpu:
        unpacked.cleanup()

    def run(*tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        # it runs on the current stream of the current device, which need not be the tensors' own
        with torch.cuda.device(device) if on_gpu else nullcontext():
            outputs = compiled.boxed_run(list(tensors))
        if on_gpu:  # the first call has loaded the kernels
            unpacked.cleanup()
        return tuple(outputs)

    return graphed_when_called(run) if on_gpu else run
