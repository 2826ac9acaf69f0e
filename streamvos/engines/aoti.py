"""The aoti backend: AOTInductor packages, compiled once, loaded in any process in some milliseconds.

    build(program, Path("engine.pt2"), signature, freezing=True)
    run = load(Path("engine.pt2"), torch.device("cpu"), part.plain)

A package is a zip archive with a shared library in it: loading one runs its code. So it is loaded from a
cache that no other user can write to, and only if its digest is the manifest's (`streamvos.engines.cache`).
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch.export import ExportedProgram

from streamvos.engines.cuda_graphs import graphed_when_called
from streamvos.engines.exporting import environment_variables, first_line, quiet
from streamvos.engines.signature import Signature
from streamvos.methods.parts import Run
from streamvos.types import InputError

OPTIONS: dict[str, Any] = {
    # else the number of threads at the build is compiled in
    "cpp.dynamic_threads": True,
    # precompiled headers would lie in a folder of /tmp with a predictable name
    "aot_inductor.precompile_headers": False,
    "cpp_cache_precompile_headers": False,
    # Inductor's own cache would be read with Python's serializer
    "fx_graph_cache": False,
    "fx_graph_remote_cache": False,
}
"""Options of Inductor that differ from its own."""

FOREIGN = ("/data/weights/", "/data/constants/", "/data/sample_inputs/", "/models/")
"""Parts of an archive that torch would read with Python's serializer; our packages do not have them."""

NEEDED = ("cuda.h", "cuda_runtime.h", "cuda_bf16.h", "crt/host_defines.h", "nv/target")
"""Headers of CUDA that are included, directly or by each other."""


def missing(device: torch.device) -> str | None:
    return None if device.type in ("cpu", "cuda") else f"AOTInductor is not supported on {device.type!r}"


def cannot_build(device: torch.device) -> str | None:
    if shutil.which("g++") is None and shutil.which("clang++") is None:
        return "it needs a C++ compiler to build: install g++"
    if device.type == "cuda" and (headers := missing_headers()):
        return (
            f"it needs headers of CUDA that are not here ({', '.join(headers)}): install a CUDA toolkit, or "
            "pip install nvidia-cuda-runtime nvidia-cuda-cccl nvidia-cuda-crt, of torch's version of CUDA"
        )
    return missing(device)


def build(program: ExportedProgram, path: Path, signature: Signature, freezing: bool) -> None:
    """Compile and write a package; everything else that compilers write goes into its folder."""
    from torch._inductor import aoti_compile_and_package
    from torch._inductor.utils import fresh_cache

    on_gpu = any(spec.device == "cuda" for spec in signature.tensors)
    toolkit = cuda_toolkit() if on_gpu else nullcontext()
    configs = {**OPTIONS, "freezing": freezing}
    with torch.no_grad(), fresh_cache(dir=str(path.parent)), quiet(), toolkit:
        aoti_compile_and_package(program, package_path=str(path), inductor_configs=configs)


def load(path: Path, device: torch.device, plain: Run) -> Run:
    """The compiled function; InputError if the package holds anything else, or torch cannot load it."""
    # `torch._inductor.aoti_load_package` calls this too, but first compiles small programs to examine the
    # processor, for seconds and in a folder with a predictable name; here the plan holds the processor
    from torch._C._aoti import AOTIModelPackageLoader

    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
        strange = [name for name in names if any(part in f"/{name}" for part in FOREIGN)]
        if strange or not any(name.endswith(".so") for name in names):
            found = (strange or names)[:3]
            raise InputError(f"{path} is no package of a compiled function (it holds {found})")
        index = -1 if device.index is None else device.index
        on_gpu = device.type == "cuda"
        unpacked = TemporaryDirectory(prefix="streamvos-engine-", ignore_cleanup_errors=True)
        with environment_variables(TMPDIR=unpacked.name):
            # one runner: more would have threads, which a CUDA graph cannot record
            compiled = AOTIModelPackageLoader(str(path), "model", on_gpu, 1, index)
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


def header_folders() -> list[Path]:
    """Folders with headers of CUDA: the toolkit's, then those of wheels."""
    from torch.utils import cpp_extension

    homes = [] if cpp_extension.CUDA_HOME is None else [Path(cpp_extension.CUDA_HOME)]
    for place in _places("nvidia"):
        homes += [*sorted(place.glob("cu[0-9]*"), reverse=True), place / "cuda_runtime", place / "cuda_cccl"]
    homes += [place / "backends" / "nvidia" for place in _places("triton")]
    return [home / "include" for home in homes if any((home / "include" / name).is_file() for name in NEEDED)]


def missing_headers() -> list[str]:
    """Those of `NEEDED` that are nowhere."""
    folders = header_folders()
    return [name for name in NEEDED if not any((folder / name).is_file() for folder in folders)]


def _places(package: str) -> list[Path]:
    found = importlib.util.find_spec(package)
    return [Path(place) for place in (found.submodule_search_locations or [])] if found is not None else []


def _loaded_driver() -> Path | None:
    """The file of the driver's library that this process uses; None before CUDA is used."""
    with suppress(OSError):
        for line in Path("/proc/self/maps").read_text().splitlines():
            path = Path(line.split(maxsplit=5)[-1])
            if path.name.startswith("libcuda.so"):
                return path
    return None


@contextmanager
def cuda_toolkit(driver: Path | None = None) -> Iterator[None]:
    """A region in which compilers find the headers and the driver of CUDA, where there is no toolkit too.

    The wheels of torch bring most headers (CUDA runtime, Triton); nvidia-cuda-cccl and nvidia-cuda-crt have
    the others. The driver's library, by default this process's, only lacks the name that linkers look for.
    """
    from torch.utils import cpp_extension

    driver, home, folders = driver or _loaded_driver(), cpp_extension.CUDA_HOME, header_folders()
    with TemporaryDirectory() as names:
        if driver is not None:
            for name in ("libcuda.so", "libcuda.so.1"):
                (Path(names) / name).symlink_to(driver)
        if folders:  # torch wants some value, and compilers look there first
            cpp_extension.CUDA_HOME = str(folders[0].parent)
        try:
            headers, libraries = _longer("CPATH", *folders), _longer("LIBRARY_PATH", names)
            with environment_variables(CPATH=headers, LIBRARY_PATH=libraries):
                yield
        finally:
            cpp_extension.CUDA_HOME = home


def _longer(variable: str, *paths: str | Path) -> str:
    # an empty path would mean the current folder
    return os.pathsep.join(str(path) for path in (os.environ.get(variable, ""), *paths) if str(path))
