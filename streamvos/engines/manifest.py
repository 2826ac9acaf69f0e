"""Plans and manifests: everything that decides what an engine computes, and how well it did.

    plan = plan_of(method, part, "aoti", signature, device)
    plan.digest                                 # the engine's name
    manifest = cache.find(plan.digest)
    manifest.parity.passed

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

FORMAT = 3
"""Raised whenever plans or manifests change their meaning."""

PACKAGES = ("torch", "triton", "torch-tensorrt", "tensorrt", "tensorrt-cu13")
"""Packages whose versions decide what is compiled."""

WORTHWHILE = 0.95
"""`auto` takes an engine that needs less than this share of eager's time; a smaller gain may be noise."""


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Plan(_Record):
    """What is compiled, and how.

    Attributes:
        options: of the method, as JSON.
        weights, source: digests of the part's tensors, and of the source of all networks.
        freezing, facts: see `Recipe` and `facts`.
    """

    method: str
    part: str
    options: dict[str, Any]
    weights: str
    source: str
    signature: Signature
    backend: str
    freezing: bool
    facts: dict[str, str]
    format: int = FORMAT

    @property
    def digest(self) -> str:
        """The name of the engine."""
        text = json.dumps(self.model_dump(mode="json"), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()


class Parity(_Record):
    """How an engine compares with eager.

    Attributes:
        feature_error: the largest relative error of an output: norm of the difference over the norm.
        mask_overlap: J between the masks with the engine and those without, mean over frames and objects.
        frames: length of the clip.
        reason: why the engine did not pass; empty if it did.
    """

    feature_error: float
    mask_overlap: float
    frames: int
    reason: str = ""

    @property
    def passed(self) -> bool:
        """Whether the engine may be used."""
        return not self.reason

    def __str__(self) -> str:
        numbers = (
            f"feature error {self.feature_error:.2g}, J with eager's masks {self.mask_overlap:.4f} "
            f"over {self.frames} frames"
        )
        return numbers if self.passed else f"REFUSED, {self.reason}: {numbers}"


class Manifest(_Record):
    """One engine.

    Attributes:
        name: digest of the plan.
        frames: (H, W) of the clip's frames.
        sha256: digest of the file, which is not stored if the engine was refused.
        parity: an engine that was refused is not built again.
        built_at: nanoseconds since 1970.
        milliseconds: per call, of "eager" and of "engine", measured in turns.
    """

    name: str
    plan: Plan
    frames: tuple[int, int]
    sha256: str
    parity: Parity
    built_at: int
    milliseconds: dict[str, float]

    @property
    def is_faster(self) -> bool:
        """Whether `auto` may take it: it passed and is faster than eager on this machine."""
        return self.parity.passed and self.share < WORTHWHILE

    @property
    def share(self) -> float:
        """Time of the engine over the time of eager."""
        return self.milliseconds["engine"] / self.milliseconds["eager"]

    @property
    def title(self) -> str:
        """Method, part, shape of the first input, size of the frames if that differs, backend."""
        shape = str(self.plan.signature).partition(" ")[0]
        size, backend = "x".join(str(side) for side in self.frames), self.plan.backend
        name = f"{self.plan.method}/{self.plan.part} {shape}"
        return f"{name} {backend}" if shape.endswith(size) else f"{name} of {size} {backend}"

    @property
    def stale(self) -> str:
        """Why the engine cannot be used on this machine any more; empty if it can."""
        theirs = self.plan.facts
        if theirs.get("device") == "cuda" and not torch.cuda.is_available():
            return "there is no NVIDIA GPU"
        ours = facts(torch.device(theirs.get("device", "cpu")))
        for name in sorted({*theirs, *ours}):
            if theirs.get(name) != ours.get(name):
                return f"{name} is now {ours.get(name)}, was {theirs.get(name)}"
        is_same = self.plan.format == FORMAT and self.plan.source == source_digest()
        return "" if is_same else "the networks' code has changed since"


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
    """The plan for an engine of a part of a method on a device.

    Args:
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
        freezing=recipe is None or recipe.freezing,
        facts=facts(device),
    )


def weight_digest(part: Part) -> str:
    """Digest of all parameters and buffers of a part, in any memory format."""
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
    for package in (streamvos.nn, streamvos.methods):
        folder = Path(package.__path__[0])
        for path in sorted(folder.rglob("*.py")):
            digest.update(str(path.relative_to(folder)).encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()


@lru_cache
def facts(device: torch.device) -> dict[str, str]:
    """Name -> value of everything about machine and packages that code compiled for a device depends on."""
    known = {"machine": f"{platform.system()} {platform.machine()}", "device": device.type}
    known |= dict.fromkeys(PACKAGES, "absent")
    for package in PACKAGES:
        with suppress(importlib.metadata.PackageNotFoundError):
            known[package] = importlib.metadata.version(package)
    known["cpu"] = _processor()
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        known["gpu"] = f"{properties.name}, sm_{properties.major}{properties.minor}"
        known["cuda"] = str(torch.version.cuda)
        known["cudnn"] = str(torch.backends.cudnn.version())
    return known


def _processor() -> str:
    """Architecture, torch's name for its capability, and a digest of model and instruction sets."""
    lines: set[str] = set()
    with suppress(OSError):  # Linux only
        lines = set(Path("/proc/cpuinfo").read_text().splitlines())
    described = sorted(line for line in lines if line.startswith(("model name", "flags", "Features")))
    digest = hashlib.sha256("\n".join(described).encode()).hexdigest()[:12]
    return f"{platform.processor()}, {torch.backends.cpu.get_cpu_capability()}, {digest}"
