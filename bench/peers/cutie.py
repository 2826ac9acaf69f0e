"""Cutie-small (Cheng et al., CVPR 2024), from a checkout or the package rf-cutie."""

from __future__ import annotations

from pathlib import Path
from unittest.mock import patch

import numpy as np
import torch

from .work import Step

FILES = ("cutie/model/cutie.py", "cutie/inference/inference_core.py", "cutie/config/model/small.yaml")
PACKAGE = "cutie"


def load(root: str | None, device: str) -> Step:
    """Float32, with the settings for DAVIS 2017: memory every five frames."""
    import cutie
    from cutie.inference.inference_core import InferenceCore
    from cutie.model.cutie import CUTIE
    from omegaconf import OmegaConf

    folder = Path(next(iter(cutie.__path__))) / "config"
    config = OmegaConf.load(folder / "eval_config.yaml")
    model = [OmegaConf.load(folder / "model" / f"{name}.yaml") for name in ("base", "small")]
    config["model"] = OmegaConf.merge(*model)
    config = OmegaConf.merge(config, {"mem_every": 5, "use_long_term": False})
    with patch("cutie.model.utils.resnet.load_weights_add_extra_dim"):
        core = InferenceCore(CUTIE(config).eval().to(device), config)

    @torch.inference_mode()
    def step(image: np.ndarray, mask: np.ndarray | None) -> np.ndarray:
        frame = torch.from_numpy(image).to(device).permute(2, 0, 1).float() / 255
        if mask is None:
            answer = core.step(frame)
        else:
            ids = np.unique(mask)[1:].tolist()
            answer = core.step(frame, torch.from_numpy(mask).to(device), objects=ids)
        return answer.argmax(0).byte().cpu().numpy()

    return step
