"""A part as an exported graph or an ONNX file.

program = export(part, inputs)
export_onnx(part, inputs, Path("part.onnx"))
"""

from __future__ import annotations

import logging
import os
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

import torch
from torch.export import Dim

from streamvos.engines.signature import Signature
from streamvos.methods.parts import Part, PlainPart, Tensors
from streamvos.types import InputError, SinkError

_one_at_a_time = threading.RLock()


def export(part: Part, inputs: Tensors, signature: Signature | None = None) -> torch.export.ExportedProgram:
    """The graph of a part.

    Args:
        inputs: examples; at least 2 rows for a free batch, since torch takes 1 for a constant.
        signature: the batches that the graph is for; None = that of the examples.

    Raises:
        InputError: it cannot be traced, saying where.
    """
    shapes = None
    if signature is not None and signature.most:
        batch = Dim("batch", min=1, max=signature.most)
        shapes = (tuple({0: batch} if spec.is_any else None for spec in signature.tensors),)
    # tensors made in inference mode cannot be traced; a copy outside of it can, and keeps its strides
    try:
        with torch.inference_mode(False), torch.no_grad(), quiet():
            plain = tuple(copied(tensor) for tensor in inputs)
            return torch.export.export(PlainPart(part), plain, strict=False, dynamic_shapes=shapes)
    except Exception as error:  # whatever tracing raises: the part is no graph of tensors
        raise InputError(f"the part cannot be exported: {first_line(error)}") from error


def copied(tensor: torch.Tensor) -> torch.Tensor:
    """A copy with the same strides, also where they leave gaps, which `clone` closes."""
    same = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device=tensor.device)
    return same.copy_(tensor)


def first_line(error: BaseException) -> str:
    """The first line of a compiler's error."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


@contextmanager
def quiet() -> Iterator[None]:
    """Hide the warnings of torch's compilers about themselves."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        warnings.simplefilter("ignore", DeprecationWarning)
        yield


@contextmanager
def environment_variables(**values: str) -> Iterator[None]:
    """Set environment variables of this process and restore them afterwards; other threads wait."""
    with _one_at_a_time:
        before = {name: os.environ.get(name) for name in values}
        try:
            os.environ.update(values)
            yield
        finally:
            for name, value in before.items():
                os.environ.pop(name, None)
                if value is not None:
                    os.environ[name] = value


def export_onnx(part: Part, inputs: Tensors, path: Path) -> None:
    """Write a part on the CPU as an ONNX file with its weights inside: input_0, ... to output_0, ...

    The file is for the shapes of the example inputs, and appears when it is complete.

    Raises:
        InputError: packages are missing, or the part has an operation that ONNX lacks.
        SinkError: the file cannot be written.
    """
    missing = [name for name in ("onnx", "onnxscript") if find_spec(name) is None]
    if missing:
        raise InputError(
            f"exporting to ONNX needs {' and '.join(missing)}, not installed: pip install 'streamvos[onnx]'"
        )
    program = export(part, inputs)
    outputs = len(program.graph_signature.user_outputs)
    temporary = path.with_name(f".{os.getpid()}.{path.name}")
    # it reports packages that it does not find, whether they are needed or not
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    try:
        with quiet():
            torch.onnx.export(
                program,
                (),
                str(temporary),
                input_names=[f"input_{k}" for k in range(len(inputs))],
                output_names=[f"output_{k}" for k in range(outputs)],
                external_data=False,
                dynamo=True,
                verbose=False,
            )
        os.replace(temporary, path)
    except OSError as error:
        raise SinkError(f"cannot write {path}: {error.strerror}; choose another place") from None
    except torch.onnx.OnnxExporterError as error:
        raise InputError(f"{part.name} cannot be written as ONNX: {first_line(error)}") from None
    finally:
        temporary.unlink(missing_ok=True)
