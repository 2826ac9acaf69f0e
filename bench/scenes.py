"""Moving pictures with true masks, made on the spot: textured ellipses that wander.

scene = Scene((480, 854), objects=3)
image, labels = scene.frame(17)
"""

from __future__ import annotations

import numpy as np


class Scene:
    """Ellipses of a twentieth of the frame before a still background; a round takes 240 frames.

    Args:
        size: (H, W).
        objects: how many, with ids from 1.
        seed: of the textures.
    """

    def __init__(self, size: tuple[int, int], objects: int, seed: int = 0) -> None:
        height, width = self.size = size
        rng = np.random.Generator(np.random.PCG64(seed))
        coarse = rng.integers(0, 255, (1 + objects, 12, 16, 3), dtype=np.uint8)
        blocks = np.ones((-(-height // 12), -(-width // 16), 1), np.uint8)
        self._textures = [np.kron(one, blocks)[:height, :width] for one in coarse]

    def frame(self, t: int) -> tuple[np.ndarray, np.ndarray]:
        """(H, W, 3) uint8 RGB and (H, W) uint8 label map of frame `t`."""
        height, width = self.size
        image, labels = self._textures[0].copy(), np.zeros(self.size, np.uint8)
        rows, columns = np.ogrid[:height, :width]
        objects = len(self._textures) - 1
        for k in range(objects):
            angle = 2 * np.pi * (k / objects + t / 240)
            y, x = height * (0.5 + 0.28 * np.sin(angle)), width * (0.5 + 0.3 * np.cos(angle))
            inside = ((rows - y) / (0.16 * height)) ** 2 + ((columns - x) / (0.1 * width)) ** 2 < 1
            image[inside], labels[inside] = self._textures[1 + k][inside], k + 1
        return image, labels
