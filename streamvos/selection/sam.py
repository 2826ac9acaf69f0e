"""Masks from a model of the SAM family that the user brings, as a pair of ONNX files.

    selector = SamSelector(Path("encoder.onnx"), Path("decoder.onnx"))
    mask, score = selector.select(frame.image, points=[(310, 200, 1)])

The decoder has the inputs of the exporter in SAM's own repository: image_embeddings, point_coords,
point_labels, mask_input, has_mask_input and orig_im_size; of its outputs, masks and iou_predictions are read.
The encoder has one input, (1, 3, side, side) float32, normalized by ImageNet's mean and deviation, and one
output, the embeddings.

Source: Kirillov et al., Segment Anything, ICCV 2023.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from streamvos.masks.pointing import Point
from streamvos.types import InputError

MEAN = np.array([123.675, 116.28, 103.53], np.float32)
DEVIATION = np.array([58.395, 57.12, 57.375], np.float32)
DEFAULT_SIDE = 1024
"""Pixels along a side of the encoder's input, where the file leaves it open."""

DECODER_INPUTS = (
    "image_embeddings", "point_coords", "point_labels", "mask_input", "has_mask_input", "orig_im_size",
)  # fmt: skip

BOX_CORNERS, PADDING = (2, 3), -1
"""Labels of a box's corners, and of the point that takes a missing box's place."""


class SamSelector:
    """Selects objects with a user's own ONNX files; needs onnxruntime (pip install 'streamvos[sam]').

    Raises:
        InputError: onnxruntime is missing, or a file is no such model.
    """

    def __init__(self, encoder: Path, decoder: Path):
        self._encoder, self._decoder = _open(encoder), _open(decoder)
        inputs = self._encoder.get_inputs()
        if len(inputs) != 1 or len(inputs[0].shape) != 4:
            raise InputError(
                f"{encoder} is no encoder: expected one input (1, 3, side, side), got {_names(inputs)}"
            )
        missing = sorted(set(DECODER_INPUTS) - {one.name for one in self._decoder.get_inputs()})
        outputs = {one.name for one in self._decoder.get_outputs()}
        if missing or not {"masks", "iou_predictions"} <= outputs:
            lacks = ", ".join(missing) or "masks, iou_predictions"
            raise InputError(f"{decoder} is no decoder of the SAM family: it lacks {lacks}")
        side = inputs[0].shape[2]
        self._side = side if isinstance(side, int) else DEFAULT_SIDE
        mask_shape = next(one.shape for one in self._decoder.get_inputs() if one.name == "mask_input")
        self._mask_side = mask_shape[2] if isinstance(mask_shape[2], int) else self._side // 4
        self._frame: np.ndarray | None = None
        self._embeddings: np.ndarray | None = None

    def select(
        self,
        frame: np.ndarray,
        points: Sequence[Point] = (),
        box: Sequence[float] | None = None,
        mask: np.ndarray | None = None,
    ) -> tuple[np.ndarray, float]:
        """See `Selector.select`."""
        height, width = frame.shape[:2]
        scale = self._side / max(height, width)
        if self._frame is None or not np.array_equal(self._frame, frame):
            self._embeddings, self._frame = self._encode(frame, scale), frame.copy()
        places = [(x, y) for x, y, _ in points]
        labels = [1 if sign > 0 else 0 for _, _, sign in points]
        if box is not None:
            places += [(box[0], box[1]), (box[2], box[3])]
            labels += BOX_CORNERS
        else:
            places.append((0.0, 0.0))
            labels.append(PADDING)
        given = np.zeros((1, 1, self._mask_side, self._mask_side), np.float32)
        if mask is not None:
            shown = cv2.resize(
                mask.astype(np.float32), None, fx=scale / 4, fy=scale / 4, interpolation=cv2.INTER_AREA
            )
            rows, columns = (min(n, self._mask_side) for n in shown.shape)
            given[0, 0, :rows, :columns] = 20 * shown[:rows, :columns] - 10  # logits
        values = {
            "image_embeddings": self._embeddings,
            "point_coords": (np.array([places], np.float32) * scale).astype(np.float32),
            "point_labels": np.array([labels], np.float32),
            "mask_input": given,
            "has_mask_input": np.array([mask is not None], np.float32),
            "orig_im_size": np.array([height, width], np.float32),
        }
        masks, scores = self._decoder.run(["masks", "iou_predictions"], values)
        best = int(np.asarray(scores)[0].argmax())
        found = np.asarray(masks)[0, best]
        if found.shape != (height, width):
            found = cv2.resize(found, (width, height), interpolation=cv2.INTER_LINEAR)
        return found > 0, float(np.clip(scores[0][best], 0, 1))

    def _encode(self, frame: np.ndarray, scale: float) -> np.ndarray:
        height, width = (max(1, round(n * scale)) for n in frame.shape[:2])
        shown = cv2.resize(
            frame, (width, height), interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
        )
        padded = np.zeros((self._side, self._side, 3), np.float32)
        padded[:height, :width] = (shown - MEAN) / DEVIATION
        name = self._encoder.get_inputs()[0].name
        return np.asarray(self._encoder.run(None, {name: padded.transpose(2, 0, 1)[None]})[0])


def _open(path: Path) -> Any:
    try:
        import onnxruntime
    except ImportError:
        raise InputError("the selection 'sam' needs onnxruntime: pip install 'streamvos[sam]'") from None
    if not path.is_file():
        raise InputError(f"{path} is no file; expected an ONNX model")
    try:
        return onnxruntime.InferenceSession(str(path), providers=onnxruntime.get_available_providers())
    except Exception as error:  # its errors have no common class of their own
        raise InputError(
            f"cannot read {path} as an ONNX model: {' '.join(str(error).split())[:200]}"
        ) from None


def _names(values: Sequence[Any]) -> str:
    return ", ".join(f"{one.name} {one.shape}" for one in values)
