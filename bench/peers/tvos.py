"""TVOS's own code (Zhang et al., CVPR 2020), from a checkout, with its settings for DAVIS 2017."""

from __future__ import annotations

import tempfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from PIL import Image

from .work import Step

FILES = ("modeling/network.py", "lib/predict.py", "lib/utils.py")
PACKAGE = None

ARGUMENTS = SimpleNamespace(range=40, ref_num=9, temperature=1.0, probability_propagation=False)


def load(root: str | None, device: str) -> Step:
    """Float32. All features of a video are kept, as the authors do."""
    from lib.predict import predict, prepare_first_frame
    from lib.utils import index_to_onehot
    from modeling.network import VOSNet

    network = VOSNet(model="resnet50").eval().to(device)
    mean = torch.tensor([0.485, 0.456, 0.406], device=device)[:, None, None]
    deviation = torch.tensor([0.229, 0.224, 0.225], device=device)[:, None, None]
    features = labels = dense = sparse = torch.empty(0)
    count = frame = 0

    @torch.inference_mode()
    def step(image: np.ndarray, mask: np.ndarray | None) -> np.ndarray:
        nonlocal features, labels, dense, sparse, count, frame
        pixels = torch.from_numpy(image).to(device).permute(2, 0, 1).float() / 255
        new = network(((pixels - mean) / deviation)[None])
        if mask is not None:
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder) / "00000.png"
                picture = Image.fromarray(mask)
                picture.putpalette([value for k in range(256) for value in (k, k, k)])
                picture.save(path)
                labels, count, _, dense, sparse = prepare_first_frame("scene", None, str(path), 8.0, 21.0)
            features, frame = new, 1
            return mask
        soft = predict(features, new[0], labels, dense, sparse, frame, ARGUMENTS)
        hard = index_to_onehot(torch.argmax(soft, 0), count).unsqueeze(1)
        labels, features, frame = torch.cat((labels, hard), 1), torch.cat((features, new), 0), frame + 1
        grid = soft.view(1, count, *new.shape[2:])
        large = torch.nn.functional.interpolate(grid, image.shape[:2], mode="bilinear", align_corners=False)
        return large.argmax(1)[0].byte().cpu().numpy()

    return step
