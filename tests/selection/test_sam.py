"""A pair of ONNX files in the form of SAM's exporter is run with the right prompts; others are refused."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from streamvos.masks.pointing import Pointing
from streamvos.selection.objects import make_selector, select_objects
from streamvos.selection.sam import SamSelector
from streamvos.types import InputError

SIDE = 64


def write(path: Path, nodes, inputs, outputs, constants=None) -> Path:
    graph = helper.make_graph(
        nodes,
        "small",
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in inputs.items()],
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in outputs.items()],
        [numpy_helper.from_array(v, n) for n, v in (constants or {}).items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, str(path))
    return path


def write_encoder(path: Path) -> Path:
    """Means of 16 x 16 pixels."""
    node = helper.make_node("AveragePool", ["image"], ["embeddings"], kernel_shape=[16, 16], strides=[16, 16])
    return write(path, [node], {"image": [1, 3, SIDE, SIDE]}, {"embeddings": [1, 3, SIDE // 16, SIDE // 16]})


def write_decoder(path: Path, without: str = "") -> Path:
    """Its mask is a disk around the first point; its score is 0.5, and 0.75 with an earlier mask."""
    inputs = {
        "image_embeddings": [1, 3, 4, 4],
        "point_coords": [1, "points", 2],
        "point_labels": [1, "points"],
        "mask_input": [1, 1, 16, 16],
        "has_mask_input": [1],
        "orig_im_size": [2],
    }
    y, x = np.mgrid[:SIDE, :SIDE].astype(np.float32) + 0.5
    constants = {
        "grid": np.stack([x, y], axis=-1)[None],  # (1, SIDE, SIDE, 2)
        "zero": np.zeros(1, np.int64),
        "shape": np.array([1, 1, 1, 2], np.int64),
        "axes": np.array([3], np.int64),
        "one": np.array([1], np.int64),
        "hundred": np.array(100, np.float32),
        "half": np.array(0.5, np.float32),
        "quarter": np.array(0.25, np.float32),
        "score_shape": np.array([1, 1], np.int64),
    }
    nodes = [
        helper.make_node("Gather", ["point_coords", "zero"], ["first"], axis=1),
        helper.make_node("Reshape", ["first", "shape"], ["place"]),
        helper.make_node("Sub", ["grid", "place"], ["offset"]),
        helper.make_node("Mul", ["offset", "offset"], ["square"]),
        helper.make_node("ReduceSum", ["square", "axes"], ["distance"], keepdims=0),
        helper.make_node("Sub", ["hundred", "distance"], ["disk"]),
        helper.make_node("Unsqueeze", ["disk", "one"], ["masks"]),
        helper.make_node("Mul", ["has_mask_input", "quarter"], ["bonus"]),
        helper.make_node("Add", ["bonus", "half"], ["flat_score"]),
        helper.make_node("Reshape", ["flat_score", "score_shape"], ["iou_predictions"]),
    ]
    inputs.pop(without, None)
    return write(path, nodes, inputs, {"masks": [1, 1, SIDE, SIDE], "iou_predictions": [1, 1]}, constants)


@pytest.fixture
def selector(tmp_path) -> SamSelector:
    return SamSelector(write_encoder(tmp_path / "e.onnx"), write_decoder(tmp_path / "d.onnx"))


def test_a_click_is_given_in_the_models_pixels_and_the_mask_in_the_frames(selector):
    frame = np.zeros((96, 128, 3), np.uint8)  # shown at half its size
    mask, score = selector.select(frame, [(40.0, 60.0, 1)])
    assert mask.shape == (96, 128)
    # the small decoder draws on the square and does not cut off the padding
    rows, columns = np.nonzero(mask)
    assert columns.mean() == pytest.approx(40, abs=1)
    assert rows.mean() == pytest.approx(60 * 96 / 128, abs=1)
    assert score == pytest.approx(0.5)


def test_an_earlier_mask_is_passed_on(selector):
    frame = np.zeros((64, 64, 3), np.uint8)
    mask, _ = selector.select(frame, [(20.0, 20.0, 1)])
    _, score = selector.select(frame, [(20.0, 20.0, 1)], mask=mask)
    assert score == pytest.approx(0.75)


def test_several_objects_of_the_users_model_make_a_label_map(tmp_path):
    encoder, decoder = write_encoder(tmp_path / "e.onnx"), write_decoder(tmp_path / "d.onnx")
    selector = make_selector("sam", encoder, decoder)
    label_map = select_objects(
        selector, np.zeros((64, 64, 3), np.uint8), Pointing({7: (5, 5, 30, 30)}, {3: [(50.0, 50.0, 1)]})
    )
    assert set(np.unique(label_map)) == {0, 3, 7}
    assert label_map[50, 50] == 3


def test_files_that_are_no_such_models_are_refused(tmp_path):
    encoder, decoder = write_encoder(tmp_path / "e.onnx"), write_decoder(tmp_path / "d.onnx")
    text = tmp_path / "text.onnx"
    text.write_text("no model")
    for pair, part in (
        ((tmp_path / "none.onnx", decoder), "no file"),
        ((text, decoder), "as an ONNX model"),
        ((decoder, decoder), "no encoder"),
        ((encoder, encoder), "no decoder"),
        ((encoder, write_decoder(tmp_path / "w.onnx", without="mask_input")), "mask_input"),
    ):
        with pytest.raises(InputError, match=part):
            SamSelector(*pair)


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (("best",), "choose learned, grabcut, sam"),
        (("sam",), "two ONNX files"),
        (("grabcut", Path("e.onnx"), None), "for the selection 'sam'"),
    ],
)
def test_a_selection_and_its_files_belong_together(arguments, part):
    with pytest.raises(InputError, match=part):
        make_selector(*arguments)


def test_without_onnxruntime_the_error_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(InputError, match=r"streamvos\[sam\]"):
        SamSelector(write_encoder(tmp_path / "e.onnx"), write_decoder(tmp_path / "d.onnx"))
