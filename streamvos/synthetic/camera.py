"""What the camera adds to the frames of a video that is made on the spot: changing light, and noise."""

from __future__ import annotations

from functools import lru_cache

import cv2
import numpy as np

from streamvos.synthetic.motion import sinusoids

Array = np.ndarray


class Light:
    """Drift of exposure, contrast and white balance, and uneven light that moves over the frame.

    Args:
        length: number of frames.
        strength: 1 is about +-25 % of brightness.
    """

    def __init__(self, rng: np.random.Generator, length: int, strength: float) -> None:
        times = np.arange(length, dtype=np.float64)

        def drift(speed: float, limit: float, offset: float) -> Array:
            start = rng.normal(0, offset * strength)
            return start + sinusoids(rng, times, speed * strength, limit=limit * strength)

        self.gain, self.gamma = np.exp(drift(0.012, 0.25, 0.08)), np.exp(drift(0.008, 0.18, 0.08))
        self.tint = np.exp(np.stack([drift(0.004, 0.08, 0.04) for _ in range(3)], 1))
        # Sampled at 6 x 6 points: a sum of two slow waves over the frame.
        self.waves = rng.normal(0, 2.2, (2, 3)) * [1, 1, 0.03]
        self.starts = rng.uniform(0, 2 * np.pi, 2)
        self.depth = strength * float(rng.uniform(0, 0.22))

    def apply(self, image: Array, t: int) -> Array:
        """The image, (H, W, 3) uint8, as the camera records it at frame `t`."""
        curve = self.gain[t] * np.linspace(0, 1, 256) ** self.gamma[t]
        table = np.clip(curve[:, None] * self.tint[t] * 255, 0, 255).round().astype(np.uint8)[None]
        image = cv2.LUT(image, table)
        ys, xs = np.mgrid[-1:1:6j, -1:1:6j]
        waves = zip(self.waves, self.starts, strict=True)
        field = np.sum([np.sin(a * xs + b * ys + c * t + start) for (a, b, c), start in waves], axis=0)
        coarse = (128 * np.exp(self.depth * field / 2)).astype(np.uint8)
        height, width = image.shape[:2]
        shade = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_LINEAR)
        return cv2.multiply(image, cv2.merge([shade, shade, shade]), scale=1 / 128)


@lru_cache(maxsize=2)
def _noise_bank(coarse: bool) -> Array:
    """(768, 768, 3) int16 normal noise of standard deviation 32; if `coarse`, neighbors are correlated."""
    noise = np.random.default_rng(20).standard_normal((768, 768, 3), np.float32)
    if coarse:
        noise = np.asarray(cv2.GaussianBlur(noise, (0, 0), 0.7, borderType=cv2.BORDER_REFLECT))
        noise /= noise.std()
    return np.round(noise * 32).astype(np.int16)


def sensor_noise(seed: int, t: int, size: tuple[int, int], coarse: bool) -> Array:
    """(H, W, 3) int16, a piece of the bank that depends on seed and frame, repeated for larger frames.

    Its standard deviation is 32.
    """
    bank = _noise_bank(coarse)
    height, width = size
    spare_y, spare_x = len(bank) - height, len(bank) - width
    rng = np.random.default_rng((seed, t))
    top, left = int(rng.integers(0, max(spare_y, 0) + 1)), int(rng.integers(0, max(spare_x, 0) + 1))
    if spare_y >= 0 and spare_x >= 0:
        return bank[top : top + height, left : left + width]
    bank = np.roll(bank, (int(rng.integers(0, len(bank))), int(rng.integers(0, len(bank)))), (0, 1))
    bank = cv2.copyMakeBorder(bank, 0, max(0, -spare_y), 0, max(0, -spare_x), cv2.BORDER_WRAP)
    return bank[:height, :width]
