"""`streamvos pick`: one frame, selected over HTTP as the page does it, and its label map."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import httpx
import numpy as np
import pytest
from console.scene import PATIENCE, iou, until

from streamvos.cli import main
from streamvos.masks.labelmap import read_label_map
from streamvos.sources import open_source

SOURCE = "synthetic:seed=3,size=120x160,length=6,objects=1,leave=0"
MAIN = "import sys; from streamvos.cli import main; sys.exit(main())"


def test_it_writes_the_label_map_and_ends(tmp_path):
    with open_source(SOURCE) as source:
        true = source.label_map(4) == 1
    rows, columns = np.nonzero(true)
    box = [columns.min() - 3, rows.min() - 3, columns.max() + 4, rows.max() + 4]
    out, log = tmp_path / "mask.png", tmp_path / "log"
    command = ["pick", SOURCE, "--frame", "4", "--out", str(out), "--select", "grabcut", "--json"]
    with open(log, "wb") as errors:
        process = subprocess.Popen(
            [sys.executable, "-c", MAIN, *command],
            stdout=subprocess.PIPE,
            stderr=errors,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
    try:
        address, token = until(
            lambda: re.search(r"(http\S+)/#token=(\S+)", log.read_text()), "an address"
        ).groups()
        headers = {"Authorization": f"Bearer {token}"}
        with httpx.Client(base_url=address, headers=headers, timeout=PATIENCE, trust_env=False) as http:
            until(lambda: http.get("/api/streams").json()["streams"])
            place = "/api/streams/picture"
            assert http.post(f"{place}/stop").status_code == 400  # nothing has been selected
            found = http.post(f"{place}/select", json={"box": [max(0, int(one)) for one in box]}).json()
            objects = [{"id": 1, "rle": found["rle"]}]
            assert (
                http.post(f"{place}/annotate", json={"frame": found["frame"], "objects": objects}).json()[
                    "seq"
                ]
                == 0
            )
            assert http.post(f"{place}/stop").status_code == 200
        output, _ = process.communicate(timeout=PATIENCE)
    finally:
        process.kill()
    assert process.returncode == 0, log.read_text()
    assert b'"objects"' in output
    assert iou(read_label_map(out) == 1, true) > 0.5  # as good as GrabCut is


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ([SOURCE, "--out", "mask.jpg"], ".png"),
        ([SOURCE, "--frame", "99", "--out", "mask.png"], "no frame 99"),
        (["nothing.mp4", "--out", "mask.png"], "nothing.mp4"),
        ([SOURCE, "--listen", "here:there", "--out", "mask.png"], "PORT"),
    ],
)
def test_bad_input_is_one_line(arguments, text, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["pick", *arguments]) == 2
    answer = capsys.readouterr().err
    assert text in answer
    assert len(answer.splitlines()) == 1
    assert not list(tmp_path.iterdir())


def test_a_token_of_ones_own_must_be_long(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("STREAMVOS_CONSOLE_TOKEN", "short")
    assert main(["pick", SOURCE, "--out", str(tmp_path / "mask.png")]) == 2
    assert "STREAMVOS_CONSOLE_TOKEN" in capsys.readouterr().err
