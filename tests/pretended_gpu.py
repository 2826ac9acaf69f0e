"""A GPU that is not there: code for GPUs runs, shapes and devices are right, values do not exist.

    method, state = to_gpu(method, state)
    with Crossings() as crossings:
        ...                                            # tensors lie on torch's "meta" device
    assert crossings.waits == []

Where the host reads a value, it gets a made-up one, and the line that asked is written down.
"""

from __future__ import annotations

import copy
import sys
from pathlib import Path
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

import streamvos

PACKAGE = Path(streamvos.__file__).parent
GPU = torch.device("meta")

READS = {"_local_scalar_dense", "equal", "is_nonzero"}
COUNTS = {"nonzero", "masked_select", "_unique", "_unique2", "unique_dim", "unique_consecutive", "bincount"}
"""Operations whose answer has a shape that depends on values."""
MAKERS = {"tensor", "as_tensor", "new_tensor", "asarray"}


def to_gpu(*things: Any) -> tuple[Any, ...]:
    """Copies of objects, with every tensor in them on the pretended GPU; what they share they share on."""
    with _Copying():
        copies = copy.deepcopy(things)
    for thing in copies:
        if isinstance(thing, torch.nn.Module):
            thing.to(GPU)
    return copies


class _Copying(TorchFunctionMode):
    """Tensors that are copied deeply become ones of the same kind on the pretended GPU."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function is not torch.Tensor.__deepcopy__:
            return function(*args, **(kwargs or {}))
        tensor, memo = args
        if id(tensor) not in memo:
            memo[id(tensor)] = torch.empty_strided(
                tensor.size(), tensor.stride(), dtype=tensor.dtype, device=GPU
            )
        return memo[id(tensor)]


class Crossings:
    """Writes down what crosses between host and device, as (operation, line of the package).

    Attributes:
        waits: the host waits for the device there.
        sent, fetched: it does not: small tables that go to the device, values that come when they come.
    """

    def __init__(self) -> None:
        self.waits: list[tuple[str, str]] = []
        self.sent: list[tuple[str, str]] = []
        self.fetched: list[tuple[str, str]] = []
        self._modes = _Makers(self), _Operations(self)

    def __enter__(self) -> Crossings:
        for mode in self._modes:
            mode.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        for mode in reversed(self._modes):
            mode.__exit__(*error)


class _Makers(TorchFunctionMode):
    """torch.tensor(..., device=gpu) copies from memory that is not pinned, and waits until it has."""

    def __init__(self, crossings: Crossings):
        super().__init__()
        self.crossings = crossings

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function.__name__ in ("__getitem__", "__setitem__") and args[0].device == GPU:
            index = args[1] if isinstance(args[1], tuple) else (args[1],)
            if any(isinstance(part, list) for part in index):
                self.crossings.waits.append((f"{function.__name__} of a list", our_line()))
        answer = function(*args, **(kwargs or {}))
        if function.__name__ in MAKERS and answer.device == GPU:
            self.crossings.waits.append((function.__name__, our_line()))
        return answer


class _Operations(TorchDispatchMode):
    def __init__(self, crossings: Crossings):
        super().__init__()
        self.crossings = crossings

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        with self:  # inference mode leaves compound operations as they are
            parts = operation.decompose(*args, **kwargs)
        if parts is not NotImplemented:
            return parts
        name = operation.overloadpacket.__name__
        given = [value for value in tree_flatten((args, kwargs))[0] if isinstance(value, torch.Tensor)]
        on_gpu = any(tensor.device == GPU for tensor in given)
        to_host = name == "_to_copy" and kwargs.get("device") == torch.device("cpu")
        to_host |= name == "copy_" and args[0].device.type == "cpu"
        if on_gpu and to_host:
            patient = kwargs.get("non_blocking") or (name == "copy_" and args[2:3] == (True,))
            self._note(self.crossings.fetched if patient else self.crossings.waits, name)
            if name == "copy_":
                return args[0].fill_(1)
            return torch.ones(args[0].shape, dtype=kwargs.get("dtype") or args[0].dtype)
        if on_gpu and name in READS | COUNTS:
            self._note(self.crossings.waits, name)
            if name in READS:
                return 1
            raise AssertionError(f"{name} at {our_line()}: its shape depends on values")
        if on_gpu and name.startswith(("index", "_index")):
            indices = [value for value in tree_flatten(args[1])[0] if isinstance(value, torch.Tensor)]
            if any(tensor.device.type == "cpu" and tensor.ndim for tensor in indices):
                self._note(self.crossings.waits, f"{name} by a tensor of the host")
            if any(tensor.dtype in (torch.bool, torch.uint8) for tensor in indices):
                self._note(self.crossings.waits, f"{name} by a mask")
        answer = operation(*args, **kwargs)
        made = answer if isinstance(answer, torch.Tensor) else None
        if name in ("_to_copy", "copy_") and made is not None and made.device == GPU:
            source = args[1] if name == "copy_" else args[0]
            if source.device.type == "cpu" and source.ndim:
                patient = kwargs.get("non_blocking") or (name == "copy_" and args[2:3] == (True,))
                self._note(self.crossings.sent if patient else self.crossings.waits, name)
        return answer

    def _note(self, where: list[tuple[str, str]], name: str) -> None:
        where.append((name, our_line()))


def our_line() -> str:
    """The innermost line of the package that is being run."""
    frame: Any = sys._getframe()
    while frame is not None and not frame.f_code.co_filename.startswith(str(PACKAGE)):
        frame = frame.f_back
    if frame is None:
        return "?"
    return f"{Path(frame.f_code.co_filename).relative_to(PACKAGE)}:{frame.f_lineno}"
