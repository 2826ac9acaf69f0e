"""A part as an exported graph, and a place of its own for what a compiler leaves behind.

program = export(part, inputs, "method")
with private_folder(): ...
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import nn

from streamvos.engines.cache import EngineCache
from streamvos.engines.variables import environment_variables
from streamvos.methods.parts import Part, PlainPart, Tensors
from streamvos.types import InputError


class PartModule(PlainPart):
    """A part as a recipe wants it computed.

    Args:
        part: of a method.
        precision: "method", or a dtype to autocast to around it: "bfloat16" or "float16".
    """

    def __init__(self, part: Part, precision: str = "method"):
        super().__init__(part)
        self._dtype: torch.dtype | None = None if precision == "method" else getattr(torch, precision)

    def forward(self, *tensors: torch.Tensor) -> Tensors:
        """As the part; outputs have the dtypes of the part's own."""
        if self._dtype is None:
            return super().forward(*tensors)
        with torch.autocast(tensors[0].device.type, self._dtype):
            outputs = super().forward(*tensors)
        return tuple(value.to(tensors[0].dtype) for value in outputs)


def export(module: nn.Module, inputs: Tensors) -> torch.export.ExportedProgram:
    """The graph of a part, its shapes fixed to those of the inputs.

    Raises:
        InputError: it cannot be traced, saying where.
    """
    # tensors made in inference mode cannot be traced; a clone outside of it can, and keeps its strides
    try:
        with torch.inference_mode(False), torch.no_grad(), quiet():
            plain = tuple(_copied(tensor) for tensor in inputs)
            return torch.export.export(module, plain, strict=False)
    except Exception as error:  # whatever tracing raises: the part is no graph of tensors
        raise InputError(f"the part cannot be exported: {first_line(error)}") from error


def first_line(error: BaseException) -> str:
    """What a compiler's error says, without all that follows."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


@contextmanager
def quiet() -> Iterator[None]:
    """Without what torch's compilers warn of about themselves."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        warnings.simplefilter("ignore", DeprecationWarning)
        yield


def _copied(tensor: torch.Tensor) -> torch.Tensor:
    same = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device=tensor.device)
    return same.copy_(tensor)


@contextmanager
def private_folder(inside: Path | None = None) -> Iterator[None]:
    """Inductor compiles in a new folder instead of one in /tmp whose name anybody can guess.

    Headers that it compiles once for all, and what it tries out of the processor, stay in the cache of
    engines: they are ten seconds of every build.

    Args:
        inside: where to make it; None = the system's temporary folder. It is removed afterwards.
    """
    from torch._inductor.cpu_vec_isa import pick_vec_isa
    from torch._inductor.utils import fresh_cache

    with _kept() as kept, _headers_in(kept / "headers"):
        with environment_variables(TORCHINDUCTOR_CACHE_DIR=str(kept)):
            pick_vec_isa()  # the process remembers
        with fresh_cache(dir=None if inside is None else str(inside)):
            yield


@contextmanager
def _kept() -> Iterator[Path]:
    """A folder of the cache, or, if there can be none, one that is gone afterwards."""
    from torch._inductor.codecache import _precompile_header as headers

    try:
        folder = EngineCache().compiler()
    except (InputError, OSError):
        with TemporaryDirectory(prefix="streamvos-compiler-") as name:
            try:
                yield Path(name)
            finally:
                headers.cache_clear()  # the process would remember where they were
    else:
        yield folder


@contextmanager
def _headers_in(folder: Path) -> Iterator[None]:
    """Inductor keeps them in its own folder in /tmp, whatever its cache is, and has no option for it."""
    from torch._inductor import codecache

    folders = {"_HEADER_DIR": folder, "_HEADER_LOCK_DIR": folder / "locks"}
    before = {name: getattr(codecache, name) for name in folders}
    try:
        for name, path in folders.items():
            setattr(codecache, name, str(path))
        yield
    finally:
        for name, path in before.items():
            setattr(codecache, name, path)
