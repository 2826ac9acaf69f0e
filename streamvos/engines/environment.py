"""What an engine depends on besides its network: the machine, and the versions of what compiled it.

    facts(torch.device("cpu"))["cpu"]       # 'AMD EPYC ..., AVX512, flags 3f2a...'

An engine that was built under other facts is never used.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import platform
from contextlib import suppress
from functools import lru_cache
from pathlib import Path

import torch

import streamvos.methods
import streamvos.nn

PACKAGES = ("torch", "triton", "torch-tensorrt", "tensorrt", "tensorrt-cu13")


@lru_cache
def facts(device: torch.device) -> dict[str, str]:
    """Name -> value, of all that decides whether compiled code still is what it was.

    Args:
        device: the engine is for.
    """
    known = {"machine": f"{platform.system()} {platform.machine()}", "device": device.type}
    known |= {package: _version(package) for package in PACKAGES}
    known["cpu"] = _processor()
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        known["gpu"] = f"{properties.name}, sm_{properties.major}{properties.minor}"
        known["cuda"] = str(torch.version.cuda)
        known["cudnn"] = str(torch.backends.cudnn.version())
    return known


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "absent"


def _processor() -> str:
    """Model, what torch makes of it, and a digest of its instructions."""
    lines = []
    with suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    fields = dict(line.split(":", 1) for line in lines if ":" in line)
    named = {key.strip(): value.strip() for key, value in fields.items()}
    flags = " ".join(sorted(named.get("flags", named.get("Features", "")).split()))
    model = named.get("model name") or platform.processor() or "unknown"
    digest = hashlib.sha256(flags.encode()).hexdigest()[:12]
    return f"{model}, {torch.backends.cpu.get_cpu_capability()}, flags {digest}"


@lru_cache
def source_digest() -> str:
    """Of the code that computes networks: the graph of a part follows from it, its options and its shapes."""
    digest = hashlib.sha256()
    for room in (streamvos.nn, streamvos.methods):
        folder = Path(room.__path__[0])
        for path in sorted(folder.rglob("*.py")):
            digest.update(str(path.relative_to(folder)).encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()
