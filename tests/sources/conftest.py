"""Small videos whose frames tell their own number."""

import io
from collections.abc import Callable
from fractions import Fraction

import av
import numpy as np
import pytest

FPS = 25


def _numbered(number: int, size: tuple[int, int]) -> np.ndarray:
    """A frame of eight upright bars, white for each bit of the number that is set, the highest first."""
    bits = [(number >> (7 - place)) & 1 for place in range(8)]
    row = np.repeat(np.array(bits, np.uint8) * 255, size[1] // 8)
    return np.broadcast_to(row[None, :, None], (size[0], size[1], 3)).copy()


@pytest.fixture(scope="session")
def make_video() -> Callable[..., bytes]:
    """(frames, (H, W), container, codec, times in frames) -> the bytes of a video file.

    The frames are numbered in a way that survives coding; `number_of` reads the number.
    """

    def make(
        count: int = 10,
        size: tuple[int, int] = (48, 64),
        container: str = "mpegts",
        codec: str = "mpeg2video",
        times: list[int] | None = None,
    ) -> bytes:
        file = io.BytesIO()
        with av.open(file, "w", format=container) as output:
            stream = output.add_stream(codec, rate=FPS)
            stream.height, stream.width = size
            stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
            stream.bit_rate = 400_000
            stream.codec_context.gop_size = 5
            for index in range(count):
                frame = av.VideoFrame.from_ndarray(_numbered(index, size), format="rgb24")
                frame.pts, frame.time_base = (times or range(count))[index], Fraction(1, FPS)
                output.mux(stream.encode(frame))
            output.mux(stream.encode(None))
        return file.getvalue()

    return make


@pytest.fixture(scope="session")
def number_of() -> Callable[[np.ndarray], int]:
    """The number that a frame of `make_video` tells."""

    def read(image: np.ndarray) -> int:
        height, width = image.shape[:2]
        bars = image[height // 2, width // 16 :: width // 8, 1] > 127
        return int("".join("1" if bar else "0" for bar in bars), 2)

    return read
