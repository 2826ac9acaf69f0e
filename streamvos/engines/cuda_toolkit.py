"""What a C++ compiler needs of CUDA, found wherever it lies.

    with cuda_toolkit():
        ...                                     # AOTInductor compiles and links for a GPU

AOTInductor's wrapper includes headers of CUDA and is linked to the driver. torch looks for both beside
`nvcc`, and refuses where there is none. But nvcc is not needed, a script of that name leads astray, and where
torch came from wheels most of it is there without a toolkit: headers in the wheels of the CUDA runtime and of
Triton, and the driver's library, only without the name libcuda.so that linkers look for. The rest of the
headers is in two small wheels, nvidia-cuda-cccl and nvidia-cuda-crt.
"""

from __future__ import annotations

import importlib.util
import os
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from streamvos.engines.exporting import environment_variables

NEEDED = ("cuda.h", "cuda_runtime.h", "cuda_bf16.h", "crt/host_defines.h", "nv/target")
"""Headers that are included, directly or by each other."""

DRIVER = "libcuda.so.1"

TOOLKITS = Path("/usr/local")
"""Where toolkits are installed, as cuda or cuda-13.0."""


def header_folders() -> list[Path]:
    """Where headers of CUDA lie: the toolkits', then those of wheels."""
    from torch.utils import cpp_extension

    homes = [] if cpp_extension.CUDA_HOME is None else [Path(cpp_extension.CUDA_HOME)]
    homes += [TOOLKITS / "cuda", *sorted(TOOLKITS.glob("cuda-*"), reverse=True)]
    for place in _places("nvidia"):
        homes += [*sorted(place.glob("cu[0-9]*"), reverse=True), place / "cuda_runtime", place / "cuda_cccl"]
    homes += [place / "backends" / "nvidia" for place in _places("triton")]
    folders = dict.fromkeys(home / "include" for home in homes)
    return [folder for folder in folders if any((folder / name).is_file() for name in NEEDED)]


def missing_headers() -> list[str]:
    """Those of `NEEDED` that are nowhere."""
    folders = header_folders()
    return [name for name in NEEDED if not any((folder / name).is_file() for folder in folders)]


def _places(package: str) -> list[Path]:
    found = importlib.util.find_spec(package)
    return [Path(place) for place in (found.submodule_search_locations or [])] if found is not None else []


def loaded_driver() -> Path | None:
    """The file of the driver's library that this process uses; None before CUDA is used."""
    with suppress(OSError):
        for line in Path("/proc/self/maps").read_text().splitlines():
            path = Path(line.split(maxsplit=5)[-1])
            if path.name.startswith("libcuda.so"):
                return path
    return None


@contextmanager
def cuda_toolkit(driver: Path | None = None) -> Iterator[None]:
    """A region in which compilers that this process starts find headers and driver.

    It sets environment variables (CPATH, LIBRARY_PATH) and where torch looks for the toolkit; all are as
    they were afterwards.

    Args:
        driver: the driver's library; None = the one that this process uses, if any.
    """
    from torch.utils import cpp_extension

    driver, home, folders = driver or loaded_driver(), cpp_extension.CUDA_HOME, header_folders()
    with tempfile.TemporaryDirectory() as names:
        if driver is not None:
            for name in ("libcuda.so", DRIVER):
                (Path(names) / name).symlink_to(driver)
        longer = {
            "CPATH": _appended("CPATH", map(str, folders)),
            "LIBRARY_PATH": _appended("LIBRARY_PATH", [names]),
        }
        if folders:  # it must have some value, and be no place with other headers
            cpp_extension.CUDA_HOME = str(folders[0].parent)
        try:
            with environment_variables(**longer):
                yield
        finally:
            cpp_extension.CUDA_HOME = home


def _appended(name: str, paths: Iterable[str]) -> str:
    """A variable with more paths; an empty part of it would mean the current folder."""
    return os.pathsep.join(part for part in (os.environ.get(name, ""), *paths) if part)
