"""`streamvos doctor`: what this machine offers, what is missing, and how to get it.

streamvos doctor --json
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import importlib.util
import os
import platform
import shutil
import sysconfig
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import typer
from rich.table import Table
from rich.text import Text

import streamvos
from streamvos.cli.options import JsonTarget, examples
from streamvos.cli.output import show
from streamvos.types import InputError, StreamvosError
from streamvos.weights import BUNDLED, bundled_path, read_checkpoint

if TYPE_CHECKING:
    import torch

EXAMPLES = examples("streamvos doctor", "streamvos doctor --json report.json")

REINSTALL = "reinstall streamvos: make install, or pip install --force-reinstall ."

Verdict = Literal["ok", "optional", "missing"]


@dataclass(frozen=True)
class Finding:
    """One line of the report.

    Attributes:
        name: what was looked for.
        verdict: "ok"; "optional" if it is absent and streamvos works without it; "missing" if it does not.
        found: version, device or reason.
        advice: how to get it; empty where it is there.
    """

    name: str
    verdict: Verdict
    found: str
    advice: str = ""


def doctor(json_target: JsonTarget = None) -> None:
    """Say what this machine offers, what is missing, and how to get it.

    Exit code 1 if something is missing that streamvos cannot work without.
    """
    findings = examine()
    values = {"version": streamvos.__version__, "findings": [asdict(one) for one in findings]}
    show(values, json_target, as_table(findings))
    if any(one.verdict == "missing" for one in findings):
        raise typer.Exit(1)


def examine() -> list[Finding]:
    """Look at everything; a check that fails is a finding, not an error."""
    checks: list[Callable[[], Finding]] = [
        _python,
        _processor,
        _torch,
        _cuda,
        _kernels,
        _tensorrt,
        _compiler,
        _engines,
        _zeromq,
        _opencv,
        _ffmpeg,
        _cameras,
        *[lambda method=method: _weights(method) for method in BUNDLED],
    ]
    findings = []
    for check in checks:
        try:
            findings.append(check())
        except Exception as error:  # whatever a broken installation raises belongs in the report
            name = getattr(check, "__name__", "check").strip("_")
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            findings.append(Finding(name, "missing", reason, REINSTALL))
    return findings


def as_table(findings: list[Finding]) -> Table:
    """The report for people."""
    table = Table(title=f"streamvos {streamvos.__version__}")
    for column in ("", "", "found", "how to get it"):
        table.add_column(column, overflow="fold")
    signs = {"ok": ("ok", "green"), "optional": ("absent", "yellow"), "missing": ("MISSING", "red")}
    for one in findings:
        table.add_row(one.name, Text(*signs[one.verdict]), one.found, one.advice)
    return table


def _python() -> Finding:
    return Finding("Python", "ok", f"{platform.python_version()} on {platform.platform()}")


def _processor() -> Finding:
    import torch

    known = torch.backends.cpu.get_cpu_capability()
    flags = ""
    with contextlib.suppress(OSError):
        flags = Path("/proc/cpuinfo").read_text()
    half = "with" if "avx512_bf16" in flags or "amx_bf16" in flags else "without"
    return Finding("processor", "ok", f"{os.cpu_count()} cores, {known}, {half} bfloat16 instructions")


def _torch() -> Finding:
    import torch

    return Finding("torch", "ok", f"{torch.__version__}, {torch.get_num_threads()} threads")


def _cuda() -> Finding:
    import torch

    if not torch.cuda.is_available():
        built = torch.version.cuda
        why = f"torch is built for CUDA {built} but finds no GPU" if built else "torch is a CPU build"
        advice = "an NVIDIA GPU with its driver, and torch from https://pytorch.org/get-started"
        return Finding("CUDA", "optional", why, advice)
    names = [torch.cuda.get_device_name(k) for k in range(torch.cuda.device_count())]
    return Finding("CUDA", "ok", f"{torch.version.cuda}: {', '.join(names)}")


def _kernels() -> Finding:
    """Triton compiles a small library for Python before the first kernel runs."""
    from streamvos.nn.kernels.choice import why_not

    name, slower = "GPU kernels", "without them torch's own operations do the work, more slowly"
    reason = why_not("cuda")
    if reason is not None:
        return Finding(name, "optional", reason, f"pip install triton; {slower}")
    if not (os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang")):
        return Finding(name, "optional", "triton has no C compiler", f"apt-get install gcc; {slower}")
    header = Path(sysconfig.get_paths()["include"], "Python.h")
    if not header.is_file():
        return Finding(name, "optional", f"{header} is missing", f"apt-get install python3-dev; {slower}")
    return Finding(name, "ok", f"triton {importlib.metadata.version('triton')}, C compiler and Python.h")


def _tensorrt() -> Finding:
    advice = "pip install 'streamvos[tensorrt]' on a machine with an NVIDIA GPU"
    if importlib.util.find_spec("torch_tensorrt") is None:
        return Finding("TensorRT", "optional", "torch-tensorrt is not installed", advice)
    from streamvos.engines.tensorrt import torch_tensorrt

    try:
        package = torch_tensorrt()
    except InputError as error:
        return Finding("TensorRT", "optional", str(error), advice)
    return Finding("TensorRT", "ok", f"torch-tensorrt {package.__version__}")


def _compiler() -> Finding:
    from streamvos.engines.aoti import cannot_build

    reason = cannot_build(torch_device())
    if reason is not None:
        return Finding("engines' compiler", "optional", reason, "apt-get install g++")
    found = next(name for name in ("g++", "clang++") if shutil.which(name))
    return Finding("engines' compiler", "ok", f"{found}: `streamvos engines build` can compile networks")


def _engines() -> Finding:
    from streamvos.engines.cache import EngineCache

    cache = EngineCache()
    problem = cache.problem()
    if problem is not None:
        return Finding(
            "engines", "optional", problem, "make the folder yours alone, or set STREAMVOS_ENGINES"
        )
    count = sum(one.artefact is not None for one in cache.manifests())
    return Finding("engines", "ok", f"{count} compiled networks in {cache.folder}")


def torch_device() -> torch.device:
    """What `--device auto` is here."""
    from streamvos.engines.eager import choose_device

    return choose_device("auto")


def _zeromq() -> Finding:
    import zmq

    return Finding("ZeroMQ", "ok", f"{zmq.zmq_version()}, pyzmq {zmq.__version__}")


def _opencv() -> Finding:
    import cv2

    backends = cv2.videoio_registry.getCameraBackends()
    names = [cv2.videoio_registry.getBackendName(one) for one in backends]
    return Finding("OpenCV", "ok", f"{cv2.__version__}, cameras through {', '.join(names) or 'nothing'}")


def _ffmpeg() -> Finding:
    import av

    encoder = "libx264" if "libx264" in av.codecs_available else "no H.264 encoder"
    versions = ".".join(str(part) for part in av.library_versions["libavcodec"])
    found = f"libavcodec {versions} in PyAV {importlib.metadata.version('av')}, {encoder}"
    if encoder != "libx264":
        return Finding("FFmpeg", "missing", found, "pip install --force-reinstall av")
    return Finding("FFmpeg", "ok", found)


def _cameras() -> Finding:
    devices = sorted(str(path) for path in Path("/dev").glob("video*"))
    if not devices:
        advice = "plug one in; a file can play its part: camera:clip.mp4"
        return Finding("cameras", "optional", "no /dev/video*", advice)
    return Finding("cameras", "ok", ", ".join(devices))


def _weights(method: str) -> Finding:
    try:
        path = bundled_path(method)
        read_checkpoint(path)
    except StreamvosError as error:
        return Finding(f"weights of {method}", "missing", str(error), REINSTALL)
    return Finding(f"weights of {method}", "ok", f"{path.name}, {path.stat().st_size / 2**20:.1f} MiB")
