"""The inductor backend: torch.compile, in the process that uses it.

    build(program, Path("engine.json"), {})
    run = load(Path("engine.json"), torch.device("cpu"), module)

What it compiles cannot be kept: torch would store it in the format of Python's serializer, and nothing of
that kind is ever read here. The file of such an engine holds its options only. It says that these were built
and compared once; every process compiles again when it first sees frames of a size, which takes as long as
building did. `backend="auto"` leaves it out for that reason; it is here to be compared with, and for those
who follow one long video.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from streamvos.engines.aoti import missing as missing
from streamvos.engines.aoti import no_compiler
from streamvos.engines.exporting import export, private_folder, quiet
from streamvos.methods.parts import Run
from streamvos.types import InputError

FILE = "engine.json"

DEFAULTS: dict[str, Any] = {"freezing": True, "cpp.dynamic_threads": True}
"""As for `streamvos.engines.aoti`."""

Plain = bool | int | float | str


def cannot_build(device: torch.device) -> str | None:
    """Why it cannot build here; None if it can."""
    return no_compiler() or missing(device)


def build(program: torch.export.ExportedProgram, path: Path, settings: Mapping[str, Any]) -> None:
    """Write down how to compile.

    Args:
        program: of the part.
        path: of the file.
        settings: options of Inductor that differ from `DEFAULTS`.
    """
    path.write_text(json.dumps({**DEFAULTS, **settings}))


def load(path: Path, device: torch.device, module: nn.Module) -> Run:
    """Compiled when it is first called, without any check of what it is given.

    Args:
        path: as `build` wrote it.
        device: where it runs.
        module: of which it was made; tensors -> tuple of tensors.

    Raises:
        InputError: the file is damaged.
    """
    try:
        options = json.loads(path.read_text())
        if not all(isinstance(value, Plain) for value in options.values()):
            raise ValueError("options are numbers, texts, true or false")
    except (OSError, ValueError, AttributeError) as error:
        raise InputError(f"{path} is no engine of the inductor backend: {error}") from None
    options |= {"fx_graph_cache": False, "fx_graph_remote_cache": False}
    programs: dict[tuple[bool, ...], Run] = {}

    def run(*tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        # torch would compile again, somewhere else, for tensors that were made in the other mode
        modes = tuple(tensor.is_inference() for tensor in tensors)
        if modes in programs:
            return tuple(programs[modes](*tensors))
        # exported first: a graph of tensors, in which nothing of Python is left to guard
        plain = export(module, tensors).module()
        compiled = torch.compile(plain, dynamic=False, options=options)
        with private_folder(), quiet():
            outputs = tuple(compiled(*tensors))
        programs[modes] = compiled
        return outputs

    return run
