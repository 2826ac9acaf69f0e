"""The plan of an engine: everything that decides what it computes. Its digest is the engine's name.

    plan = plan_of(method, part, "aoti", signature, device)
    plan.digest

The plan is known without tracing anything, so that a starting stream finds its engine at once: weights,
inputs, options, versions, machine, and the source of every network, from which the graph follows.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import platform
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict

import streamvos.methods
import streamvos.nn
from streamvos.engines.recipes import Recipe, recipe_for
from streamvos.engines.signature import Signature
from streamvos.methods import METHODS, Method
from streamvos.methods.parts import Part, PlainPart

FORMAT = 2
"""Raised whenever plans or manifests change their meaning."""

PACKAGES = ("torch", "triton", "torch-tensorrt", "tensorrt", "tensorrt-cu13")
"""Packages whose versions decide what is compiled."""


class Plan(BaseModel):
    """What is to be compiled, and how.

    Attributes:
        method, part: names.
        options: of the method, as JSON.
        weights: digest of the part's tensors.
        source: digest of the networks' source.
        signature: what the engine is called with.
        backend: name.
        settings: options of the backend that the recipe sets.
        facts: see `facts`.
        format: see `FORMAT`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    method: str
    part: str
    options: dict[str, Any]
    weights: str
    source: str
    signature: Signature
    backend: str
    settings: dict[str, Any]
    facts: dict[str, str]
    format: int = FORMAT

    @property
    def digest(self) -> str:
        """The name of the engine."""
        text = json.dumps(self.model_dump(mode="json"), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()


def is_ours(method: Method) -> bool:
    """Whether the source of a method's networks is this package's, so that `source_digest` covers it."""
    return any(type(method) is entry.method for entry in METHODS.values())


def plan_of(
    method: Method,
    part: Part,
    backend: str,
    signature: Signature,
    device: torch.device,
    recipe: Recipe | None = None,
    weights: str | None = None,
) -> Plan:
    """The plan for a part of a method.

    Args:
        method: one of `METHODS`.
        part: one of its parts.
        backend: name of the backend.
        signature: what the engine is called with.
        device: where the engine runs.
        recipe: None = the recipe in the package for this part.
        weights: `weight_digest` of the part, where it is known already.
    """
    recipe = recipe or recipe_for(method.name, part.name)
    return Plan(
        method=method.name,
        part=part.name,
        options=method.options.model_dump(mode="json"),
        weights=weights or weight_digest(part),
        source=source_digest(),
        signature=signature,
        backend=backend,
        settings={} if recipe is None else recipe.settings(backend),
        facts=facts(device),
    )


def weight_digest(part: Part) -> str:
    """Digest of all parameters and buffers of a part, in whichever memory format they are."""
    module, digest = PlainPart(part), hashlib.sha256()
    for name, tensor in sorted({**dict(module.named_parameters()), **dict(module.named_buffers())}.items()):
        value = tensor.detach().cpu().contiguous()
        digest.update(f"{name} {tuple(value.shape)} {value.dtype}\n".encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


@lru_cache
def source_digest() -> str:
    """Digest of the source of all networks: a part's graph follows from it, the options and the shapes."""
    digest = hashlib.sha256()
    for room in (streamvos.nn, streamvos.methods):
        folder = Path(room.__path__[0])
        for path in sorted(folder.rglob("*.py")):
            digest.update(str(path.relative_to(folder)).encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()


@lru_cache
def facts(device: torch.device) -> dict[str, str]:
    """Name -> value of everything about machine and packages that compiled code depends on.

    Args:
        device: where the engine runs.
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
    """Model, torch's name for its capability, and a digest of its instruction sets."""
    lines = []
    with suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    fields = dict(line.split(":", 1) for line in lines if ":" in line)
    named = {key.strip(): value.strip() for key, value in fields.items()}
    flags = " ".join(sorted(named.get("flags", named.get("Features", "")).split()))
    model = named.get("model name") or platform.processor() or "unknown"
    digest = hashlib.sha256(flags.encode()).hexdigest()[:12]
    return f"{model}, {torch.backends.cpu.get_cpu_capability()}, flags {digest}"
