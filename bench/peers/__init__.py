"""`bench peers`: another project's own code beside ours, on the same frames, in turns.

    streamvos bench peers --repo ~/src/XMem --repo ~/src/sam2 --methods tvos,frtm-fast
    streamvos bench peers --size 240 --objects 1,3          # what is installed: rf-cutie, sam2

A peer is a checkout on this disk or an installed package. Its code runs in a process of its own, in this
Python, with the packages that it needs; `ADAPTERS` has a small file for each that turns frames into masks by
its public interface. Peers have random weights: nothing is downloaded, and the time of a network does not
depend on them. Where a method's work depends on its own masks (how many objects it still sees), it does.
"""

from __future__ import annotations

import ast
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from itertools import product
from pathlib import Path
from typing import Annotated, Any

import typer

from streamvos.cli.options import examples
from streamvos.cli.output import remark
from streamvos.types import InputError

from .. import options
from ..results import Settings
from ..runner import START_SECONDS, Case, Run, take_turns

ADAPTERS = {
    "edgetam": "EdgeTAM",
    "sam2_camera": "SAM 2 for cameras",
    "sam2": "SAM 2 tiny",
    "cutie": "Cutie-small",
    "xmem": "XMem",
    "tvos": "TVOS's own code",
    "frtm": "FRTM's own code",
    "rgmp": "RGMP's own code",
    "joint": "JOINT's own code",
}
"""Adapter -> its name for people. The first whose files a checkout has counts; special ones come first."""

EXAMPLES = examples(
    "streamvos bench peers",
    "streamvos bench peers --repo ~/src/XMem --methods tvos,frtm-fast --size 240",
    "streamvos bench peers --repo ~/src/sam2 --repo ~/src/EdgeTAM --objects 1,3 --json peers.jsonl",
)


def command(
    repo: Annotated[
        list[Path] | None,
        typer.Option("--repo", metavar="PATH", help="A checkout. Repeatable; without it, what is installed."),
    ] = None,
    peer: Annotated[
        str | None,
        typer.Option(
            "--peer",
            metavar="NAME",
            help=f"Which adapter, where several fit: {', '.join(ADAPTERS)}.",
            show_default=False,
        ),
    ] = None,
    methods: options.Methods = None,
    size: options.Sizes = "480x854",
    objects: options.Objects = "1",
    history: Annotated[
        str, typer.Option(metavar="N", help="Frames that are remembered before any counts.")
    ] = "8",
    seconds: options.Seconds = 10.0,
    turns: options.Turns = 5,
    threads: options.Threads = None,
    device: options.Device = "cpu",
    json_target: options.JsonTarget = None,
    html: options.HtmlTarget = None,
) -> None:
    """Another project's own code beside ours, in turns, on the same frames: time, memory, first frame.

    Ratios are to our first method, turn by turn. Peers have random weights.
    """
    names, sizes = options.methods_in(methods), options.sizes_in(size)
    counts, (length, *_) = (
        options.numbers_in(objects, "--objects"),
        options.numbers_in(history, "--history", 1, 100_000),
    )
    peers = find_peers(repo or [], peer)
    device = options.check_device(device)
    environment = options.thread_environment(threads)
    groups = [
        [
            *(_ours(name, one, count, length, device, environment) for name in names),
            *(_theirs(adapter, root, one, count, length, device, environment) for adapter, root in peers),
        ]
        for one, count in product(sizes, counts)
    ]
    total = sum(map(len, groups)) * (seconds + START_SECONDS)
    with Run("peers", json_target, total, device, html=html) as run:
        remark("peers have random weights, which change no time")
        for group in groups:
            take_turns(run, "peers", group, turns, seconds)


def find_peers(roots: Sequence[Path], wanted: str | None = None) -> list[tuple[str, Path | None]]:
    """Adapter and checkout of each; None for an installed package.

    Args:
        roots: checkouts; without any, what is installed.
        wanted: the adapter, instead of the first that fits.

    Raises:
        InputError: a folder is no checkout that is known, or lacks a file; or nothing is installed.
    """
    if wanted is not None and wanted not in ADAPTERS:
        raise InputError(f"unknown peer {wanted!r}; choose one of: {', '.join(ADAPTERS)}")
    if roots:
        return [(_adapter_of(root, wanted), root.resolve()) for root in roots]
    named = [wanted] if wanted is not None else list(ADAPTERS)
    packages = {name: _about(name)["PACKAGE"] or "sam2" * (name == wanted == "edgetam") for name in named}
    found: list[tuple[str, Path | None]] = [
        (name, None) for name, package in packages.items() if package and find_spec(package) is not None
    ]
    if not found:
        raise InputError(
            "no peer is installed; give a checkout with --repo, or: pip install --no-deps rf-cutie einops "
            'omegaconf pyyaml "antlr4-python3-runtime==4.9.*"'
        )
    return found


def _adapter_of(root: Path, wanted: str | None) -> str:
    """The adapter for a checkout."""
    if not root.is_dir():
        raise InputError(f"--repo {root} is no folder; expected a checkout")
    lacking = {
        name: [file for file in _about(name)["FILES"] if not (root / file).is_file()]
        for name in ([wanted] if wanted else ADAPTERS)
    }
    fitting = [name for name, files in lacking.items() if not files]
    if fitting:
        return fitting[0]
    closest = min(lacking, key=lambda name: len(lacking[name]) / len(_about(name)["FILES"]))
    if wanted is None and len(lacking[closest]) == len(_about(closest)["FILES"]):
        raise InputError(
            f"--repo {root} is no checkout that is known; expected one of {', '.join(ADAPTERS.values())}"
        )
    raise InputError(
        f"--repo {root} lacks {', '.join(lacking[closest])}, which the adapter for {ADAPTERS[closest]} needs"
    )


def _about(name: str) -> Mapping[str, Any]:
    """FILES and PACKAGE of an adapter, read without importing it, which would import torch."""
    tree = ast.parse(Path(__file__).with_name(f"{name}.py").read_text(encoding="utf-8"))
    return {
        target.id: ast.literal_eval(node.value)
        for node in tree.body
        if isinstance(node, ast.Assign)
        for target in node.targets
        if isinstance(target, ast.Name) and target.id in ("FILES", "PACKAGE")
    }


def _case_name(who: str, weights: str, size: tuple[int, int], objects: int) -> str:
    return f"{who} {weights} {options.size_named(size)} {objects} object{'s' * (objects != 1)}"


def _ours(
    method: str, size: tuple[int, int], objects: int, history: int, device: str, environment: dict[str, str]
) -> Case:
    settings = _settings(method, "bundled", size, objects, device, history)
    begin = {
        "method": method,
        "weights": "default",
        "backend": "eager",
        "device": device,
        "options": {},
        "size": list(size),
        "objects": objects,
        "history": history,
        "explain": False,
    }
    name = _case_name(method, "bundled", size, objects)
    return Case(name, settings, "latency_work", begin, environment)


def _theirs(
    adapter: str,
    root: Path | None,
    size: tuple[int, int],
    objects: int,
    history: int,
    device: str,
    environment: dict[str, str],
) -> Case:
    settings = _settings(ADAPTERS[adapter], "random", size, objects, device, history)
    begin = {
        "peer": adapter,
        "root": None if root is None else str(root),
        "device": device,
        "size": list(size),
        "objects": objects,
        "history": history,
    }
    name = _case_name(ADAPTERS[adapter], "random", size, objects)
    return Case(name, settings, "peers.work", begin, {"TQDM_DISABLE": "1", **environment})


def _settings(
    method: str, weights: str, size: tuple[int, int], objects: int, device: str, history: int
) -> Settings:
    return Settings(
        method=method,
        weights=weights,
        device=device,
        height=size[0],
        width=size[1],
        objects=objects,
        history=history,
    )
