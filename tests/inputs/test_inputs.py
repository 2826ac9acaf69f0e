"""The table of inputs, row by row, through the Python API, `streamvos run` and the stages of a pipeline."""

from __future__ import annotations

import importlib
import json
import logging
import re
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from inputs.table import ROWS, Case
from PIL import Image
from stages_in_process import run_stages

import streamvos
from streamvos.cli import main
from streamvos.weights import save_weights

for module in sorted(Path(__file__).parent.glob("rows_*.py")):
    importlib.import_module(f"inputs.{module.stem}")

NETWORK = {"depth": 18, "stages": 2, "planes": [16, 16], "embedding": 16, "normalize": True}
OPTIONS = {"network": NETWORK, "top_k": 5, "temperature": 20.0, "radius": 1, "keep_first": True}


@pytest.fixture(scope="session")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights of a tiny network; masks need not be good here."""
    torch.manual_seed(0)
    extractor = streamvos.load("tvos", None, device="cpu", network=NETWORK).method.extractor
    path = tmp_path_factory.mktemp("weights") / "tiny.safetensors"
    save_weights(path, extractor.state_dict(), "tvos", {"options": OPTIONS})
    return path


@pytest.fixture
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)  # which the stages set


@pytest.mark.usefixtures("_here")
@pytest.mark.parametrize(
    ("door", "row"),
    [pytest.param(door, row, id=f"{row.name} | {door}") for row in ROWS for door in row.doors],
)
def test_inputs(door, row, tmp_path, weights, capsys, caplog):
    case = row.make(tmp_path)
    if case.mask is None and case.first is not None:
        Image.fromarray(case.first).save("first.png")
        case = Case(**{**vars(case), "mask": Path("first.png")})
    {"api": _api, "run": _run, "pipeline": _pipeline}[door](case, weights, capsys, caplog)


def _api(case: Case, weights: Path, capsys: pytest.CaptureFixture[str], caplog) -> None:
    images, stamps, masks, said = [], [], [], None
    vos = streamvos.load("tvos", weights, device="cpu")
    with caplog.at_level(logging.INFO, "streamvos"):
        try:
            mask = None if case.mask is None else streamvos.read_label_map(case.mask)
            with streamvos.open_source(case.source, **case.options) as source:
                for frame in source:
                    images.append(frame.image)
                    stamps.append(frame.pts)
                    masks.append(vos.step(frame.image, mask if frame.index == 0 else None).mask)
        except streamvos.StreamvosError as error:
            said = str(error)
    _check_refusal(case, said)
    if case.pictures is not None:
        assert len(images) == len(case.pictures)
        for t, (image, picture) in enumerate(zip(images, case.pictures, strict=True)):
            difference = np.abs(image.astype(int) - picture).mean() if image.shape == picture.shape else 255
            assert difference <= case.tolerance, f"frame {t}: {image.shape}, {picture.shape}, {difference}"
    _check_stamps(case, stamps)
    if case.first is not None and masks:
        assert np.array_equal(masks[0], case.first)
    if case.says:
        assert re.search(case.says, caplog.text), caplog.text


def _run(case: Case, weights: Path, capsys: pytest.CaptureFixture[str], caplog) -> None:
    options = [f"--{name.replace('_', '-')}={value}" for name, value in case.options.items()]
    mask = [] if case.mask is None else ["--mask", str(case.mask)]
    command = ["run", case.source, *mask, "--out", "out", "--weights", str(weights), "--device", "cpu"]
    capsys.readouterr()
    code = main([*command, *options, *case.run_options])
    printed, errors = capsys.readouterr()
    lines = [line for line in errors.splitlines() if line.startswith("streamvos: error: ")]
    assert "Traceback" not in errors, errors
    _check_refusal(case, lines[0] if lines else None)
    assert len(lines) <= 1, errors
    assert code == (2 if case.error and not case.code else case.code), errors
    if case.says:
        assert re.search(case.says, errors + printed), errors + printed
    _check_files(case, Path("out/labels"), Path("out/results.jsonl"))


def _pipeline(case: Case, weights: Path, capsys: pytest.CaptureFixture[str], caplog) -> None:
    here = Path.cwd()
    labels, results = here / "labels", here / "results.jsonl"
    sinks = [{"kind": "labels", "path": str(labels)}, {"kind": "json", "path": str(results)}]
    stream = {"name": "s", "source": case.source, "sinks": sinks, **case.options, **case.stream_options}
    if case.mask is not None:
        stream["mask"] = str(case.mask)
    method = {"name": "tvos", "weights": str(weights), "device": "cpu", "threads": 1}
    said = None
    with caplog.at_level(logging.INFO, "streamvos"):
        try:
            run_stages({"name": "inputs", "method": method, "streams": [stream]})
        except streamvos.StreamvosError as error:
            said = str(error)
    _check_refusal(case, said)
    if said is None:
        _check_files(case, labels, results)


def _check_refusal(case: Case, said: str | None) -> None:
    if case.error:
        assert said is not None, f"it was not refused; expected {case.error!r}"
        assert re.search(case.error, said), f"{said!r} does not match {case.error!r}"
    else:
        assert said is None, said


def _check_stamps(case: Case, stamps: list[float]) -> None:
    assert all(before < after for before, after in pairwise(stamps)), stamps
    if case.stamps is not None and stamps:
        assert np.allclose(np.subtract(stamps, stamps[0]), case.stamps, atol=1e-3), stamps


def _check_files(case: Case, labels: Path, results: Path) -> None:
    if case.error and not case.code:  # refused before the first frame
        assert not list(labels.glob("*.png"))
        return
    names = sorted(labels.glob("*.png"))
    lines = [json.loads(line) for line in results.read_text().splitlines()]
    assert [line["index"] for line in lines] == list(range(len(lines)))
    assert len(names) == len(lines)
    if case.pictures is not None:
        assert len(lines) == len(case.pictures)
    if case.stems is not None:
        assert [path.stem for path in names] == sorted(case.stems)
    _check_stamps(case, [line["pts"] for line in lines])
    if case.first is not None:
        first = labels / f"{case.stems[0]}.png" if case.stems else names[0]
        assert np.array_equal(np.asarray(Image.open(first)), case.first)
