"""Options that several commands share, and how their values are parsed.

This module imports neither torch, OpenCV, PyAV nor NumPy, so that `--help` is quick.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from streamvos.cli.output import STANDARD_OUTPUT, check_json_target
from streamvos.engines import BACKENDS
from streamvos.sinks.conflicts import Place, refuse_conflicts, tree
from streamvos.types import DEFAULT_METHOD, InputError

CONSOLE_ANYWHERE = "any"
"""The value of `--console` without one: on this machine only, at the usual port or a free one."""

_DEFAULT_VALUES = {"--json": STANDARD_OUTPUT, "--console": CONSOLE_ANYWHERE, "--rerun": "127.0.0.1:9876"}

METHOD_NAMES = ("tvos", "rgmp", "frtm", "frtm-fast", "joint", "feelvos")
"""As in `streamvos.methods`, whose import takes seconds."""

BUNDLED_NAMES = ("tvos", "rgmp", "frtm-fast", "joint", "feelvos")
"""Methods with bundled weights, as in `streamvos.weights`."""

JsonTarget = Annotated[
    str | None,
    typer.Option(
        "--json", metavar="[FILE]", callback=check_json_target, help="Result as JSON; without FILE, printed."
    ),
]
_METHODS = f"One of {', '.join(METHOD_NAMES)}"
METHOD = typer.Option("--method", "-m", metavar="NAME", help=f"{_METHODS}.")
WEIGHTS = typer.Option(
    "--weights", "-w", metavar="FILE", help="'default' (bundled), 'none' (random), or a weight file."
)
DEVICE = typer.Option("--device", metavar="NAME", help="auto, cpu, cuda, cuda:1, ...")
BACKEND = typer.Option("--backend", metavar="NAME", help=f"How networks run: {', '.join(BACKENDS)}.")
MethodName = Annotated[
    str | None,
    typer.Option(
        "--method",
        "-m",
        metavar="NAME",
        help=f"{_METHODS}; if not given, that of the weight file, else {DEFAULT_METHOD}.",
        show_default=False,
    ),
]
WeightsName = Annotated[str, WEIGHTS]
DeviceName = Annotated[str, DEVICE]
BackendName = Annotated[str, BACKEND]
MethodSettings = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="NAME=VALUE", help="Method option (docs/methods.md). Repeatable."),
]
MaskPath = Annotated[
    Path | None,
    typer.Option(
        "--mask",
        metavar="FILE",
        help="Label map (PNG) of the first frame: ids, white on black, or colors on black.",
    ),
]
Boxes = Annotated[
    list[str] | None,
    typer.Option(
        "--box",
        metavar="ID:LEFT,TOP,RIGHT,BOTTOM",
        help="A rectangle around an object in the first frame, in pixels of the frame that --save-first "
        "stores; instead of a mask or with one. Repeatable.",
    ),
]
Points = Annotated[
    list[str] | None,
    typer.Option(
        "--point",
        metavar="ID:X,Y",
        help="A point on an object in the first frame, in pixels; ID:X,Y,-1 is one beside it. Repeatable.",
    ),
]
Select = Annotated[
    str | None,
    typer.Option(
        "--select",
        metavar="learned|grabcut|sam",
        help="What makes masks of boxes and points: the bundled network (default); color alone, of boxes; or "
        "your own model of the SAM family.",
    ),
]
SamEncoder = Annotated[
    Path | None, typer.Option("--sam-encoder", metavar="FILE", help="ONNX file for --select sam.")
]
SamDecoder = Annotated[
    Path | None, typer.Option("--sam-decoder", metavar="FILE", help="ONNX file for --select sam.")
]
SaveFirst = Annotated[
    Path | None,
    typer.Option(
        "--save-first", metavar="FILE.png", help="Store the first frame, and stop if no mask or box."
    ),
]
Height = Annotated[
    int | None,
    typer.Option(
        "--height", min=16, max=8192, metavar="N", help="Resize frames, and a mask of their size, to N rows."
    ),
]
MaskSize = Annotated[
    str | None,
    typer.Option(
        metavar="source|frames",
        help="With --height: label maps and results at the source's own size, or at that of the frames. By "
        "default, the source's if --mask has it.",
        show_default=False,
    ),
]
MaxFrames = Annotated[
    int | None, typer.Option("--max-frames", min=1, metavar="N", help="Stop after this many frames.")
]
FirstFrame = Annotated[
    int | None,
    typer.Option(
        "--first-frame",
        min=0,
        metavar="N",
        help="Begin with the source's frame N, counted from 0: the one that the mask or box was drawn on.",
    ),
]
Topic = Annotated[
    str | None,
    typer.Option(metavar="TOPIC", help="Of a rosbag2 or MCAP recording: the topic of the pictures."),
]
AllowTruncated = Annotated[
    bool,
    typer.Option(
        "--allow-truncated", help="Take a damaged or incomplete video as far as it goes, without an error."
    ),
]
PolicyName = Annotated[
    str | None,
    typer.Option(
        "--policy", metavar="latest|lossless", help="Drop all but the newest frame (live), or none (files)."
    ),
]
Realtime = Annotated[
    bool | None, typer.Option("--realtime", help="Play a file at its own speed, as if it were live.")
]
OutFolder = Annotated[Path, typer.Option("--out", "-o", metavar="FOLDER", help="Folder for the output.")]
Overwrite = Annotated[
    bool,
    typer.Option("--overwrite", help="Replace files that are in the way and that streamvos did not write."),
]
DatasetName = Annotated[
    str, typer.Option("--dataset", metavar="NAME", help="davis2016 (all objects as one) or davis2017 (each).")
]
SequenceNames = Annotated[
    str | None, typer.Option("--sequences", metavar="A,B,...", help="Only these, separated by commas.")
]


def places_of_files(options: Mapping[str, str | Path | None]) -> list[Place]:
    """The files that options name, for `refuse_conflicts`: option -> its value.

    "-" is the standard output; "default" and "none" are weights that are no file.
    """
    named = {option: str(value) for option, value in options.items() if value is not None}
    return [
        Place(Path(value), option)
        for option, value in named.items()
        if value != STANDARD_OUTPUT and value.lower() not in ("default", "none")
    ]


def refuse_over_inputs(
    json_target: str | None,
    inputs: Mapping[str, str | Path | None],
    folders: Mapping[str, Path] | None = None,
) -> None:
    """Refuse a `--json` that would replace what a command reads; for commands that write nothing else.

    Args:
        json_target: the value of --json.
        inputs: files that are read, by the option or argument that names them.
        folders: folders of which everything is read, likewise.

    Raises:
        InputError: it would.
    """
    read = [*places_of_files(inputs), *(tree(path, name) for name, path in (folders or {}).items())]
    refuse_conflicts(places_of_files({"--json": json_target}), read)


def examples(*commands: str) -> str:
    """The end of a command's help: one example per line."""
    # \b keeps line breaks
    return "\b\nExamples:\n" + "\n".join(f"  {command}" for command in commands)


def with_json_target(arguments: list[str]) -> list[str]:
    """Options of `_DEFAULT_VALUES` that have no value, at the end or before another option, get it."""
    result = []
    for argument, following in zip(arguments, [*arguments[1:], "--"], strict=True):
        result.append(argument)
        if argument in _DEFAULT_VALUES and following.startswith("-") and following != STANDARD_OUTPUT:
            result.append(_DEFAULT_VALUES[argument])
    return result


def checked_policy(policy: str | None) -> Literal["latest", "lossless"] | None:
    """The value of `--policy`; InputError if there is no such policy."""
    if policy not in (None, "latest", "lossless"):
        raise InputError(f"--policy is latest or lossless, got {policy!r}")
    return policy  # type: ignore[return-value]


def placed_weights(weights: str) -> str:
    """The value of `--weights` for another process, which may have another current folder."""
    word = weights.lower()
    return word if word in ("default", "none") else str(Path(weights).absolute())


def weights_argument(weights: str) -> str | None:
    """ "none" on the command line is None in Python."""
    return None if weights.lower() == "none" else weights


def names_in(text: str | None) -> list[str] | None:
    """The names in a list separated by commas; None stays None."""
    return None if text is None else [name.strip() for name in text.split(",") if name.strip()]


def parse_settings(settings: list[str] | None) -> dict[str, Any]:
    """Parse NAME=VALUE pairs. A value is JSON if it can be parsed as JSON, else a string.

    Raises:
        InputError: "=" is missing, a name is repeated, or a number is not finite.
    """
    values: dict[str, Any] = {}
    for setting in settings or ():
        name, equals, text = setting.partition("=")
        if not equals or not name.strip() or name in values:
            raise InputError(f"--set {setting!r} cannot be used; expected NAME=VALUE, each name once")
        constants = {"None": None, "True": True, "False": False}
        try:
            values[name] = constants[text] if text in constants else json.loads(text)
        except ValueError:
            values[name] = text
        if isinstance(values[name], float) and not abs(values[name]) < float("inf"):
            raise InputError(f"--set {setting!r} cannot be used; expected a finite number")
    return values


def method_settings(settings: list[str] | None) -> dict[str, Any]:
    """Parse the options of a method, as `parse_settings` does.

    Raises:
        InputError: as there, or the name is a command-line option of its own.
    """
    values = parse_settings(settings)
    for name in ("method", "weights", "device", "backend"):
        if name in values:
            raise InputError(f"--set {name}=... cannot be used; give --{name} instead")
    return values
