"""Odd surroundings: locales that are not UTF-8, closed streams, no memory, and bugs. Never a traceback."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

import streamvos.cli
from streamvos.types import is_out_of_memory

RUN = ("run", "clip.mp4", "--mask", "first.png", "--max-frames", "2")


def start(*arguments: object, shell: str = "", **environment: str) -> subprocess.CompletedProcess[bytes]:
    """Run the command line in a process of its own; `shell` follows its arguments."""
    command = [sys.executable, "-m", "streamvos", *map(os.fsdecode, map(os.fsencode, map(str, arguments)))]
    given = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("LC_", "LANG", "PYTHONUTF8"))
    }
    given |= {"OMP_NUM_THREADS": "1", **environment}
    if shell:
        command = ["bash", "-c", f'"$@" {shell}', "bash", *command]
    return subprocess.run(command, capture_output=True, timeout=120, env=given, check=False)


def check(done: subprocess.CompletedProcess[bytes], code: int = 0) -> str:
    error = done.stderr.decode(errors="replace")
    assert done.returncode == code, error
    assert "Traceback" not in error
    return error


@pytest.mark.parametrize(
    "environment",
    [
        {"PYTHONIOENCODING": "latin-1"},
        {"PYTHONIOENCODING": "ascii", "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
    ],
    ids=str,
)
def test_a_locale_that_is_not_utf_8(inputs, weights, environment):
    os.rename(b"frames", b"b\xe9b\xe9 \xe2\x82\xac")  # no UTF-8; the rest is
    source, out = os.fsdecode(b"b\xe9b\xe9 \xe2\x82\xac"), os.fsdecode(b"o\xff")
    done = start(
        "run",
        source,
        "--mask",
        "first.png",
        "--weights",
        weights,
        "--out",
        out,
        "--max-frames",
        2,
        **environment,
    )
    check(done)
    assert len(list((Path(out) / "labels").glob("*.png"))) == 2


def test_names_that_are_no_utf_8_are_names(call, inputs, weights):
    name = os.fsdecode(b"fr\xe9mes")
    (inputs / "frames").rename(inputs / name)
    Image.open(inputs / name / "shot_1.png").save(inputs / name / os.fsdecode(b"\xff.png"))
    answer = call(
        "run", name, "--mask", "first.png", "--weights", weights, "--out", "out", "--json", "r.json"
    )
    assert answer.code == 0, answer.err
    assert os.fsencode(f"{os.fsdecode(bytes([255]))}.png") in os.listdir(b"out/labels")
    answer = call(
        "run", name, "--mask", "first.png", "--weights", weights, "--out", "out"
    )  # the record knows it
    assert answer.code == 0, answer.err


@pytest.mark.parametrize(
    ("shell", "arguments", "code", "told"),
    [
        (">&-", RUN, 2, "the standard output is closed"),
        ("<&- 2>&-", RUN, 0, ""),
        ("2>/dev/full", ("run", "none.mp4"), 2, ""),
        (">/dev/full", ("--version",), 2, "cannot write the standard output: No space left"),
    ],
)
def test_closed_and_full_streams(inputs, weights, shell, arguments, code, told):
    own = ("--weights", weights) if "--max-frames" in arguments else ()
    done = start(*arguments, *own, shell=shell)
    error = check(done, done.returncode if code is None else code)
    assert told in error
    if arguments == RUN:
        assert len((inputs / "out/results.jsonl").read_text().splitlines()) == 2
        assert (inputs / "out/overlay.mp4").read_bytes()[4:8] == b"ftyp"  # nothing was printed into it


def test_a_bug_is_one_line_and_a_file_with_its_traceback(call, monkeypatch, tmp_path):
    def broken(_: object) -> None:
        raise KeyError("no such\nthing")

    monkeypatch.setattr(streamvos.cli, "make_app", broken)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    answer = call("doctor")
    assert answer.code == 1
    (line,) = answer.err.splitlines()
    assert line.startswith("streamvos: error: KeyError:")
    assert "this is a bug" in line
    (report,) = tmp_path.glob("streamvos-*.txt")
    assert str(report) in line
    assert "in broken" in report.read_text()
    monkeypatch.setenv("STREAMVOS_TRACEBACK", "1")
    assert "in broken" in call("doctor").err


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (MemoryError(), True),
        (
            RuntimeError(
                "[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory: ..."
            ),
            True,
        ),
        (RuntimeError("std::bad_alloc"), True),
        (OSError(12, "Cannot allocate memory"), True),
        (ImportError("libtorch.so: failed to map segment from shared object"), True),
        (RuntimeError("can't start new thread"), True),
        (RuntimeError("shapes do not match"), False),
        (OSError(28, "No space left on device"), False),
    ],
)
def test_what_counts_as_out_of_memory(error, expected):
    assert is_out_of_memory(error) is expected


def test_too_little_memory_is_told(inputs, weights):
    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_AS, (2_600_000 * 1024,) * 2)

    Image.new("RGB", (5000, 3000), "red").save("big.png")
    command = [
        sys.executable,
        "-m",
        "streamvos",
        "run",
        "big.png",
        "--box",
        "1:300,200,4200,2800",
        "--out",
        "big",
    ]
    done = subprocess.run(
        command,
        capture_output=True,
        timeout=300,
        preexec_fn=limit,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    error = check(done, 2)
    assert "out of memory" in error.splitlines()[-1]
