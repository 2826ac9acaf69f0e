"""Builds beside a stream: asked for by the stream, done by a process of its own that yields to everything.

    request_build(cache, Request(name, method, part, "aoti", signature, device, sizes))     # in the stream
    for request in requests(cache): ...         # in a process of its own, one by one
    give_up(cache, name, "why")                 # what cannot be built is not asked for again

A request is a file with the method's options, and one with its weights, in the cache. There is one builder at
a time for a cache; it works until no request is left. It goes on when the stream ends, for the next one.
"""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from streamvos.engines.cache import AS_OF_VARIABLE, EngineCache
from streamvos.engines.signature import Signature
from streamvos.methods import METHODS, Method, build
from streamvos.methods.parts import Part, Size
from streamvos.types import InputError

log = logging.getLogger(__name__)

VARIABLE = "STREAMVOS_BUILD_BESIDE"
"""Environment variable: 0 = nothing is built beside streams; ask = requests are left in the cache, and
`streamvos engines build --requested` builds them when you call it."""

FOLDER = "requests"

FAILED = ".failed"
"""Ending of the files that say what could not be built, and why."""

TRY_AGAIN_S = 86400
"""Seconds until it is asked for again: a full disk, say, may be no reason any more."""

_builders: dict[Path, subprocess.Popen[bytes]] = {}


@dataclass(frozen=True)
class Request:
    """What a stream wants.

    Attributes:
        name: digest of the plan, or of the question where `backend` is "auto".
        method, part, backend, signature, device: what is to be built.
        sizes: (H, W) of the frames that the stream has seen: what an inner part is called with follows
            from a clip of such a size.
    """

    name: str
    method: Method
    part: Part
    backend: str
    signature: Signature
    device: torch.device
    sizes: tuple[Size, ...]


def request_build(cache: EngineCache, request: Request) -> str:
    """Ask for an engine; returns at once.

    Args:
        cache: where it shall be.
        request: what is wanted.

    Returns:
        What happens now, for people.
    """
    wish = os.environ.get(VARIABLE, "1")
    if wish == "0" or not request.sizes:
        return "build it with `streamvos engines build`"
    try:
        folder = cache.subfolder(FOLDER)
        if cache.knows(request.name):  # since the pipeline of this worker began
            return "it is built, and will be used from the next start on"
        failure = _failure(folder / f"{request.name}{FAILED}")
        if failure is not None:
            again = "it is tried again in a day, or after `streamvos engines prune`"
            return f"it could not be built ({failure}); {again}"
        if not (folder / f"{request.name}.json").exists():
            _write(folder, request)
        if wish == "ask":
            return "build it with `streamvos engines build --requested`"
        _start(cache)
    except (OSError, InputError, SafetensorError, RuntimeError) as error:
        return f"it cannot be built beside: {error}"
    log_file = cache.folder / "builder.log"
    return f"it is being built beside ({log_file}) and will be used from the next start on"


def give_up(cache: EngineCache, name: str, reason: str) -> None:
    """Remember that something could not be built, so that not every stream asks for it again.

    Args:
        cache: of the request.
        name: of the request.
        reason: for people.
    """
    path = cache.subfolder(FOLDER) / f"{name}{FAILED}"
    path.write_text(reason)


def _failure(path: Path) -> str | None:
    """Why something could not be built lately."""
    try:
        recent = time.time() - path.stat().st_mtime < TRY_AGAIN_S
        return path.read_text() if recent else None
    except FileNotFoundError:
        return None


def forget_failures(cache: EngineCache) -> int:
    """Let streams ask again for what could not be built; how many there were."""
    failed = list((cache.folder / FOLDER).glob(f"*{FAILED}"))
    for path in failed:
        path.unlink(missing_ok=True)
    return len(failed)


def _write(folder: Path, request: Request) -> None:
    method = request.method
    weights, description = folder / f"{request.name}.safetensors", folder / f"{request.name}.json"
    tensors = {n: value.detach().cpu().contiguous() for n, value in method.networks.state_dict().items()}
    content = {
        "method": next(key for key, entry in METHODS.items() if type(method) is entry.method),
        "options": method.options.model_dump(mode="json"),
        "part": request.part.name,
        "backend": request.backend,
        "inputs": request.signature.as_json(),
        "device": str(request.device),
        "sizes": request.sizes,
    }
    mine = f".{os.getpid()}-{threading.get_ident()}"
    try:
        save_file(tensors, f"{weights}{mine}")
        os.replace(f"{weights}{mine}", weights)
        Path(f"{description}{mine}").write_text(json.dumps(content))
        os.replace(f"{description}{mine}", description)  # last: who sees it finds the weights
    finally:
        for path in (weights, description):
            Path(f"{path}{mine}").unlink(missing_ok=True)


def _start(cache: EngineCache) -> None:
    """A builder for this cache, unless this process has one already."""
    running = _builders.get(cache.folder)
    if running is not None and running.poll() is None:
        return
    command = [sys.executable, "-m", "streamvos.cli", "engines", "build", "--requested"]
    command += ["--cache", str(cache.folder.absolute())]
    # it has to see what it has built itself
    environment = {name: value for name, value in os.environ.items() if name != AS_OF_VARIABLE}
    # Ctrl-C of the stream is not for it
    is_new = sys.version_info >= (3, 11)
    group: dict[str, Any] = {"process_group": 0} if is_new else {"preexec_fn": os.setpgrp}
    with open(cache.folder / "builder.log", "ab") as output:
        builder = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            **group,
            env={**environment, VARIABLE: "0", "OMP_NUM_THREADS": "1"},
        )
    _put_behind(builder.pid)
    _builders[cache.folder] = builder


def _put_behind(process: int) -> None:
    """A process, and the compilers that it will start, run when nothing else wants to.

    It stays in the session: the kernel may share processors out to sessions first (autogroups), and the
    stream would wait for this one's turns, eight times as long for a frame on two cores.

    Args:
        process: its number; it has just begun.
    """
    with suppress(OSError, AttributeError):  # other systems have no such class
        os.sched_setscheduler(process, os.SCHED_IDLE, os.sched_param(0))
    with suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, process, 19)


def is_asked(cache: EngineCache) -> bool:
    """Whether anything is asked for."""
    return any((cache.folder / FOLDER).glob("*.json"))


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
        sizes = tuple((int(height), int(width)) for height, width in content["sizes"])
        device = torch.device(content["device"])
        return Request(path.stem, method, part, content["backend"], signature, device, sizes)
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
        raise InputError(f"the request {path.name} cannot be read: {error}") from None
