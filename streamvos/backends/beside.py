"""Builds beside a stream: asked for by the stream, done by a process of its own that yields to everything.

    request_build(cache, name, method, part, "aoti", signature, device)     # in the stream: a file, a process
    for request in requests(cache): ...                                     # in that process, one by one

A request is a file with the method's options, and one with its weights, in the cache. There is one builder at
a time for a cache; it works until no request is left. It goes on when the stream ends, for the next one.
"""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from streamvos.backends.cache import EngineCache
from streamvos.backends.signature import Signature
from streamvos.methods import METHODS, Method, build
from streamvos.methods.parts import Part
from streamvos.types import InputError

log = logging.getLogger(__name__)

VARIABLE = "STREAMVOS_BUILD_BESIDE"
"""Environment variable: 0 = nothing is built beside streams; ask = requests are left in the cache, and
`streamvos engines build --requested` builds them when you call it."""

FOLDER = "requests"

_builders: dict[Path, subprocess.Popen[bytes]] = {}


@dataclass(frozen=True)
class Request:
    """What a stream wants.

    Attributes:
        name: of the plan or question.
        method, part, backend, signature, device: what is to be built.
    """

    name: str
    method: Method
    part: Part
    backend: str
    signature: Signature
    device: torch.device


def request_build(
    cache: EngineCache,
    name: str,
    method: Method,
    part: Part,
    backend: str,
    signature: Signature,
    device: torch.device,
) -> str:
    """Ask for an engine; returns at once.

    Args:
        cache: where it shall be.
        name: digest of the plan, or of the question where `backend` is "auto".
        method, part, backend, signature, device: what is wanted.

    Returns:
        What happens now, for people.
    """
    wish = os.environ.get(VARIABLE, "1")
    if wish == "0" or part.name != "extractor":
        return "build it with `streamvos engines build`"
    try:
        folder = cache.subfolder(FOLDER)
        if not (folder / f"{name}.json").exists():
            _write(folder, name, method, part, backend, signature, device)
        if wish == "ask":
            return "build it with `streamvos engines build --requested`"
        _start(cache)
    except (OSError, InputError) as error:
        return f"it cannot be built beside: {error}"
    log_file = cache.folder / "builder.log"
    return f"it is being built beside ({log_file}) and will be used from the next start on"


def _write(
    folder: Path,
    name: str,
    method: Method,
    part: Part,
    backend: str,
    signature: Signature,
    device: torch.device,
) -> None:
    weights, description = folder / f"{name}.safetensors", folder / f"{name}.json"
    tensors = {n: value.detach().cpu().contiguous() for n, value in method.networks.state_dict().items()}
    mine = f".{os.getpid()}"
    save_file(tensors, f"{weights}{mine}")
    os.replace(f"{weights}{mine}", weights)
    content = {
        "method": next(key for key, entry in METHODS.items() if type(method) is entry.method),
        "options": method.options.model_dump(mode="json"),
        "part": part.name,
        "backend": backend,
        "inputs": signature.as_json(),
        "device": str(device),
    }
    Path(f"{description}{mine}").write_text(json.dumps(content))
    os.replace(f"{description}{mine}", description)  # last: who sees it finds the weights


def _start(cache: EngineCache) -> None:
    """A builder for this cache, unless this process has one already."""
    running = _builders.get(cache.folder)
    if running is not None and running.poll() is None:
        return
    command = [sys.executable, "-m", "streamvos.cli", "engines", "build", "--requested"]
    command += ["--cache", str(cache.folder.absolute())]
    with open(cache.folder / "builder.log", "ab") as output:
        _builders[cache.folder] = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,  # Ctrl-C of the stream is not for it
            env={**os.environ, VARIABLE: "0", "OMP_NUM_THREADS": "1"},
        )


def requests(cache: EngineCache) -> Iterator[Request]:
    """What is asked for, oldest first, until nothing is; each is struck off when the next is taken.

    One that cannot be read is struck off and logged.
    """
    folder = cache.subfolder(FOLDER)
    while True:
        waiting = sorted(folder.glob("*.json"), key=lambda path: path.stat().st_mtime)
        if not waiting:
            return
        try:
            yield _read(waiting[0])
        except InputError as error:
            log.warning("%s", error)
        finally:
            waiting[0].unlink(missing_ok=True)
            waiting[0].with_suffix(".safetensors").unlink(missing_ok=True)


def _read(path: Path) -> Request:
    try:
        content: dict[str, Any] = json.loads(path.read_text())
        method = build(content["method"], content["options"])
        method.networks.load_state_dict(load_file(path.with_suffix(".safetensors")))
        part = method.parts()[content["part"]]
        signature = Signature.from_json(content["inputs"])
        return Request(
            path.stem, method, part, content["backend"], signature, torch.device(content["device"])
        )
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
        raise InputError(f"the request {path.name} cannot be read: {error}") from None
