"""A COCO file of a run is read by COCO's own library, and gives the masks back."""

from __future__ import annotations

import json

import numpy as np
import pytest
from pycocotools.coco import COCO

from streamvos.cli import main
from streamvos.sinks.coco import coco_of
from streamvos.types import InputError

SOURCE = "synthetic:seed=3,objects=2,size=48x64,length=4"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    out = tmp_path_factory.mktemp("run") / "out"
    assert main(["run", SOURCE, "--out", str(out), "--no-overlay", "--device", "cpu"]) == 0
    return out


def test_masks_come_back(run, capsys):
    from streamvos import read_label_map

    assert main(["export", "coco", str(run)]) == 0
    assert "4 images" in capsys.readouterr().err
    coco = COCO(run / "coco.json")
    assert sorted(coco.getCatIds()) == [1, 2]
    for image in coco.loadImgs(coco.getImgIds()):
        label_map = read_label_map(run / "labels" / image["file_name"])
        found = np.zeros_like(label_map)
        for one in coco.loadAnns(coco.getAnnIds(imgIds=image["id"])):
            mask = coco.annToMask(one)
            found[mask == 1] = one["category_id"]
            left, top, width, height = one["bbox"]
            assert mask[top : top + height, left : left + width].sum() == one["area"] == mask.sum()
        np.testing.assert_array_equal(found, label_map)


@pytest.mark.parametrize("text", ["no json\n", '{"size": [4]}\n', "[]\n", "\xff"])
def test_other_files_are_refused(tmp_path, text):
    path = tmp_path / "results.jsonl"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(InputError, match="results"):
        coco_of(path)


def test_a_missing_file_is_one_line(tmp_path, capsys):
    assert main(["export", "coco", str(tmp_path / "none.jsonl")]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_a_pattern_names_the_images(run):
    names = [one["file_name"] for one in coco_of(run / "results.jsonl", "{stream}/{index}.jpg")["images"]]
    assert names[1].endswith("/1.jpg")
    json.dumps(names)
