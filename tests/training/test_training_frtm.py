"""Training FRTM's segmentation network: what is trained, what is not, and that it learns."""

from __future__ import annotations

import pytest
import torch

import streamvos
from streamvos import InputError
from streamvos.methods.frtm import FRTM, FRTMOptions
from streamvos.synthetic.synthetic import SyntheticOptions, SyntheticVideo
from streamvos.training.frtm import SegmentationLoss, load_backbone, train_frtm
from streamvos.training.loop import TrainingOptions
from streamvos.training.synthetic_clips import SMALLEST_TARGET, ClipOptions, MaskClips

SMALL = {
    "depth": 18,
    "stages": 3,
    "planes": (16, 16, 16, 16),
    "strides": (1, 2, 1, 1),
    "target_channels": 8,
    "init_iterations": (5, 5),
    "update_iterations": 3,
}
CLIPS = ClipOptions(size=64, frames=3, largest_gap=2)


def training(steps: int) -> TrainingOptions:
    return TrainingOptions(
        steps=steps,
        batch=2,
        learning_rate=3e-3,
        warmup=2,
        average=0.0,
        workers=0,
        precision="float32",
        checkpoint_seconds=0,
    )


@pytest.fixture
def backbone() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return FRTM(FRTMOptions(**SMALL)).extractor.backbone.state_dict()


def test_a_clip_shows_one_object_that_is_there_at_first():
    clips = MaskClips(CLIPS, seed=1)
    batch = clips.batch(0, 6)
    assert batch["frames"].shape == (6, 3, 3, 64, 64)
    assert batch["masks"].shape == (6, 3, 64, 64)
    assert set(batch["masks"].unique().tolist()) == {0.0, 1.0}
    assert (batch["masks"][:, 0].sum((1, 2)) >= SMALLEST_TARGET).all()
    again = MaskClips(CLIPS, seed=1).batch(0, 6)
    assert all(torch.equal(batch[name], again[name]) for name in batch)


def test_only_the_segmentation_network_gets_a_gradient(backbone):
    method = FRTM(FRTMOptions(**SMALL))
    load_backbone(method.extractor, backbone)
    loss = SegmentationLoss(method)
    losses = loss(method.decoder.refiner.train(), MaskClips(CLIPS).batch(0, 2))
    losses["total"].backward()
    assert 0 <= float(losses["overlap"]) <= 1
    assert all(p.grad is None for p in method.extractor.parameters())
    assert all(p.grad is not None for p in method.decoder.parameters())
    assert not method.extractor.training


def test_it_learns_resumes_and_its_file_is_loaded(backbone, tmp_path):
    seen = {}

    def run(steps: int, folder: str):
        losses: list[float] = []
        path = train_frtm(
            training(steps),
            CLIPS,
            FRTMOptions(**SMALL),
            tmp_path / folder,
            backbone,
            lambda step, values, seconds: losses.append(values["total"]),
        )
        seen[folder] = losses
        return path

    path = run(40, "run")
    losses = seen["run"]
    assert sum(losses[-10:]) < 0.7 * sum(losses[:10])
    vos = streamvos.load("frtm", path, device="cpu")
    assert vos.method.options.planes == (16, 16, 16, 16)
    for name, value in vos.method.extractor.backbone.state_dict().items():
        if not name.endswith("num_batches_tracked"):
            assert torch.equal(value, backbone[name])
    video = SyntheticVideo(3, SyntheticOptions(size=(64, 96), length=3, objects=2, leave=0.0))
    vos.step(video[0].image, video[0].label_map)
    assert vos.step(video[1].image).object_ids == (1, 2)

    before = path.read_bytes()
    assert run(40, "run") == path  # nothing is left to do
    assert seen["run"] == []
    assert path.read_bytes() == before


def test_a_backbone_that_does_not_fit_is_refused(backbone, tmp_path):
    extractor = FRTM(FRTMOptions(**SMALL)).extractor
    with pytest.raises(InputError, match=r"1 of \d+ entries are missing or of another shape, such as conv1"):
        load_backbone(extractor, {n: v for n, v in backbone.items() if n != "conv1.weight"})
    prefixed = {f"extractor.backbone.{n}": v for n, v in backbone.items()}
    load_backbone(extractor, {**prefixed, "adjust_dim.weight": torch.zeros(1)})
    assert torch.equal(extractor.backbone.conv1.weight, backbone["conv1.weight"])
