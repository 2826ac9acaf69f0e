"""How a decoded frame is meant to be shown: turned and mirrored, with square pixels, in ordinary colors.

Everything that reads a video uses this file, so that a video file, a camera and a resumed stream show the
same pictures.

    make = PictureMaker(container, stream)
    make(frame)              # (H, W, 3) uint8 RGB, upright, in full range
    make.pixel_aspect(frame) # 2.0: pixels are twice as wide as high
"""

from __future__ import annotations

import logging
import struct
from typing import Any

import av
import av.error
import av.filter
import numpy as np
from av.sidedata.sidedata import SideDataContainer, Type

_LOGGER = logging.getLogger(__name__)

_HDR = {16: "PQ", 18: "HLG"}
"""Transfer functions of HDR (ITU-T H.273) -> name."""

_TO_SDR = "out_transfer=bt709:out_primaries=bt709:out_range=pc:intent=perceptual"
_BT2020 = 9

_CREDIBLE_ASPECT = 8.0
"""Pixels that are said to be longer than this are taken for square: the file is wrong."""

_DISPLAY_MATRIX = struct.Struct("=9i")  # a b u / c d v / x y w, the rows of ISO 14496-12


class PictureMaker:
    """Makes pictures of one stream's frames.

    HDR (PQ, HLG) is mapped to BT.709 by FFmpeg's scaler, with its perceptual intent; where that fails, the
    values are shown as they are, and a warning says so.

    Args:
        name: name of the source in warnings.
        stream: the stream that the frames belong to.
    """

    def __init__(self, name: str, stream: av.video.stream.VideoStream) -> None:
        self._name, self._stream = name, stream
        self._mapping: tuple[Any, Any] | None = None  # of HDR: the graph, and the format that it was made for
        self._warned = False

    def __call__(self, frame: av.VideoFrame) -> np.ndarray:
        """(H, W, 3) uint8 RGB, as a player shows it, but with the pixels of the file."""
        transposes, flips_rows, flips_columns = orientation(frame)
        image: np.ndarray = self._in_ordinary_colors(frame).to_ndarray(format="rgb24")
        if transposes:
            image = image.transpose(1, 0, 2)
        if flips_rows:
            image = image[::-1]
        if flips_columns:
            image = image[:, ::-1]
        return np.ascontiguousarray(image)

    def pixel_aspect(self, frame: av.VideoFrame) -> float:
        """Width of a shown pixel divided by its height; 1.0 if the file says nothing credible."""
        ratio = self._stream.sample_aspect_ratio
        aspect = float(ratio) if ratio else 1.0
        if not 1 / _CREDIBLE_ASPECT <= aspect <= _CREDIBLE_ASPECT:
            return 1.0
        return 1 / aspect if orientation(frame)[0] else aspect

    def _in_ordinary_colors(self, frame: av.VideoFrame) -> av.VideoFrame:
        kind = _HDR.get(int(frame.color_trc or 0))
        if kind is None:
            return frame
        try:
            mapped = self._map(frame)
            says = f"{self._name} is HDR ({kind}); it is tone-mapped to ordinary colors"
        except (av.error.FFmpegError, OSError, ValueError):
            mapped = frame
            says = (
                f"{self._name} is HDR ({kind}), which cannot be tone-mapped here: its pictures look pale; "
                "convert it to SDR for better masks"
            )
        if not self._warned:
            self._warned = True
            _LOGGER.warning("%s", says)
        return mapped

    def _map(self, frame: av.VideoFrame) -> av.VideoFrame:
        made_for = (frame.width, frame.height, frame.format.name)
        if self._mapping is None or self._mapping[1] != made_for:
            graph = av.filter.Graph()
            source = graph.add_buffer(
                width=frame.width, height=frame.height, format=frame.format, time_base=self._stream.time_base
            )
            steps = [("scale", _TO_SDR), ("format", "pix_fmts=rgb24"), ("buffersink", None)]
            graph.link_nodes(source, *(graph.add(*step) for step in steps)).configure()
            self._mapping = graph, made_for
        graph = self._mapping[0]
        if int(frame.color_primaries or 2) == 2:  # unspecified; HDR is BT.2020
            frame.color_primaries = _BT2020
        graph.vpush(frame)
        return graph.vpull()


def orientation(frame: av.VideoFrame) -> tuple[bool, bool, bool]:
    """How a stored picture becomes the shown one: transpose it, then flip its rows, then its columns.

    These are the eight orientations of a display matrix (quarter turns, mirrored or not). Other angles are
    rounded to the nearest.
    """
    # frame.side_data would be kept by the frame, which it refers to: a cycle, so that hundreds of frames
    # would lie in memory until the garbage collector comes
    side_data: Any = SideDataContainer(frame)  # type: ignore[call-arg]
    data = next((bytes(one) for one in side_data if one.type == Type.DISPLAYMATRIX), b"")
    if len(data) < _DISPLAY_MATRIX.size:
        return False, False, False
    a, b, _, c, d, *_ = _DISPLAY_MATRIX.unpack(data[: _DISPLAY_MATRIX.size])
    # a stored point (x, y) is shown at (a x + c y, b x + d y)
    if max(abs(a), abs(d)) >= max(abs(b), abs(c)):
        return False, d < 0, a < 0
    return True, b < 0, c < 0
