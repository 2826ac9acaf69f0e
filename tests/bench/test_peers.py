"""`bench peers`: adapters against toy checkouts, which have the names they call and follow the first mask."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from toy_peers import FILES, write_checkout

from bench.peers import ADAPTERS, find_peers
from bench.results import read
from streamvos.cli import main
from streamvos.types import InputError

ROOT = Path(__file__).resolve().parents[2]

FOLLOW = """
import importlib, json, sys
import numpy as np
import bench.peers.work as work
from bench.scenes import Scene
answers = {}
peer, root, objects = sys.argv[1], sys.argv[2], int(sys.argv[3])
told = work.JOBS["begin"](peer=peer, root=root, device="cpu", size=[50, 70], objects=objects, history=2)
first = Scene((50, 70), objects).frame(0)[1]
later = work._stream._step(Scene((50, 70), objects).frame(3)[0], None)
agree = float((first == later).mean())
turn, labels = work.JOBS["turn"](seconds=0), sorted(set(later.ravel().tolist()))
print(json.dumps([told, agree, labels, turn, work.JOBS["end"]()]), file=sys.stderr)
"""


def follow(peer: str, root: Path, objects: int):
    """What an adapter makes of a checkout, in a process of its own as always."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", FOLLOW, peer, str(root), str(objects)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stderr.splitlines()[-1])


@pytest.mark.parametrize("peer", ADAPTERS)
def test_an_adapter_gives_frames_and_gets_masks(tmp_path, peer):
    assert find_peers([write_checkout(tmp_path, peer)]) == [(peer, tmp_path)]
    told, agree, labels, turn, end = follow(peer, tmp_path, objects=2)
    assert told["first_frame_ms"] > 0
    # TVOS's labels have an eighth of the size
    assert agree > (0.8 if peer == "tvos" else 0.999)
    assert labels == [0, 1, 2]
    assert len(turn["values"]) == 1
    assert end["peak_mib"] > 10


def test_beside_ours_in_one_run(tmp_path, capsys):
    roots = [write_checkout(tmp_path / peer, peer) for peer in ("xmem", "rgmp")]
    path = tmp_path / "rows.jsonl"
    arguments = "--methods frtm-fast --size 64x96 --objects 1 --seconds 0 --turns 2 --history 1 --threads 1"
    repos = [word for root in roots for word in ("--repo", str(root))]
    assert main(["bench", "peers", *repos, *arguments.split(), "--json", str(path)]) == 0
    captured = capsys.readouterr()
    assert "random weights" in captured.err
    rows = read(path)
    assert [row.case.method for row in rows] == ["frtm-fast", "XMem", "RGMP's own code"]
    assert [row.case.weights for row in rows] == ["bundled", "random", "random"]
    for row in rows:
        assert row.failed is None, row.failed
        assert row.count == len(row.repetitions) == 2
        assert row.first_frame_ms > 0
        assert row.memory_mib.peak > 10
    assert [row.ratio.to for row in rows[1:]] == [rows[0].name] * 2


def test_a_checkout_without_a_name_ends_in_one_line(tmp_path, capsys):
    root = write_checkout(tmp_path / "XMem", "xmem")
    (root / "inference/inference_core.py").write_text("class Core: pass\n")
    path = tmp_path / "rows.jsonl"
    arguments = "--methods frtm-fast --size 64x96 --seconds 0 --turns 1 --history 1 --threads 1"
    main(["bench", "peers", "--repo", str(root), *arguments.split(), "--json", str(path)])
    ours, theirs = read(path)
    assert ours.failed is None
    assert "lacks" in theirs.failed
    assert "InferenceCore" in theirs.failed
    assert "no figures" in capsys.readouterr().out


def test_a_checkout_without_a_file_is_refused_before_the_work(tmp_path, capsys):
    root = write_checkout(tmp_path / "XMem", "xmem")
    (root / "inference/memory_manager.py").unlink()
    assert main(["bench", "peers", "--repo", str(root)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith(f"--repo {root} lacks inference/memory_manager.py, which the adapter for XMem needs")


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["--repo", "nowhere"], "--repo nowhere is no folder"),
        (["--repo", "."], "is no checkout that is known; expected one of"),
        (["--repo", ".", "--peer", "xmem"], "lacks model/network.py"),
        (["--peer", "deva"], "unknown peer 'deva'"),
        (["--peer", "tvos"], "no peer is installed; give a checkout with --repo"),
        (["--methods", "nope"], "unknown method 'nope'"),
    ],
)
def test_bad_input_ends_in_one_line(tmp_path, monkeypatch, capsys, arguments, part):
    monkeypatch.chdir(tmp_path)
    assert main(["bench", "peers", *arguments]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert part in line


def test_every_adapter_has_a_toy():
    assert set(FILES) == set(ADAPTERS)
    with pytest.raises(InputError, match="unknown peer"):
        find_peers([], "nobody")
