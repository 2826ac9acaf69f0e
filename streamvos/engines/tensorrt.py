"""The tensorrt backend: torch.export, torch_tensorrt.dynamo.compile, and a package that is loaded again.

    build(program, Path("engine.pt2"), signature, freezing=True)

Written for the documented interface of torch-tensorrt 2.13 and never run: no machine with TensorRT was
available. torch-tensorrt's own engine cache stays off: its key leaves out dilation and weights. Networks are
strongly typed: an engine computes in the dtypes of the exported graph, so autocast regions are kept.
"""

from __future__ import annotations

import contextlib
import io
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

OPTIONS: dict[str, Any] = {
    "optimization_level": 4,
    "use_fp32_acc": True,
    "cache_built_engines": False,
    "reuse_cached_engines": False,
}
"""Options of torch_tensorrt.dynamo.compile that differ from its own."""


def torch_tensorrt() -> ModuleType:
    """The package.

    Raises:
        InputError: it is not installed, or its libraries are missing.
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
    if device.type != "cuda":
        return f"TensorRT runs on NVIDIA GPUs only, not on {device.type!r}"
    try:
        torch_tensorrt()
    except InputError as error:
        return str(error)
    return None


cannot_build = missing


def build(program: ExportedProgram, path: Path, signature: Signature, freezing: bool) -> None:
    """Compile and write a package."""
    package = torch_tensorrt()
    examples = list(program.example_inputs[0]) if program.example_inputs else []
    inputs = [
        _profile(package, example, signature.most) if spec.is_any else example
        for example, spec in zip(examples, signature.tensors, strict=True)
    ]
    device = examples[0].device
    options = {**OPTIONS, "timing_cache_path": str(path.with_name("timing.bin"))}
    compiled = package.dynamo.compile(program, arg_inputs=inputs, device=device, dryrun=False, **options)
    # exports the graph anew, with the symbolic batch that is in it
    package.save(compiled, str(path), output_format="aot_inductor", arg_inputs=examples)


def _profile(package: ModuleType, example: torch.Tensor, most: int) -> Any:
    """An input with batches of 1 to `most`; TensorRT optimizes for that of the example."""
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
    torch_tensorrt()  # its import makes TensorRT's operators known to torch
    return aoti.load(path, device, plain)
