"""A part as an exported graph or an ONNX file, and private folders for what compilers leave behind.

program = export(part, inputs)
with compiler_folders(Path("work")): ...
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

from streamvos.engines.cache import EngineCache
from streamvos.engines.signature import Signature
from streamvos.methods.parts import Part, PlainPart, Tensors
from streamvos.types import InputError, SinkError

_one_at_a_time = threading.RLock()


def export(part: Part, inputs: Tensors, signature: Signature | None = None) -> torch.export.ExportedProgram:
    """The graph of a part.

    Args:
        part: of a method.
        inputs: examples; where the batch is to be free it is at least 2, since torch takes 1 for a constant.
        signature: says which batches the graph is for; None = that of the examples.

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
    """Hide what torch's compilers warn of about themselves."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        warnings.simplefilter("ignore", DeprecationWarning)
        yield


@contextmanager
def environment_variables(**values: str) -> Iterator[None]:
    """Set environment variables of this process; they are as before afterwards, and other threads wait."""
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


@contextmanager
def compiler_folders(inside: Path) -> Iterator[None]:
    """Let Inductor compile in a private folder instead of one in /tmp whose name anybody can guess.

    Precompiled headers and what it finds out about the processor stay in the cache of engines: they are ten
    seconds of every build.

    Args:
        inside: folder of this build; everything else is compiled there.
    """
    from torch._inductor import codecache
    from torch._inductor.cpu_vec_isa import pick_vec_isa
    from torch._inductor.utils import fresh_cache

    kept = EngineCache().subfolder("compiler")
    # Inductor has no option for the folder of its headers
    folders = {"_HEADER_DIR": kept / "headers", "_HEADER_LOCK_DIR": kept / "headers" / "locks"}
    before = {name: getattr(codecache, name) for name in folders}
    try:
        for name, path in folders.items():
            setattr(codecache, name, str(path))
        with environment_variables(TORCHINDUCTOR_CACHE_DIR=str(kept)):
            pick_vec_isa()  # the process remembers the answer
        with fresh_cache(dir=str(inside)):
            yield
    finally:
        for name, path in before.items():
            setattr(codecache, name, path)


def export_onnx(part: Part, inputs: Tensors, path: Path) -> dict[str, list[str]]:
    """Write a part as an ONNX file, for other programs; nothing here reads it.

    Args:
        part: of a method, on the CPU.
        inputs: examples; the shapes are fixed to theirs.
        path: of the file; its weights are inside. It appears when it is complete.

    Returns:
        "inputs" and "outputs": names in the file.

    Raises:
        InputError: packages are missing, or the part has an operation that ONNX lacks.
        SinkError: it cannot be written.
    """
    missing = [name for name in ("onnx", "onnxscript") if find_spec(name) is None]
    if missing:
        raise InputError(
            f"exporting to ONNX needs {' and '.join(missing)}, not installed: pip install 'streamvos[onnx]'"
        )
    program = export(part, inputs)
    names = {
        "inputs": [f"input_{k}" for k in range(len(inputs))],
        "outputs": [f"output_{k}" for k in range(len(program.graph_signature.user_outputs))],
    }
    temporary = path.with_name(f".{os.getpid()}.{path.name}")
    # it reports packages that it does not find, whether they are needed or not
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    try:
        with quiet():
            torch.onnx.export(
                program,
                (),
                str(temporary),
                input_names=names["inputs"],
                output_names=names["outputs"],
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
    return names
