"""Reading and writing weight files without executing anything from them.

    checkpoint = read_checkpoint(Path("davis_train.pth.tar"))
    checkpoint.tensors["module.backbone.0.weight"]

A file of ours is safetensors whose metadata name the method and its options. A published checkpoint is
what `torch.save` wrote: it is read by `torch.load(weights_only=True)`, which rebuilds tensors and plain
containers and nothing else, with stand-ins for the authors' own classes (`streamvos.weights.safe_unpickle`).
FEELVOS was published for TensorFlow: a dump of its variables is an .npz.
"""

from __future__ import annotations

import json
import os
import pickle
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from streamvos.files import open_file
from streamvos.types import InputError, SinkError
from streamvos.weights.safe_unpickle import authors_classes_as_stand_ins, foreign_names

FORMAT = "streamvos"

COUNTER = "num_batches_tracked"
"""End of the names of batch normalization's counters, which no network here needs."""

LARGEST = 2 * 2**30
"""Bytes of a weight file, and of what it says that it unpacks to; published networks take less than 1 GiB."""


@dataclass(frozen=True)
class Checkpoint:
    """What a weight file holds.

    Attributes:
        path: the file.
        tensors: name -> tensor, on the CPU.
        metadata: "method", "options" and what else a streamvos file stores; empty for other files.
    """

    path: Path
    tensors: dict[str, torch.Tensor]
    metadata: dict[str, Any]


def read_checkpoint(path: str | Path) -> Checkpoint:
    """Read a weight file, ours or a published one.

    Raises:
        InputError: there is no such file, it is no weight file, it is truncated, or reading it would run
            code.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"there is no weight file {path}; expected a file")
    with open_file(path, "the weight file", LARGEST) as file:
        try:
            head = file.read(16)
        except OSError as error:
            raise InputError(f"cannot read the weight file {path}: {error.strerror}") from None
        is_archive = zipfile.is_zipfile(file)
    if is_archive:
        _check_unpacked(path)
        return _read_npz(path) if _holds_only_arrays(path) else _read_torch(path)
    # a safetensors file begins with the length of its header, whose first byte may be that of a pickle
    is_pickle = head[:1] == b"\x80" and head[8:9] != b"{"
    return _read_torch(path) if is_pickle else _read_safetensors(path)


def plain_names(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A state dict without DataParallel's prefix "module." and without batch norm's counters."""
    plain = {name.removeprefix("module."): value for name, value in tensors.items()}
    return {name: value for name, value in plain.items() if not name.endswith(COUNTER)}


def _check_unpacked(path: Path) -> None:
    """Raise InputError if an archive says that it unpacks to more than `LARGEST` bytes."""
    try:
        with zipfile.ZipFile(path) as archive:
            size = sum(entry.file_size for entry in archive.infolist())
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError):
        return  # damaged, which its reader tells
    if size > LARGEST:
        raise InputError(
            f"the weight file {path} would unpack to {size / 2**30:.1f} GiB; expected at most "
            f"{LARGEST / 2**30:.0f} GiB"
        )


def _holds_only_arrays(path: Path) -> bool:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, OSError):
        return False
    return bool(names) and all(name.endswith(".npy") for name in names)


def _read_npz(path: Path) -> Checkpoint:
    try:
        with np.load(path, allow_pickle=False) as content:
            arrays = {name: content[name] for name in content.files}
        # a number on its own (a step counter) is not a weight
        tensors = {n: torch.from_numpy(np.ascontiguousarray(a)) for n, a in arrays.items() if a.ndim}
    except Exception as error:  # zip, zlib, lzma and numpy raise various errors on damaged bytes
        raise InputError(f"{path} is not a readable .npz of arrays ({_first_line(error)})") from None
    return Checkpoint(path, tensors, {})


def _read_safetensors(path: Path) -> Checkpoint:
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            stored = file.metadata() or {}
    except (SafetensorError, OSError, ValueError) as error:
        raise InputError(
            f"{path} is neither a complete safetensors file nor a torch checkpoint ({error})"
        ) from None
    if stored.get("format") != FORMAT:
        return Checkpoint(path, tensors, {})
    try:
        metadata = json.loads(stored["description"])
    except (KeyError, ValueError, RecursionError):
        raise InputError(f"{path} says it is a {FORMAT} file but its description cannot be read") from None
    named = isinstance(metadata, dict) and isinstance(metadata.get("method"), str)
    if not named or not isinstance(metadata.get("options", {}), dict):
        raise InputError(f"{path} says it is a {FORMAT} file but does not name its method and options")
    return Checkpoint(path, tensors, metadata)


def _read_torch(path: Path) -> Checkpoint:
    try:
        with authors_classes_as_stand_ins(path):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        foreign = foreign_names(path)
        reason = f"it refers to {', '.join(foreign[:3])}" if foreign else _first_line(error)
        raise InputError(
            f"{path} needs more than tensors and plain containers to be read, so it is refused ({reason})"
        ) from None
    except Exception as error:  # torch, zip and zlib raise various errors on damaged bytes
        raise InputError(f"{path} is not a readable torch checkpoint ({_first_line(error)})") from None
    for wrapper in ("state_dict", "model", "net"):
        if isinstance(content, Mapping) and isinstance(content.get(wrapper), Mapping):
            content = content[wrapper]
    if not isinstance(content, Mapping):
        raise InputError(f"{path} holds a {type(content).__name__}, expected names with tensors")
    tensors = {str(name): value for name, value in content.items() if isinstance(value, torch.Tensor)}
    if not tensors:
        raise InputError(f"{path} holds no tensors; its entries are {sorted(map(str, content))[:8]}")
    for name, value in tensors.items():
        if not _is_plain(value):
            raise InputError(
                f"{path}: {name} is not a plain tensor ({value.layout}, {value.device}, {value.dtype})"
            )
    return Checkpoint(path, tensors, {})


def _is_plain(value: torch.Tensor) -> bool:
    """Whether its storage holds as many numbers as its shape says; an expanded tensor's does not."""
    if value.layout != torch.strided or value.device.type != "cpu" or value.is_quantized:
        return False
    return value.numel() * value.element_size() <= value.untyped_storage().nbytes()


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def save_weights(
    path: str | Path, tensors: Mapping[str, torch.Tensor], method: str, metadata: Mapping[str, Any]
) -> None:
    """Write a streamvos file under a temporary name, flush it to disk and rename it.

    Args:
        path: the file to write.
        tensors: the state dict.
        method: name of the method.
        metadata: the method's "options" and anything else to store, in JSON types.

    Raises:
        SinkError: it cannot be written; an older file of that name is unchanged.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    description = json.dumps({"method": method, **metadata}, sort_keys=True)
    contiguous = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    content = save(contiguous, metadata={"format": FORMAT, "description": description})
    try:
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise SinkError(
            f"cannot write {path}: {error.strerror}; free some space or choose another place"
        ) from None
    finally:
        temporary.unlink(missing_ok=True)
