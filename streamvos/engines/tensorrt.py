"""The tensorrt backend: torch.export, torch_tensorrt.dynamo.compile, and a package that is loaded again.

    if missing(torch.device("cuda")) is None:
        build(program, Path("engine.pt2"), {"optimization_level": 4})

Written to the letter of torch-tensorrt 2.13 and never run: no machine with TensorRT was at hand. What guards
it is what guards every engine: its manifest, the check of every input, and a comparison with eager without
which it is not used (`streamvos.engines.parity`).

Its own engine cache stays off: its key leaves out dilation and weights. Networks are strongly typed: an
engine computes in the dtypes of the exported graph, so autocast regions of a method arrive as they are.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import nn

from streamvos.engines import aoti
from streamvos.methods.parts import Run
from streamvos.types import InputError

FILE = "engine.pt2"

DEFAULTS: dict[str, Any] = {
    "min_block_size": 5,
    "require_full_compilation": False,
    "hardware_compatible": False,
    "version_compatible": False,
    "immutable_weights": True,
    "use_fp32_acc": True,
    "cache_built_engines": False,
    "reuse_cached_engines": False,
}
"""Options of torch_tensorrt.dynamo.compile that are always given."""

KNOWN = {
    *DEFAULTS,
    "optimization_level",
    "workspace_size",
    "enable_autocast",
    "decompose_attention",
    "assume_dynamic_shape_support",
}
"""Options that a recipe may set; torch-tensorrt swallows others without a word, so they are refused here."""


def torch_tensorrt() -> ModuleType:
    """The package.

    Raises:
        InputError: it is not installed, or its libraries are missing, saying what and how to get it.
    """
    try:
        # without its libraries this prints to the standard output and raises a bare Exception
        with contextlib.redirect_stdout(io.StringIO()):
            import torch_tensorrt as package  # type: ignore[import-not-found]
    except Exception as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(
            f"torch-tensorrt cannot be used ({reason}); pip install 'streamvos[tensorrt]' on a machine with "
            f"an NVIDIA GPU"
        ) from None
    module: ModuleType = package
    return module


def missing(device: torch.device) -> str | None:
    """Why it cannot be used on this device; None if it can."""
    if device.type != "cuda":
        return f"TensorRT runs on NVIDIA GPUs only, not on {device.type!r}"
    try:
        torch_tensorrt()
    except InputError as error:
        return str(error)
    return None


cannot_build = missing


def build(program: torch.export.ExportedProgram, path: Path, settings: Mapping[str, Any]) -> None:
    """Compile and write a package.

    Args:
        program: of the part, on its GPU.
        path: of the package, ending in .pt2.
        settings: of `KNOWN`, those that differ from `DEFAULTS`.

    Raises:
        InputError: an unknown option.
    """
    unknown = sorted(set(settings) - KNOWN)
    if unknown:
        raise InputError(f"unknown options for TensorRT: {unknown}; known: {sorted(KNOWN)}")
    package = torch_tensorrt()
    inputs = list(program.example_inputs[0]) if program.example_inputs else []
    device = inputs[0].device
    options = {**DEFAULTS, **settings, "timing_cache_path": str(path.with_name("timing.bin"))}
    compiled = package.dynamo.compile(program, arg_inputs=inputs, device=device, dryrun=False, **options)
    package.save(compiled, str(path), output_format="aot_inductor", arg_inputs=inputs)


def load(path: Path, device: torch.device, module: nn.Module) -> Run:
    """The compiled function, without any check of what it is given.

    Args:
        path: of a package that is known to be ours.
        device: where it runs.
        module: of which it was made; not needed.

    Raises:
        InputError: torch-tensorrt or the package cannot be loaded.
    """
    torch_tensorrt()  # its import makes TensorRT's operators known to torch
    return aoti.load(path, device, module)
