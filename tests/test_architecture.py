"""The plan of the house: a room imports only rooms above it, light doors stay light, and nobody unpickles."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

import streamvos

PACKAGE = Path(streamvos.__file__).parent
ROOMS = [
    {"types", "addresses", "lazy"},
    {"files"},
    {"pictures"},
    {"masks", "rosmsg"},
    {"synthetic", "nn"},
    {"methods"},
    {"weights"},
    {"engines"},
    {"segmenter", "selection"},
    {"sources", "sinks"},
    {"datasets"},
    {"metrics"},
    {"pipeline", "training"},
    {"console", "fleet", "ros2"},
    {"cli"},
]
LEVEL = {room: level for level, rooms in enumerate(ROOMS) for room in rooms}
PIPELINE = [{"wire"}, {"config"}, {"clients", "telemetry"}, {"stages", "supervision"}]
PIPELINE_LEVEL = {room: level for level, rooms in enumerate(PIPELINE) for room in rooms}
MODULES = sorted(path for path in PACKAGE.rglob("*.py"))
ALLOWED = {
    "workers.py": {"os"},  # threads need it to survive a fork
    "augmentation.py": {"cv2"},  # for image operations, not for files
}


def room_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported(path: Path) -> set[str]:
    """Full names of all modules that a file imports, inside functions too."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative imports hide which room is meant"
            names |= {f"{node.module}.{alias.name}" for alias in node.names} | {node.module or ""}
    return names


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_room_imports_only_rooms_above_it(path):
    room = room_of(path)
    if room in ("__init__", "__main__"):
        return
    assert room in LEVEL, f"{room} is no room of docs/architecture.md"
    if room == "cli":
        return
    for name in imported(path):
        parts = name.split(".")
        if parts[0] != "streamvos" or len(parts) == 1:
            assert name != "streamvos", f"{path}: rooms do not go through the front door"
            continue
        other = parts[1]
        if other in LEVEL:
            assert LEVEL[other] < LEVEL[room] or other == room, f"{room} must not import {other}"


def test_no_two_modules_import_each_other_in_a_circle():
    """Not inside functions either, nor for type checkers alone."""
    names = [".".join(("streamvos", *path.relative_to(PACKAGE).with_suffix("").parts)) for path in MODULES]
    modules = dict(zip(names, MODULES, strict=True))
    imports = {name: (imported(path) & modules.keys()) - {name} for name, path in modules.items()}
    while imports:
        leaves = {name for name, others in imports.items() if not others & imports.keys()}
        assert leaves, f"these import each other: {sorted(imports)}"
        imports = {name: others for name, others in imports.items() if name not in leaves}


def test_within_the_pipeline_a_room_imports_only_rooms_below_it():
    for path in PACKAGE.joinpath("pipeline").rglob("*.py"):
        parts = path.relative_to(PACKAGE / "pipeline").parts
        if len(parts) == 1:
            assert parts == ("__init__.py",), f"nothing lies in pipeline/ but its rooms, found {parts[0]}"
            assert not imported(path)
            continue
        for name in imported(path):
            if not name.startswith("streamvos.pipeline."):
                continue
            other = name.split(".")[2]
            assert other == parts[0] or PIPELINE_LEVEL[other] < PIPELINE_LEVEL[parts[0]], f"{path}: {name}"


def test_only_the_supervision_knows_the_records_of_streams():
    for path in MODULES:
        if "streamvos.pipeline.supervision.streams" in imported(path):
            assert path.parent == PACKAGE / "pipeline/supervision", path


def test_the_client_does_not_know_the_server():
    (client,) = [path for path in MODULES if path.match("pipeline/clients/client.py")]
    assert "streamvos.pipeline.clients.control" not in imported(client)


LIGHT_ROOMS = [
    ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts)
    for path in MODULES
    if path.parent.name in ("wire", "config", "clients", "telemetry", "supervision")
    and path.stem != "__init__"
]
LIGHT = """
import sys, importlib
sys.path.insert(0, {root!r})
for module in {modules}:
    importlib.import_module(module)
import streamvos
{statement}
heavy = sorted({{"torch", "cv2", "av"}} & set(sys.modules))
sys.exit(f"{{heavy}} loaded" if heavy else 0)
"""


@pytest.mark.parametrize(
    ("modules", "statement"),
    [
        ([], "streamvos.Result, streamvos.InputError, streamvos.Client, streamvos.PipelineError"),
        (["streamvos.cli", "streamvos.cli.ctl", "streamvos.cli.watch"], "streamvos.cli.make_app('ctl')"),
        (LIGHT_ROOMS, "streamvos.pipeline.supervision.supervisor.Supervisor"),
    ],
    ids=["client", "ctl and watch", "supervisor"],
)
def test_it_starts_without_torch_opencv_and_pyav(modules, statement):
    code = LIGHT.format(root=str(PACKAGE.parent), modules=modules, statement=statement)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("room", ["methods", "nn"])
def test_methods_know_nothing_of_files_sockets_clocks_or_processes(room):
    outside = {
        "os",
        "io",
        "pathlib",
        "socket",
        "time",
        "subprocess",
        "multiprocessing",
        "zmq",
        "cv2",
        "av",
        "PIL",
    }
    for path in MODULES:
        if room_of(path) == room:
            assert not {name.split(".")[0] for name in imported(path)} & outside - ALLOWED.get(
                path.name, set()
            )


def test_nothing_in_the_package_unpickles_or_evaluates():
    forbidden = re.compile(
        r"pickle\.loads?|(?<![\w.])(eval|exec)\(|weights_only=False|cPickle|dill|marshal\.load"
    )
    for path in MODULES:
        assert not forbidden.search(path.read_text()), path
        calls = re.findall(r"torch\.load\([^)]*\)", path.read_text())
        assert all("weights_only=True" in call for call in calls), path


def test_pickle_is_not_even_mentioned():
    """But where the authors' checkpoints are read, to look at their operations and to say what is wrong."""
    readers = {"weights/safe_unpickle.py", "weights/checkpoints.py"}
    named = {
        str(path.relative_to(PACKAGE))
        for path in MODULES
        if re.search("pickle", path.read_text(), re.IGNORECASE)
    }
    assert named == readers
    for reader in readers:
        used = set(re.findall(r"\bpickle(?:tools)?\.\w+", (PACKAGE / reader).read_text()))
        assert used <= {"pickletools.genops", "pickle.UnpicklingError"}, reader


def test_the_public_api_fits_one_screen():
    assert len((PACKAGE / "__init__.py").read_text().splitlines()) <= 80
    names = {"load", "Segmenter", "Result", "Client", "open_source", "read_label_map"}
    errors = {"StreamvosError", "InputError", "SourceError", "SinkError", "PipelineError"}
    assert set(streamvos.__all__) >= names | errors
    for name in streamvos.__all__:
        assert getattr(streamvos, name).__name__ == name
    with pytest.raises(AttributeError, match="no attribute 'laod'"):
        streamvos.laod  # noqa: B018
