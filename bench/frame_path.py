"""What one frame passes: functions, files and the depth of calls, of this package's code alone.

    python bench/frame_path.py                          # step, run, fused and split
    python bench/frame_path.py --paths step run --method frtm-fast

Every path is taken twice, with a short and a long synthetic video, in processes of their own; sinks write.
A function belongs to the path of a frame if it was called at least once more for each additional frame of the
long video; in a pipeline the workers of all stages and the supervisor count together. Depth is the largest
number of the package's functions that were active at once when one of those was called.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

SHORT, LONG = 20, 60
PATHS = ("step", "run", "fused", "split")

RECORDER = """
import atexit, json, os, sys, threading
FOLDER = os.environ.get("FRAME_PATH_FOLDER")
if FOLDER:
    calls, deepest, depths = {}, {}, threading.local()
    def profile(frame, event, _):
        code = frame.f_code
        if event not in ("call", "return") or "/streamvos/" not in code.co_filename:
            return
        if event == "return":
            depths.now = getattr(depths, "now", 1) - 1
            return
        depths.now = now = getattr(depths, "now", 0) + 1
        name = code.co_filename.split("/streamvos/")[-1], code.co_qualname
        calls[name] = calls.get(name, 0) + 1
        if now > deepest.get(name, 0):
            deepest[name] = now
    def write():
        threading.setprofile(None)
        sys.setprofile(None)
        rows = [[*name, count, deepest[name]] for name, count in list(calls.items())]
        with open(os.path.join(FOLDER, str(os.getpid())), "w") as file:
            json.dump(rows, file)
    def write_and_leave(code, leave=os._exit):
        write()
        leave(code)
    atexit.register(write)
    os._exit = write_and_leave
    threading.setprofile(profile)
    sys.setprofile(profile)
"""

STEP = """
import sys
import streamvos
from streamvos.sources import open_source
vos = streamvos.load(sys.argv[1], device="cpu")
with open_source(sys.argv[2]) as source:
    truth = source.label_map(0)
    frames = [frame.image for frame in source]
for index, image in enumerate(frames):
    vos.step(image, truth if index == 0 else None)
"""


def command(path: str, method: str, source: str, folder: Path) -> list[str]:
    """What takes this path once, as a command."""
    if path == "step":
        return [sys.executable, "-c", STEP, method, source]
    cli = [sys.executable, "-m", "streamvos.cli"]
    if path == "run":
        return [*cli, "run", source, "--method", method, "--device", "cpu", "--out", str(folder / "out")]
    sinks = {"labels": folder / "labels", "overlay": folder / "out.mp4", "json": folder / "out.jsonl"}
    lines = [
        f'name = "path"\nplacement = "{path}"\n[method]\nname = "{method}"\ndevice = "cpu"\nthreads = 1',
        f'[[streams]]\nname = "s"\nsource = "{source}"\npolicy = "lossless"',
        "sinks = [" + ", ".join(f'{{ kind = "{k}", path = "{p}" }}' for k, p in sinks.items()) + "]",
        "[supervision]\nstandby = false\nsnapshot_seconds = 3600\nsnapshot_frames = 100000",
    ]
    config = folder / "pipeline.toml"
    config.write_text("\n".join(lines) + "\n")
    return [*cli, "serve", str(config)]


def calls(path: str, method: str, frames: int) -> tuple[Counter[tuple[str, str]], dict[tuple[str, str], int]]:
    """How often every function was called in all processes, and how deep."""
    source = f"synthetic:seed=4,objects=2,size=64x96,length={frames},leave=0"
    counts: Counter[tuple[str, str]] = Counter()
    deepest: dict[tuple[str, str], int] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "sitecustomize.py").write_text(RECORDER)
        (folder / "calls").mkdir()
        (folder / "runtime").mkdir(mode=0o700)
        root = str(Path(__file__).resolve().parents[1])
        environment = os.environ | {
            "PYTHONPATH": os.pathsep.join([name, os.environ.get("PYTHONPATH", root)]),
            "FRAME_PATH_FOLDER": str(folder / "calls"),
            "XDG_RUNTIME_DIR": str(folder / "runtime"),
            "OMP_NUM_THREADS": "1",
        }
        done = subprocess.run(
            command(path, method, source, folder), env=environment, capture_output=True, text=True
        )
        if done.returncode:
            raise SystemExit(f"{path}: {done.stderr[-2000:]}")
        for record in (folder / "calls").iterdir():
            for file, function, count, depth in json.loads(record.read_text()):
                counts[file, function] += count
                deepest[file, function] = max(depth, deepest.get((file, function), 0))
    return counts, deepest


def measure(path: str, method: str) -> dict[str, Any]:
    """Functions, files and depth of a frame on this path."""
    few, _ = calls(path, method, SHORT)
    many, deepest = calls(path, method, LONG)
    passed = sorted(name for name in many if many[name] - few[name] >= LONG - SHORT)
    return {
        "path": path,
        "functions": len(passed),
        "files": len({file for file, _ in passed}),
        "depth": max(deepest[name] for name in passed),
        "passed": [f"{file}: {function}" for file, function in passed],
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--paths", nargs="+", choices=PATHS, default=list(PATHS))
    parser.add_argument("--method", default="tvos")
    parser.add_argument("--list", action="store_true", help="name the functions too")
    given = parser.parse_args()
    print(f"{'path':8}{'functions':>11}{'files':>8}{'depth':>8}")
    rows = []
    for path in given.paths:
        row = measure(path, given.method)
        print(f"{path:8}{row['functions']:>11}{row['files']:>8}{row['depth']:>8}", flush=True)
        passed = row.pop("passed")
        if given.list:
            print("\n".join(f"    {one}" for one in passed))
        rows.append(row)
    print(json.dumps({"benchmark": "frame_path", "method": given.method, "rows": rows}))


if __name__ == "__main__":
    main()
