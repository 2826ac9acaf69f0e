"""Options that several commands share, and how their values are parsed.

No command is imported here, and neither torch, OpenCV, PyAV nor NumPy: `streamvos --help` has to be quick.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from streamvos.cli.output import STANDARD_OUTPUT, check_json_target
from streamvos.engines import BACKENDS
from streamvos.types import InputError

METHOD_NAMES = ("tvos", "frtm-fast", "frtm", "rgmp", "joint", "feelvos")
"""As in `streamvos.methods`, whose import takes seconds."""

BUNDLED_NAMES = ("tvos", "frtm-fast")
"""Methods with bundled weights, as in `streamvos.weights`."""

JsonTarget = Annotated[
    str | None,
    typer.Option(
        "--json",
        metavar="[FILE]",
        callback=check_json_target,
        help="Write the result as JSON to FILE; --json alone, at the end, prints it.",
    ),
]
MethodName = Annotated[
    str,
    typer.Option("--method", "-m", metavar="NAME", help=f"Which method segments: {', '.join(METHOD_NAMES)}."),
]
WeightsName = Annotated[
    str,
    typer.Option(
        "--weights", "-w", metavar="FILE", help="'default' (bundled), 'none' (random), or a weight file."
    ),
]
DeviceName = Annotated[str, typer.Option("--device", metavar="NAME", help="auto, cpu, cuda, cuda:1, ...")]
BackendName = Annotated[
    str, typer.Option("--backend", metavar="NAME", help=f"How the networks run: {', '.join(BACKENDS)}.")
]
MethodSettings = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="NAME=VALUE",
        help="An option of the method, such as top_k=5 (docs/methods.md). Repeatable.",
    ),
]
MaskPath = Annotated[
    Path | None,
    typer.Option("--mask", metavar="FILE", help="Label map (PNG) of the first frame; the values are ids."),
]
Boxes = Annotated[
    list[str] | None,
    typer.Option(
        "--box",
        metavar="ID:LEFT,TOP,RIGHT,BOTTOM",
        help="A rectangle around an object in the first frame, instead of a mask or besides it; in pixels of "
        "the frame that --save-first stores. Repeatable.",
    ),
]
SaveFirst = Annotated[
    Path | None,
    typer.Option(
        "--save-first",
        metavar="FILE.png",
        help="Store the first frame; without a mask or box, do nothing else.",
    ),
]
OutFolder = Annotated[Path, typer.Option("--out", "-o", metavar="FOLDER", help="Folder for the output.")]
DatasetName = Annotated[
    str,
    typer.Option(
        "--dataset", metavar="NAME", help="davis2016 (all objects as one) or davis2017 (each on its own)."
    ),
]
SequenceNames = Annotated[
    str | None, typer.Option("--sequences", metavar="A,B,...", help="Only these, separated by commas.")
]


def examples(*commands: str) -> str:
    """The end of a command's help: one example a line."""
    # \b keeps a paragraph's line breaks
    return "\b\nExamples:\n" + "\n".join(f"  {command}" for command in commands)


def with_json_target(arguments: list[str]) -> list[str]:
    """`--json` without a file, at the end or before another option, means the standard output."""
    result = []
    for argument, following in zip(arguments, [*arguments[1:], "--"], strict=True):
        result.append(argument)
        if argument == "--json" and following.startswith("-") and following != STANDARD_OUTPUT:
            result.append(STANDARD_OUTPUT)
    return result


def weights_argument(weights: str) -> str | None:
    """ "none" on the command line is None in Python."""
    return None if weights.lower() == "none" else weights


def names_in(text: str | None) -> list[str] | None:
    """The names in a list with commas; None for no list."""
    return None if text is None else [name.strip() for name in text.split(",") if name.strip()]


def parse_settings(settings: list[str] | None) -> dict[str, Any]:
    """NAME=VALUE pairs as keyword arguments; a value is JSON where it can be, else a text.

    Raises:
        InputError: no "=" in it, a name given twice, or a value that is not finite.
    """
    values: dict[str, Any] = {}
    for setting in settings or ():
        name, equals, text = setting.partition("=")
        if not equals or not name.strip() or name in values:
            raise InputError(f"--set {setting!r} cannot be used; expected NAME=VALUE, each name once")
        values[name] = _parse_value(text)
        if isinstance(values[name], float) and not abs(values[name]) < float("inf"):
            raise InputError(f"--set {setting!r} cannot be used; expected a finite number")
    return values


def method_settings(settings: list[str] | None) -> dict[str, Any]:
    """As `parse_settings`, for the options of a method.

    Raises:
        InputError: as there, or a name that has an option of its own on the command line.
    """
    values = parse_settings(settings)
    for name in ("method", "weights", "device", "backend"):
        if name in values:
            raise InputError(f"--set {name}=... cannot be used; give --{name} instead")
    return values


def _parse_value(text: str) -> Any:
    words = {"None": None, "True": True, "False": False}
    if text in words:
        return words[text]
    try:
        return json.loads(text)
    except ValueError:
        return text
