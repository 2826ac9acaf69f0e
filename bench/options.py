"""The options that the commands share, each defined and checked in one place.

A list is one word, separated by commas: `--methods tvos,frtm-fast --size 480x854,240`. Every function that
checks one raises an `InputError` that says what came and what was expected.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Annotated, Literal

import typer

from streamvos.cli.options import BUNDLED_NAMES, METHOD_NAMES, JsonTarget, names_in
from streamvos.engines import BACKENDS
from streamvos.types import InputError

from .report import check_page

__all__ = [
    "Backends", "Device", "Fps", "HtmlTarget", "JsonTarget", "Methods", "Objects", "Placement", "Precision",
    "Seconds", "Sizes", "Streams", "Threads", "Turns", "Weights",
    "backends_in", "check_device", "methods_in", "numbers_in", "placement_of", "placements_in",
    "size_named", "sizes_in",
    "thread_environment", "threads_of", "weights_of",
]  # fmt: skip

Methods = Annotated[
    str | None,
    typer.Option(
        "--methods",
        "-m",
        metavar="A,B,...",
        help=f"Of {', '.join(METHOD_NAMES)}; by default all with bundled weights.",
        show_default=False,
    ),
]
Weights = Annotated[
    str,
    typer.Option(
        "--weights",
        "-w",
        metavar="default|none",
        help="The bundled weights, or none: the authors' networks with random ones, on which time does not "
        "depend.",
    ),
]
Backends = Annotated[
    str, typer.Option("--backends", metavar="A,B,...", help=f"How networks run: {', '.join(BACKENDS)}.")
]
Device = Annotated[str, typer.Option("--device", metavar="NAME", help="cpu, cuda, cuda:1, ...")]
Precision = Annotated[
    str | None,
    typer.Option(
        metavar="NAME", help="float32, bfloat16 or auto; by default the method's own.", show_default=False
    ),
]
Sizes = Annotated[
    str,
    typer.Option("--size", metavar="HxW,...", help="Of frames, in pixels; 480 alone means 480x854 (16:9)."),
]
Objects = Annotated[str, typer.Option("--objects", metavar="N,...", help="Objects per stream.")]
Streams = Annotated[str, typer.Option("--streams", metavar="N,...", help="Streams at once.")]
Placement = Annotated[
    str, typer.Option("--placement", metavar="fused,split", help="Stages in one process, or one each.")
]
Threads = Annotated[
    int | None,
    typer.Option(
        "--threads", min=1, max=1024, metavar="N", help="Of torch, per process; by default one per core.",
        show_default=False,
    ),
]  # fmt: skip
Fps = Annotated[float, typer.Option("--fps", min=0.1, max=1000.0, metavar="N", help="Of the sources.")]
Seconds = Annotated[
    float,
    typer.Option("--seconds", min=0.0, metavar="N", help="Measured per case, start-up not included."),
]
Turns = Annotated[
    int,
    typer.Option(
        "--turns", min=1, max=1000, metavar="N", help="Into which this is divided: cases take turns."
    ),
]

HtmlTarget = Annotated[
    Path | None,
    typer.Option(
        "--html", metavar="FILE", callback=check_page, help="Write a page with plots and tables.",
        show_default=False,
    ),
]  # fmt: skip


def methods_in(text: str | None, weights: str = "default") -> list[str]:
    """The methods that are meant; None = all that have these weights."""
    known = METHOD_NAMES if weights_of(weights) is None else BUNDLED_NAMES
    names = list(BUNDLED_NAMES) if text is None else _names("--methods", text)
    for name in names:
        if name in METHOD_NAMES and name not in known:
            raise InputError(f"no weights are bundled for {name!r}; measure it with --weights none")
        if name not in known:
            raise InputError(f"unknown method {name!r}; choose of: {', '.join(known)}")
    return names


def backends_in(text: str) -> list[str]:
    """The backends that are meant."""
    names = _names("--backends", text)
    for name in names:
        if name not in BACKENDS:
            raise InputError(f"unknown backend {name!r}; choose of: {', '.join(BACKENDS)}")
    return names


def weights_of(text: str) -> str | None:
    """What `streamvos.load` takes: "default", or None for random weights."""
    if text.lower() not in ("default", "none"):
        raise InputError(f"--weights is default or none, got {text!r}")
    return None if text.lower() == "none" else "default"


def placements_in(text: str) -> list[str]:
    """Where the stages of a stream run."""
    names = _names("--placement", text)
    if set(names) - {"fused", "split"}:
        raise InputError(f"--placement is fused, split or both, got {text!r}")
    return names


def placement_of(text: str) -> Literal["fused", "split"]:
    """Where the stages of a stream run, where only one place makes sense."""
    if text not in ("fused", "split"):
        raise InputError(f"--placement is fused or split, got {text!r}")
    return text  # type: ignore[return-value]


def numbers_in(text: str, option: str, least: int = 1, most: int = 254) -> list[int]:
    """Whole numbers, each once."""
    names = _names(option, text)
    if not all(name.isascii() and name.isdigit() and least <= int(name) <= most for name in names):
        raise InputError(f"{option} {text!r} cannot be used; expected numbers from {least} to {most}")
    return list(dict.fromkeys(map(int, names)))


def sizes_in(text: str) -> list[tuple[int, int]]:
    """(H, W) of each: HEIGHTxWIDTH, or a height alone, whose width is that of 16:9 as in DAVIS."""
    sizes = []
    for name in _names("--size", text):
        found = re.fullmatch(r"(\d{1,5})(?:x(\d{1,5}))?", name)
        height = int(found[1]) if found else 0
        width = int(found[2]) if found and found[2] else 2 * round(height * 427 / 480)
        if not (16 <= height <= 8192 and 16 <= width <= 8192):
            raise InputError(
                f"--size {name!r} cannot be used; expected HEIGHTxWIDTH in pixels, 16 to 8192, or a height"
            )
        sizes.append((height, width))
    return list(dict.fromkeys(sizes))


def check_device(name: str) -> str:
    """The device, as torch names it; this imports torch."""
    from streamvos.engines.eager import choose_device

    return str(choose_device(name))


def size_named(size: tuple[int, int]) -> str:
    """As on the command line: HEIGHTxWIDTH."""
    return f"{size[0]}x{size[1]}"


def threads_of(threads: int | None) -> int | None:
    """What --threads or else OMP_NUM_THREADS says; None = torch's default."""
    said = os.environ.get("OMP_NUM_THREADS", "")
    return threads or (int(said) if said.isdigit() and int(said) else None)


def thread_environment(threads: int | None) -> dict[str, str]:
    """Variables for a process whose torch is to use so many threads."""
    return {} if threads is None else {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}


def _names(option: str, text: str) -> list[str]:
    names = list(dict.fromkeys(names_in(text) or []))
    if not names:
        raise InputError(f"{option} {text!r} names nothing; expected names separated by commas")
    return names
