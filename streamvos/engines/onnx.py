"""A part as an ONNX file, for programs that are not this one. No backend: nothing here reads it.

names = export_onnx(part, inputs, Path("tvos.onnx"))
names["outputs"]            # ['output_0', ...], in the order of the part's
"""

from __future__ import annotations

import logging
import os
from importlib.util import find_spec
from pathlib import Path

import torch

from streamvos.engines.exporting import PartModule, export, quiet
from streamvos.methods.parts import Part, Tensors
from streamvos.types import InputError, SinkError

PACKAGES = ("onnx", "onnxscript")


def export_onnx(part: Part, inputs: Tensors, path: Path) -> dict[str, list[str]]:
    """Write a part.

    Args:
        part: of a method, on the CPU.
        inputs: example; the shapes are fixed to theirs.
        path: of the file; its weights are inside. It appears when it is whole.

    Returns:
        "inputs" and "outputs": names in the file.

    Raises:
        InputError: packages are missing, or the part has an operation that ONNX lacks.
        SinkError: it cannot be written.
    """
    missing = [name for name in PACKAGES if find_spec(name) is None]
    if missing:
        raise InputError(
            f"exporting to ONNX needs {' and '.join(missing)}, not installed: pip install 'streamvos[onnx]'"
        )
    program = export(PartModule(part), inputs)
    names = {
        "inputs": [f"input_{k}" for k in range(len(inputs))],
        "outputs": [f"output_{k}" for k in range(len(program.graph_signature.user_outputs))],
    }
    temporary = path.with_name(f".{os.getpid()}.{path.name}")
    # it tells of packages that it does not find, whether they are needed or not
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
        raise InputError(
            f"{part.name} cannot be said in ONNX: {str(error).strip().splitlines()[0]}"
        ) from None
    finally:
        temporary.unlink(missing_ok=True)
    return names
