"""The tensorrt backend: torch.export, torch_tensorrt.dynamo.compile, and a package that is loaded again.

    if missing(torch.device("cuda")) is None:
        build(program, Path("engine.pt2"), {"optimization_level": 4}, signature)

Written for the documented interface of torch-tensorrt 2.13 and never run: no machine with TensorRT was
available. Its engines are guarded like all others: by the manifest, by the check of every input, and by the
comparison with eager without which none is used (`streamvos.engines.gate`).

torch-tensorrt's own engine cache stays off: its key leaves out dilation and weights. Networks are strongly
typed: an engine computes in the dtypes of the exported graph, so autocast regions of a method are kept.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch.export import ExportedProgram

from streamvos.engines import aoti
from streamvos.engines.exporting import first_line
from streamvos.engines.signature import Signature
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
"""Options that a recipe may set; torch-tensorrt silently ignores others, so they are refused here."""


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
        raise InputError(
            f"torch-tensorrt cannot be used ({first_line(error)}); pip install 'streamvos[tensorrt]' on a "
            "machine with an NVIDIA GPU"
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


def build(program: ExportedProgram, path: Path, settings: Mapping[str, Any], signature: Signature) -> None:
    """Compile and write a package; `settings` are those of `KNOWN` that differ from `DEFAULTS`.

    Raises:
        InputError: an unknown option.
    """
    unknown = sorted(set(settings) - KNOWN)
    if unknown:
        raise InputError(f"unknown options for TensorRT: {unknown}; known: {sorted(KNOWN)}")
    package = torch_tensorrt()
    examples = list(program.example_inputs[0]) if program.example_inputs else []
    inputs = [
        _input(package, example, signature.most) if spec.is_any else example
        for example, spec in zip(examples, signature.tensors, strict=True)
    ]
    device = examples[0].device
    options = {**DEFAULTS, **settings, "timing_cache_path": str(path.with_name("timing.bin"))}
    compiled = package.dynamo.compile(program, arg_inputs=inputs, device=device, dryrun=False, **options)
    # exports the graph anew, with the symbolic batch that is in it
    package.save(compiled, str(path), output_format="aot_inductor", arg_inputs=examples)


def _input(package: ModuleType, example: torch.Tensor, most: int) -> Any:
    """The shapes of an input whose batch is 1 to `most`; TensorRT optimizes for that of the example."""
    rest, channels_last = example.shape[1:], torch.channels_last
    is_last = example.dim() == 4 and example.is_contiguous(memory_format=channels_last)
    return package.Input(
        min_shape=(1, *rest),
        opt_shape=tuple(example.shape),
        max_shape=(most, *rest),
        dtype=example.dtype,
        format=channels_last if is_last and not example.is_contiguous() else torch.contiguous_format,
    )


def load(path: Path, device: torch.device, plain: Run) -> Run:
    """The compiled function.

    Raises:
        InputError: torch-tensorrt or the package cannot be loaded.
    """
    torch_tensorrt()  # its import makes TensorRT's operators known to torch
    return aoti.load(path, device, plain)
