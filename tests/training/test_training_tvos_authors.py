"""Training TVOS the authors' way: the loss word for word, the recipe, and a small training that works."""

from __future__ import annotations

import json
import math
import pickle
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import streamvos
from streamvos.datasets.clips import Clip
from streamvos.methods.tvos.method import TVOSExtractor
from streamvos.methods.tvos.options import TVOSNetwork
from streamvos.nn.resnet import resnet
from streamvos.training.davis_clips import CELL, AuthorsClipOptions
from streamvos.training.loop import TrainingOptions
from streamvos.training.tvos_authors import (
    Recipe,
    authors_loss,
    authors_recipe,
    authors_training,
    embed,
    initialize,
    train_tvos,
)
from streamvos.types import InputError
from streamvos.weights import read_checkpoint

NETWORK = TVOSNetwork(depth=18, stages=2, planes=(16, 32), embedding=32, normalize=True)
CLIPS = AuthorsClipOptions(size=32, frames=3)
OPTIONS = TrainingOptions(
    steps=60, batch=4, learning_rate=0.005, warmup=5, average=0.9, precision="float32", workers=0
)


class Pooled(nn.Module):
    """The simplest extractor: mean color of each cell, mixed into five channels."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Conv2d(3, 5, 1)

    def forward(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        self.saw_channels_last = images.is_contiguous(memory_format=torch.channels_last)
        return {"embedding": self.mix(F.avg_pool2d(images, CELL))}


class Moving:
    """A data set of one video: noise on which a square of label 1 moves on by a cell a frame."""

    names = ("moving",)

    def starts(self, count: int) -> list[int]:
        return list(range(8))

    def frames(self, i: int, count: int) -> Clip:
        rng = np.random.Generator(np.random.PCG64(i))
        images = rng.integers(0, 90, (count, 48, 64, 3), dtype=np.uint8)
        masks = np.zeros((count, 48, 64), np.uint8)
        for k in range(count):
            masks[k, 8:40, 8 * k : 8 * k + 24] = 1
            images[k][masks[k] == 1] += 120
        return Clip("moving", tuple(map(str, range(count))), images, masks)


def assert_same_runs(one: Path, other: Path) -> None:
    """Losses and weights bit for bit, and what the file says of them."""
    assert (one / "losses.jsonl").read_bytes() == (other / "losses.jsonl").read_bytes()
    first, second = (read_checkpoint(folder / "tvos.safetensors") for folder in (one, other))
    assert first.metadata == second.metadata
    assert first.tensors.keys() == second.tensors.keys()
    assert all(torch.equal(first.tensors[name], second.tensors[name]) for name in first.tensors)


def small_recipe(**changes) -> Recipe:
    return authors_recipe(Moving(), OPTIONS.model_copy(update=changes), CLIPS, NETWORK)


class TestLosses:
    def test_of_the_authors_equals_its_words(self, rng):
        """The last frame takes its labels from all others; a label that none has costs -log(1e-14)."""
        frames = torch.tensor(rng.integers(0, 256, (2, 3, 3, 32, 32)), dtype=torch.uint8)
        labels = torch.tensor(rng.integers(0, 3, (2, 3, 16)))
        labels[1, 2, 4] = 21
        extractor = Pooled()
        embedding = embed(extractor, frames).detach().double().numpy()
        costs = []
        for b in range(2):
            for cell in range(16):
                scores = np.array(
                    [embedding[b, k, c] @ embedding[b, 2, cell] for k in range(2) for c in range(16)]
                )
                shares = np.exp(scores) / np.exp(scores).sum()
                alike = (labels[b, :2].flatten() == labels[b, 2, cell]).numpy()
                costs.append(-math.log(shares[alike].sum() + 1e-14))
        assert max(costs) == pytest.approx(-math.log(1e-14))
        losses = authors_loss(extractor, {"frames": frames, "labels": labels})
        assert losses["total"].item() == pytest.approx(np.mean(costs), rel=1e-5)

    def test_give_the_frames_in_the_memory_format_of_the_network(self, rng):
        frames = torch.tensor(rng.integers(0, 256, (1, 2, 3, 32, 32)), dtype=torch.uint8)
        extractor = Pooled()
        authors_loss(extractor, {"frames": frames, "labels": torch.zeros(1, 2, 16).long()})
        assert extractor.saw_channels_last


class TestRecipes:
    def test_batches_can_be_made_in_other_processes(self):
        """Where processes are not forked, what makes the batches is sent to them."""
        recipe = small_recipe()
        sent = pickle.loads(pickle.dumps(recipe.make_batch))
        one, other = recipe.make_batch(3), sent(3)
        assert all(torch.equal(one[name], other[name]) for name in one)

    def test_the_authors_numbers(self):
        """docs/methods.md, TVOS: 240 epochs of 16 clips, four at a time."""
        recipe = authors_recipe(Moving(), authors_training(2, batch=4), AuthorsClipOptions(size=32))
        assert recipe.inference.network == TVOSNetwork()
        options = authors_training(steps_per_epoch=100)
        assert options.steps == 24_000
        assert (options.batch, options.parts) == (16, 4)
        assert (options.optimizer, options.weight_decay, options.warmup) == ("sgd", 3e-4, 0)
        assert (options.average, options.clip_gradient, options.precision) == (0, None, "float32")
        assert (
            AuthorsClipOptions().size,
            AuthorsClipOptions().frames,
            AuthorsClipOptions().color_jitter,
        ) == (256, 10, 0)
        assert authors_training(100, batch=6).parts == 1

    def test_the_authors_recipe_learns_to_follow(self, tmp_path):
        options = TrainingOptions(
            steps=12, batch=4, parts=2, optimizer="sgd", learning_rate=0.02, warmup=0, average=0,
            clip_gradient=None, precision="float32", workers=0,
        )  # fmt: skip
        network = TVOSNetwork(depth=18, stages=2, planes=(16, 32), embedding=32)
        recipe = authors_recipe(Moving(), options, AuthorsClipOptions(size=32, frames=4), network)
        totals = []
        train_tvos(recipe, tmp_path, lambda step, losses, seconds: totals.append(losses["total"]))
        assert np.mean(totals[-3:]) < 0.7 * np.mean(totals[:3])

    def test_a_data_set_smaller_than_a_batch_is_refused_at_once(self):
        with pytest.raises(InputError, match="a batch of 16 clips needs as many frames, got 8"):
            authors_recipe(Moving(), OPTIONS.model_copy(update={"batch": 16}), AuthorsClipOptions())
        with pytest.raises(InputError, match="a batch of 9 clips"):
            authors_recipe(Moving(), OPTIONS.model_copy(update={"batch": 9}), AuthorsClipOptions(size=32))

    @pytest.mark.filterwarnings("ignore:This DataLoader will create")  # on a machine with one core
    def test_workers_change_nothing(self, tmp_path):
        for workers in (0, 2):
            train_tvos(small_recipe(steps=3, workers=workers), tmp_path / str(workers))
        assert_same_runs(tmp_path / "0", tmp_path / "2")


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """The folder of a small training, some seconds long."""
    folder = tmp_path_factory.mktemp("trained")
    assert train_tvos(small_recipe(), folder) == folder / "tvos.safetensors"
    return folder


class TestTraining:
    def test_reduces_the_loss(self, trained):
        rows = [json.loads(line) for line in (trained / "losses.jsonl").read_text().splitlines()]
        assert [row["step"] for row in rows] == list(range(60))
        values = [row["total"] for row in rows]
        assert np.mean(values[-10:]) < 0.8 * np.mean(values[:10])

    def test_the_weights_come_with_their_options(self, trained):
        vos = streamvos.load("tvos", trained / "tvos.safetensors", device="cpu")
        options = vos.method.options
        assert options.network == NETWORK
        assert (
            streamvos.load("tvos", trained / "tvos.safetensors", device="cpu", top_k=3).method.options.top_k
            == 3
        )

    def test_the_metadata_tell_how_they_came_about_and_name_no_place(self, trained):
        metadata = read_checkpoint(trained / "tvos.safetensors").metadata
        assert metadata["method"] == "tvos"
        assert metadata["training"]["steps"] == 60
        assert metadata["recipe"]["name"] == "authors"
        assert metadata["options"]["network"] == NETWORK.model_dump(mode="json")
        text = json.dumps(metadata)
        assert str(trained.parent) not in text
        assert str(Path.home()) not in text
        assert not {"device", "workers"} & metadata["training"].keys()

    def test_the_folder_holds_what_is_promised(self, trained):
        pytest.importorskip("matplotlib")
        names = sorted(path.name for path in trained.iterdir())
        assert names == ["checkpoint.pt", "losses.jsonl", "losses.png", "tvos.safetensors"]

    def test_a_finished_run_is_left_alone(self, trained):
        before = {path: path.stat().st_mtime_ns for path in trained.iterdir()}
        sentences: list[str] = []
        train_tvos(small_recipe(), trained, say=sentences.append)
        assert {path: path.stat().st_mtime_ns for path in trained.iterdir()} == before
        assert len(sentences) == 1
        assert "nothing to do" in sentences[0]

    def test_weights_that_got_lost_are_written_again(self, trained, tmp_path):
        (tmp_path / "checkpoint.pt").write_bytes((trained / "checkpoint.pt").read_bytes())
        (tmp_path / "losses.jsonl").write_bytes((trained / "losses.jsonl").read_bytes())
        train_tvos(small_recipe(), tmp_path)
        assert_same_runs(trained, tmp_path)

    def test_another_recipe_in_its_folder_is_refused_by_name(self, trained):
        other = authors_recipe(Moving(), OPTIONS, CLIPS.model_copy(update={"color_jitter": 0.5}), NETWORK)
        with pytest.raises(InputError, match=r"recipe\.clips\.color_jitter: 0.0 there, 0.5 here"):
            train_tvos(other, trained)

    def test_without_matplotlib_the_weights_are_there_all_the_same(self, tmp_path, monkeypatch):
        for module in ("matplotlib", "matplotlib.figure"):
            monkeypatch.setitem(sys.modules, module, None)
        sentences: list[str] = []
        path = train_tvos(small_recipe(steps=2), tmp_path, say=sentences.append)
        assert read_checkpoint(path).tensors
        assert not (tmp_path / "losses.png").exists()
        assert len(sentences) == 1
        assert "pip install 'streamvos[train]'" in sentences[0]

    def test_an_interrupted_run_gives_the_same_weights(self, tmp_path):
        class Stop(Exception):  # noqa: N818, it is no error
            pass

        def stop(step: int, losses: dict[str, float], seconds: float) -> None:
            if step == 3:
                raise Stop

        for folder, interrupted in (("whole", False), ("resumed", True)):
            recipe = small_recipe(steps=5, checkpoint_seconds=0.0)
            if interrupted:
                with pytest.raises(Stop):
                    train_tvos(recipe, tmp_path / folder, stop)
            train_tvos(recipe, tmp_path / folder)
        assert_same_runs(tmp_path / "whole", tmp_path / "resumed")


class TestInitialWeights:
    @pytest.mark.parametrize("depth", [18, 50])
    def test_of_imagenet_are_taken_up_to_layer3(self, depth):
        """The authors' layer4 has half the width, so that it stays random; the classifier is passed over."""
        classifier = resnet(depth).state_dict()
        classifier |= {"fc.weight": torch.ones(1000, 512), "fc.bias": torch.ones(1000)}
        classifier["bn1.running_mean"] = torch.linspace(0, 1, 64)
        extractor = TVOSExtractor(TVOSNetwork(depth=depth, embedding=None if depth == 18 else 256))
        before = {name: value.clone() for name, value in extractor.state_dict().items()}
        taken = initialize(extractor, classifier)
        for name, value in extractor.state_dict().items():
            if name.endswith("num_batches_tracked"):
                continue
            expected = (
                before[name]
                if "layer4" in name or "backbone" not in name
                else classifier[name.removeprefix("backbone.")]
            )
            assert torch.equal(value, expected), name
            assert (name in taken) == ("backbone" in name and "layer4" not in name)

    def test_of_a_published_checkpoint_and_of_ours_are_taken_whole(self):
        torch.manual_seed(1)
        source = TVOSExtractor(NETWORK).state_dict()
        parts = {"conv1": "0", "bn1": "1", "layer1": "4", "layer2": "5"}
        theirs = {}
        for name, value in source.items():
            pieces = name.split(".")
            if pieces[0] == "backbone":
                pieces[1] = parts[pieces[1]]
            theirs["module." + ".".join(pieces)] = value
        for given in (source, theirs):
            torch.manual_seed(2)
            extractor = TVOSExtractor(NETWORK)
            initialize(extractor, given)
            assert all(torch.equal(value, source[name]) for name, value in extractor.state_dict().items())

    def test_that_do_not_fit_at_all_are_refused(self):
        with pytest.raises(
            InputError, match=r"none of the 2 initial weights fits.*conv1\.weight \(64, 3, 7, 7\)"
        ):
            initialize(TVOSExtractor(NETWORK), {"a": torch.zeros(3), "conv1.weight": torch.zeros(8, 3, 3, 3)})

    def test_that_hold_nan_are_refused_and_nothing_is_changed(self):
        extractor = TVOSExtractor(NETWORK)
        before = extractor.backbone.conv1.weight.clone()
        given = {"conv1.weight": torch.ones(64, 3, 7, 7), "bn1.weight": torch.full((64,), math.nan)}
        with pytest.raises(InputError, match=r"NaN or infinity in bn1\.weight"):
            initialize(extractor, given)
        assert torch.equal(extractor.backbone.conv1.weight, before)

    def test_decide_the_run(self, tmp_path):
        given = {"conv1.weight": torch.randn(64, 3, 7, 7) * 0.05}
        sentences: list[str] = []
        train_tvos(small_recipe(steps=1), tmp_path / "given", initial=given, say=sentences.append)
        train_tvos(small_recipe(steps=1), tmp_path / "random")
        logs = [(tmp_path / name / "losses.jsonl").read_text() for name in ("given", "random")]
        assert logs[0] != logs[1]
        assert sentences == [
            "initial weights: 1 entries taken; random: bn1, layer1, layer2, adjust_dim, bn256"
        ]
        assert (
            read_checkpoint(tmp_path / "given" / "tvos.safetensors").metadata["recipe"]["initial"]["entries"]
            == 1
        )
        other = {"conv1.weight": given["conv1.weight"] + 1}
        with pytest.raises(InputError, match=r"recipe\.initial\.digest"):
            train_tvos(small_recipe(steps=1), tmp_path / "given", initial=other)
