"""Checkouts with the files and names that the adapters of `bench peers` call, and nothing behind them.

Every fake follows the first mask: what it answers on later frames is that mask.
"""

from __future__ import annotations

from pathlib import Path
from textwrap import dedent

_NETWORK = """
import torch
class Network(torch.nn.Module):
    def __init__(self, *arguments, **named):
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)
        self.load_state_dict(torch.load("weights.pth"))  # would fail, were anything loaded
"""

_CORE = """
import torch
class InferenceCore:
    def __init__(self, network, config):
        assert config["mem_every"] == 5 and not network.training
    def set_all_labels(self, labels):
        self.labels = labels
    def step(self, frame, mask=None, *arguments, **named):
        assert frame.ndim == 3 and frame.dtype == torch.float32
        if mask is not None:
            ids = named.get("objects") or self.labels
            planes = list(mask) if mask.ndim == 3 else [mask == one for one in ids]
            planes = [one.float() for one in planes]
            self.probabilities = torch.stack([1 - sum(planes), *planes])
        return self.probabilities
"""

_SAM2 = """
import torch
def load_video_frames(*arguments, **named):
    raise AssertionError("there is no video")
class Predictor:
    image_size = 64
    def init_state(self, path):
        images, height, width = load_video_frames(path)
        assert images[0].shape == (3, 64, 64) and len(images) > 1000
        return {"images": images, "size": (height, width), "masks": {}}
    def add_new_mask(self, state, frame_idx, obj_id, mask):
        state["masks"][obj_id] = mask
    def propagate_in_video(self, state):
        for t in range(len(state["images"])):
            state["images"][t]
            logits = torch.stack([mask.float() - 0.5 for mask in state["masks"].values()])
            yield t, list(state["masks"]), logits[:, None]
"""

_BUILD_SAM2 = """
from sam2.sam2_video_predictor import Predictor
def build_sam2_video_predictor(config, ckpt_path=None, device="cuda", apply_postprocessing=True):
    assert config == "configs/{config}.yaml" and ckpt_path is None and device == "cpu"
    return Predictor()
"""

FILES = {
    "cutie": {
        "cutie/__init__.py": "",
        "cutie/model/__init__.py": "",
        "cutie/model/utils/__init__.py": "",
        "cutie/model/utils/resnet.py": "def load_weights_add_extra_dim(*arguments): raise AssertionError",
        "cutie/model/cutie.py": _NETWORK.replace("Network", "CUTIE"),
        "cutie/inference/__init__.py": "",
        "cutie/inference/inference_core.py": _CORE,
        "cutie/config/eval_config.yaml": "{}",
        "cutie/config/model/base.yaml": "{}",
        "cutie/config/model/small.yaml": "{}",
        # a stand-in, since it need not be installed
        "omegaconf.py": """
            class OmegaConf:
                load = staticmethod(lambda path: {})
                merge = staticmethod(lambda *several: {k: v for one in several for k, v in one.items()})
        """,
    },
    "xmem": {
        "model/__init__.py": "",
        "model/resnet.py": "def load_weights_add_extra_dim(*arguments): raise AssertionError",
        "model/network.py": _NETWORK.replace("Network", "XMem"),
        "inference/__init__.py": "",
        "inference/memory_manager.py": "",
        "inference/inference_core.py": _CORE,
    },
    "sam2": {
        "sam2/__init__.py": "",
        "sam2/configs/sam2.1/sam2.1_hiera_t.yaml": "",
        "sam2/sam2_video_predictor.py": _SAM2,
        "sam2/build_sam.py": _BUILD_SAM2.format(config="sam2.1/sam2.1_hiera_t"),
    },
    "edgetam": {
        "sam2/__init__.py": "",
        "sam2/configs/edgetam.yaml": "",
        "sam2/sam2_video_predictor.py": _SAM2,
        "sam2/build_sam.py": _BUILD_SAM2.format(config="edgetam"),
        "timm/__init__.py": "def create_model(*arguments, **named): pass",
        "timm/models.py": "def create_model(*arguments, **named): pass",
    },
    "sam2_camera": {
        "sam2/__init__.py": "",
        "sam2/configs/sam2/sam2_hiera_t.yaml": "",
        "sam2/sam2_video_predictor.py": "",
        "sam2/sam2_camera_predictor.py": """
            import torch
            class Camera:
                def _init_state(self):
                    return {"device": "cuda", "storage_device": "cuda"}
                def load_first_frame(self, image):
                    assert image.ndim == 3
                    self.state, self.masks = self._init_state(), {}
                    assert {str(one) for one in self.state.values()} == {"cpu"}
                def add_new_mask(self, frame_idx, obj_id, mask):
                    self.masks[obj_id] = mask
                    return frame_idx, *self.track(None)
                def track(self, image):
                    logits = torch.stack([mask.float() - 0.5 for mask in self.masks.values()])
                    return list(self.masks), logits[:, None]
        """,
        "sam2/build_sam.py": """
            from sam2.sam2_camera_predictor import Camera
            def build_sam2_camera_predictor(config, ckpt_path, device, apply_postprocessing):
                assert config == "configs/sam2/sam2_hiera_t.yaml"
                return Camera()
        """,
    },
    "tvos": {
        "modeling/__init__.py": "",
        "modeling/network.py": """
            import torch
            class VOSNet(torch.nn.Module):
                def __init__(self, model):
                    super().__init__()
                    assert model == "resnet50"
                def forward(self, x):
                    return torch.nn.functional.avg_pool2d(x.cuda(), 8, ceil_mode=True)
        """,
        "lib/__init__.py": "",
        "lib/utils.py": """
            import torch
            def index_to_onehot(index, count):
                return torch.nn.functional.one_hot(index.reshape(-1), count).T.float()
        """,
        "lib/predict.py": """
            import numpy, torch
            from PIL import Image
            def prepare_first_frame(video, save, annotation, sigma1, sigma2):
                label = torch.from_numpy(numpy.asarray(Image.open(annotation)).astype(numpy.int))
                count = int(label.max()) + 1
                planes = torch.nn.functional.one_hot(label, count).permute(2, 0, 1).float()
                small = torch.nn.functional.adaptive_avg_pool2d(planes, [-(-one // 8) for one in label.shape])
                return small.reshape(count, 1, -1), count, None, None, None
            def predict(ref, target, ref_label, dense, sparse, frame_idx, args):
                assert len(ref) == ref_label.shape[1] == frame_idx and args.ref_num == 9
                return ref_label[:, 0]
        """,
    },
    "frtm": {
        "evaluate.py": """
            from model.tracker import Tracker
            class Parameters:
                def __init__(self, weights, fast=False, device="cuda:0"):
                    assert weights["refiner.TSE.layer4.reduce.0.weight"].shape[1] == 256
                def get_model(self):
                    return Tracker()
        """,
        "model/__init__.py": "",
        "model/feature_extractor.py": "",
        "model/seg_network.py": "",
        "model/tracker.py": """
            import torch
            class Tracker(torch.nn.Module):
                def initialize(self, image, labels, new_objects):
                    assert labels.shape[1:] == image.shape[1:] and self.current_frame == 0
                    planes = [(labels[0] == one).float() for one in new_objects]
                    self.masks = torch.stack([torch.zeros_like(planes[0]), *planes])
                def track(self, image):
                    assert self.current_frame > 0 and torch.is_grad_enabled()
                    return self.masks
        """,
    },
    "rgmp": {
        "utils.py": "",
        "run.py": "",
        "model.py": """
            import torch
            class RGMP(torch.nn.Module):
                def __init__(self):
                    super().__init__()
                    self.Encoder = lambda frame, mask: (mask, mask, frame, frame)
                def Decoder(self, r5, x5, r4, r3, r2):
                    assert r5.shape == x5.shape and r5.shape[1] % 32 == 0
                    logits = 20 * (x5 - 0.5)
                    return (torch.stack([-logits, logits], 1),)
        """,
    },
    "joint": {
        "pytracking/__init__.py": "",
        "pytracking/evaluation/__init__.py": "",
        "pytracking/evaluation/multi_object_wrapper.py": """
            class MultiObjectWrapper:
                def __init__(self, tracker_class, params, visdom):
                    assert tracker_class == "JOINT" and params.use_gpu is False
                def initialize(self, image, info):
                    assert info["init_bbox"].keys() == set(info["init_object_ids"])
                    self.mask = info["init_mask"]
                def track(self, image, info):
                    return {"segmentation": self.mask}
        """,
        "pytracking/tracker/__init__.py": "",
        "pytracking/tracker/joint/__init__.py": "def get_tracker_class(): return 'JOINT'",
        "pytracking/parameter/__init__.py": "",
        "pytracking/parameter/joint/__init__.py": "",
        "pytracking/parameter/joint/davis.py": """
            from types import SimpleNamespace
            def parameters(): return SimpleNamespace()
        """,
    },
}
"""Adapter -> file -> its text."""


def write_checkout(root: Path, peer: str) -> Path:
    """A toy checkout of a peer in a folder, which is made."""
    for name, text in FILES[peer].items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(dedent(text))
    return root
