"""The wheel that `python -m build` makes works in an environment of its own, away from the checkout."""

from __future__ import annotations

import ast
import email
import json
import os
import re
import subprocess
import sys
import sysconfig
import tempfile
import venv
import zipfile
from collections.abc import Callable, Iterable, Iterator
from importlib.metadata import packages_distributions
from pathlib import Path
from shutil import copytree, ignore_patterns

import pytest

from streamvos.masks.labelmap import read_label_map
from streamvos.weights import BACKBONE, BUNDLED

ROOT = Path(__file__).resolve().parents[1]
VIDEO = "synthetic:seed=3,size=192x256,length=4,objects=2,leave=0"

OPTIONAL = {"triton", "rclpy", "rerun"}
"""Imported where they are there: they come with CUDA builds of torch, with ROS, and as the extra "rerun"."""

ON_USE = ("ros2/dds.py", "ros2/idl.py", "sources/bag_messages.py")
"""Modules that need an extra as a whole, and that are imported in functions alone."""

Call = Callable[..., str]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built as a packager does it, from the source distribution; without the network."""
    here = tmp_path_factory.mktemp("build")
    made = ("__pycache__", "*.egg-info", "build", "dist", "out", "runs", "cache")
    copytree(ROOT, here / "checkout", ignore=ignore_patterns(".*", *made))
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(here), str(here / "checkout")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    (found,) = here.glob("*.whl")
    return found


@pytest.fixture(scope="module")
def call(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Call]:
    """Runs a program of a fresh environment that holds the wheel, outside of the checkout.

    Its dependencies are those of this environment, by a path file: what such a path's own path files say is
    not followed, so that an editable installation of the checkout does not count.
    """
    here = tmp_path_factory.mktemp("elsewhere")
    venv.create(here / "venv", symlinks=True)
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    python = here / "venv/bin/python"
    pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet", "--no-index"]
    subprocess.run([*pip, "--no-deps", "--no-compile", str(wheel)], check=True, env=environment)
    (site,) = (here / "venv/lib").glob("python*/site-packages")
    paths = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
    (site / "dependencies.pth").write_text("\n".join(sorted(paths)))
    with tempfile.TemporaryDirectory(prefix="svos", dir="/tmp") as runtime:
        environment |= {"XDG_RUNTIME_DIR": runtime, "XDG_CACHE_HOME": str(here / "cache")}

        def run(program: str, *arguments: str) -> str:
            command = [str(python.with_name(program)), *arguments]
            done = subprocess.run(
                command, cwd=here, env=environment, capture_output=True, text=True, timeout=120
            )
            assert done.returncode == 0, done.stdout + done.stderr
            return done.stdout

        run.folder = here  # type: ignore[attr-defined]
        yield run


def test_the_wheel_holds_what_it_needs_and_nothing_else(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    assert all(re.match(r"streamvos/|streamvos-[^/]*\.dist-info/", name) for name in names)
    data = {name for name in names if name.startswith("streamvos/") and not name.endswith(".py")}
    weights = {
        f"streamvos/weights/files/{name}.{kind}"
        for name in (*BUNDLED, BACKBONE, "selector")
        for kind in ("md", "safetensors")
    }
    weights.add("streamvos/weights/files/scores.json")
    recipes = {f"streamvos/engines/files/{path.name}" for path in (ROOT / "engines").glob("*.toml")}
    assert len(recipes) > 5
    pictures = {path.relative_to(ROOT).as_posix() for path in (ROOT / "streamvos").rglob("photographs/*")}
    assert len(pictures) > 5
    page = {path.relative_to(ROOT).as_posix() for path in (ROOT / "streamvos/console/page").iterdir()}
    bench = {f"streamvos/{path.relative_to(ROOT).as_posix()}" for path in _files(ROOT / "bench")}
    benchmarks = {name for name in bench if not name.rpartition("/")[2].startswith("test_")}
    tables = {name for name in benchmarks if not name.endswith(".py")}
    ros = {path.relative_to(ROOT).as_posix() for path in _files(ROOT / "streamvos/rosmsg/streamvos_msgs")}
    assert len(ros) == 5
    assert data == {"streamvos/py.typed"} | weights | recipes | pictures | page | tables | ros
    modules = {path.relative_to(ROOT).as_posix() for path in (ROOT / "streamvos").rglob("*.py")}
    assert names - data >= modules | (benchmarks - tables)
    assert not names & (bench - benchmarks)


def test_the_installed_package_is_the_one_that_runs(call):
    shown = call("python", "-c", "import streamvos; print(streamvos.__file__)")
    assert Path(shown.strip()).is_relative_to(call.folder / "venv")


def test_benchmarks_run(call):
    options = ("--methods", "frtm-fast", "--size", "64x96", "--seconds", "0", "--turns", "1", "--json")
    row = json.loads(call("streamvos", "bench", "latency", *options))
    assert row["bench"] == "latency"
    assert row["versions"]["commit"] is None  # that of a repository around it would be another one


def test_demo_runs(call):
    assert "labels" in call("streamvos", "demo", "--source", VIDEO, "--out", "demo")
    assert len(list((call.folder / "demo/labels").glob("*.png"))) == 4


def test_engines_are_listed(call):
    assert "tvos-extractor" in call("streamvos", "engines", "list", "--json")


def test_serve_writes_masks(call):
    call("streamvos", "serve", "--source", VIDEO, "--out", "served")
    paths = sorted((call.folder / "served").rglob("*.png"))
    assert len(paths) == 4
    masks = [read_label_map(path) for path in paths]
    assert {mask.shape for mask in masks} == {(192, 256)}
    assert set(masks[-1].flat) == {0, 1, 2}


def test_every_import_is_declared(wheel):
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        required = email.message_from_bytes(archive.read(name)).get_all("Requires-Dist", [])
        sources = {
            name: ast.parse(archive.read(name))
            for name in archive.namelist()
            if name.endswith(".py") and not name.startswith("streamvos/bench/peers/")  # others' checkouts
        }
    always = {_distribution(line) for line in required if "extra ==" not in line}
    extras = {
        _distribution(line)
        for line in required
        if re.search(r"extra == .(train|tensorrt|onnx|sam|supervision|ros2|bags|rerun|fleet)", line)
    }
    at_import = _imported(
        node for name, tree in sources.items() if not name.endswith(ON_USE) for node in tree.body
    )
    at_any_time = _imported(node for tree in sources.values() for node in ast.walk(tree))
    assert at_import <= always, "imported at the top of a module"
    assert at_any_time <= always | extras, "imported in a function, or under a condition"
    assert always - at_any_time <= {"tomli", "websockets"}, "nothing imports these"  # uvicorn does the latter


def _files(folder: Path) -> Iterator[Path]:
    return (path for path in folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts)


def _imported(nodes: Iterable[ast.AST]) -> set[str]:
    """The distributions that import statements need, without optional ones."""
    names = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names.add((node.module or "").split(".")[0])
    outside = names - set(sys.stdlib_module_names) - {"streamvos", *OPTIONAL}
    owners = packages_distributions()
    return {_distribution(owners.get(name, [name])[0]) for name in outside}


def _distribution(requirement: str) -> str:
    """The distribution's name as PEP 503 compares it; every OpenCV wheel holds the same module."""
    name = re.sub(r"[-_.]+", "-", re.split(r"[^\w.-]", requirement)[0]).lower()
    return "opencv-python-headless" if name.startswith("opencv-") else name
