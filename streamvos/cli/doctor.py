"""`streamvos doctor`: what this machine has, what is missing, and how to get it.

streamvos doctor --json
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import platform
import shutil
import sysconfig
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
import typer
from rich.table import Table
from rich.text import Text

import streamvos
from streamvos.cli.options import JsonTarget, examples
from streamvos.cli.output import show
from streamvos.types import InputError
from streamvos.weights import BUNDLED, backbone_path, bundled_path, read_checkpoint

EXAMPLES = examples("streamvos doctor", "streamvos doctor --json report.json")

REINSTALL = "reinstall streamvos: make install, or pip install --force-reinstall ."


@dataclass(frozen=True)
class Absent:
    """Something that is missing or cannot be used, why, and how to get it."""

    reason: str
    advice: str
    verdict: str = "optional"  # or "missing": streamvos does not work without it


def doctor(json_target: JsonTarget = None) -> None:
    """Show what this machine has, what is missing, and how to get it.

    Exit code 1 if something is missing that streamvos cannot work without.
    """
    findings = [examine(name, check) for name, check in CHECKS.items()]
    table = Table(title=f"streamvos {streamvos.__version__}")
    for column in ("", "", "found", "how to get it"):
        table.add_column(column, overflow="fold")
    signs = {"ok": ("ok", "green"), "optional": ("absent", "yellow"), "missing": ("MISSING", "red")}
    for one in findings:
        table.add_row(one["name"], Text(*signs[one["verdict"]]), one["found"], one["advice"])
    show({"version": streamvos.__version__, "findings": findings}, json_target, table)
    if any(one["verdict"] == "missing" for one in findings):
        raise typer.Exit(1)


def examine(name: str, check: Callable[[], str | Absent]) -> dict[str, str]:
    """One line of the report. A check that raises is a finding, not an error."""
    try:
        found = check()
    except Exception as error:  # whatever a broken installation raises
        found = Absent((str(error) or type(error).__name__).splitlines()[0], REINSTALL, "missing")
    if isinstance(found, Absent):
        return {"name": name, "verdict": found.verdict, "found": found.reason, "advice": found.advice}
    return {"name": name, "verdict": "ok", "found": found, "advice": ""}


def _processor() -> str:
    flags = ""
    with contextlib.suppress(OSError):
        flags = Path("/proc/cpuinfo").read_text()
    half = "with" if "avx512_bf16" in flags or "amx_bf16" in flags else "without"
    known = torch.backends.cpu.get_cpu_capability()
    return f"{os.cpu_count()} cores, {known}, {half} bfloat16 instructions"


def _torch() -> str:
    return f"{torch.__version__}, {torch.get_num_threads()} threads"


def _cuda() -> str | Absent:
    built = torch.version.cuda
    if not torch.cuda.is_available():
        reason = f"torch is built for CUDA {built} but finds no GPU" if built else "torch is a CPU build"
        return Absent(reason, "an NVIDIA GPU with its driver, and torch from https://pytorch.org/get-started")
    names = [torch.cuda.get_device_name(k) for k in range(torch.cuda.device_count())]
    return f"{built}: {', '.join(names)}"


def _kernels() -> str | Absent:
    from streamvos.nn.kernels.choice import why_not

    slower = "without it torch's own operations are used, which are slower"
    reason = why_not("cuda")
    if reason is not None:
        return Absent(reason, f"pip install triton; {slower}")
    if not (os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang")):
        return Absent("triton has no C compiler", f"apt-get install gcc; {slower}")
    header = Path(sysconfig.get_paths()["include"], "Python.h")  # Triton compiles an extension module
    if not header.is_file():
        return Absent(f"{header} is missing", f"apt-get install python3-dev; {slower}")
    return f"triton {importlib.metadata.version('triton')}, C compiler and Python.h"


def _tensorrt() -> str | Absent:
    from streamvos.engines.tensorrt import torch_tensorrt

    try:
        return f"torch-tensorrt {torch_tensorrt().__version__}"
    except InputError as error:
        reason, _, advice = str(error).partition("; ")
        return Absent(reason, advice)


def _compiler() -> str | Absent:
    from streamvos.engines.aoti import cannot_build
    from streamvos.engines.eager import choose_device

    reason = cannot_build(choose_device("auto"))
    if reason is not None:
        return Absent(reason, "apt-get install g++")
    return f"{'g++' if shutil.which('g++') else 'clang++'}: `streamvos engines build` can compile networks"


def _engines() -> str | Absent:
    from streamvos.engines.cache import EngineCache

    cache = EngineCache()
    problem = cache.problem()
    if problem is not None:
        return Absent(problem, "make the folder writable by you alone, or set STREAMVOS_ENGINES")
    count = sum(one.parity.passed for one in cache.manifests())
    return f"{count} compiled networks in {cache.folder}"


def _zeromq() -> str:
    import zmq

    return f"{zmq.zmq_version()}, pyzmq {zmq.__version__}"


def _opencv() -> str:
    import cv2

    backends = cv2.videoio_registry.getCameraBackends()
    names = [cv2.videoio_registry.getBackendName(one) for one in backends]
    return f"{cv2.__version__}, cameras through {', '.join(names) or 'nothing'}"


def _ffmpeg() -> str | Absent:
    import av

    version = ".".join(map(str, av.library_versions["libavcodec"]))
    found = f"libavcodec {version} in PyAV {av.__version__}"
    if "libx264" not in av.codecs_available:
        return Absent(f"{found}, no H.264 encoder", "pip install --force-reinstall av", "missing")
    return f"{found}, libx264"


def _cameras() -> str | Absent:
    devices = sorted(str(path) for path in Path("/dev").glob("video*"))
    advice = "plug one in, or use a video file as one: camera:clip.mp4"
    return ", ".join(devices) or Absent("no /dev/video*", advice)


def _weights(path: Path) -> str:
    read_checkpoint(path)
    return f"{path.name}, {path.stat().st_size / 2**20:.1f} MiB"


CHECKS: dict[str, Callable[[], str | Absent]] = {
    "Python": lambda: f"{platform.python_version()} on {platform.platform()}",
    "processor": _processor,
    "torch": _torch,
    "CUDA": _cuda,
    "GPU kernels": _kernels,
    "TensorRT": _tensorrt,
    "engines' compiler": _compiler,
    "engines": _engines,
    "ZeroMQ": _zeromq,
    "OpenCV": _opencv,
    "FFmpeg": _ffmpeg,
    "cameras": _cameras,
    "shared backbone": partial(_weights, backbone_path()),
    **{f"weights of {method}": partial(_weights, bundled_path(method)) for method in BUNDLED},
}
